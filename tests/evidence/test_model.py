"""The model of the evidence against its formula written out, on planted truths, and at the edges."""

import itertools

import numpy as np
import pytest
from scipy.special import expit, logit

from unfreeze.evidence import model
from unfreeze.evidence import model as model_module
from unfreeze.evidence.model import Effects, Points, Posterior, Terms, standardised

SUBSETS = np.array([bits for bits in itertools.product((0.0, 1.0), repeat=5) if any(bits)])
RATES = np.linspace(-3, -1, 6)
GRID = Points(np.repeat(SUBSETS, len(RATES), axis=0), np.tile(RATES, len(SUBSETS)))
SCORES, SIZES = np.array([0.2, 3.0, 0.5, 2.0, 1.0]), np.array([128, 16640, 128, 16640, 16448])
TERMS = Terms.of(SCORES, SIZES, np.arange(5), rates=(1e-3, 1e-1))


def planted(seed: int, *, beta: float = 0.0, noise: float = 0.05, count: int = 31) -> tuple[Points, np.ndarray]:
    """Accuracies of random configurations: effects that follow the score by ``beta``, one best rate, noise."""
    rng = np.random.default_rng(seed)
    effects = beta * standardised(SCORES) + rng.normal(0, 0.1, 5)
    chosen = GRID[rng.permutation(len(GRID))[:count]]
    rates = chosen.log_rates + 2
    return chosen, expit(1 + chosen.switches @ effects - 0.5 * rates**2 + rng.normal(0, noise, count))


def worth(posterior: Posterior) -> np.ndarray:
    """Of a run anywhere on the grid, held against all of it."""
    every = posterior.outlook(GRID)
    return posterior.knowledge_gradient(every, every)


BEFORE = Effects(np.array([0.3, -0.2, 0.1, 0.5, -0.4]), np.diag([0.04, 0.01, 0.09, 0.0, 0.01]) + 0.02)


