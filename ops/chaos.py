"""Sweeps under seeded faults: whatever is killed or stopped, the ledger is that of an undisturbed run.

python ops/chaos.py --cases 20 --seed 0 > chaos.jsonl
python ops/chaos.py --cases 4 --faults kill:board stop:driver -- search.num_trials=8

Each case runs a small sweep with a Ray of its own, hits one process at a moment of the run, runs the same command again
for as long as it ends with another code than 0, and prints one JSON line. Exit code 1 where a ledger differs, an ending
says nothing, or a process is left.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "platform"))

from unfreeze.records import TrialRecord, TrialState  # noqa: E402
from unfreeze.storage.ledger import Ledger  # noqa: E402

OPTIONS = [
    "experiment=demo",
    "sweep.name=chaos",
    "tracking.uri=null",
    "data.max_train_images=100",
    "finetune.epochs=8",
    "search.num_trials=4",
    "search.start_learning_rates=[0.1]",
    "search.confirm_top=1",
    "search.confirm_seeds=1",
]
# What a process of the driver's tree is called; the driver itself is not among them.
TARGETS = {
    "board": "ray::Board",
    "worker": "ray::RayTrainWorker",
    "controller": "ray::TrainController",
    "trial": "SlotTrial",
    "raylet": "raylet/raylet",
    "gcs": "gcs_server",
}
FAULTS = [f"{how}:{what}" for how in ("kill", "stop") for what in ("driver", *TARGETS)] + [
    "term:driver",
    "twice:driver",
]
STOPPED_S = (2.0, 20.0)
CASE_S = 600.0  # until a case is given up
GONE_S = 15.0  # after its driver a process may live so long
MARK = "UNFREEZE_CHAOS"


def comparable(ledger: Ledger) -> Any:
    """What must not depend on faults: specs, states, every report's numbers, the answer and the exported model."""
    final = ledger.read_json("final.json")
    answer = final and {key: final[key] for key in ("trial_id", "selection", "test_correct", "export_sha256")}
    return [*map(_numbers, ledger.trials())], answer


def _numbers(record: TrialRecord) -> Any:
    reports = [(r.images_seen, r.train_loss, r.val_loss, r.val_accuracy) for r in record.reports]
    return record.spec, record.state, record.trainable_parameters, reports


class Run:
    """The command in a folder of its own, again and again."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.ledger = Ledger(str(folder / "runs"), "chaos")
        self._folder, self._options, self._mark = folder, options, uuid.uuid4().hex
        self._deadline = time.monotonic() + CASE_S

    def start(self) -> subprocess.Popen[bytes]:
        # A short place for Ray's sockets, whose paths may have 107 bytes.
        own = {"HOME": str(self._folder), "RAY_TMPDIR": str(self._folder), MARK: self._mark}
        command = [sys.executable, str(ROOT / "sweeps/vit_components.py"), *self._options]
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self._folder, env=os.environ | own, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_for(self, condition: Callable[[], Any], driver: subprocess.Popen[bytes]) -> bool:
        """Whether it came true before the driver ended and the case's time was up."""
        while driver.poll() is None and time.monotonic() < self._deadline:
            if condition():
                return True
            time.sleep(0.1)
        return False

    def end(self, driver: subprocess.Popen[bytes]) -> int | None:
        """The driver's exit code; None where it had to be killed because the case's time was up."""
        try:
            return driver.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()
            return None

    def last_lines(self, count: int = 1) -> str:
        """Of what the command said, blank ones left out."""
        lines = (self._folder / "log").read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-count:])

    def left(self) -> list[psutil.Process]:
        """What was started here and still runs."""
        return [process for process in psutil.process_iter() if self._is_own(process)]

    def _is_own(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.clean_up(0.0)

    def clean_up(self, patience_s: float = GONE_S) -> list[str]:
        """Kill what outlived its driver by so much; returns what that was."""
        until = time.monotonic() + patience_s
        while (left := self.left()) and time.monotonic() < until:
            time.sleep(0.5)
        names = [_name(process) for process in left]
        while left:
            for process in left:
                with contextlib.suppress(psutil.Error):  # gone meanwhile
                    process.kill()
            psutil.wait_procs(left, timeout=5)
            left = self.left()
        return names


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:60]
    except psutil.Error:
        return str(process.pid)


