import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from unfreeze.records import TrialRecord, TrialState
from unfreeze.search.stopping import cutoffs, observed_values, rungs

MILESTONES = [100 * (k + 1) for k in range(10)]


@pytest.mark.parametrize(
    ("grace", "factor", "expected"),
    [
        (1, 3.0, [100, 300, 900]),
        (2, 3.0, [200, 600]),
        (1, 2.0, [100, 200, 400, 800]),
        (9, 3.0, [900]),
        (10, 3.0, []),  # the last report is no rung
        (50, 2.0, []),
    ],
)
def test_rungs_grow_by_the_factor(grace: int, factor: float, expected: list[int]) -> None:
    assert rungs(MILESTONES, grace_reports=grace, reduction_factor=factor) == expected


@given(count=st.integers(0, 60), grace=st.integers(1, 70), factor=st.floats(2, 10))
def test_rungs_are_milestones_but_the_last_ascending(count: int, grace: int, factor: float) -> None:
    milestones = [7 * (k + 1) for k in range(count)]
    found = rungs(milestones, grace_reports=grace, reduction_factor=factor)
    assert found == sorted(set(found))
    assert set(found) <= set(milestones[:-1])
    assert bool(found) == (grace < count)


@pytest.mark.parametrize("factor", [1.1, 1.2, 1.4])
def test_rungs_do_not_repeat_for_a_small_factor(factor: float) -> None:
    found = rungs(MILESTONES, grace_reports=1, reduction_factor=factor)
    assert found == sorted(set(found))


def finished(
    make_record: Callable[..., TrialRecord], rates: Sequence[float], gain: Callable[[float], float]
) -> list[TrialRecord]:
    """A run at each rate: 50 % after half of its images, ``gain`` of its log10 rate logits higher at the end."""
    return [
        make_record(k, "mha", [0.5, float(expit(gain(math.log10(rate))))], learning_rate=rate)
        for k, rate in enumerate(rates)
    ]


RATES = np.geomspace(1e-3, 1e-1, 9)


def test_a_cutoff_is_what_reaches_the_best_end_by_luck_alone(make_record: Callable[..., TrialRecord]) -> None:
    """Every run gains one logit, so nothing but the least spread is left to luck."""
    peers = finished(make_record, RATES, lambda _: 1.0)
    ((images, cutoff),) = cutoffs(peers, [100], learning_rate=1e-2)
    spread = math.sqrt(2 * 0.2**2 / 9 * (1 + 1 / 9))  # as two runs that differ by 0.2 logits, beside nine that do not
    assert images == 100
    assert logit(cutoff) == pytest.approx(1.0 - 1.0 - 2 * spread)


def test_a_low_rate_that_gains_little_is_held_to_more(make_record: Callable[..., TrialRecord]) -> None:
    peers = finished(make_record, RATES, lambda log_rate: 3 + log_rate)
    below = [cutoffs(peers, [100], learning_rate=rate)[0][1] for rate in (1e-3, 1e-2, 1e-1)]
    assert below == sorted(below, reverse=True)
    assert below[0] > 0.7 > 0.5 > below[-1]  # the best ends at 2 logits, 88 %


def test_only_runs_whose_whole_curve_is_known_set_cutoffs(make_record: Callable[..., TrialRecord]) -> None:
    peers = finished(make_record, RATES[:7], lambda _: 1.0)
    others = [
        make_record(7, "fc1", [0.3], state=TrialState.STOPPED),
        make_record(8, "ln1", [0.9, 0.9], state=TrialState.DIVERGED),
        make_record(9, "ln1", [math.nan, math.nan]),
        make_record(10, "ln2", [], state=TrialState.FAILED),
    ]
    assert cutoffs([*peers, *others], [100], learning_rate=1e-2) == ()
    eighth = finished(make_record, RATES[:8], lambda _: 1.0)
    assert cutoffs([*eighth, *others], [100], learning_rate=1e-2) == cutoffs(eighth, [100], learning_rate=1e-2) != ()
    assert cutoffs([], [100], learning_rate=1e-2) == ()


# --- what samplers are told -------------------------------------------------------------------------------------------


def told(*records: TrialRecord) -> dict[int, float]:
    return observed_values({record.spec.index: record for record in records})


def test_a_final_trial_is_its_best_accuracy(make_record: Callable[..., TrialRecord]) -> None:
    found = told(
        make_record(0, "mha", [0.2, 0.7, 0.6]),
        make_record(1, "mha", [float("nan")]),
        make_record(2, "mha", [0.9], state=TrialState.DIVERGED),
        make_record(3, "mha", [0.9], state=TrialState.FAILED),
    )
    assert found == {0: 0.7, 1: 0.0, 2: 0.0}


def test_a_stopped_trial_is_what_is_expected_at_its_end(make_record: Callable[..., TrialRecord]) -> None:
    stopped = make_record(20, "fc1", [0.5], state=TrialState.STOPPED, learning_rate=1e-2)
    assert told(stopped) == {20: 0.5}  # with nothing to compare it is no more than it reached
    assert told(stopped, *finished(make_record, RATES, lambda _: 1.0))[20] == pytest.approx(expit(1.0))
    steeper = told(stopped, *finished(make_record, RATES, lambda log_rate: 3 + log_rate))[20]
    assert steeper == pytest.approx(expit(1.0), abs=0.01)  # in the middle of the rates it is the mean gain


def test_no_run_is_expected_to_lose_what_it_had(make_record: Callable[..., TrialRecord]) -> None:
    peers = finished(make_record, [1e-2] * 4 + [1e-1] * 4, lambda log_rate: 2 * (log_rate + 2))
    stopped = make_record(20, "fc1", [0.5], state=TrialState.STOPPED, learning_rate=1e-4)
    assert told(stopped, *peers)[20] == pytest.approx(0.5)
