"""Moments against numpy, the confidence sequence against its equation, and how often the stopping rule errs."""

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scripts import load_script

from unfreeze.config import PlasticityConfig
from unfreeze.plasticity.sequential import QUANTILES, ROUNDING, Moments, Standing, confidence_radius, merge_extremes
from unfreeze.records import COMPONENTS, PlasticityRanking

NUM_BLOCKS = 2


def config_for(**changes: Any) -> PlasticityConfig:
    return PlasticityConfig(**{"relative_error": 0.0, **changes})


def observations(means: Any, count: int, *, sd: float = 1.0, seed: int = 0) -> np.ndarray:
    """Normal, (count, blocks, components), both blocks alike in mean."""
    rng = np.random.default_rng(seed)
    return np.array(means) + sd * rng.standard_normal((count, NUM_BLOCKS, len(COMPONENTS)))


def standing_after(values: np.ndarray, *, batch: int = 8, **changes: Any) -> Standing:
    standing = Standing(values.shape[1], config_for(**changes))
    for start in range(0, len(values), batch):
        part = values[start : start + batch]
        standing.add(part, part.max(0))
    return standing


def overall(standing: Standing) -> PlasticityRanking:
    return next(r for r in standing.rankings("local") if r.block is None)


# --- moments ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_moments_are_those_of_numpy_however_batched(sizes: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(size=(sum(sizes), 3, 4))
    moments = Moments((3, 4))
    for size, end in zip(sizes, np.cumsum(sizes), strict=True):
        moments.update(values[end - size : end])
    assert moments.count == len(values)
    if len(values) < 2:
        assert np.isnan(moments.sd).all()
        assert np.isnan(moments.difference_sd).all()
        return
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.sd, values.std(0, ddof=1), rtol=1e-10)
    for row in range(3):
        comoments = np.cov(values[:, row].T) * (len(values) - 1)
        np.testing.assert_allclose(moments.comoments[row], comoments, rtol=1e-9, atol=1e-12)
    differences = values[..., :, None] - values[..., None, :]
    np.testing.assert_allclose(moments.difference_sd, differences.std(0, ddof=1), rtol=1e-7, atol=1e-7)


def test_a_large_offset_does_not_cancel() -> None:
    small = np.random.default_rng(0).standard_normal((300, 2, 3))
    moments = Moments((2, 3))
    for part in np.array_split(small + 1e9, 17):
        moments.update(part)
    # 1e9 has 1e-7 to its last digit.
    np.testing.assert_allclose(moments.sd, small.std(0, ddof=1), rtol=1e-7)
    differences = small[..., :, None] - small[..., None, :]
    np.testing.assert_allclose(moments.difference_sd, differences.std(0, ddof=1), rtol=1e-6, atol=1e-6)


def test_extremes_are_the_smallest_variances_and_the_largest_norms() -> None:
    first = {"local": np.array([[1.0, 5.0], [1.0, 5.0], [3.0, 2.0]])}
    second = {"local": np.array([[2.0, 4.0], [2.0, 4.0], [2.0, 3.0]])}
    merged = merge_extremes([first, second])
    assert merged["local"].tolist() == [[1.0, 4.0], [2.0, 5.0], [2.0, 2.0]]
    assert merge_extremes([{}, {}]) == {}


# --- confidence sequence ----------------------------------------------------------------------------------------------


def bayes_factor(t: float, count: int) -> float:
    """Of the t-test, standard normal prior on the effect size against 0, integrated from the densities of t."""
    scale = math.sqrt(count)
    effects = np.linspace(-8, 8, 4001)
    densities = scipy.stats.nct.pdf(t, count - 1, effects * scale) * scipy.stats.norm.pdf(effects)
    return float(np.trapezoid(densities, effects) / scipy.stats.t.pdf(t, count - 1))


@pytest.mark.parametrize("alpha", [0.05, 0.005, 0.005 / 12])
@pytest.mark.parametrize("count", [5, 8, 16, 32, 100, 512, 100_000])
def test_the_radius_solves_its_equation(count: int, alpha: float) -> None:
    def excess(t: float) -> float:
        u = t**2 / (count - 1)
        return -math.log1p(count) / 2 + count / 2 * (math.log1p(u) - math.log1p(u / (1 + count))) + math.log(alpha)

    radius = confidence_radius(np.array([1.0, 3.0]), count, alpha)
    if excess(1e9) < 0:
        assert np.isinf(radius).all()
        return
    t = brentq(excess, 0, 1e9, xtol=1e-13, rtol=1e-14)
    np.testing.assert_allclose(radius, np.array([1.0, 3.0]) * t / math.sqrt(count), rtol=1e-8)


