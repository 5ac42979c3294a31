"""A trial as Ray Tune runs it, with a board that is called directly."""

from typing import Any

import pytest
import ray

from unfreeze.records import TrialSpec, to_dict
from unfreeze.slots.outcome import Settled
from unfreeze.slots.trial import SlotTrial

SPEC = TrialSpec(index=3, selection="mha", learning_rate=0.1, seed=0, origin="search")
REPORTS = [{"images_seen": 100 * k, "val_accuracy": 0.1 * k} for k in (1, 2, 3)]


class Call:
    def __init__(self, answers: list[Any]) -> None:
        self.calls: list[Any] = []
        self._answers = answers

    def remote(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return self._answers.pop(0) if self._answers else None


class FakeBoard:
    def __init__(self, *news: Any) -> None:
        self.submit, self.leave, self.follow = Call([]), Call([]), Call(list(news))


def test_a_trial_goes_on_under_a_new_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """The board died after the first report; the new one hears of the trial again, and nothing is reported twice."""
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    board = FakeBoard(
        {"reports": REPORTS[:1], "outcome": None},
        None,
        {"reports": REPORTS[1:], "outcome": None},
        {"reports": [], "outcome": Settled()},
    )
    trial = SlotTrial.__new__(SlotTrial)  # without what Tune prepares for a process of its own
    trial.setup({"trial": to_dict(SPEC)}, board=board)
    first, second, last = trial.step(), trial.step(), trial.step()
    assert [found["images_seen"] for found in (first, second, last)] == [100, 300, 300]
    assert [found["done"] for found in (first, second, last)] == [False, False, True]
    assert last["outcome"] == Settled()
    assert last["best_val_accuracy"] == pytest.approx(0.3)
    assert [seen for _, seen, _ in board.follow.calls] == [0, 1, 1, 3]
    before, after = board.submit.calls
    assert before == after
