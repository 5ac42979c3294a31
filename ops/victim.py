"""What ops/chaos.py hits: the command in a folder of its own, and a Ray that such commands may join."""

import contextlib
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from unfreeze.records import TrialRecord
from unfreeze.storage.lease import last_lease
from unfreeze.storage.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]
NAME = "chaos"
CASE_S = 1800.0  # until a case is given up; on a crowded machine a sweep alone takes five minutes
GONE_S = 15.0  # after its driver a process may live so long
MARK = "UNFREEZE_CHAOS"
# Ray's own, of a node or a cluster, whoever has jobs there. Ray Train leaves the last two detached: the third for all
# jobs to come; the fourth, one of each controller that was killed, asks the dashboard for it, until that knows.
AGENTS = (
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
    "ray::_AutoscalingCoordinatorActor",
    "ray::PlacementGroupCleaner",
)


class Run:
    """The command in a folder of its own, again and again; what its ledger tells meanwhile."""

    def __init__(
        self, folder: Path, options: list[str], storage: str | None = None, head: "Head | None" = None
    ) -> None:
        self.folder, self.head = folder, head
        self.ledger = Ledger(storage or str(folder / "runs"), NAME)
        self.run_twice: set[str] = set()  # trials whose finished record was replaced
        self.most_redone = 0  # reports that were there, and trained again
        self._before: dict[str, TrialRecord] = {}
        self._options = options if storage is None else [*options, f"storage={storage}"]
        self._mark = uuid.uuid4().hex
        self._said_before = 0
        self._deadline = time.monotonic() + CASE_S

    def start(self) -> subprocess.Popen[bytes]:
        own = {
            "HOME": str(self.folder),
            "RAY_TMPDIR": str(self.folder),  # short, since its sockets' paths may have 107 bytes
            "RAY_worker_niceness": "0",  # of 15, its default, little is left where others work too
            MARK: self._mark,
        }
        own |= self.head.variables if self.head is not None else {}
        command = [sys.executable, str(ROOT / "sweeps/vit_components.py"), *self._options]
        with (self.folder / "log").open("ab") as log:
            self._said_before = log.tell()
            return subprocess.Popen(
                command, cwd=self.folder, env=os.environ | own, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def has_spoken(self) -> bool:
        """Whether the last command that was started said something: before, no signal finds its handler."""
        return (self.folder / "log").stat().st_size > self._said_before

    def has_sweep(self, driver: subprocess.Popen[bytes]) -> bool:
        """Whether the sweep's lease is the driver's."""
        _, lease = last_lease(self.ledger)
        return lease is not None and lease.pid == driver.pid

    def look(self) -> list[TrialRecord]:
        """The records; notes what was done twice since the last look."""
        trials = self.ledger.trials()
        for record in trials:
            before = self._before.get(record.spec.trial_id)
            if before is not None and record.attempts > before.attempts:
                if before.state.is_final:
                    self.run_twice.add(record.spec.trial_id)
                self.most_redone = max(self.most_redone, len(before.reports) - len(record.reports))
            self._before[record.spec.trial_id] = record
        return trials

    def wait_for(self, condition: Callable[[list[TrialRecord]], Any], driver: subprocess.Popen[bytes]) -> bool:
        """Whether it came true before the driver ended and the case's time was up."""
        while driver.poll() is None and time.monotonic() < self._deadline:
            if condition(self.look()):
                return True
            time.sleep(0.1)
        return False

    def end(self, driver: subprocess.Popen[bytes]) -> int | None:
        """The driver's exit code; None where it had to be killed because the case's time was up."""
        self.wait_for(lambda _: False, driver)
        code = driver.poll()
        if code is None:
            driver.kill()
            driver.wait()
        return code

    def last_lines(self, count: int = 1) -> str:
        """Of what the command said, blank ones left out."""
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-count:])

    def left(self) -> list[psutil.Process]:
        """What was started here and still runs."""
        of_head = self.head.workers() if self.head is not None else []
        return [*of_head, *(process for process in psutil.process_iter() if self._is_own(process))]

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


class Head:
    """A Ray that all cases join, as a standing cluster is; a context manager."""

    variables: dict[str, str]
    pid: int

    def __enter__(self) -> "Head":
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(temporary_folder())
        (token := Path(folder, "token")).write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port=0", "--num-cpus=2"]
        # Its dashboard is what tells Ray Train's cleaners (AGENTS) that their controller is gone.
        command += ["--dashboard-port=0", "--disable-usage-stats", f"--temp-dir={folder}"]
        own = {"RAY_worker_niceness": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
        with (log := Path(folder, "log")).open("wb") as file:
            process = subprocess.Popen(command, env=os.environ | self.variables | own, stdout=file, stderr=file)
        self.pid = process.pid
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        while not (said := re.search(r"ray start --address='([^']+)'", log.read_text())):
            if process.poll() is not None:
                raise SystemExit(f"Ray's head did not come up: {log.read_text()}")
            time.sleep(0.5)
        self.variables["RAY_ADDRESS"] = said[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def workers(self) -> list[psutil.Process]:
        """What a job has started here and not ended."""
        found = find("ray::", psutil.Process(self.pid))
        return [process for process in found if not _name(process).startswith(("ray::IDLE", *AGENTS))]


def find(title: str, root: psutil.Process) -> Iterator[psutil.Process]:
    """Processes below ``root`` with this in their command line."""
    for process in root.children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                yield process
        except psutil.Error:  # gone meanwhile
            continue


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Short, since the paths of Ray's sockets may have 107 bytes; what a killed Ray has open there is left."""
    return tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True)
