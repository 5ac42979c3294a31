"""β against a dense formula, on planted truths and under exchange."""

import itertools

import numpy as np
import pytest
from scipy.special import expit

from unfreeze.evidence.effects import slope
from unfreeze.evidence.exchange import exchanges
from unfreeze.evidence.model import LinearEffects, Points, Posterior, Terms, standardised

SUBSETS = np.array([bits for bits in itertools.product((0.0, 1.0), repeat=5) if any(bits)])
SCORES, SIZES = np.array([0.2, 3.0, 0.5, 2.0, 1.0]), np.log([128, 16640, 128, 16640, 16448])
ORDERS = exchanges(5)
TERMS = Terms.of(np.zeros(5), np.ones(5), np.arange(5), rates=(1e-3, 1e-1))


def planted(seed: int, *, beta: float, between: float = 0.1, count: int = 32) -> LinearEffects:
    rng = np.random.default_rng(seed)
    effects = beta * standardised(SCORES) + rng.normal(0, between, 5)
    switches = np.concatenate([np.eye(5), SUBSETS[rng.integers(31, size=count - 5)]])
    rates = rng.uniform(-3, -1, count)
    y = 1 + switches @ effects - 0.5 * (rates + 2) ** 2 + rng.normal(0, 0.05, count)
    return Posterior(TERMS, Points(switches, rates), expit(y)).linear_effects(64)


def test_it_is_generalised_least_squares() -> None:
    """One draw, a hundred times the runs: what is left of the priors is nothing, and β that of the normal equations."""
    effects = planted(1, beta=0.2)
    one = LinearEffects(
        information=100 * effects.information[:1],
        gradient=100 * effects.gradient[:1],
        squares=100 * effects.squares[:1],
        log_weights=effects.log_weights[:1],
        shape=100 * effects.shape,
    )
    x = np.column_stack([standardised(SIZES), standardised(SCORES)])
    normal = x.T @ one.information[0] @ x + np.eye(2)
    expected = np.linalg.solve(normal, x.T @ one.gradient[0])
    found = slope(one, SCORES[ORDERS], SIZES)
    assert found.mean == pytest.approx(expected[1], rel=1e-9)
    scale = (one.squares[0] - x.T @ one.gradient[0] @ expected) / (2 * one.shape - 2)
    assert found.sd == pytest.approx(np.sqrt(scale * np.linalg.inv(normal)[1, 1]), rel=1e-9)


def test_p_is_counted_over_scores_written_out() -> None:
    effects = planted(2, beta=0.2)
    found = slope(effects, SCORES[ORDERS], SIZES)
    size = standardised(SIZES)
    pulls = []
    for order in itertools.permutations(range(5)):
        z, total, weights = standardised(SCORES[list(order)]), 0.0, 0.0
        for info, gradient, square, log_weight in zip(
            effects.information, effects.gradient, effects.squares, effects.log_weights, strict=True
        ):
            own = size @ info @ size + 1
            g, m = z @ gradient - z @ info @ size * (size @ gradient) / own, z @ info @ z - (z @ info @ size) ** 2 / own
            rest = square - (size @ gradient) ** 2 / own
            weight = np.exp(log_weight - 0.5 * np.log(own) - effects.shape * np.log(rest) + 200)
            total, weights = total + weight * g / np.sqrt(m * rest), weights + weight
        pulls.append(abs(total / weights))
    assert found.p == pytest.approx(np.mean(np.array(pulls) >= pulls[0] - 1e-12))


@pytest.mark.parametrize("beta", [-0.3, 0.0, 0.3])
def test_the_planted_worth_is_found_and_covered(beta: float) -> None:
    found = [slope(planted(seed, beta=beta), SCORES[ORDERS], SIZES) for seed in range(16)]
    assert np.mean([each.mean for each in found]) == pytest.approx(beta, abs=0.08)
    assert sum(each.low <= beta <= each.high for each in found) >= 13
    assert all(each.low <= each.mean <= each.high for each in found)


def test_the_interval_holds_zero_where_exchanges_do_as_well() -> None:
    for seed in range(6):
        found = slope(planted(seed, beta=0.15), SCORES[ORDERS], SIZES)
        assert (found.low <= 0 <= found.high) == (found.p > 0.05)


def test_a_reversed_score_is_worth_the_opposite() -> None:
    effects = planted(3, beta=0.3)
    one, other = (slope(effects, sign * SCORES[ORDERS], SIZES) for sign in (1, -1))
    assert (one.mean, one.low, one.p) == pytest.approx((-other.mean, -other.high, other.p), rel=1e-6)
    assert one.positive == pytest.approx(1 - other.positive)
    assert one.log_bayes_factor == pytest.approx(other.log_bayes_factor)


def test_the_score_that_made_the_trials_has_the_largest_bayes_factor() -> None:
    effects = planted(4, beta=0.4, between=0.02)
    others = [slope(effects, SCORES[list(order)][ORDERS], SIZES) for order in ((1, 0, 2, 3, 4), (4, 3, 2, 1, 0))]
    own = slope(effects, SCORES[ORDERS], SIZES)
    assert own.log_bayes_factor > max(0, *(other.log_bayes_factor for other in others))


def test_two_values_only_exclude_nothing() -> None:
    """A score that splits 4 to 1: 24 of 120 exchanges are itself, so no p is ever below 0.2."""
    found = slope(planted(5, beta=0.3), np.array([0.0, 0, 0, 0, 1])[ORDERS], SIZES)
    assert found.p >= 0.2
    assert (found.low, found.high) == (-np.inf, np.inf)
