"""The reaper, with processes of the driver's that would stay."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from processes import Patience, Processes

from unfreeze.sweep import reaper

SOCKETS = "/ray/session_0/sockets"
DRIVER = """
import subprocess, sys, time
from unfreeze.sweep.reaper import ending_with_driver
child = "import subprocess, sys, time; print(subprocess.Popen([*sys.argv[1:]]).pid, flush=True); time.sleep(1000)"
sleeps = [sys.executable, "-c", "import time; time.sleep(1000)"]
started = subprocess.Popen([sys.executable, "-c", child, *sleeps], stdout=subprocess.PIPE)
grandchild = started.stdout.readline().decode().strip()
with ending_with_driver(set(), "/ray/session_1/sockets", "the same command goes on"):
    subprocess.Popen([*sleeps, "/ray/session_1/sockets/raylet"], start_new_session=True)  # a worker on its way up
    print(started.pid, grandchild, flush=True)
    time.sleep(1000)
"""


def test_what_a_killed_driver_had_started_is_ended(tmp_path: Path, processes: Processes, patience: Patience) -> None:
    with (tmp_path / "pids").open("wb") as log:
        driver = processes.start([sys.executable, "-c", DRIVER], cwd=tmp_path, log=log)
    patience.wait(lambda: (tmp_path / "pids").read_text().endswith("\n"), 20, "children")
    numbers = (tmp_path / "pids").read_text()
    started = [psutil.Process(int(pid)) for pid in numbers.split()]
    assert len(started) == 2
    assert all(process.is_running() for process in started)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    patience.wait(lambda: not processes.alive(), reaper._GRACE_S + 5, "end of what was started, and of the reaper")
    assert (tmp_path / "pids").read_text() == f"{numbers}the same command goes on\n"


def test_a_number_that_nobody_has_any_more_is_no_error() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = subprocess.run(
        [sys.executable, reaper.__file__, SOCKETS, "", str(gone.pid)], stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0


def test_leaving_ends_what_was_started_meanwhile_and_nothing_older(capfd: pytest.CaptureFixture[str]) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(1000)"]
    with subprocess.Popen(sleep) as older, subprocess.Popen(sleep) as child:
        with reaper.ending_with_driver(reaper.children() - {psutil.Process(child.pid)}, SOCKETS, "too late"):
            assert child.poll() is None
        assert child.wait() == -signal.SIGKILL
        assert older.poll() is None
        older.kill()
    assert capfd.readouterr().err == ""
