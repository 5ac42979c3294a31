import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfreeze.records import TrialRecord, TrialState
from unfreeze.search.stopping import cutoffs, rungs

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


def plain_quantile(values: list[float], share: float) -> float:
    """Linear interpolation between order statistics."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("num_peers", [3, 4, 9, 20])
def test_cutoffs_are_quantiles_of_the_best_until_the_rung(
    factor: float, num_peers: int, make_record: Callable[..., TrialRecord]
) -> None:
    rng = np.random.default_rng(num_peers)
    curves = [rng.random(rng.integers(6, 11)).tolist() for _ in range(num_peers)]
    peers = [make_record(k, "mha", curve) for k, curve in enumerate(curves)]
    found = dict(cutoffs(peers, [200, 600], reduction_factor=factor))
    for rung in (200, 600):
        best = [max(curve[: rung // 100]) for curve in curves]
        assert found[rung] == pytest.approx(plain_quantile(best, 1 - 1 / factor))


def test_a_third_of_the_peers_passes(make_record: Callable[..., TrialRecord]) -> None:
    peers = [make_record(k, "mha", [value]) for k, value in enumerate(np.linspace(0.1, 0.9, 30))]
    ((_, cutoff),) = cutoffs(peers, [100], reduction_factor=3.0)
    assert sum(peer.reports[0].val_accuracy >= cutoff for peer in peers) == 10


def test_a_rung_with_too_few_peers_has_no_cutoff(make_record: Callable[..., TrialRecord]) -> None:
    peers = [
        make_record(0, "mha", [0.5, 0.6, 0.7]),
        make_record(1, "fc1", [0.4, 0.5, 0.6]),
        make_record(2, "fc2", [0.3], state=TrialState.STOPPED),
        make_record(3, "ln1", [], state=TrialState.DIVERGED),
    ]
    assert [images for images, _ in cutoffs(peers, [100, 300], reduction_factor=3.0)] == [100]
    assert cutoffs(peers[:2], [100, 300], reduction_factor=3.0) == ()
    assert cutoffs([], [100, 300], reduction_factor=3.0) == ()
