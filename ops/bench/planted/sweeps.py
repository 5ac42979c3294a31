"""Sweeps of a planted data set: trials drawn at random, or proposed by the planner that runs real sweeps."""

from collections.abc import Iterator, Sequence

import numpy as np
from planted.pre_pass import plasticity_table
from planted.worlds import PARAMETERS, DataSet, World

from unfreeze.components.selection import parse_selection
from unfreeze.config import FinetuneConfig, SearchConfig
from unfreeze.cost.model import CostModel
from unfreeze.evidence.model import Points
from unfreeze.evidence.worth import ScoreSlope, score_slopes
from unfreeze.records import (
    COMPONENTS,
    ModelFacts,
    PlasticityTable,
    TrialRecord,
    TrialReport,
    TrialSpec,
    TrialState,
)
from unfreeze.search.planner import Planner
from unfreeze.search.prior import prior_scores
from unfreeze.search.space import make_space

NUM_BLOCKS = 12
MODEL = ModelFacts(
    name="vit_base",
    digest="",
    num_blocks=NUM_BLOCKS,
    parameters={f"{block}.{name}": PARAMETERS[name] for block in range(NUM_BLOCKS) for name in COMPONENTS}
    | {"embed": 742_656, "head": 7_690},
    image_size=224,
    create_kwargs={},
)


def draw_sweep(rng: np.random.Generator, world: World, planted: DataSet, num_trials: int) -> tuple[Points, np.ndarray]:
    """Trials and their accuracies: every component alone, random selections, and two of them run twice more."""
    groups = planted.effects.shape[1]
    alone = np.repeat(np.eye(5), groups, axis=1)
    density = rng.uniform(*world.density, size=(num_trials - 5, 1))
    drawn = (rng.random((num_trials - 5, 5 * groups)) < density).astype(float)
    drawn[~drawn.any(1)] = alone[0]
    switches, log_rates = np.concatenate([alone, drawn]), rng.uniform(-3, -1, num_trials)
    again = np.repeat(rng.choice(num_trials, 2, replace=False), 2)
    points = Points(np.concatenate([switches, switches[again]]), np.concatenate([log_rates, log_rates[again]]))
    return points, planted.run(points, rng)


def propose_sweeps(
    rng: np.random.Generator, planted: DataSet, score: np.ndarray, space: str, counts: Sequence[int]
) -> Iterator[list[TrialRecord]]:
    """A sweep of each number of trials, its confirmation runs on top, by `Planner` with its default options and
    ``score`` (5, groups) as plasticity."""
    scores = prior_scores("reference", _pre_pass(score), num_blocks=NUM_BLOCKS)
    for count in counts:
        config = SearchConfig(space=space, num_trials=count)
        room = make_space(config, CostModel(MODEL, FinetuneConfig()))
        planner = Planner(config, room, scores=scores, milestones=[1], seed=0)
        known: dict[int, TrialRecord] = {}
        while (spec := planner.plan(len(known), known, {i: own.spec for i, own in known.items()})) is not None:
            known[spec.index] = _run(planted, spec, rng)
        yield list(known.values())


def weigh_plasticity(trials: Sequence[TrialRecord], score: np.ndarray) -> ScoreSlope:
    """As a sweep weighs it."""
    return score_slopes(_pre_pass(score), trials, MODEL)[0]


def _pre_pass(score: np.ndarray) -> PlasticityTable:
    """One that found ``score`` (5, groups)."""
    groups = score.shape[1]
    found = {
        f"{block}.{name}": float(score[place, block * groups // NUM_BLOCKS])
        for block in range(NUM_BLOCKS)
        for place, name in enumerate(COMPONENTS)
    }
    return plasticity_table({"reference": found})


def _run(planted: DataSet, spec: TrialSpec, rng: np.random.Generator) -> TrialRecord:
    """``all`` trains the embedding too, which does nothing here; ``none`` no component."""
    groups = planted.effects.shape[1]
    switches = np.zeros((5, groups))
    for block, name in parse_selection(spec.selection, num_blocks=NUM_BLOCKS).members:
        switches[COMPONENTS.index(name), block * groups // NUM_BLOCKS] = 1
    (accuracy,) = planted.run(Points(switches.reshape(1, -1), np.log10([spec.learning_rate])), rng)
    report = TrialReport(
        images_seen=1, train_loss=0.0, val_loss=0.0, val_accuracy=float(accuracy), seconds=0.0, timestamp_ms=0
    )
    return TrialRecord(spec=spec, state=TrialState.FINISHED, reports=(report,))