@pytest.mark.parametrize("before", [None, BEFORE], ids=["alone", "after other trials"])
def test_it_is_the_formula_written_out(before: Effects | None) -> None:
    """Element by element in plain loops, every draw weighted by a dense multivariate t's density."""
    points, accuracies = planted(1, count=9)
    terms = Terms.of(SCORES, SIZES, np.arange(5), rates=(1e-3, 1e-1), before=before)
    found = Posterior(terms, points, accuracies)
    draws = found._draws  # the ones that the sieve kept, which the loop below takes as given
    names = [name for name in model_module._SCALES if name != "noise"]
    y = logit(accuracies)
    everything = [*zip(points.switches, points.log_rates, strict=True), *zip(GRID.switches[:7], RATES, strict=False)]

    def covariance(a: tuple[np.ndarray, float], b: tuple[np.ndarray, float], draw: np.ndarray) -> float:
        (s, r), (t, q) = a, b
        scale = dict(zip(names, draw, strict=False))
        both = [j for j in range(5) if s[j] and t[j]]
        u, v = r - TERMS.middle, q - TERMS.middle
        total = 4.0 + (0 if before is None else s @ before.covariance @ t)
        total += scale["count"] ** 2 * np.log1p(s.sum()) * np.log1p(t.sum())
        total += scale["score"] ** 2 * (s @ TERMS.score) * (t @ TERMS.score)
        total += scale["size"] ** 2 * (s @ TERMS.size) * (t @ TERMS.size)
        total += scale["main"] ** 2 * len(both)
        total += scale["pair"] ** 2 * len(list(itertools.combinations(both, 2)))
        total += (
            scale["slope"] ** 2 * u * v + scale["bend"] ** 2 * u**2 * v**2 + scale["shift"] ** 2 * u * v * len(both)
        )
        length = (0.35, 0.6, 1.0)[int(draw[-2])]
        alike = 0.25 + 0.75 * np.exp(-0.5 * np.abs(s - t).sum())
        return total + scale["rest"] ** 2 * alike * np.exp(-0.5 * (r - q) ** 2 / length**2)

    means, logs, sds = [], [], []
    for draw in draws:
        full = np.array([[covariance(a, b, draw) for b in everything] for a in everything])
        prior = np.array([0.15 * np.log1p(s.sum()) - 0.5 * (r - TERMS.middle) ** 2 for s, r in everything])
        prior += 0 if before is None else np.array([s @ before.mean for s, _ in everything])
        own = full[:9, :9] + (draw[-1] ** 2 + 1e-9) * np.eye(9)
        residual = y - prior[:9]
        solved = np.linalg.solve(own, residual)
        means.append(prior[9:] + full[9:, :9] @ solved)
        logs.append(-0.5 * np.linalg.slogdet(own)[1] - (3 + 4.5) * np.log(2 + residual @ solved / 2))
        left = np.diag(full[9:, 9:] - full[9:, :9] @ np.linalg.solve(own, full[:9, 9:]))
        sds.append(np.sqrt(left * (2 + residual @ solved / 2) / (3 + 4.5 - 1)))
    weights = np.exp(np.array(logs) - max(logs))
    expected = weights @ np.array(means) / weights.sum()
    rest = Points(np.array([s for s, _ in everything[9:]]), np.array([r for _, r in everything[9:]]))
    np.testing.assert_allclose(found.logits(rest)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(found.expected_logits(rest), expected, rtol=1e-6)
    variance = weights @ (np.array(sds) ** 2 + (np.array(means) - expected) ** 2) / weights.sum()
    np.testing.assert_allclose(found.logits(rest)[1], np.sqrt(variance), rtol=1e-6)


def test_rows_of_an_outlook_joined_again_are_that_outlook() -> None:
    found = Posterior(TERMS, *planted(7, count=9), GRID[:2])
    every, order = found.outlook(GRID[:12]), np.r_[5:12, 0:5]
    again, wanted = every[5:].join(every[np.arange(5)]), found.outlook(GRID[order])
    np.testing.assert_array_equal(again.points.switches, wanted.points.switches)
    for name in ("mean", "deviation", "means", "variances", "spans"):
        np.testing.assert_allclose(getattr(again, name), getattr(wanted, name), rtol=1e-12)


def test_a_reversed_score_is_the_same_model() -> None:
    points, accuracies = planted(2, beta=0.3)
    turned = Terms.of(-SCORES, SIZES, np.arange(5), rates=(1e-3, 1e-1))
    one, other = Posterior(TERMS, points, accuracies), Posterior(turned, points, accuracies)
    for left, right in zip(one.logits(GRID), other.logits(GRID), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9)
    np.testing.assert_allclose(worth(one), worth(other), rtol=1e-7)


def test_effects_of_components_are_the_posteriors_own() -> None:
    """By dense algebra, draw by draw."""
    points, accuracies = planted(1, beta=0.3, count=12)
    found = Posterior(TERMS, points, accuracies)
    names = [*model_module._LINEAR]
    y = logit(accuracies) - found._prior_mean(points)
    means, covariances = [], []
    for draw, variances, scale in zip(found._draws, model_module._variances(found._draws), found._scale, strict=True):
        score, size, main = (variances[names.index(name)] for name in ("score", "size", "main"))
        own = 4 + np.tensordot(variances, found._grams(points, points), 1) + (draw[-1] ** 2 + 1e-9) * np.eye(12)
        shared = np.zeros((6, 12))
        for column, on in enumerate(points.switches):
            shared[0, column] = score * (on @ TERMS.score)
            for switch in range(5):
                shared[1 + switch, column] = main * on[switch] + size * TERMS.size[switch] * (on @ TERMS.size)
        prior = np.zeros((6, 6))
        prior[0, 0] = score
        prior[1:, 1:] = main * np.eye(5) + size * np.outer(TERMS.size, TERMS.size)
        means.append(shared @ np.linalg.solve(own, y))
        covariances.append(scale * (prior - shared @ np.linalg.solve(own, shared.T)))
    mean = found._weights @ np.array(means)
    covariance = np.einsum("d,djk->jk", found._weights, np.array(covariances))
    covariance += np.cov(np.array(means).T, aweights=found._weights, ddof=0)
    effects = found.component_effects()
    np.testing.assert_allclose(effects.mean, mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(effects.covariance, covariance, rtol=1e-6, atol=1e-9)


def test_effects_of_components_cover_the_planted_ones() -> None:
    """Of 40 planted tables: how far each lies from their mean, which the number trained cannot make up for."""
    weights = np.column_stack([standardised(SCORES), np.eye(5)])
    apart = (np.eye(5) - 0.2) @ weights
    inside = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        effects = 0.2 * standardised(SCORES) + rng.normal(0, 0.1, 5)
        chosen = GRID[rng.permutation(len(GRID))[:32]]
        y = 1 + chosen.switches @ effects - 0.5 * (chosen.log_rates + 2) ** 2 + rng.normal(0, 0.05, 32)
        found = Posterior(TERMS, chosen, expit(y)).component_effects().through(apart)
        inside += list(np.abs(found.mean - (effects - effects.mean())) <= 1.96 * np.sqrt(np.diag(found.covariance)))
    assert 0.9 < np.mean(inside) <= 1


def test_linear_effects_are_the_likelihoods_own() -> None:
    """Against the density of the same points with an effect planted in their mean, draw by draw and dense."""
    points, accuracies = planted(1, count=9)
    found = Posterior(TERMS, points, accuracies)
    effects = found.linear_effects(4)
    draws = model_module._draw_scales(4, shares_kinds=False)
    variances = model_module._variances(draws)
    variances[:, [model_module._LINEAR.index(name) for name in ("score", "size")]] = 0
    y, rate = logit(accuracies), points.log_rates + 2
    prior = 0.15 * np.log1p(points.switches.sum(1)) - 0.5 * rate**2
    for vector in (np.zeros(5), np.array([0.3, -0.2, 0.1, 0.5, -0.4])):
        for draw in range(4):
            grams = found._grams(points, points)
            covariance = 4 + np.tensordot(variances[draw], grams, 1) + (draws[draw, -1] ** 2 + 1e-9) * np.eye(9)
            residual = y - prior - points.switches @ vector
            expected = -0.5 * np.linalg.slogdet(covariance)[1]
            expected -= (3 + 4.5) * np.log(2 * 2 + residual @ np.linalg.solve(covariance, residual))
            square = effects.squares[draw] - 2 * effects.gradient[draw] @ vector
            square += vector @ effects.information[draw] @ vector
            assert effects.log_weights[draw] - effects.shape * np.log(square) == pytest.approx(expected)


def test_expected_accuracies_hold_what_they_promise() -> None:
    """Of 40 planted tables the true values of unseen configurations lie in their 95 % intervals about that often."""
    inside = []
    for seed in range(40):
        points, accuracies = planted(seed, noise=0.0, count=40)
        seen, unseen = np.arange(20), np.arange(20, 40)
        _, low, high = Posterior(TERMS, points[seen], accuracies[seen]).accuracies(points[unseen])
        inside += list((low <= accuracies[unseen]) & (accuracies[unseen] <= high))
    assert 0.92 < np.mean(inside) <= 1


def test_neither_order_nor_grouping_of_the_trials_matters() -> None:
    points, accuracies = planted(3, count=12)
    twice = np.r_[np.arange(12), 4, 4, 7]
    values = np.r_[accuracies, accuracies[[4, 4, 7]] + [0.01, -0.02, 0.01]]
    order = np.random.default_rng(0).permutation(len(twice))
    one = Posterior(TERMS, points[twice], values)
    other = Posterior(TERMS, points[twice[order]], values[order])
    np.testing.assert_allclose(one.logits(GRID)[0], other.logits(GRID)[0], rtol=1e-9)


def test_repeated_runs_that_agree_make_it_surer() -> None:
    points, accuracies = planted(4, count=10)
    repeated = np.r_[np.arange(10), np.arange(10), np.arange(10)]
    alone, often = Posterior(TERMS, points, accuracies), Posterior(TERMS, points[repeated], accuracies[repeated])
    assert (often.logits(points)[1] < alone.logits(points)[1]).all()


def test_a_run_is_worth_what_it_may_change_about_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under one draw of the scales: the mean of the best mean after a run, by dense algebra and a fine grid."""
    monkeypatch.setattr(model, "_NUM_KEPT", 1)
    points, accuracies = planted(5, count=8)
    found = Posterior(TERMS, points, accuracies)
    own, rivals = GRID[np.arange(0, len(GRID), 17)], GRID[np.arange(3, len(GRID), 11)]
    both = Points.join([own, rivals], width=5)
    mean, sd = found.logits(both)
    drawn = found.samples(both, 2**14)
    covariance = np.cov(drawn.T)
    noise = found._scale[0] * found._draws[0, -1] ** 2
    z = np.linspace(-6, 6, 2001)
    density = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    for row, gain in enumerate(found.knowledge_gradient(found.outlook(own), found.outlook(rivals))):
        where = np.r_[row, len(own) : len(both)]
        shift = covariance[row, where] / np.sqrt(sd[row] ** 2 + noise)
        expected = density @ (mean[where] + z[:, None] * shift).max(1) - mean[where].max()
        assert gain == pytest.approx(expected, rel=0.1, abs=2e-3)


def test_what_is_being_tried_is_worth_less() -> None:
    points, accuracies = planted(5, count=8)
    free = Posterior(TERMS, points, accuracies)
    best = int(np.argmax(worth(free)))
    busy = Posterior(TERMS, points, accuracies, GRID[np.array([best])])
    np.testing.assert_allclose(busy.logits(GRID)[0], free.logits(GRID)[0])
    assert worth(busy)[best] < 0.5 * worth(free)[best]
    assert (busy.logits(GRID)[1] <= free.logits(GRID)[1] * (1 + 1e-9)).all()


def test_samples_have_the_posteriors_moments() -> None:
    found = Posterior(TERMS, *planted(6, count=10))
    some = GRID[np.arange(0, len(GRID), 23)]
    drawn = found.samples(some, 4096)
    mean, sd = found.logits(some)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.1 * sd.max())
    np.testing.assert_allclose(drawn.std(0), sd, rtol=0.15)
    np.testing.assert_array_equal(drawn, found.samples(some, 4096))


@pytest.mark.parametrize("scores", [np.full(5, 2.0), np.array([1.0, np.nan, 2.0, 3.0, 4.0]), np.zeros(5)])
def test_a_score_that_says_nothing_is_none(scores: np.ndarray) -> None:
    assert (Terms.of(scores, SIZES, np.arange(5), rates=(1e-3, 1e-1)).score == 0).all()


@pytest.mark.parametrize("accuracies", [[0.5], [0.0, 0.0], [1.0, 1.0, 1.0], [0.1, 0.99, 0.0, 0.3]])
def test_few_or_extreme_outcomes_stay_finite(accuracies: list[float]) -> None:
    points = GRID[np.arange(len(accuracies)) * 7]
    found = Posterior(TERMS, points, np.array(accuracies))
    for values in (*found.logits(GRID), *found.accuracies(GRID), worth(found)):
        assert np.isfinite(values).all()


def test_sixty_switches_share_what_their_components_have() -> None:
    """Attention's blocks raise accuracy: what was seen of some of them is expected of the others."""
    kinds = np.repeat(np.arange(5), 12)
    terms = Terms.of(np.zeros(60), np.repeat(SIZES, 12), kinds, rates=(1e-3, 1e-1))
    rng = np.random.default_rng(0)
    switches = rng.integers(0, 2, (40, 60)).astype(float)
    share = switches[:, kinds == 1].mean(1)
    points = Points(switches, np.full(40, -2.0))
    found = Posterior(terms, points, expit(1.0 * share + rng.normal(0, 0.02, 40)))
    block = np.zeros((2, 60))
    block[0, np.flatnonzero(kinds == 1)[:6]] = 1
    block[1, np.flatnonzero(kinds == 4)[:6]] = 1
    mean, _ = found.logits(Points(block, np.full(2, -2.0)))
    assert mean[0] > mean[1]
