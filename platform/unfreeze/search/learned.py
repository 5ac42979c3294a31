"""Warm start: what earlier sweeps of the same storage say of the components (`search.learn_from`)."""

from collections.abc import Iterator

from unfreeze.config import Config
from unfreeze.errors import ModelError, StorageError
from unfreeze.evidence.model import Effects
from unfreeze.evidence.transfer import component_effects, pool
from unfreeze.records import (
    COMPONENTS,
    Learned,
    ModelFacts,
    learned_from_dict,
    model_facts_from_dict,
    plasticity_table_from_dict,
    to_dict,
)
from unfreeze.search.prior import component_means, prior_scores
from unfreeze.storage.ledger import Ledger

_KEY = "learned.json"


def unknown_sweeps(config: Config) -> Iterator[str]:
    """What is wrong with the names in `search.learn_from`, a line each."""
    names = config.search.learn_from
    if len(set(names)) < len(names):
        yield f"search.learn_from must have each sweep once, but got {names}"
    for name in dict.fromkeys(names):
        if name == config.sweep.name:
            yield f"search.learn_from has {name}, which is this sweep itself; name earlier ones"
        elif (other := Ledger(config.storage, name)).read_json("config.json") is None:
            yield f"search.learn_from has {name}, but there is no such sweep in {other.url('')}; check storage and name"


def read_learned(config: Config, ledger: Ledger) -> Learned | None:
    """What a sweep that has begun began with; None: nothing."""
    raw = ledger.read_json(_KEY) if config.search.learn_from else None
    return None if raw is None else learned_from_dict(raw)


def learn(config: Config, ledger: Ledger, model: ModelFacts) -> Learned | None:
    """What `search.learn_from` says, kept in the sweep's own ledger: what becomes of the others later changes nothing.

    Raises:
        ModelError: a sweep of a model whose components are of other number or size.
        StorageError: a sweep that is not there, has no finished trial of components, or did not measure the score.
    """
    if not config.search.learn_from:
        return None
    found = read_learned(config, ledger) if ledger.is_claimed(config) else None
    if found is None:
        found = pool({name: _effects(config, name, model) for name in config.search.learn_from})
        ledger.write_json(_KEY, to_dict(found))
    return found


def _effects(config: Config, name: str, model: ModelFacts) -> Effects:
    ledger = Ledger(config.storage, name)
    facts, table = ledger.read_json("facts.json"), ledger.read_json("plasticity.json")
    if facts is None or table is None:
        raise StorageError(f"search.learn_from has {name}, but {ledger.url('')} has no finished pre-pass; leave it out")
    other, score = model_facts_from_dict(facts["model"]), config.search.prior.score
    if _structure(other) != _structure(model):
        raise ModelError(
            f"search.learn_from has {name}, a sweep of {other.name} with {other.num_blocks} blocks, whose components "
            f"are not those of {model.name} with {model.num_blocks}: nothing carries over; leave it out"
        )
    plasticity = plasticity_table_from_dict(table)
    if score != "uniform" and (needed := "reference" if score == "reversed" else score) not in plasticity.by_group:
        raise StorageError(
            f"search.learn_from has {name}, which did not measure {needed} but {', '.join(plasticity.by_group)}: leave "
            f"it out, or choose another search.prior.score than {score}"
        )
    scores = component_means(prior_scores(score, plasticity, num_blocks=other.num_blocks))
    effects = component_effects(ledger.trials(), other, scores)
    if effects is None:
        raise StorageError(f"search.learn_from has {name}, but no trial of components has finished there; leave it out")
    return effects


def _structure(model: ModelFacts) -> list[int]:
    """Parameters of every block's components: the classifier may differ, what is asked about may not."""
    return [model.parameters[f"{block}.{name}"] for block in range(model.num_blocks) for name in COMPONENTS]
