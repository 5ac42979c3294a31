"""Sweeps under seeded faults: whatever is killed or stopped, the ledger is that of an undisturbed run.

python ops/chaos.py --cases 20 --save chaos.jsonl   # once more: it goes on where it was cut
python ops/chaos.py --cases 4 --each 3 --faults kill:board stop:driver -- search.num_trials=8
python ops/chaos.py --table chaos.jsonl

Each case is a small sweep with a Ray of its own (`--standing`: all join one), and a folder or S3 behind it that fails.
It is hit at `--each` moments; the same command is run again for as long as it ends with another code than 0; and one
JSON line is written. Exit code 1 where a ledger differs, a finished trial was run again, a fault cost more than one
report, an ending says nothing, or a process is left.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "ops"), str(ROOT / "tests/fixtures")]

from victim import CASE_S, NAME, Head, Run, find, temporary_folder  # noqa: E402

from unfreeze.records import TrialRecord, TrialState  # noqa: E402
from unfreeze.storage.ledger import Ledger  # noqa: E402

OPTIONS = [
    "experiment=demo",
    f"sweep.name={NAME}",
    "tracking.uri=null",
    "data.max_train_images=40",
    "data.max_val_images=40",
    "finetune.epochs=150",  # a second or two of training
    "search.concurrency=2",
    "search.num_trials=3",
    "search.start_learning_rates=[0.1]",
    "search.confirm_top=1",
    "search.confirm_seeds=1",
    "cluster.heartbeat_timeout_s=15",  # below the longest stop: what wakes up then is late
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
    "fill:disk",
    "fill:ray",
    "storm:s3",
]
ALL_SLOTS = (
    "driver",
    "raylet",
    "gcs",
    "disk",
    "ray",
    "s3",
)  # what these hit all slots lose alike: one is enough, and cheaper
MEASURED = "_pre-pass"  # of the storage: what is known of the plasticity
# Where what is filled lies: the ledger, until the command ends over it; Ray's logs and spilled objects, for a while.
DISKS = {"disk": "runs", "ray": "ray"}
DISK_BYTES = 64 * 2**20  # a few times what either takes
WAYS_ON = ("run the same command", "make room there")
STOPPED_S = (2.0, 20.0)
STORM_S = (5.0, 20.0)
STORM_SHARE = 0.3  # of the requests
OWN = ("raylet", "gcs", "ray", "s3")  # what is hit of a Ray of one's own; a standing one's workers know no S3 of ours


def comparable(ledger: Ledger) -> Any:
    """What must not depend on faults: specs, states, every report's numbers, the answer and the exported model."""
    final = ledger.read_json("final.json")
    answer = final and {key: final[key] for key in ("trial_id", "selection", "test_correct", "export_sha256")}
    return [*map(_numbers, ledger.trials())], answer


def _numbers(record: TrialRecord) -> Any:
    reports = [(r.images_seen, r.train_loss, r.val_loss, r.val_accuracy) for r in record.reports]
    return record.spec, record.state, record.trainable_parameters, reports


# --- faults -----------------------------------------------------------------------------------------------------------


