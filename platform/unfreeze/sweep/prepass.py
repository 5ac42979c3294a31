"""The pre-pass: what was measured before is recalled, the rest measured by Ray actors.

Ray, a second to import, is not needed to recall: so it is imported where an actor is.
"""

from collections.abc import Callable
from typing import Any

from unfreeze.config import Config
from unfreeze.errors import ClusterError, SweepMismatchError
from unfreeze.plasticity.cache import PlasticityCache
from unfreeze.records import DataFacts, ModelFacts, PlasticityTable, plasticity_table_from_dict, to_dict
from unfreeze.report.caution import cautions
from unfreeze.report.streams import say, stage
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.preflight import check_inputs


def pre_pass(
    config: Config, ledger: Ledger, *, on_placed: Callable[[], None] = lambda: None
) -> tuple[ModelFacts, DataFacts, PlasticityTable]:
    """Look at model and data, measure plasticity; both are kept in the ledger. Needs a Ray cluster to be joined.

    ``on_placed``: called once the first actor that measures has what it needs of it; not where all is known already.

    Raises:
        SweepMismatchError: the sweep began with another model or other data, or its table is another model's.
    """
    resumed = ledger.is_claimed(config)
    cache = PlasticityCache(config)
    stored = ledger.read_json("plasticity.json") if resumed else None
    own = None if stored is None else plasticity_table_from_dict(stored)
    model, data, table = cache.find_unseen() or _measure(config, cache, own, on_placed)
    table = own or table
    for note in data.notes:
        say(note)
    for line in cautions(config, num_train=data.num_train, num_val=data.num_val):
        say(f"caution: {line}")
    facts = {"model": to_dict(model), "data": to_dict(data)}
    if resumed:
        _check_unchanged(ledger, facts)
    if table.model_digest != model.digest:  # put there by hand
        raise SweepMismatchError(
            f"{ledger.url('plasticity.json')} was measured on another model than the sweep's (digest "
            f"{table.model_digest[:12]}…, not {model.digest[:12]}…); delete it and it is measured again"
        )
    ledger.write_json("facts.json", facts)
    ledger.write_json("plasticity.json", to_dict(table))
    return model, data, table


def measure_once(config: Config) -> PlasticityTable:
    """Plasticity without a sweep; Ray is started or joined for it unless it was measured before."""
    cache = PlasticityCache(config)
    found = cache.find_unseen()
    if found is None:
        from unfreeze.sweep.resources import ray_cluster, settle_gpus

        check_inputs(config, selections=[])
        with ray_cluster(config.cluster):
            found = _measure(settle_gpus(config), cache, None, lambda: None)
    for note in found[1].notes:
        say(note)
    return found[2]


def _measure(
    config: Config, cache: PlasticityCache, own: PlasticityTable | None, on_placed: Callable[[], None]
) -> tuple[ModelFacts, DataFacts, PlasticityTable]:
    """Facts from an actor; the table from there too, unless there is one of this sweep's own or in the cache."""
    import ray

    from unfreeze.plasticity.actor import LOST, PrePass, measure_with
    from unfreeze.sweep.resources import plain_errors, worker_resources

    options = {**worker_resources(config.cluster), "max_concurrency": 2}
    actors = [ray.remote(**options)(PrePass).remote(config) for _ in range(config.plasticity.num_actors)]
    try:
        with plain_errors():
            try:
                with stage("reading the model and every image"):
                    facts = actors[0].facts.remote()
                    ray.get(actors[0].__ray_ready__.remote())  # the others join when they can
                    on_placed()
                    model, data = ray.get(facts)
            except LOST as error:
                raise ClusterError(
                    f"the pre-pass was lost while it loaded model and data, out of memory perhaps: {error}"
                ) from error
            table = own or cache.find(model, data)
            if table is None:
                with stage("measuring plasticity"):
                    table = measure_with(actors, config, model, data)
    finally:
        for actor in actors:
            ray.kill(actor)  # gives its GPU to the slots
    if own is None:
        cache.keep(model, data, table)
    return model, data, table


def _check_unchanged(ledger: Ledger, facts: dict[str, Any]) -> None:
    """A sweep whose model or data changed under it would mix two experiments."""
    stored = ledger.read_json("facts.json")
    if stored is None:
        return
    digests = (("model", "model", "digest"), ("data", "data", "digest"), ("test images", "data", "test_digest"))
    for what, part, name in digests:
        before, now = stored[part][name], facts[part][name]
        if before != now:
            raise SweepMismatchError(
                f"the {what} of sweep {ledger.sweep!r} changed since it began (digest {before[:12]}… → {now[:12]}…); "
                f"bring them back as they were, or give this one a new sweep.name"
            )
