"""Every printed statistic, once more from the CSV with SciPy."""

import dataclasses
import io
import itertools

import numpy as np
import pandas as pd
import pytest
from finished_sweep import make_settling_trials, make_trial
from scipy import stats

from unfreeze.evidence.correlate import correlate
from unfreeze.evidence.effects import NUM_DRAWS, slope
from unfreeze.evidence.model import Points, Posterior, Terms
from unfreeze.evidence.sets import pool_sweeps
from unfreeze.evidence.worth import weigh_scores
from unfreeze.records import COMPONENTS, Evidence, TrialRecord, TrialState
from unfreeze.report.formats import trials_csv

METHODS = {"spearman": stats.spearmanr, "kendall": stats.kendalltau}


def at_several_rates(seed: int) -> list[TrialRecord]:
    """Every selection at three rates, some on two seeds there, and one of the first tried again on the same seed."""
    rng, trials = np.random.default_rng(seed), []
    for trial in make_settling_trials(0.01, noise=0.02, repeat=1):
        for rate in (0.003, 0.01, 0.03):
            for own in range(1 + rng.integers(2)):
                accuracy = trial.best_val_accuracy + rng.normal(0, 0.02)
                trials.append(make_trial(len(trials), trial.spec.selection, accuracy, learning_rate=rate, seed=own))
    again = dataclasses.replace(trials[0].spec, index=len(trials))
    return [*trials, dataclasses.replace(trials[1], spec=again)]


@pytest.fixture
def sweep(build_evidence) -> Evidence:
    trials = at_several_rates(0)
    stopped = make_trial(len(trials), "mha", 0.99, learning_rate=0.1, state=TrialState.STOPPED)
    found = build_evidence((*trials, stopped))
    return dataclasses.replace(
        found,
        correlations=correlate(found.plasticity, found.trials, found.model),
        worths=weigh_scores(found.plasticity, found.trials, found.model),
    )


@pytest.fixture
def table(sweep: Evidence) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(trials_csv([sweep])))


def test_a_line_for_each_trial_that_counts(table: pd.DataFrame, sweep: Evidence) -> None:
    assert len(table) == len(sweep.trials) - 1
    assert set(table.sweep) == {"demo"}
    assert list(table.columns[-2:]) == ["reference", "in_situ"]


def test_which_runs_are_chosen(table: pd.DataFrame) -> None:
    """Of each selection those at one rate: of the rates run on the most seeds the one with the best mean."""
    runs = table.drop_duplicates(["selection", "learning_rate", "seed"], keep="last")
    rates = runs.groupby(["selection", "learning_rate"]).val_accuracy.agg(["count", "mean"])
    most = rates[rates["count"] == rates.groupby("selection")["count"].transform("max")]
    best = set(most.groupby("selection")["mean"].idxmax())
    expected = [place in best for place in zip(runs.selection, runs.learning_rate, strict=True)]
    assert table.chosen[runs.index].tolist() == expected
    assert not table.chosen.drop(runs.index).any()
    assert 11 <= table.chosen.sum() < len(runs) / 2


@pytest.mark.parametrize("mode", ["reference", "in_situ"])
@pytest.mark.parametrize("method", METHODS)
def test_correlations_and_their_p(table: pd.DataFrame, sweep: Evidence, mode: str, method: str) -> None:
    coefficient = lambda x, y: METHODS[method](x, y).statistic  # noqa: E731
    points = table[table.chosen].groupby("selection")[["val_accuracy", "parameters", mode]].mean()
    alone = points.loc[list(COMPONENTS), mode]
    trains = table.groupby("selection")[[f"trains:{name}" for name in COMPONENTS]].first().loc[points.index]

    def exchanged(order: tuple[str, ...]) -> pd.Series:
        return (trains * alone[list(order)].to_numpy()).sum(axis=1).round(9) / trains.sum(axis=1)

    for found in (c for c in sweep.correlations if c.mode == mode):
        chosen = list(COMPONENTS) if found.name == "components" else list(points.index)
        y, z = points.val_accuracy[chosen], points.parameters[chosen]

        def of(x: pd.Series, y: pd.Series = y, z: pd.Series = z, partial: bool = "size" in found.name) -> float:
            if not partial:
                return coefficient(x, y)
            xy, xz, yz = coefficient(x, y), coefficient(x, z), coefficient(y, z)
            return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))

        each = [of(exchanged(order)[chosen].round(9)) for order in itertools.permutations(COMPONENTS)]
        assert getattr(found, method) == pytest.approx(each[0])
        assert getattr(found, f"{method}_p") == pytest.approx(np.mean(np.abs(each) >= abs(each[0]) - 1e-9))


def test_what_a_score_is_worth(table: pd.DataFrame, sweep: Evidence) -> None:
    """From the table's own columns, by the model that is tested against its formula elsewhere."""
    switches = table[[f"trains:{name}" for name in COMPONENTS]].to_numpy()
    rates = (table.learning_rate.min(), table.learning_rate.max())
    terms = Terms.of(np.zeros(5), np.ones(5), np.arange(5), rates=rates)
    effects = Posterior(
        terms, Points(switches, np.log10(table.learning_rate.to_numpy())), table.val_accuracy.to_numpy()
    )
    alone = table.groupby("selection")[["reference", "in_situ", "parameters"]].first().loc[list(COMPONENTS)]
    accuracy = table[table.chosen].groupby("selection").val_accuracy.mean().median()
    for found in sweep.worths:
        scores = np.array(list(itertools.permutations(alone[found.score])))
        own = slope(effects.linear_effects(NUM_DRAWS), scores, np.log(alone.parameters.to_numpy()))
        rate = accuracy * (1 - accuracy)
        assert found.worth.mean == pytest.approx(rate * own.mean, rel=1e-6)
        assert (found.worth.low, found.worth.high) == pytest.approx((rate * own.low, rate * own.high), rel=1e-6)
        assert found.worth.bayes_factor == pytest.approx(np.exp(own.log_bayes_factor))
        assert found.worth.p == pytest.approx(own.p)
        assert found.worth.positive == pytest.approx(own.positive)


def test_components_over_sets(build_evidence) -> None:
    """Gains, both tests and ranks from the CSV of three sweeps."""
    evidence = {}
    for seed, name in enumerate(("birds", "cats", "dogs")):
        found = build_evidence(tuple(at_several_rates(seed)))
        data = dataclasses.replace(found.data, digest=name)
        evidence[name] = dataclasses.replace(found, sweep=name, data=data)
    table = pd.read_csv(io.StringIO(trials_csv(evidence.values())))
    alone = 100 * table[table.chosen].pivot_table(index="sweep", columns="selection", values="val_accuracy")
    pooled = pool_sweeps(evidence)
    assert len(pooled.comparisons) == 10
    for found in pooled.comparisons:
        first, second = alone[found.first], alone[found.second]
        assert found.difference == pytest.approx((first - second).mean())
        assert found.relative == pytest.approx((100 * (first / second - 1)).mean())
        assert found.t_p == pytest.approx(stats.ttest_rel(first, second).pvalue)
        assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(first, second, alternative="greater").pvalue)
    ranks = alone[list(COMPONENTS)].rank(axis=1, ascending=False).mean()
    assert pooled.ranks == pytest.approx(ranks.to_dict())
