"""The pre-pass as a Ray actor: looks at model and data, measures, and goes away, GPU and all.

The driver imports this file to name the class, so the methods import torch and timm: seconds of CPU it never needs.
"""

from pathlib import Path

import ray

from unfreeze.config import Config
from unfreeze.records import DataFacts, ModelFacts, PlasticityTable


class PrePass:
    """Holds model and data on the node that has them; the driver may have neither."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def facts(self) -> tuple[ModelFacts, DataFacts]:
        """Load model and data; what the driver needs to plan the sweep.

        Raises:
            ModelError, DataError, StorageError: everything that can be wrong with either, before any trial starts.
        """
        import torch

        from unfreeze.data.catalog import load_source, load_train_val
        from unfreeze.models.build import build_model, input_size

        torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
        config = self._config
        size = input_size(config.model)
        self._data = load_train_val(config.data, image_size=size)
        self._source = load_source(config.data, image_size=size)
        cache_dir = Path(config.data.cache_dir)
        self._base = build_model(config.model, num_classes=len(self._data.classes), cache_dir=cache_dir)
        facts = DataFacts(
            name=config.data.name,
            digest=self._data.digest,
            classes=self._data.classes,
            num_train=len(self._data.train),
            num_val=len(self._data.val),
            num_test=self._data.num_test,
            num_source=len(self._source),
            bad_files=self._data.bad_files + self._source.array.bad_files,
        )
        return self._base.facts, facts

    def measure(self) -> PlasticityTable:
        """Plasticity of every component, both modes, source × training images. After `facts`."""
        import torch

        from unfreeze.plasticity.estimator import measure_plasticity

        return measure_plasticity(
            self._base.module,
            self._base.spec,
            self._source,
            self._data.train,
            self._config.plasticity,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            model_digest=self._base.facts.digest,
        )
