"""The streaming estimator: pairs in, running moments out. No output is kept longer than its norm takes."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from unfreeze.components.mapping import BlockModules, block_modules
from unfreeze.config import PlasticityConfig
from unfreeze.data.batches import InputSpec, eval_view, to_device
from unfreeze.data.catalog import Part
from unfreeze.errors import DataError, ModelError
from unfreeze.plasticity.formulas import pair_norm, rate_of_change, reference_changes
from unfreeze.records import COMPONENTS, PlasticityRow, PlasticityTable
from unfreeze.seeding import derive_seed

MODES = ("reference", "in_situ")


class Moments:
    """Count, mean and sum of squared deviations of arrays, merged batch by batch (Chan, Golub & LeVeque 1979)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean = np.zeros(shape)
        self.deviations = np.zeros(shape)

    def update(self, values: np.ndarray) -> None:
        """Add float64 observations (n, *shape)."""
        if not len(values):
            return
        mean = values.mean(0)
        total = self.count + len(values)
        shift = mean - self.mean
        self.deviations += ((values - mean) ** 2).sum(0) + shift**2 * self.count * len(values) / total
        self.mean += shift * len(values) / total
        self.count = total

    @property
    def sd(self) -> np.ndarray:
        return np.sqrt(self.deviations / (self.count - 1)) if self.count > 1 else np.full_like(self.mean, math.nan)


@torch.no_grad()
def measure_plasticity(
    module: nn.Module,
    spec: InputSpec,
    source: Part,
    target: Part,
    config: PlasticityConfig,
    *,
    device: torch.device,
    model_digest: str,
) -> PlasticityTable:
    """Both modes for every block and component, with 95 % intervals over pairs.

    Each image is in one pair at most, so the pairs are independent and the intervals are Student's; at most
    ``config.num_pairs`` pairs are drawn, fewer where there are fewer images.

    Raises:
        ModelError: a component's output is NaN or infinite.
        DataError: every pair holds two equal images.
    """
    started = time.perf_counter()
    module = module.to(device).eval()
    modules = list(block_modules(module))
    # One more row than blocks: the mean over blocks, whose spread over pairs is its own.
    moments = {mode: Moments((len(modules) + 1, len(COMPONENTS))) for mode in MODES}
    skipped = 0
    for x, y in _pair_batches(source, target, config):
        views = [eval_view(to_device(images, device), spec) for images in (x, y)]
        rates, distance = _rates(module, modules, torch.cat(views))
        if not np.isfinite(distance).all():
            raise ModelError("the embedding's output is NaN or infinite; check the weights of embed and the images")
        distinct = distance > 0
        skipped += int((~distinct).sum())
        for mode, values in rates.items():
            values = values[distinct]
            _check_finite(values, mode)
            moments[mode].update(np.concatenate([values, values.mean(1, keepdims=True)], axis=1))
    if not moments["reference"].count:
        raise DataError(f"all {skipped} pairs hold equal images, so there is no rate of change; check data.source_path")
    return PlasticityTable(
        rows=tuple(row for mode in MODES for row in _rows(mode, moments[mode])),
        skipped_pairs=skipped,
        seconds=time.perf_counter() - started,
        model_digest=model_digest,
        data_digest=f"{source.array.digest[:16]}-{target.array.digest[:16]}",
        settings={"num_pairs": config.num_pairs, "batch_size": config.batch_size, "seed": config.seed},
    )


def _pair_batches(source: Part, target: Part, config: PlasticityConfig) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    count = min(config.num_pairs, len(source), len(target))
    left, right = (
        np.random.default_rng(derive_seed(config.seed, "pairs", role)).permutation(len(part))[:count]
        for role, part in (("source", source), ("target", target))
    )
    for start in range(0, count, config.batch_size):
        chosen = slice(start, start + config.batch_size)
        yield source.take(left[chosen]), target.take(right[chosen])


def _rates(module: nn.Module, modules: list[BlockModules], images: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rates of change of a batch whose first half is x and second half y: mode → float64 (B, blocks, components).

    And the distances of the embedding outputs, float64 (B,): 0 for equal images, whose rates are NaN.
    """
    in_situ: dict[tuple[int, str], Tensor] = {}
    embedded: list[Tensor] = []
    attention_kwargs: dict[int, dict[str, Any]] = {}
    with contextlib.ExitStack() as hooks:

        def watch(block: int, name: str, layer: nn.Module) -> None:
            def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
                if name == "mha":
                    attention_kwargs[block] = kwargs  # rotary embeddings and the like, for the reference call
                rate = rate_of_change(*output.chunk(2), *args[0].chunk(2))
                # SwiGLU's FC1 is two layers on one input: their output differences are one vector.
                before = in_situ.get((block, name))
                in_situ[block, name] = rate if before is None else torch.hypot(before, rate)

            hooks.callback(layer.register_forward_hook(record, with_kwargs=True).remove)

        for index, parts in enumerate(modules):
            for name in ("ln1", "mha", "ln2", "fc2"):
                watch(index, name, getattr(parts, name))
            for layer in parts.fc1:
                watch(index, "fc1", layer)
        first_block: nn.Module = module.blocks[0]  # type: ignore[index, assignment]
        hooks.callback(first_block.register_forward_pre_hook(lambda _, args: embedded.append(args[0])).remove)
        module.forward_features(images)  # type: ignore[operator]
    x, y = embedded[0].chunk(2)
    distance = pair_norm(x - y)
    nonzero = torch.where(distance > 0, distance, torch.nan)
    reference = [reference_changes(parts, x, y, attention_kwargs[index]) for index, parts in enumerate(modules)]

    def stack(value: Any) -> np.ndarray:
        rows = [torch.stack([value(index, name) for name in COMPONENTS], dim=1) for index in range(len(modules))]
        return torch.stack(rows, dim=1).cpu().numpy()

    rates = {
        "reference": stack(lambda index, name: reference[index][name] / nonzero),
        "in_situ": stack(lambda index, name: in_situ[index, name]),
    }
    return rates, distance.cpu().numpy()


def _check_finite(values: np.ndarray, mode: str) -> None:
    broken = np.argwhere(~np.isfinite(values).all(0))
    if len(broken):
        names = ", ".join(f"block {block} {COMPONENTS[component]}" for block, component in broken[:8])
        raise ModelError(f"plasticity ({mode}) is NaN or infinite in {names}; check the weights and the images")


def _rows(mode: str, moments: Moments) -> Iterator[PlasticityRow]:
    count, sd = moments.count, moments.sd
    half = stdtrit(count - 1, 0.975) * sd / math.sqrt(count) if count > 1 else np.full_like(sd, math.inf)
    last = len(moments.mean) - 1
    for block in range(len(moments.mean)):
        for index, component in enumerate(COMPONENTS):
            mean = float(moments.mean[block, index])
            margin = float(half[block, index])
            yield PlasticityRow(
                mode=mode,
                block=None if block == last else block,
                component=component,
                mean=mean,
                sd=float(sd[block, index]),
                num_pairs=count,
                low=mean - margin,
                high=mean + margin,
            )
