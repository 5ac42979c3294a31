"""The paper's statistics from its published table, and pooled effects against numbers worked out elsewhere."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from unfreeze.evidence.across import compare, mean_ranks, pool
from unfreeze.evidence.effects import Slope
from unfreeze.report.paper import PUBLISHED

COLUMNS = ("mha", "fc1", "fc2", "ln2", "ln1")
TABLE = {name: [row[column][0] for row in PUBLISHED.values()] for column, name in enumerate(COLUMNS)}


@pytest.mark.parametrize(
    ("other", "difference", "t_p", "wilcoxon_p"),
    [
        ("fc1", 0.071, 0.435, 0.375),
        ("fc2", 0.443, 0.0037, 0.0049),
        ("ln2", 0.816, 0.0746, 0.0210),
        ("ln1", 0.935, 0.0242, 0.0015),
    ],
)
def test_the_papers_statistics_from_its_table(other, difference, t_p, wilcoxon_p) -> None:
    (found,) = (f for f in compare(TABLE) if (f.first, f.second) == ("mha", other))
    assert found.num_sets == 11
    assert found.difference == pytest.approx(difference, abs=0.0005)
    assert found.t_p == pytest.approx(t_p, abs=0.0005 if t_p > 0.1 else 0.00005)
    assert found.wilcoxon_p == pytest.approx(wilcoxon_p, abs=0.0005 if wilcoxon_p > 0.1 else 0.00005)
    pairs = zip(TABLE["mha"], TABLE[other], strict=True)
    assert found.relative == pytest.approx(np.mean([100 * (a / b - 1) for a, b in pairs]))


def test_every_pair_and_the_ranks() -> None:
    assert len(compare(TABLE)) == 10
    ranks = mean_ranks(TABLE)
    assert sum(ranks.values()) == pytest.approx(15)
    by_hand = [sorted((row[c][0] for c in range(5)), reverse=True).index(row[4][0]) + 1 for row in PUBLISHED.values()]
    assert ranks["ln1"] == pytest.approx(np.mean(by_hand))  # ln1 is in no tie


@pytest.mark.parametrize("table", [{"a": [1.0], "b": [2.0]}, {"a": [1.0, 2.0], "b": [0.5, 1.5]}])
def test_nothing_to_test(table) -> None:
    (found,) = compare(table)
    assert (found.t_p, found.wilcoxon_p) == (None, None)


# --- pooled -----------------------------------------------------------------------------------------------------------

PULLS = np.linspace(0.1, 2, 120)[::-1]  # the present order pulls most
MOST = 6  # of 120 exchanges may do as well outside the interval


def estimate(mean: float, sd: float, *, common: float = 0.2) -> Slope:
    """A set's β; ``common``: how far from its mean β is not excluded, whatever sets differ by."""

    def pulls(betas: np.ndarray) -> np.ndarray:
        others = np.concatenate([np.full(MOST + 1, common), np.zeros(119 - MOST - 1)])
        return np.column_stack([abs(betas - mean), np.tile(others, (len(betas), 1))])

    return Slope(mean=mean, sd=sd, positive=0.5, p=0.5, low=0.0, high=0.0, log_bayes_factor=0.0, pulls=pulls)


def test_equal_sets_have_no_spread() -> None:
    """Four times the same: the inverse-variance mean, and what the exchanges leave possible, 0.2 on either side."""
    found = pool([estimate(0.3, 0.1)] * 4)
    assert (found.mean, found.spread) == (pytest.approx(0.3), 0)
    assert (found.low, found.high) == (pytest.approx(0.1, abs=1e-5), pytest.approx(0.5, abs=1e-5))
    assert (found.next_low, found.next_high) == (found.low, found.high)


def test_the_spread_solves_its_equation() -> None:
    effects, sds = np.array([0.1, 0.5, -0.2, 0.4, 0.9]), np.array([0.1, 0.2, 0.15, 0.1, 0.3])
    found = pool([estimate(*each) for each in zip(effects, sds, strict=True)])
    weights = 1 / (sds**2 + found.spread**2)
    assert found.mean == pytest.approx(weights @ effects / weights.sum())
    assert weights @ (effects - found.mean) ** 2 == pytest.approx(4)
    assert found.next_low < found.low < found.high < found.next_high


def test_sets_that_differ_by_more_than_exchanges_leave_possible() -> None:
    """1.96 standard errors of their mean, and for the next set 1.96 standard deviations of it."""
    effects = [0.1, 0.5, -0.2, 0.4, 0.9, 0.3]
    found = pool([estimate(effect, 1e-6, common=0.0) for effect in effects])
    half, mean = 1.96 * stats.sem(effects), np.mean(effects)
    assert (found.low, found.high) == (pytest.approx(mean - half, abs=1e-4), pytest.approx(mean + half, abs=1e-4))
    half *= np.sqrt(7)
    assert found.next_low == pytest.approx(mean - half, abs=1e-4)
    assert found.next_high == pytest.approx(mean + half, abs=1e-4)
    assert found.spread == pytest.approx(np.std(effects, ddof=1))


def test_the_wider_one_is_taken_on_each_side() -> None:
    """Exchanges exclude 0.5 below the mean and nothing above it."""

    def pulls(betas: np.ndarray) -> np.ndarray:
        others = np.concatenate([np.full(MOST + 1, 0.5), np.zeros(119 - MOST - 1)])
        return np.column_stack([0.5 - np.minimum(betas, 0.5), np.tile(others, (len(betas), 1))])

    pair = [dataclasses.replace(estimate(mean, 0.1), pulls=pulls) for mean in (0.4, 0.6)]
    found = pool(pair)
    assert found.high == np.inf
    assert found.low == pytest.approx(0.5 - max(0.5, 1.96 * stats.sem([0.4, 0.6])), abs=1e-4)


def test_what_the_components_differ_by_is_no_smaller_over_many_sets() -> None:
    many = pool([estimate(0.3, 0.1)] * 40)
    assert many.high - many.mean == pytest.approx(0.2, rel=0.02)


def test_labels_are_exchanged_in_all_sets_at_once() -> None:
    """Two sets in which the present order pulls oppositely: together it pulls no more than any other."""
    up, down = (
        dataclasses.replace(estimate(0.3, 0.1), pulls=lambda betas, own=own: np.tile(own, (len(betas), 1)))
        for own in (PULLS, -PULLS)
    )
    assert pool([up, down]).p == 1
    assert pool([up, up]).p == pytest.approx(1 / 120)
    assert pool([up]).low is None
    assert pool([up, up]).next_low is None