@pytest.mark.parametrize("count", [6, 16, 40])
def test_at_the_radius_the_bayes_factor_is_1_over_alpha(count: int) -> None:
    alpha = 0.05
    t = float(confidence_radius(np.array(1.0), count, alpha)) * math.sqrt(count)
    assert bayes_factor(t, count) == pytest.approx(1 / alpha, rel=1e-4)


def test_few_observations_exclude_nothing() -> None:
    sd = np.ones((2, 3))
    for count in (0, 1, 2, 3, 4):
        radius = confidence_radius(sd, count, 0.05)
        assert radius.shape == sd.shape
        assert np.isinf(radius).all()
    assert np.isfinite(confidence_radius(sd, 5, 0.05)).all()
    assert np.isinf(confidence_radius(np.full(2, math.nan), 1, 0.05)).all()


def test_the_radius_shrinks_with_the_count_and_grows_with_the_confidence() -> None:
    counts = np.unique(np.geomspace(5, 1e6, 60).astype(int))
    one = np.array(1.0)
    radii = np.array([confidence_radius(one, int(count), 0.05) for count in counts])
    assert (np.diff(radii) < 0).all()
    by_alpha = [float(confidence_radius(one, 64, alpha)) for alpha in (0.2, 0.05, 0.01, 1e-4)]
    assert by_alpha == sorted(by_alpha)
    assert confidence_radius(np.zeros(2), 64, 0.05).tolist() == [0.0, 0.0]
    for count in (16, 64, 512):  # never shorter than the interval that may be looked at once
        assert confidence_radius(one, count, 0.05) > scipy.stats.t.ppf(0.975, count - 1) / math.sqrt(count)


# --- standing ---------------------------------------------------------------------------------------------------------


def test_means_that_cannot_be_told_apart_are_ties() -> None:
    # ln1, mha, ln2, fc1, fc2
    standing = standing_after(observations([5.0, 3.0, 8.0, 10.0, 5.01], 200))
    ranking = overall(standing)
    assert str(ranking) in ("fc1 > ln2 > fc2 ≈ ln1 > mha", "fc1 > ln2 > ln1 ≈ fc2 > mha")
    assert sum(ranking.ties) == 1
    assert not standing.is_settled


def test_means_that_differ_are_settled() -> None:
    standing = standing_after(observations([5.0, 3.0, 8.0, 10.0, 6.5], 200))
    assert standing.is_settled
    assert str(overall(standing)) == "fc1 > ln2 > fc2 > ln1 > mha"


def test_blocks_are_ranked_on_their_own() -> None:
    values = observations([5.0, 3.0, 8.0, 10.0, 6.5], 200)
    values[:, 1] = values[:, 1, ::-1] + 1.0
    rankings = {ranking.block: ranking for ranking in standing_after(values).rankings("in_situ")}
    assert {ranking.mode for ranking in rankings.values()} == {"in_situ"}
    assert set(rankings) == {0, 1, None}
    assert str(rankings[0]) == "fc1 > ln2 > fc2 > ln1 > mha"
    assert str(rankings[1]) == "mha > ln2 > ln1 > fc2 > fc1"
    means = values.mean((0, 1))
    assert rankings[None].order == tuple(COMPONENTS[i] for i in np.argsort(-means))


def test_a_block_pays_for_the_number_of_blocks() -> None:
    """Its error rate is a share of the whole's: at some gap the mean over equal blocks is settled and no block is."""
    gap = 0.0
    for gap in np.linspace(0.3, 1.5, 40):
        values = np.repeat(observations(gap * np.arange(5), 64)[:, :1], 50, axis=1)
        rankings = list(standing_after(values, batch=64).rankings("local"))
        if not any(rankings[-1].ties):
            break
    assert not any(rankings[-1].ties)
    assert any(rankings[0].ties)


