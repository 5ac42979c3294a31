"""What the model says after a sweep, and where it has nothing to say."""

from collections.abc import Callable
from typing import Any

import pytest

from unfreeze.components.selection import parse_selection
from unfreeze.config import Config
from unfreeze.load import load_config
from unfreeze.records import COMPONENTS, ModelFacts, PlasticityRow, PlasticityTable, TrialRecord
from unfreeze.search.standing import stand

NUM_BLOCKS = 6
SCORES = {"ln1": 0.2, "mha": 3.0, "ln2": 0.5, "fc1": 2.0, "fc2": 1.0}


@pytest.fixture
def plasticity() -> PlasticityTable:
    """reference as `SCORES`, in_situ without relation to it."""
    by_mode = {"reference": SCORES, "in_situ": {"ln1": 1.0, "mha": 1.1, "ln2": 3.0, "fc1": 0.5, "fc2": 2.0}}
    rows = [
        PlasticityRow(mode=mode, block=block, component=name, mean=value, sd=0.1, num_pairs=9, low=0, high=9)
        for mode, values in by_mode.items()
        for name, value in values.items()
        for block in (*range(NUM_BLOCKS), None)
    ]
    return PlasticityTable(rows=tuple(rows), skipped_pairs=0, seconds=1.0, model_digest="m", data_digest="d")


def configured(**search: Any) -> Config:
    return load_config({"search": search})


@pytest.fixture
def trials(make_record: Callable[..., TrialRecord]) -> list[TrialRecord]:
    """Accuracy grows with what the selection's components have of reference plasticity."""
    texts = [*COMPONENTS, "mha+fc1", "ln1+ln2", "fc1+fc2", "mha+ln1", "ln2+fc2", "mha+fc1+fc2", "ln1+fc2", "mha+ln2"]
    records = []
    for index, text in enumerate(texts):
        names = parse_selection(text, num_blocks=NUM_BLOCKS).components
        records.append(make_record(index, text, [0.6 + 0.04 * sum(SCORES[name] for name in names)]))
    return records


def test_contenders_are_what_was_run(plasticity: PlasticityTable, model: ModelFacts, trials: list[TrialRecord]) -> None:
    found = stand(configured(), model, plasticity, trials)
    assert {contender.selection for contender in found} == {trial.spec.selection for trial in trials}
    assert found[0].selection == "mha+fc1+fc2"


@pytest.mark.parametrize(
    "search",
    [
        {"sampler": "tpe"},
        {"space": "grid", "selections": ["mha"], "learning_rates": [0.1], "seeds": [0]},
    ],
)
def test_without_the_model_there_is_nothing_to_say(
    search: dict[str, Any], plasticity: PlasticityTable, model: ModelFacts, trials: list[TrialRecord]
) -> None:
    assert stand(configured(**search), model, plasticity, trials) == ()
