"""The pre-pass in one process, on one device, without Ray."""

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing

import torch
from torch import nn

from unfreeze.config import PlasticityConfig
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.part import Part
from unfreeze.data.pixels.prefetch import ahead
from unfreeze.plasticity.estimator import Estimator
from unfreeze.plasticity.measurement import Measurement
from unfreeze.plasticity.sequential import BatchRates
from unfreeze.records import PlasticityTable

Watch = Callable[[Iterable[BatchRates], int], Iterable[BatchRates]]


def measure_plasticity(
    module: nn.Module,
    spec: InputSpec,
    source: Part,
    target: Part,
    config: PlasticityConfig,
    *,
    device: torch.device,
    model_digest: str,
    watch: Watch = lambda batches, _: batches,
) -> PlasticityTable:
    """Plasticity of every block and component in the configured modes, until it is settled or the pairs are used up.

    ``watch`` hands every batch through, told how many there may be.

    Raises:
        ModelError: unsupported, or a component's weights or output are NaN or infinite.
        DataError: too few images, or every pair holds two equal images.
    """
    started = time.perf_counter()
    estimator = Estimator(module, spec, source, target, config, device=device)
    measurement = Measurement(estimator.num_blocks, config)
    measurement.settle(_batches(estimator, watch))
    return measurement.table(
        bounds=estimator.bounds(measurement),
        scores={},
        seconds=time.perf_counter() - started,
        model_digest=model_digest,
        data_digest=estimator.pairs_digest,
    )


def _batches(estimator: Estimator, watch: Watch) -> Generator[BatchRates]:
    """Every batch in order; the next one's images are read while one is measured."""
    images = (estimator.load(index) for index in range(estimator.num_batches))
    with closing(ahead(images)) as loaded:
        yield from watch(map(estimator.rates, loaded), estimator.num_batches)
