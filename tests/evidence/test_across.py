"""The paper's statistics from its published table, and pooled effects against numbers worked out elsewhere."""

import numpy as np
import pytest
from scipy import stats

from unfreeze.evidence.across import compare, mean_ranks, pool
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


def test_equal_sets_have_no_spread() -> None:
    """Four times the same: the inverse-variance mean, its error halved, t with 3 degrees of freedom."""
    found = pool([0.3] * 4, [0.1] * 4, [PULLS] * 4)
    half = stats.t.ppf(0.975, 3) * 0.1 / 2
    assert (found.mean, found.spread, found.p) == (pytest.approx(0.3), 0, pytest.approx(1 / 120))
    assert (found.low, found.high) == (pytest.approx(0.3 - half), pytest.approx(0.3 + half))
    half = stats.t.ppf(0.975, 2) * 0.1 / 2
    assert (found.next_low, found.next_high) == (pytest.approx(0.3 - half), pytest.approx(0.3 + half))


def test_the_spread_solves_its_equation() -> None:
    effects, sds = np.array([0.1, 0.5, -0.2, 0.4, 0.9]), np.array([0.1, 0.2, 0.15, 0.1, 0.3])
    found = pool(effects, sds, [PULLS] * 5)
    weights = 1 / (sds**2 + found.spread**2)
    assert found.mean == pytest.approx(weights @ effects / weights.sum())
    assert weights @ (effects - found.mean) ** 2 == pytest.approx(4)
    # With that spread Hartung and Knapp's factor is 1.
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 4) / np.sqrt(weights.sum()))
    assert found.next_low < found.low < found.high < found.next_high


def test_precise_equal_variances_are_a_t_test() -> None:
    effects = [0.1, 0.5, -0.2, 0.4, 0.9, 0.3]
    found = pool(effects, [1e-6] * 6, [PULLS] * 6)
    low, high = stats.ttest_1samp(effects, 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.spread == pytest.approx(np.std(effects, ddof=1))


def test_labels_are_exchanged_in_all_sets_at_once() -> None:
    """Two sets in which the present order pulls oppositely: together it pulls no more than any other."""
    assert pool([0.3, -0.3], [0.1, 0.1], [PULLS, -PULLS]).p == 1
    assert pool([0.3], [0.1], [PULLS]).low is None
    assert pool([0.3, 0.4], [0.1, 0.1], [PULLS, PULLS]).next_low is None