def hit(run: Run, driver: subprocess.Popen[bytes], fault: str, rng: random.Random) -> bool:
    """Do one fault to one process; False where there is none of the kind."""
    how, _, what = fault.partition(":")
    if how == "twice":
        second = run.start()
        code = second.wait(CASE_S)
        return code == 75 and "is being run by" in run.last_lines()
    found = [psutil.Process(driver.pid)] if what == "driver" else list(_find(TARGETS[what], driver))
    if not found:
        return False
    victim = rng.choice(found)
    victim.send_signal({"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[how])
    if how == "stop":
        time.sleep(rng.uniform(*STOPPED_S))
        victim.send_signal(signal.SIGCONT)
    return True


def _find(title: str, driver: subprocess.Popen[bytes]) -> Iterator[psutil.Process]:
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                yield process
        except psutil.Error:  # gone meanwhile
            continue


def play(number: int, fault: str, expected: Any, rng: random.Random, run: Run) -> dict[str, Any]:
    """One case; returns its JSON line."""
    started, driver = time.monotonic(), run.start()
    num_reports = rng.randrange(1, max(2, sum(len(record[-1]) for record in expected[0]) * 2 // 3))

    def is_time() -> bool:
        trials = run.ledger.trials()
        is_running = any(record.state is TrialState.RUNNING for record in trials)
        return is_running and sum(len(record.reports) for record in trials) >= num_reports

    happened = run.wait_for(is_time, driver) and hit(run, driver, fault, rng)
    codes, endings = [run.end(driver)], [run.last_lines()]
    left = run.clean_up()
    while codes[-1] not in (0, None) and len(codes) < 5:
        codes.append(run.end(run.start()))
        endings.append(run.last_lines())
        left += run.clean_up()
    return {
        "case": number,
        "fault": fault,
        "after_reports": num_reports,
        "happened": happened,
        "codes": codes,
        "equal": comparable(run.ledger) == expected,
        "endings": endings[:-1],  # the last one's is the report
        "left": left,
        "seconds": round(time.monotonic() - started, 1),
    }


def is_sound(line: dict[str, Any]) -> bool:
    """Equal ledgers, and every ending 0, a kill of ours, or a code with a sentence that says how to go on."""
    has_words = all("run the same command" in ending for ending in line["endings"])
    ended_well = line["codes"][-1] == 0 and (has_words or line["fault"] == "kill:driver")
    return line["happened"] and line["equal"] and ended_well


@contextlib.contextmanager
def fresh_run(options: list[str], place: Path | None = None) -> Iterator[Run]:
    with contextlib.ExitStack() as stack:
        if place is None:
            temporary = tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True)
            place = Path(stack.enter_context(temporary))
        place.mkdir(parents=True, exist_ok=True)
        yield stack.enter_context(Run(place.resolve(), options))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS, metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--undisturbed", type=Path, metavar="FOLDER", help="of short path; kept, and not run again")
    parser.add_argument("options", nargs="*", help="of the sweep, after --")
    given = parser.parse_args(arguments)
    options, rng = [*OPTIONS, *given.options], random.Random(given.seed)
    faults = [given.faults[number % len(given.faults)] for number in range(given.cases)]
    rng.shuffle(faults)
    is_good = True
    with fresh_run(options, given.undisturbed) as undisturbed:
        if undisturbed.end(undisturbed.start()) != 0:
            print(f"the undisturbed sweep failed: {undisturbed.last_lines()}", file=sys.stderr)
            return 1
        expected = comparable(undisturbed.ledger)
    for number, fault in enumerate(faults):
        with fresh_run(options) as run:
            line = play(number, fault, expected, rng, run)
            print(json.dumps(line), flush=True)
            if not is_sound(line):
                is_good = False
                print(run.last_lines(40), file=sys.stderr, flush=True)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
