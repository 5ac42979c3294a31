"""Rank coefficients of many rows at once, and p, against SciPy and brute force."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from unfreeze.evidence.exchange import exchange_p, exchanged_means, exchanges, kendall, partial, spearman


def cases(count: int = 1000, *, fewest: int = 1):
    """Three sides of 4 to 9 points of few values each, so that most have ties and some are constant."""
    rng = np.random.default_rng(5)
    for _ in range(count):
        n = int(rng.integers(3 + fewest, 10))
        yield tuple(rng.integers(0, rng.integers(fewest, 8), n).astype(float) for _ in range(3))


def same(found: float, expected: float) -> bool:
    return (math.isnan(found) and math.isnan(expected)) or abs(found - expected) <= 1e-12


@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
@pytest.mark.parametrize(("own", "scipys"), [(spearman, stats.spearmanr), (kendall, stats.kendalltau)])
def test_coefficients_are_scipys(own, scipys) -> None:
    for x, y, _ in cases():
        assert same(own(x[None], y)[0], float(scipys(x, y).statistic))


@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
@pytest.mark.parametrize(("own", "scipys"), [(spearman, stats.spearmanr), (kendall, stats.kendalltau)])
def test_partial_coefficients_are_those_of_the_inverse(own, scipys) -> None:
    """−P_xy / √(P_xx P_yy), P the inverse of the three coefficients' matrix; by hand, so that nothing is shared."""
    checked = 0
    for x, y, z in cases(1060, fewest=3):
        pairs = [float(scipys(a, b).statistic) for a, b in ((x, y), (x, z), (y, z))]
        if any(map(math.isnan, pairs)) or max(map(abs, pairs[1:])) > 1 - 1e-12:
            continue
        xy, xz, yz = pairs
        expected = -(xz * yz - xy) / math.sqrt((1 - yz**2) * (1 - xz**2))
        assert abs(partial(own, x[None], y, z)[0] - min(1.0, max(-1.0, expected))) <= 1e-12
        checked += 1
    assert checked >= 1000


def test_size_that_orders_a_side_leaves_nothing() -> None:
    x, y, z = np.arange(5.0), np.array([1.0, 3, 2, 5, 4]), np.arange(5.0)
    assert math.isnan(partial(spearman, x[None], y, z)[0])
    assert partial(spearman, x[None], y, np.ones(5))[0] == spearman(x[None], y)[0]


def pearson_of_ranks(x: np.ndarray, y: np.ndarray) -> float:
    """Tied values share the mean of their places."""
    places = [(side < side[:, None]).sum(1) + (side == side[:, None]).sum(1) / 2 for side in (x, y)]
    a, b = (place - place.mean() for place in places)
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def tau_by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    """Each pair counted twice, which the ratio does not see."""
    a, b = (np.sign(side - side[:, None]) for side in (x, y))
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize(("own", "by_hand"), [(spearman, pearson_of_ranks), (kendall, tau_by_pairs)])
def test_p_is_that_of_every_exchange_by_hand(own, by_hand) -> None:
    """1,000 random cases with ties over five components' labels, whose selections share them: brute force."""
    rng = np.random.default_rng(0)
    subsets = [bits for bits in itertools.product((0, 1), repeat=5) if any(bits)]
    checked = 0
    while checked < 1000:
        values, n = rng.integers(0, 4, 5).astype(float), 5 if checked % 2 else 7
        members = np.eye(5) if checked % 2 else np.array([subsets[i] for i in rng.choice(31, n, replace=False)])
        y = rng.integers(0, 5, n).astype(float)
        if len(set(values)) == 1 or len(set(y)) == 1:
            continue
        x = exchanged_means(values[:, None], members[:, :, None].astype(bool), axis=0)
        found = own(x, y)
        orders = np.array(list(itertools.permutations(range(5))))
        rows, place = np.unique((values[orders] @ members.T / members.sum(1)).round(9), axis=0, return_inverse=True)
        each = [by_hand(row, y) if np.ptp(row) > 0 else math.nan for row in rows]
        expected = [each[row] for row in place]
        assert all(map(same, found.tolist(), expected))
        if math.isnan(expected[0]):
            continue
        count = sum(1 for value in expected if math.isnan(value) or abs(value) >= abs(expected[0]) - 1e-12)
        assert exchange_p(found) == pytest.approx(count / 120, abs=1e-12)
        checked += 1


def test_the_present_order_is_the_first_and_many_labels_are_sampled() -> None:
    assert exchanges(5).shape == (120, 5)
    assert len({tuple(row) for row in exchanges(5).tolist()}) == 120
    for count in (5, 12):
        assert exchanges(count)[0].tolist() == list(range(count))
    assert exchanges(12).shape == (5040, 12)
    np.testing.assert_array_equal(exchanges(12), exchanges(12))


def test_blocks_go_with_their_component() -> None:
    values = np.arange(10.0).reshape(5, 2)
    members = np.zeros((1, 5, 2), dtype=bool)
    members[0, 1] = [True, False]  # block 0 of the second component
    found = exchanged_means(values, members, axis=0)[:, 0] * 9
    assert sorted(set(found.round(6))) == [0, 2, 4, 6, 8]
    assert found[0] == pytest.approx(2)
