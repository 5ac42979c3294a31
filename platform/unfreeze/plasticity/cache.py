"""Plasticity measured before, by what it was measured on: kept in the storage, for every sweep below it.

Two keys lead to a table. By *inputs* (file sizes and times, see `data.sets.inputs`) the driver finds it without
touching model, data or a GPU. By *digests* an actor finds it that has loaded both from elsewhere.
"""

import functools
import importlib.metadata
import json
import logging
from typing import Any

from unfreeze.config import Config
from unfreeze.data.pixels.keys import digest_of, specification
from unfreeze.data.sets.inputs import describe_inputs
from unfreeze.records import (
    DataFacts,
    ModelFacts,
    PlasticityTable,
    data_facts_from_dict,
    model_facts_from_dict,
    plasticity_table_from_dict,
    to_dict,
)
from unfreeze.storage.base import open_storage
from unfreeze.storage.patience import patiently

logger = logging.getLogger(__name__)

Measured = tuple[ModelFacts, DataFacts, PlasticityTable]

# No sweep can have this name, see `config.SweepConfig`.
_FOLDER = "_pre-pass"


class PlasticityCache:
    """Tables below ``{storage}/_pre-pass/``. A damaged entry is measured again."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.storage = open_storage(config.storage)
        inputs = describe_inputs(config)
        self._by_inputs = None if inputs is None else self._key("inputs", inputs)

    def find_unseen(self) -> Measured | None:
        """Facts and table of inputs that did not change since; None when they did, or this machine cannot tell."""
        return None if self._by_inputs is None else self._read(self._by_inputs)

    def find(self, model: ModelFacts, data: DataFacts) -> PlasticityTable | None:
        """The table of these weights and images under the same settings."""
        found = self._read(self._by_digests(model, data))
        return None if found is None else found[2]

    def keep(self, model: ModelFacts, data: DataFacts, table: PlasticityTable) -> None:
        entry = json.dumps({"model": to_dict(model), "data": to_dict(data), "table": to_dict(table)}).encode()
        for key in (self._by_digests(model, data), self._by_inputs):
            if key is not None:
                patiently(functools.partial(self.storage.write, key, entry))

    def _by_digests(self, model: ModelFacts, data: DataFacts) -> str:
        # One set of weights fits several architectures: other heads, another epsilon.
        built = [model.name, model.create_kwargs, model.image_size, model.digest]
        options = specification("plasticity", self._config.model, self._config.data, self._config.plasticity)
        return self._key("digests", [options, built, data.pairs_digest])

    def _key(self, kind: str, what: Any) -> str:
        versions = [importlib.metadata.version(name) for name in ("timm", "torch")]
        return f"{_FOLDER}/{kind}/{digest_of(versions, what)}.json"

    def _read(self, key: str) -> Measured | None:
        try:
            entry = json.loads(patiently(lambda: self.storage.read(key)))
            return (
                model_facts_from_dict(entry["model"]),
                data_facts_from_dict(entry["data"]),
                plasticity_table_from_dict(entry["table"]),
            )
        except KeyError as error:
            if error.args == (key,):  # there is none
                return None
            reason: Exception = error
        except (TypeError, ValueError) as error:
            reason = error
        logger.warning("%s cannot be read and is measured again: %s", self.storage.url(key), reason)
        return None
