"""What is said while trials run."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from finished_sweep import make_trial
from rich.console import Console

from unfreeze.records import TrialState, to_dict
from unfreeze.sweep import progress
from unfreeze.sweep.progress import Progress


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def board(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Who holds which trial."""
    monkeypatch.setattr(ray, "get", lambda found, timeout: found)
    held = {"trial-00000": "slot-0", "trial-00001": "slot-1"}
    return SimpleNamespace(holders=SimpleNamespace(remote=lambda: held))


def search_of(*records: Any, max_trials: int = 5) -> Any:
    return SimpleNamespace(final={record.spec.index: record for record in records}, max_trials=max_trials)


def tune_trial(index: int, selection: str = "mha") -> Any:
    spec = to_dict(make_trial(index, selection, 0.9).spec)
    return SimpleNamespace(trial_id=f"tune-{index}", status="RUNNING", config={"trial": spec})


def result(images: int, accuracy: float) -> dict[str, Any]:
    return {"images_seen": images, "val_accuracy": accuracy}


def test_what_was_stopped_or_diverged_is_not_the_best(board: Any, capsys: pytest.CaptureFixture[str]) -> None:
    search = search_of(
        make_trial(0, "mha", 0.95, state=TrialState.STOPPED),
        make_trial(1, "all", 0.99, state=TrialState.DIVERGED),
    )
    shown = Progress(search, [], board, images=3000)
    lost = SimpleNamespace(get_pickled_error=lambda: None, get_error=lambda: "RuntimeError: lost")
    shown.on_trial_error(0, [], lost)
    assert "best" not in capsys.readouterr().err
    search.final[2] = make_trial(2, "fc1", 0.76)
    shown.on_trial_error(0, [], lost)
    assert "1 stopped early · 1 failed or diverged · best 76.0% (fc1, lr 0.01)" in capsys.readouterr().err


def test_a_log_gets_a_line_every_ten_seconds_at_most(
    board: Any, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, trial = Progress(search_of(), [], board, images=3000), tune_trial(0)
    with shown:  # standard error is no terminal here
        for second in range(1, 31):
            clock.now += 1
            shown.on_trial_result(0, [trial], trial, result(100 * second, 0.5))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["0/5 trials done · 1 running · 0 stopped early · 100 images/s"] * 3


def test_silence_is_no_longer_than_half_a_minute(board: Any, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(search_of(), [], board, images=3000)
    for _ in range(65):
        clock.now += 1
        shown.on_step_end(0, [])
    assert capsys.readouterr().err.splitlines() == ["0/5 trials done · 0 running · 0 stopped early"] * 2


def test_the_last_trial_is_said_at_once_and_ends_are_told_on(
    board: Any, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[int] = []
    search = search_of(max_trials=1)
    shown = Progress(search, [lambda: told.append(1)], board, images=3000)
    search.final[0] = make_trial(0, "fc1", 0.76)
    shown.on_trial_complete(0, [], tune_trial(0))
    assert capsys.readouterr().err == "1/1 trials done · 0 running · 0 stopped early · best 76.0% (fc1, lr 0.01)\n"
    assert told == [1]


def test_a_terminal_has_a_panel_of_the_slots(
    board: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=stream, force_terminal=True, width=90))
    monkeypatch.setenv("TERM", "xterm")
    trials = [tune_trial(0, "mha+fc1"), tune_trial(1, "ln2"), tune_trial(2, "fc2")]
    with Progress(search_of(), [], board, images=3000) as shown:
        for trial, images, accuracy in ((trials[1], 3000, 0.8), (trials[0], 1500, 0.7)):
            clock.now += 1
            shown.on_trial_result(0, trials, trial, result(images, accuracy))
        assert shown._live is not None
        shown._live.refresh()
    text = stream.getvalue()
    rows = text[text.rindex("slot-0") :].splitlines()
    assert "mha+fc1 · 0.01 · s0" in rows[0]
    assert "70.0%" in rows[0]
    assert "slot-1" in rows[1]
    assert "waits" in rows[2]
    assert capsys.readouterr().err == ""
