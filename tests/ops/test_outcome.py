"""What the comparison of a sweep with tuned alternatives states; its runs are the package's own."""

from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

from unfreeze.finetune.evaluate import Evaluation
from unfreeze.records import Recommendation

BENCH = Path(__file__).resolve().parents[2] / "ops" / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return load_script("bench/outcome")


def recommendation() -> Recommendation:
    return Recommendation(
        selection="mha",
        learning_rate=0.01234,
        val_accuracy=0.9,
        val_accuracy_sd=None,
        num_seeds=1,
        trainable_parameters=1,
        trial_ids=("trial-00000",),
    )


@pytest.mark.parametrize(("stated", "holds"), [(0.9, True), (0.97, False), (0.8, False)])
def test_what_was_stated_is_held_against_the_tests_interval(bench: ModuleType, stated: float, holds: bool) -> None:
    found = bench.Got(recommendation(), stated, 1000, Evaluation(correct=180, count=200, loss=0.3)).describe()
    assert (found["test"], found["interval"], found["stated_lies_in_interval"]) == (90.0, [85.06, 93.43], holds)
    assert found["learning_rate"] == 0.0123


def test_a_gain_has_an_interval_from_two_splits_on(bench: ModuleType) -> None:
    def split(ours: float, theirs: float, never_below: bool = True) -> dict:
        facts = {"never_below": never_below, "sweep": {"stated_lies_in_interval": True}}
        return {"ours": ours, "theirs": theirs, **facts}

    one = bench.summary("digits", [split(85.0, 83.0)])
    assert (one["gain"], one["gain_interval"], one["never_below"]) == (2.0, None, True)
    two = bench.summary("digits", [split(85.0, 83.0), split(86.0, 85.0, never_below=False)])
    assert (two["ours"], two["theirs"], two["gain"], two["never_below"]) == (85.5, 84.0, 1.5, False)
    assert two["gain_interval"] == [pytest.approx(1.5 - 12.706 * 0.5, abs=0.01), pytest.approx(1.5 + 6.353, abs=0.01)]
    assert two["stated_lies_in_interval"] == 2