def hit(run: Run, driver: subprocess.Popen[bytes], fault: str, rng: random.Random, line: Any) -> bool:
    """Do one fault; False where there is no process of the kind. ``line``: of `storm_line`."""
    how, _, what = fault.partition(":")
    if how == "twice":
        run.wait_for(lambda _: run.has_sweep(driver), driver)  # before, the second would be the first
        code = run.start().wait(CASE_S)
        return code == 75 and "is being run by" in run.last_lines(5)
    if how == "fill":
        with full_disk(run.folder / DISKS[what]):
            if what == "disk":
                return run.end(driver) in (2, 75)  # 2: it was full before the sweep began
            time.sleep(rng.uniform(*STOPPED_S))
            return True
    if how == "storm":
        return _storm(line, rng)
    root = psutil.Process(driver.pid if run.head is None else run.head.pid)
    found = [psutil.Process(driver.pid)] if what == "driver" else list(find(TARGETS[what], root))
    if not found:
        return False
    victim = rng.choice(found)
    victim.send_signal({"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[how])
    if how == "stop":
        time.sleep(rng.uniform(*STOPPED_S))
        with contextlib.suppress(psutil.NoSuchProcess):  # taken for dead by Ray, and ended
            victim.send_signal(signal.SIGCONT)
    return True


def _storm(line: Any, rng: random.Random) -> bool:
    from faulty_proxy import Fault

    kinds = [Fault.LATE, Fault.RESET, Fault.UNANSWERED, Fault.BUSY, Fault.HALF, Fault.DAMAGED, Fault.SKEWED]
    line.plan(rng.choice(kinds) if rng.random() < STORM_SHARE else None for _ in itertools.count())
    time.sleep(rng.uniform(*STORM_S))
    num_faults = sum(fault is not None for _, fault in line.met)
    line.plan(())
    return num_faults > 0


@contextlib.contextmanager
def storm_line() -> Iterator[Any]:
    """An S3 server of our own, and the line to it, which does as it is told."""
    import boto3
    from faulty_proxy import FaultyProxy
    from moto_server import moto_server

    keys = {"AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": "chaos", "AWS_DEFAULT_REGION": "us-east-1"}
    with moto_server() as address, FaultyProxy(address) as line:
        os.environ.update(keys | {"AWS_ENDPOINT_URL": line.url})
        boto3.resource("s3").create_bucket(Bucket=NAME)
        yield line


@contextlib.contextmanager
def full_disk(place: Path) -> Iterator[None]:
    """No room there, until it is left."""
    ballast = place / ".ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # others write there too
        while True:
            file.write(bytes(2**20))
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[None]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


# --- cases ------------------------------------------------------------------------------------------------------------


def play(run: Run, faults: list[str], expected: Any, rng: random.Random, line: Any) -> dict[str, Any]:
    """One case; returns its JSON line."""
    started, driver = time.monotonic(), run.start()
    num_reports = sum(len(record[-1]) for record in expected[0])
    moments = sorted(rng.randrange(num_reports * 3 // 4) for _ in faults)
    hits: list[bool] = []
    codes: list[int | None] = []
    endings: list[str] = []
    left: list[str] = []

    def end() -> bool:
        """Whether the sweep has come to its answer, or the case's time is up."""
        codes.append(run.end(driver))
        left.extend(run.clean_up())
        endings.append(run.last_lines())  # after what a command leaves behind has had its word
        return codes[-1] in (0, None) or len(codes) == 5 + len(faults)

    while True:
        while len(hits) < len(faults):
            moment = moments[len(hits)]

            def is_time(trials: list[TrialRecord], moment: int = moment) -> bool:
                is_running = any(record.state is TrialState.RUNNING for record in trials)
                is_far = sum(len(record.reports) for record in trials) >= moment
                return run.has_spoken and (is_running or moment == 0) and is_far

            if not run.wait_for(is_time, driver):
                break
            hits.append(hit(run, driver, faults[len(hits)], rng, line))
        if end():
            break
        driver = run.start()
    return {
        "faults": faults,
        "after_reports": moments,
        "happened": hits,
        "codes": codes,
        "equal": comparable(run.ledger) == expected,
        "run_twice": sorted(run.run_twice),
        "redone": run.most_redone,
        "endings": endings[:-1],  # the last one's is the report
        "left": left,
        "seconds": round(time.monotonic() - started, 1),
    }


def is_sound(line: dict[str, Any]) -> bool:
    """Equal ledgers, nothing done twice, nothing left; each ending 0, a kill of ours, or a sentence how to go on."""
    has_words = all(
        code == -signal.SIGKILL or any(words in ending for words in WAYS_ON)
        for code, ending in zip(line["codes"], line["endings"], strict=False)
    )
    once = not line["run_twice"] and line["redone"] <= 1
    return (
        any(line["happened"]) and line["equal"] and once and line["codes"][-1] == 0 and has_words and not line["left"]
    )


def chosen(faults: list[str], seed: int) -> Iterator[str]:
    """Each as often as any other, in an order of the seed's."""
    rng = random.Random(seed)
    while True:
        rng.shuffle(faults := list(faults))
        yield from faults


@contextlib.contextmanager
def undisturbed(options: list[str], place: Path | None, head: Head | None) -> Iterator[Path]:
    """The storage of a sweep that nothing befell; kept at ``place``, and not run again where it is there."""
    with contextlib.ExitStack() as stack:
        if place is None:
            place = Path(stack.enter_context(temporary_folder()))
        place.mkdir(parents=True, exist_ok=True)
        with Run(place.resolve(), options, head=head) as run:
            if run.ledger.read_json("final.json") is None and run.end(run.start()) != 0:
                raise SystemExit(f"the undisturbed sweep failed: {run.last_lines()}")
        yield place / "runs"


def run_case(
    options: list[str], faults: list[str], known: Path, rng: random.Random, head: Head | None
) -> tuple[dict[str, Any], str]:
    """The JSON line of one case, and the end of what the command said. ``known``: of `undisturbed`."""
    expected = comparable(Ledger(str(known), NAME))
    kinds = {fault.partition(":")[2] for fault in faults}
    is_small = kinds <= set(ALL_SLOTS) or rng.random() < 0.6
    options = [*options, f"cluster.num_slots={1 if is_small else 2}"]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(temporary_folder())).resolve()
        line = stack.enter_context(storm_line()) if "s3" in kinds else None
        for name in kinds & DISKS.keys():
            stack.enter_context(small_disk(folder / DISKS[name]))
        run = stack.enter_context(Run(folder, options, f"s3://{NAME}/{folder.name}" if line else None, head))
        if line is None and rng.random() < 0.8:  # the others have their pre-pass among what is hit
            shutil.copytree(known / MEASURED, folder / "runs" / MEASURED)
        return play(run, faults, expected, rng, line), run.last_lines(400)


def table(lines: list[dict[str, Any]]) -> str:
    """In Markdown: each fault's hits, in how many sweeps, and how many of those were sound."""
    sweeps: dict[str, list[dict[str, Any]]] = defaultdict(list)
    hits: dict[str, int] = defaultdict(int)
    for line in lines:
        for fault, happened in zip(line["faults"], line["happened"], strict=False):
            hits[fault] += happened
            if happened and line not in sweeps[fault]:
                sweeps[fault].append(line)
    rows = ["| fault | hits | sweeps | sound |", "| --- | --- | --- | --- |"]
    rows += [f"| {f} | {hits[f]} | {len(sweeps[f])} | {sum(map(is_sound, sweeps[f]))} |" for f in FAULTS if hits[f]]
    return "\n".join([*rows, f"| all | {sum(hits.values())} | {len(lines)} | {sum(map(is_sound, lines))} |"])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--each", type=int, default=1, help="faults of a case, one after another")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS, metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--standing", action="store_true", help=f"one Ray for all; without {', '.join(OWN)}")
    parser.add_argument("--undisturbed", type=Path, metavar="FOLDER", help="of short path; kept, and not run again")
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="append the lines there; those in it are not run again"
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print what such a file comes to")
    parser.add_argument("options", nargs="*", help="of the sweep, after --")
    given = parser.parse_args(arguments)
    if given.table is not None:
        print(table(list(map(json.loads, given.table.read_text().splitlines()))))
        return 0
    saved = given.save.read_text().splitlines() if given.save is not None and given.save.exists() else []
    done = {(line["seed"], line["case"]) for line in map(json.loads, saved)}
    faults = [f for f in given.faults if not (given.standing and f.partition(":")[2] in OWN)]
    options, order = [*OPTIONS, *given.options], chosen(faults, given.seed)
    is_good = True
    with contextlib.ExitStack() as stack:
        head = stack.enter_context(Head()) if given.standing else None
        known = stack.enter_context(undisturbed(options, given.undisturbed, head))
        for number in range(given.cases):
            hits = list(itertools.islice(order, given.each))
            if (given.seed, number) in done:
                continue
            played, said = run_case(options, hits, known, random.Random(f"{given.seed}/{number}"), head)
            line = {"case": number, "seed": given.seed, "standing": given.standing, **played}
            print(json.dumps(line), flush=True)
            if given.save is not None:
                with given.save.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            if not is_sound(line):
                is_good = False
                print(said, file=sys.stderr, flush=True)
    return 0 if is_good else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends the case's processes
    sys.exit(main(sys.argv[1:]))
