"""Warm start from earlier sweeps: what is read, kept, and refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfreeze.config import Config, FinetuneConfig, SearchConfig
from unfreeze.cost.model import CostModel
from unfreeze.errors import ConfigError, ModelError, StorageError
from unfreeze.load import load_config
from unfreeze.records import COMPONENTS, ModelFacts, PlasticityRow, PlasticityTable, TrialRecord, to_dict
from unfreeze.search.learned import learn, read_learned, unknown_sweeps
from unfreeze.search.proposals import ModelSampler
from unfreeze.search.space import make_space
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.preflight import check_sweep

MakeRecord = Callable[..., TrialRecord]
NUM_BLOCKS = 6
SCORES = {"ln1": 0.2, "mha": 3.0, "ln2": 0.5, "fc1": 2.0, "fc2": 1.0}


def table(mode: str = "reference") -> PlasticityTable:
    rows = [
        PlasticityRow(mode=mode, block=block, component=name, mean=value, sd=0.1, num_pairs=9, low=0, high=9)
        for name, value in SCORES.items()
        for block in (*range(NUM_BLOCKS), None)
    ]
    return PlasticityTable(rows=tuple(rows), skipped_pairs=0, seconds=1.0, model_digest="m", data_digest="d")


@pytest.fixture
def plant(tmp_path: Path, model: ModelFacts, make_record: MakeRecord) -> Callable[..., Ledger]:
    """A sweep that has run: what ``best`` is part of did well."""

    def make(name: str, *, best: str = "fc2", facts: ModelFacts = model, mode: str = "reference") -> Ledger:
        ledger = Ledger(str(tmp_path), name)
        ledger.write_json("config.json", {})
        ledger.write_json("facts.json", {"model": to_dict(facts)})
        ledger.write_json("plasticity.json", to_dict(table(mode)))
        for index, text in enumerate([*COMPONENTS, "mha+fc1", "fc1+fc2", "mha+fc2", "ln1+ln2", "fc2+ln1"]):
            rate = 0.005 * (1 + index)
            ledger.write_trial(make_record(index, text, [0.6 + 0.2 * (best in text)], learning_rate=rate))
        return ledger

    return make


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Config]:
    def configure(**search: Any) -> Config:
        return load_config({"storage": str(tmp_path), "sweep": {"name": "new"}, "search": search})

    return configure


def sampler(model: ModelFacts, space: str, learned: Any) -> ModelSampler:
    members = {(block, name): SCORES[name] for block in range(NUM_BLOCKS) for name in COMPONENTS}
    found = make_space(SearchConfig(space=space), CostModel(model, FinetuneConfig()))
    return ModelSampler(found, members, seed=0, learned=learned)


def test_without_names_nothing_is_learned_or_written(make: Callable[..., Config], model: ModelFacts) -> None:
    ledger = Ledger(make().storage, "new")
    assert learn(make(), ledger, model) is None
    assert ledger.read_json("learned.json") is None
    assert read_learned(make(), ledger) is None


def test_the_search_begins_with_what_did_well_before(
    make: Callable[..., Config], plant: Callable[..., Ledger], model: ModelFacts
) -> None:
    plant("one")
    learned = learn(make(learn_from=["one"]), Ledger(make().storage, "new"), model)
    assert learned is not None
    for space in ("components", "depth", "blocks"):
        proposed, _ = sampler(model, space, learned).propose([], {})
        assert "fc2" in proposed.components
    effects = {space: sampler(model, space, learned)._terms.before for space in ("components", "depth", "blocks")}
    whole = effects["components"]
    assert whole is not None
    assert COMPONENTS[int(np.argmax(whole.mean))] == "fc2"
    for space, parts in (("depth", 3), ("blocks", NUM_BLOCKS)):
        found = effects[space]
        assert found is not None
        by_part = found.mean.reshape(len(COMPONENTS), parts)
        np.testing.assert_allclose(by_part.sum(1), whole.mean)  # all of a component's parts are the component
        np.testing.assert_allclose(by_part, by_part[:, :1].repeat(parts, axis=1))  # and none is better than another


def test_what_becomes_of_the_others_later_changes_nothing(
    make: Callable[..., Config], plant: Callable[..., Ledger], model: ModelFacts
) -> None:
    config = make(learn_from=["one", "two"])
    ledger, first = Ledger(config.storage, "new"), plant("one")
    plant("two", best="mha")
    learned = learn(config, ledger, model)
    ledger.claim(config)
    shutil.rmtree(first.url(""))
    assert learn(config, ledger, model) == learned == read_learned(config, ledger)
    check_sweep(config)  # it has begun: nothing is asked of the others any more


def test_a_sweep_that_never_began_learns_anew(
    make: Callable[..., Config], plant: Callable[..., Ledger], model: ModelFacts
) -> None:
    plant("one")
    plant("two", best="mha")
    ledger = Ledger(make().storage, "new")
    first = learn(make(learn_from=["one"]), ledger, model)
    second = learn(make(learn_from=["two"]), ledger, model)
    assert first != second == read_learned(make(learn_from=["two"]), ledger)


def test_wrong_names_are_said_before_anything_starts(make: Callable[..., Config], plant: Callable[..., Ledger]) -> None:
    plant("one")
    assert list(unknown_sweeps(make(learn_from=["one"]))) == []
    with pytest.raises(ConfigError) as caught:
        check_sweep(make(learn_from=["one", "onee", "new", "one"]))
    said = str(caught.value)
    assert said.startswith("3 problems")
    assert "learn_from has onee, but there is no such sweep in" in said
    assert "learn_from has new, which is this sweep itself" in said
    assert "must have each sweep once" in said
    with pytest.raises(ConfigError, match=r"search\.learn_from\.0.*\.\./one"):
        make(learn_from=["../one"])


def test_what_cannot_teach_is_refused(
    make: Callable[..., Config], plant: Callable[..., Ledger], model: ModelFacts
) -> None:
    wider = replace(model, name="wider", parameters={name: 4 * size for name, size in model.parameters.items()})
    plant("wider", facts=wider)
    plant("deeper", facts=replace(model, num_blocks=NUM_BLOCKS - 1))
    plant("in_situ", mode="in_situ")
    plant("begun").delete("facts.json")
    empty = plant("empty")
    for record in empty.trials():
        empty.delete(f"trials/{record.spec.trial_id}.json")
    ledger = Ledger(make().storage, "new")
    cases = {
        "wider": (ModelError, "a sweep of wider with 6 blocks, whose components are not those of unfreeze_tiny with 6"),
        "deeper": (ModelError, "with 5 blocks, whose components are not those"),
        "in_situ": (StorageError, "did not measure reference but in_situ: leave it out, or choose another"),
        "begun": (StorageError, "has no finished pre-pass"),
        "empty": (StorageError, "no trial of components has finished there"),
    }
    for name, (kind, message) in cases.items():
        with pytest.raises(kind, match=message):
            learn(make(learn_from=[name]), ledger, model)
    assert learn(make(learn_from=["in_situ"], prior={"score": "uniform"}), ledger, model) is not None


def test_another_classifier_is_no_other_structure(
    make: Callable[..., Config], plant: Callable[..., Ledger], model: ModelFacts
) -> None:
    plant("one", facts=replace(model, parameters={**model.parameters, "head": 99}))
    assert learn(make(learn_from=["one"]), Ledger(make().storage, "new"), model) is not None