def test_what_is_settled_stays_settled() -> None:
    first = observations([1.0, 2.0, 3.0, 4.0, 5.0], 64, sd=0.3)
    config = config_for()
    standing = Standing(NUM_BLOCKS, config)
    standing.add(first, first.max(0))
    assert standing.is_settled
    # Then noise that makes every interval as wide as the gaps again, with the means where they were.
    noise = np.concatenate(
        [sign * np.full((1, NUM_BLOCKS, 5), 50.0) * np.eye(5)[i] for i in range(5) for sign in (1, -1)]
    )
    later = np.array([1.0, 2.0, 3.0, 4.0, 5.0]) + noise
    standing.add(later, later.max(0))
    assert standing.is_settled
    assert not any(overall(standing).ties)
    fresh = standing_after(np.concatenate([first, later]), batch=1000)
    assert not fresh.is_settled  # at a first look now it would not be


def test_a_settled_ordering_the_means_have_left_is_no_order() -> None:
    """The sequence covers at all times together, so this is an error of the rule; it must not be shown as settled."""
    first = observations([1.0, 2.0, 3.0, 4.0, 5.0], 32, sd=0.01)
    standing = standing_after(first, batch=32)
    turned = np.repeat(first[:, :, ::-1], 20, axis=0)
    standing.add(turned, turned.max(0))
    assert not standing.is_settled
    assert overall(standing).order == ("ln1", "mha", "ln2", "fc1", "fc2")
    assert all(overall(standing).ties)


@pytest.mark.parametrize("min_observations", [16, 40])
def test_nothing_is_settled_before_the_first_look(min_observations: int) -> None:
    values = observations([1.0, 2.0, 3.0, 4.0, 5.0], min_observations, sd=1e-3)
    before = standing_after(values[:-1], batch=1, min_observations=min_observations, relative_error=0.5)
    assert not before.is_settled
    assert not before.is_precise
    assert all(all(ranking.ties) for ranking in before.rankings("local"))
    after = standing_after(values, batch=1, min_observations=min_observations, relative_error=0.5)
    assert after.is_settled
    assert after.is_precise


@pytest.mark.parametrize("precision", ROUNDING)
def test_an_order_within_the_rounding_is_not_settled(precision: str) -> None:
    """Without any variance the interval is empty; what is left is how exact the numbers themselves are."""
    rounding = ROUNDING[precision]
    steps = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    for gap, settled in ((0.0, False), (1.9 * rounding, False), (2.6 * rounding, True)):
        values = np.tile((1 + gap) ** steps, (40, NUM_BLOCKS, 1))
        assert standing_after(values, precision=precision).is_settled == settled, gap
    assert not standing_after(np.zeros((40, NUM_BLOCKS, 5))).is_settled


def test_precise_is_a_small_standard_error_of_every_component() -> None:
    # sd 1 over 100 observations: standard errors of the mean over two blocks near 0.1 / √2.
    values = observations([10.0, 10.0, 10.0, 10.0, 5.0], 100)
    errors = values.mean(1).std(0, ddof=1) / 10 / values.mean((0, 1))
    assert errors.argmax() == 4
    assert standing_after(values, relative_error=float(errors[4]) * 1.001).is_precise
    assert not standing_after(values, relative_error=float(errors[4]) * 0.999).is_precise
    assert not standing_after(values).is_precise


def test_precision_is_off_at_0() -> None:
    assert not standing_after(np.ones((20, NUM_BLOCKS, 5))).is_precise


