"""The simulation behind the verdict's error rates, small; and the table of power that reports quote from it."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.special import logit
from scripts import load_script

from unfreeze.evidence.model import standardised
from unfreeze.evidence.power import POWER, what_would_settle
from unfreeze.records import COMPONENTS
from unfreeze.report.paper import PUBLISHED

BENCH = Path(__file__).resolve().parents[2] / "ops" / "bench"
RECORD = json.loads((BENCH / "results" / "verdict.json").read_text(encoding="utf-8"))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH / "figures"))
    monkeypatch.syspath_prepend(str(BENCH))
    return load_script("bench/verdict")


@pytest.mark.parametrize("space", ["components", "depth", "blocks"])
def test_a_large_effect_is_found_and_its_reverse_too(bench: ModuleType, space: str) -> None:
    for sign, word in ((1, "supported"), (-1, "contradicted")):
        world = bench.World(components=0.02, parts=0.01, beta=sign * 0.5)
        words = [bench.run(world, space, 32, 1, seed).word for seed in range(6)]
        assert set(words) <= {word, "undecided"}
        assert words.count(word) >= 4


def test_the_published_effect_is_that_of_its_table(bench: ModuleType) -> None:
    order = np.array([2.0, 1.0, 0.0, -1.0, -2.0]) / np.sqrt(2)  # MHA, FC1, FC2, LN2, LN1
    accuracies = np.array([[mean for mean, _ in row[:5]] for row in PUBLISHED.values()]) / 100
    slopes = [np.polyfit(order, logit(row), 1)[0] for row in accuracies]
    world = bench.published_world()
    assert (world.beta, world.spread) == (pytest.approx(np.mean(slopes)), pytest.approx(np.std(slopes, ddof=1)))
    assert bench.published_world(4.0).beta == pytest.approx(4 * np.mean(slopes))
    # What the line leaves, as a two-way table: the components' mean over the sets, and what each set adds.
    design = np.column_stack([np.ones(5), order])
    rest = np.array([row - design @ np.linalg.lstsq(design, row)[0] for row in logit(accuracies)])
    within = rest.var(axis=0, ddof=1).sum() / 3
    assert world.own**2 == pytest.approx(within)
    assert world.components**2 == pytest.approx((rest.mean(0) ** 2).sum() / 3 - within / 11)


def test_plasticity_is_planted_as_said(bench: ModuleType) -> None:
    rng = np.random.default_rng(0)
    size = standardised(bench.SIZES)
    drawn = [bench.plant_score(rng, 1, 0.8)[:, 0] for _ in range(400)]
    assert np.mean([np.corrcoef(score, size)[0, 1] for score in drawn]) == pytest.approx(0.8, abs=0.05)
    free = [bench.plant_score(rng, 12, 0.0) for _ in range(50)]
    assert np.mean([score.mean(1).var() for score in free]) == pytest.approx(0.75, abs=0.1)  # between components


def test_the_power_that_reports_quote_is_the_measured_one() -> None:
    measured = {}
    for figure in RECORD["results"]:
        kind, *place = figure["name"].split("/")
        if kind == "power":
            times, space, trials, sets = place
            measured[float(times.removesuffix("x")), space, int(trials), int(sets)] = figure["power"]
    assert measured == POWER
    assert what_would_settle().startswith("What would settle it, in simulated sweeps: an effect of the published size")


def test_each_figure_says_what_measured_it() -> None:
    for figure in RECORD["results"]:
        assert figure["command"].startswith("python ops/bench/verdict.py --"), figure["name"]
        assert figure["machine"]
        assert figure["date"] <= RECORD["date"]
        assert figure["repetitions"] > 0


def test_a_proposed_sweep_is_the_planner_s(bench: ModuleType) -> None:
    rng = np.random.default_rng(0)
    score = bench.plant_score(rng, 1, 0.0)
    planted = bench.DataSet.plant(rng, bench.NULLS["effects"], score, np.zeros(5), 0.0)
    short, longer = bench.propose_sweeps(rng, planted, score, "components", [8, 12])
    assert len(short) == 8 + 6
    origins = [trial.spec.origin for trial in longer]
    alone = ["prior"] * 5 + ["baseline"] * 2
    assert origins == ["search"] * 5 + alone + ["confirm"] * 6
    order = [COMPONENTS[place] for place in np.argsort(-score[:, 0])]
    assert [trial.spec.selection for trial in longer[5:10]] == order  # from the most plastic
    baselines = sum(trial.spec.selection in ("all", "none") for trial in longer)
    assert bench.weigh_plasticity(longer, score).num_trials == len(longer) - baselines
