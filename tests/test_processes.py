"""The fixture that starts processes: none is left, and a busy machine is waited for."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from processes import Patience, Processes

# Starts a child in a session of its own that sleeps, says which, and ends or sleeps as well.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(float(sys.argv[1]))
child.returncode = 0
"""


class Measured(Patience):
    """A machine that gets as slow as the list says, each time that it is looked at."""

    def __init__(self, *factors: float) -> None:
        self.factor, self._factors = 1.0, list(factors)

    def measure(self) -> None:
        self.factor = self._factors.pop(0) if self._factors else self.factor


def start(started: Processes, folder: Path, sleep_s: float) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    with (folder / "log").open("wb") as log:
        process = started.start([sys.executable, "-c", PARENT, str(sleep_s)], cwd=folder, log=log)
    started.patience.wait(lambda: (folder / "log").read_text().endswith("\n"), 600, "child")
    return process, psutil.Process(int((folder / "log").read_text()))


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_failing_test_leaves_nothing(tmp_path: Path) -> None:
    seen = []

    def fail() -> None:
        with Processes(Measured()) as started:
            seen.extend(start(started, tmp_path, 600))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen[0].returncode is not None
    assert has_ended(seen[1])


def test_what_a_command_leaves_behind_is_said_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "REST_S", 0.2)
    seen = []

    def desert() -> None:
        with Processes(Measured()) as started:
            seen.extend(start(started, tmp_path, 0))
            assert started.wait(seen[0], 600) == 0

    with pytest.raises(AssertionError, match=r"left behind: .*sleep\(600\)"):
        desert()
    assert has_ended(seen[1])


def test_a_wait_that_is_over_ends_the_command(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no end of"), Processes(Measured()) as started:
        started.run([sys.executable, "-c", "import time; time.sleep(600)"], cwd=tmp_path, quiet_s=0.1)
    assert not started.alive()


def test_output_and_exit_code_are_kept_apart(tmp_path: Path, processes: Processes) -> None:
    done = processes.run([sys.executable, "-c", "print('out'); raise SystemExit('err')"], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "err\n")


def test_a_slower_machine_is_waited_for_and_a_stuck_one_is_not() -> None:
    looks = iter([False] * 3 + [True])
    assert Measured(2.0, 1000.0).wait(lambda: next(looks), 0.06, "answer") is True
    with pytest.raises(AssertionError, match=r"no answer in 0 s, 3\.0 times a quiet machine's wait"):
        Measured(2.0, 3.0).wait(lambda: False, 0.01, "answer")
