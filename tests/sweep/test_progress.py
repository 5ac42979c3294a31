"""The line of progress."""

from types import SimpleNamespace

import pytest
from finished_sweep import make_trial

from unfreeze.records import TrialState
from unfreeze.sweep.progress import ProgressLine


def test_what_was_stopped_or_diverged_is_not_the_best(
    capsys: pytest.CaptureFixture[str],
) -> None:
    trials = [
        make_trial(0, "mha", 0.95, state=TrialState.STOPPED),
        make_trial(1, "all", 0.99, state=TrialState.DIVERGED),
        make_trial(2, "fc1", 0.76),
    ]
    search = SimpleNamespace(final={trial.spec.index: trial for trial in trials[:2]}, max_trials=5)
    line = ProgressLine(search, [])  # type: ignore[arg-type]
    lost = SimpleNamespace(get_pickled_error=lambda: None, get_error=lambda: "RuntimeError: lost")
    line.on_trial_error(0, [], lost)
    assert "best" not in capsys.readouterr().err
    search.final[2] = trials[2]
    line.on_trial_error(0, [], lost)
    assert "best 76.0% (fc1, lr 0.01)" in capsys.readouterr().err
