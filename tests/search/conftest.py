"""A model of numbers, and trials that never ran: what they would report is a function of their spec."""

import math
from collections.abc import Callable, Sequence

import pytest

from unfreeze.config import FinetuneConfig, SearchConfig
from unfreeze.finetune.cost import CostModel
from unfreeze.finetune.cutoff import misses_cutoff
from unfreeze.records import COMPONENTS, ModelFacts, TrialRecord, TrialReport, TrialSpec, TrialState
from unfreeze.search.planner import Planner
from unfreeze.search.space import make_space
from unfreeze.seeding import derive_seed

NUM_BLOCKS = 6
SIZES = {"ln1": 128, "mha": 16640, "ln2": 128, "fc1": 16640, "fc2": 16448}
MILESTONES = [100 * (k + 1) for k in range(10)]
SCORES = {"ln1": 0.2, "mha": 3.0, "ln2": 0.5, "fc1": 2.0, "fc2": 1.0}


def noise(*parts: int | str) -> float:
    """0 to 1, the same for the same parts."""
    return derive_seed(*parts) / 2**63


def run_trial(spec: TrialSpec) -> TrialRecord:
    """A final record: most finish, some diverge at a large rate, one in eleven fails, early stopping stops."""
    top = 0.5 + 0.3 * noise("selection", spec.selection) - 0.05 * abs(math.log10(spec.learning_rate) + 2)
    reports: list[TrialReport] = []
    state, error = TrialState.FINISHED, None
    if spec.origin == "search" and noise("fails", spec.index) < 1 / 11:
        return TrialRecord(spec=spec, state=TrialState.FAILED, error="RuntimeError: out of memory")
    for number, images in enumerate(MILESTONES):
        if spec.learning_rate > 0.07 and number == 3:
            state, error = TrialState.DIVERGED, "loss became nan"
            break
        accuracy = top * (1 - 0.5**number) + 0.02 * noise("report", str(spec.seed), spec.selection, number)
        reports.append(
            TrialReport(
                images_seen=images, train_loss=1.0, val_loss=1.0, val_accuracy=accuracy, seconds=number, timestamp_ms=0
            )
        )
        if misses_cutoff(reports, spec.stop_below):
            state = TrialState.STOPPED
            break
    return TrialRecord(
        spec=spec,
        state=state,
        reports=tuple(reports),
        trainable_parameters=1000,
        checkpoint=f"checkpoints/{spec.trial_id}/best.safetensors",
        error=error,
    )


@pytest.fixture(scope="session")
def model() -> ModelFacts:
    return ModelFacts(
        name="unfreeze_tiny",
        digest="a" * 64,
        num_blocks=NUM_BLOCKS,
        parameters={f"{b}.{c}": SIZES[c] for b in range(NUM_BLOCKS) for c in COMPONENTS}
        | {"embed": 13568, "head": 778},
        image_size=32,
        create_kwargs={},
        num_tokens=17,
        width=64,
    )


@pytest.fixture(scope="session")
def make_planner(model: ModelFacts) -> Callable[..., Planner]:
    def make(*, scores: dict[str, float] = SCORES, seed: int = 0, **settings: object) -> Planner:
        config = SearchConfig(**{"num_trials": 14, "concurrency": 4, "confirm_top": 2, "confirm_seeds": 2, **settings})
        space = make_space(config, CostModel(model, FinetuneConfig()))
        return Planner(config, space, scores=scores, milestones=MILESTONES, seed=seed)

    return make


@pytest.fixture(scope="session")
def fake_trial() -> Callable[[TrialSpec], TrialRecord]:
    return run_trial


@pytest.fixture(scope="session")
def make_record() -> Callable[..., TrialRecord]:
    """A record by hand: (index, selection, accuracies of its reports), and whatever else matters."""

    def make(
        index: int,
        selection: str,
        accuracies: Sequence[float],
        *,
        learning_rate: float = 0.01,
        seed: int = 0,
        origin: str = "search",
        state: TrialState = TrialState.FINISHED,
        parameters: int = 1000,
    ) -> TrialRecord:
        spec = TrialSpec(index=index, selection=selection, learning_rate=learning_rate, seed=seed, origin=origin)
        reports = tuple(
            TrialReport(
                images_seen=100 * (k + 1), train_loss=1.0, val_loss=1.0, val_accuracy=value, seconds=k, timestamp_ms=0
            )
            for k, value in enumerate(accuracies)
        )
        return TrialRecord(spec=spec, state=state, reports=reports, trainable_parameters=parameters)

    return make
