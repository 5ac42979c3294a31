"""Every printed statistic, once more from the CSV with SciPy."""

import dataclasses
import io
import itertools

import numpy as np
import pandas as pd
import pytest
from finished_sweep import make_settling_trials
from scipy import stats

from unfreeze.evidence.correlate import correlate
from unfreeze.evidence.effects import NUM_DRAWS, slope
from unfreeze.evidence.model import Points, Posterior, Terms
from unfreeze.evidence.worth import weigh_scores
from unfreeze.records import COMPONENTS, Evidence, TrialState
from unfreeze.report.formats import trials_csv

METHODS = {"spearman": stats.spearmanr, "kendall": stats.kendalltau}


@pytest.fixture
def sweep(build_evidence) -> Evidence:
    trials = tuple(make_settling_trials(0.01, noise=0.02))
    stopped = dataclasses.replace(trials[0], state=TrialState.STOPPED)
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


@pytest.mark.parametrize("mode", ["reference", "in_situ"])
@pytest.mark.parametrize("method", METHODS)
def test_correlations_and_their_p(table: pd.DataFrame, sweep: Evidence, mode: str, method: str) -> None:
    coefficient = lambda x, y: METHODS[method](x, y).statistic  # noqa: E731
    points = table.groupby("selection")[["val_accuracy", "parameters", mode]].mean()  # one rate: seeds alone
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
    accuracy = table.groupby("selection").val_accuracy.mean().median()
    for found in sweep.worths:
        scores = np.array(list(itertools.permutations(alone[found.score])))
        own = slope(effects.linear_effects(NUM_DRAWS), scores, np.log(alone.parameters.to_numpy()))
        assert found.worth.mean == pytest.approx(accuracy * (1 - accuracy) * own.mean, rel=1e-6)
        assert found.worth.p == pytest.approx(own.p)
        assert found.worth.positive == pytest.approx(own.positive)
