"""Ctrl-C and SIGTERM, as any command meets them; what a sweep leaves then is in integration/test_sweep.py."""

import signal
import sys
from pathlib import Path

import pytest
from configuring import SWEEPS
from processes import Processes

COMMAND = """
import sys, time
sys.path.insert(0, sys.argv[1])
import entry
with entry._exit_codes():
    try:
        print("working", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        if sys.argv[3] == "replaced":
            raise KeyboardInterrupt from None
        raise
    finally:
        print("unwinding", flush=True)
        time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(("again", "raised"), [(False, "kept"), (True, "kept"), (False, "replaced")])
def test_the_first_signal_unwinds_and_says_how_to_go_on_and_the_second_does_not_wait(
    number: signal.Signals, code: int, again: bool, raised: str, tmp_path: Path, processes: Processes
) -> None:
    """Replaced: as Ray does with what a handler raises in one of its calls."""
    said = tmp_path / "log"
    with said.open("wb") as log:
        process = processes.start(
            [sys.executable, "-c", COMMAND, str(SWEEPS), "600" if again else "0", raised], cwd=tmp_path, log=log
        )
    for word in ("working", "unwinding") if again else ("working",):
        processes.patience.wait(lambda word=word: word in said.read_text(), 30, word)
        process.send_signal(number)
    assert processes.wait(process, 30) == code
    sentence = (
        f"stopped by {number.name}: nothing that finished is lost, run the same command and it goes on where it "
        f"stopped (exit code {code})"
    )
    assert sorted(said.read_text().splitlines()) == sorted(["working", "unwinding", sentence])