def test_rows_are_the_statistics_of_the_observations() -> None:
    values = observations([5.0, 3.0, 8.0, 10.0, 6.5], 77)
    maxima = np.arange(10.0).reshape(NUM_BLOCKS, 5)
    standing = Standing(NUM_BLOCKS, config_for(confidence=0.9))
    for batch, scale in ((values[:30], 1.0), (values[30:31], 3.0), (values[31:], 2.0)):
        standing.add(batch, scale * maxima)
    rows = list(standing.rows("reference", 123))
    assert len({(row.block, row.component) for row in rows}) == len(rows) == 15
    for row in rows:
        column = COMPONENTS.index(row.component)
        of_block = values.mean(1) if row.block is None else values[:, row.block]
        radius = float(confidence_radius(of_block[:, column].std(ddof=1), 77, 1 - 0.9))
        assert (row.mode, row.num_pairs) == ("reference", 123)
        assert row.mean == pytest.approx(of_block[:, column].mean())
        assert row.sd == pytest.approx(of_block[:, column].std(ddof=1))
        assert row.quantiles == pytest.approx(np.quantile(of_block[:, column], QUANTILES))
        assert (row.low, row.high) == pytest.approx((row.mean - radius, row.mean + radius))
        assert row.maximum == (None if row.block is None else 3 * maxima[row.block, column])


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_batches_of_any_size_give_the_same_rows(sizes: list[int], seed: int) -> None:
    values = observations([5.0, 3.0, 8.0, 10.0, 6.5], sum(sizes) + 2, seed=seed)
    whole = Standing(NUM_BLOCKS, config_for())
    whole.add(values, values.max(0))
    parts = Standing(NUM_BLOCKS, config_for())
    for batch in np.split(values, np.cumsum(sizes)):
        parts.add(batch, batch.max(0, initial=-math.inf))
    for one, other in zip(whole.rows("local", 1), parts.rows("local", 1), strict=True):
        assert one.maximum == other.maximum
        for name in ("mean", "sd", "low", "high", "quantiles"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9, abs=1e-12), name


# --- error rate of the rule -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_script("bench/stopping_rule")


@pytest.mark.parametrize(("every", "runs", "count"), [(32, 300, 512), (1, 100, 80)])
@pytest.mark.parametrize("means", [(8.0, 8.0, 8.5, 9.0, 10.5), (8.0, 8.5, 9.1, 9.9, 10.5)])
def test_the_simulated_rule_decides_as_standing_does(
    bench: ModuleType, means: tuple[float, ...], every: int, runs: int, count: int
) -> None:
    scenario = bench.Scenario("mixed", "lognormal", means, (1.0, 0.3, 0.1, 0.6, 0.1))
    values = bench.draw(scenario, runs, np.random.default_rng(0))[:count]
    outcome = bench.decide(values, means, every=every)
    first, second = np.triu_indices(len(COMPONENTS), 1)
    for run in range(runs):
        standing, stopped_at = Standing(1, config_for(min_observations=bench.MIN_OBSERVATIONS)), 0
        for end in range(every, count + 1, every):
            batch = values[end - every : end, run, None]
            standing.add(batch, batch.max(0))
            if standing.is_settled and not stopped_at:
                stopped_at = end
        assert stopped_at == outcome.stopped_at[run]
        assert standing._sign[-1, first, second].tolist() == outcome.signs[run].tolist()
    if means[0] == means[1]:  # whatever is settled about these two is an error
        assert np.array_equal(outcome.wrong, outcome.signs[:, 0] != 0)
    else:
        assert not outcome.wrong.any()
        assert (outcome.stopped_at > 0).mean() > 0.1
        assert len(set(outcome.stopped_at)) > 3


RUNS = 2000
ALLOWED = 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)


def test_the_rule_errs_no_more_often_than_it_says(bench: ModuleType) -> None:
    rows = [row for scenario in bench.scenarios() for row in bench.run_scenario(scenario, RUNS, seed=1)]
    assert len(rows) == 30
    rates = {(row["scenario"], row["looks"]): row["error_rate"] for row in rows}
    assert [case for case, rate in rates.items() if rate > ALLOWED] == []
    for row in rows:
        assert row["low"] <= row["error_rate"] <= row["high"]
        if row["scenario"].startswith("clear gaps"):
            assert row["stopped_settled_share"] > 0.99
            assert row["median_observations"] <= 64
        if row["scenario"].startswith("equal means"):
            assert row["stopped_settled_share"] < 0.05


def test_intervals_made_for_one_look_err_more_often(bench: ModuleType) -> None:
    """So the check above can fail."""

    def radius(sd: np.ndarray, count: int) -> np.ndarray:
        return sd * scipy.stats.t.ppf(1 - (1 - bench.CONFIDENCE) / 20, count - 1) / math.sqrt(count)

    scenario = next(bench.scenarios())
    for row in bench.run_scenario(scenario, RUNS, seed=1, radius=radius):
        assert row["error_rate"] > ALLOWED, row
