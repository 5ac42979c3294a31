"""Rates of change of batches of pairs on one device: images in, one number per observation out."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unfreeze.components.mapping import block_modules, check_supported, group_of
from unfreeze.config import PlasticityConfig
from unfreeze.data.pixels.batches import eval_view, pinned
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.part import Part
from unfreeze.errors import ConfigError, ModelError
from unfreeze.plasticity.bounds import SeenTokens, upper_bounds
from unfreeze.plasticity.formulas import pair_distances
from unfreeze.plasticity.measurement import Measurement, count_batches, count_images
from unfreeze.plasticity.network import Extremes, attention_arguments, embed, in_situ_rates, local_rates
from unfreeze.plasticity.reference import Reference
from unfreeze.plasticity.sequential import BatchRates, merge_extremes
from unfreeze.records import COMPONENTS, MODES, PlasticityBound
from unfreeze.seeding import derive_seed

logger = logging.getLogger(__name__)

Loaded = tuple[Tensor, Tensor]  # source and target images, uint8 (groups · c, S, S, 3)


class Estimator:
    """Measures the batches of pairs that (source, target, config) define, in any order and on any device.

    Each image is in one group at most, so groups are independent. Which images meet depends on the configuration
    alone: several estimators can share the batches and give what one would have given.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: InputSpec,
        source: Part,
        target: Part,
        config: PlasticityConfig,
        *,
        device: torch.device,
    ) -> None:
        """
        Raises:
            ModelError: unsupported, or a weight is NaN or infinite.
            DataError: too few images for two observations.
        """
        check_supported(module)
        _check_weights(module)
        self.config = config
        self._module = module.to(device).eval()
        self._blocks = list(block_modules(module))
        self._spec = spec
        self._parts = (source, target)
        self._device = device
        self._positions = _pair_positions(source, target, config)
        self._pieces = 1  # a batch that did not fit the GPU is measured in two
        self._reference: Reference | None = None

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    @property
    def num_batches(self) -> int:
        return count_batches(len(self._positions[0]), self.config)

    @property
    def pairs_digest(self) -> str:
        """Of the images on either side."""
        source, target = self._parts
        return f"{source.digest[:16]}-{target.digest[:16]}"

    def load(self, index: int) -> Loaded:
        """The images of batch ``index``, read from disk into pinned memory; may run in another thread."""
        chosen = slice(index * self.config.batch_size, (index + 1) * self.config.batch_size)
        source, target = (
            pinned(part.take(positions[chosen]), self._device)
            for part, positions in zip(self._parts, self._positions, strict=True)
        )
        return source, target

    def rates(self, loaded: Loaded) -> BatchRates:
        """Measure one batch. A batch that does not fit the GPU is halved, once.

        Raises:
            ModelError: a component's output is NaN or infinite; names the block and the component.
            ConfigError: half a batch does not fit either.
        """
        try:
            return self._measure(loaded)
        except torch.OutOfMemoryError as error:
            if self._pieces == 2:
                raise self._too_large() from error
        self._pieces = 2
        logger.warning("%d pairs at a time do not fit the GPU's memory: halved", self.config.batch_size)
        torch.cuda.empty_cache()
        try:
            return self._measure(loaded)
        except torch.OutOfMemoryError as error:
            raise self._too_large() from error

    def _too_large(self) -> ConfigError:
        return ConfigError(
            f"half of plasticity.batch_size={self.config.batch_size} does not fit the GPU's memory either; lower it "
            f"or plasticity.cross={self.config.cross}, whose groups are measured whole"
        )

    def bounds(self, measurement: Measurement) -> list[PlasticityBound]:
        """Upper bounds for the tokens that were measured; none where they are switched off."""
        n, mean_norm = measurement.num_tokens, measurement.mean_token_norm
        seen = {mode: SeenTokens(n, mean_norm, *extremes) for mode, extremes in measurement.extremes.items()}
        with _layer_norm_eps(self._module, self.config.layer_norm_eps):
            return list(upper_bounds(self._blocks, seen)) if seen else []

    @torch.no_grad()
    def _measure(self, loaded: Loaded) -> BatchRates:
        c = self.config.cross
        groups = len(loaded[0]) // c
        sizes = [len(piece) * c for piece in np.array_split(np.arange(groups), min(self._pieces, groups))]
        images = [half.to(self._device, non_blocking=True) for half in loaded]
        pieces = zip(*(half.split(sizes) for half in images), strict=True)
        with _layer_norm_eps(self._module, self.config.layer_norm_eps), _exact_float32():
            measured = [self._measure_piece(torch.cat([eval_view(half, self._spec) for half in p])) for p in pieces]
        rates = {mode: np.concatenate([piece[0][mode] for piece in measured]) for mode in measured[0][0]}
        distance = np.concatenate([piece[1] for piece in measured])
        extremes = merge_extremes([piece[2] for piece in measured])
        norms = np.concatenate([piece[3] for piece in measured])
        if not np.isfinite(distance).all():
            raise ModelError("the embedding's output is NaN or infinite; check the weights of embed and the images")
        distinct = distance > 0
        usable = distinct.any(axis=(1, 2))
        for mode, values in rates.items():
            _check_finite(values[distinct], mode)
        pairs = distinct[..., None, None]
        return BatchRates(
            observations={
                mode: (np.where(pairs, values, 0).sum((1, 2)) / np.maximum(pairs.sum((1, 2)), 1))[usable]
                for mode, values in rates.items()
            },
            maxima={mode: np.where(pairs, values, -np.inf).max((0, 1, 2)) for mode, values in rates.items()},
            num_pairs=int(distinct.sum()),
            skipped_pairs=int((~distinct).sum()),
            extremes=extremes,
            token_norm=(float(np.sqrt((norms**2).mean(axis=1)).sum()), *norms.shape),
        )

    def _measure_piece(self, images: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any], np.ndarray]:
        """Rates of each pair by mode, distances of the embedding outputs, extremes by mode, token norms (B, tokens)."""
        config, module, blocks = self.config, self._module, self._blocks
        seen = {mode: Extremes(len(blocks)) for mode in config.modes} if config.bounds else {}
        rates: dict[str, Tensor] = {}
        embedded = embed(module, images)
        if "in_situ" in config.modes:
            with self._autocast():
                rates["in_situ"] = in_situ_rates(module, blocks, images, config.cross, seen.get("in_situ"))
        x, y = embedded.view(2, -1, config.cross, *embedded.shape[1:])
        # Equal images are told by their pixels: on a GPU one image's embedding can depend on its place in the batch.
        pixels = images.flatten(2).view(2, -1, config.cross, images.shape[1], images[0, 0].numel())
        distance = torch.where(pair_distances(*pixels) > 0, pair_distances(x, y), 0.0)
        if "reference" in config.modes:
            if self._reference is None:
                self._reference = self._make_reference(images[:1], embedded)
            divisor = torch.where(distance > 0, distance, torch.nan)[..., None, None]
            rates["reference"] = self._reference.changes(x, y, self._autocast()) / divisor
        if "local" in config.modes:
            rates["local"] = local_rates(module, blocks, images[:1], x, y, seen.get("local"))
        if "reference" in seen:
            for block, parts in enumerate(blocks):
                for name in ("ln1", "mha", "ln2"):
                    seen["reference"].see(block, name, getattr(parts, name), embedded)
        # The one wait for the device: a few numbers per pair and block are fetched, no output of a component.
        return (
            {mode: rates[mode].cpu().numpy() for mode in MODES if mode in rates},
            distance.cpu().numpy(),
            {mode: extremes.arrays() for mode, extremes in seen.items()},
            torch.linalg.vector_norm(embedded.float(), dim=-1).double().cpu().numpy(),
        )

    def _make_reference(self, image: Tensor, embedded: Tensor) -> Reference:
        arguments = attention_arguments(self._module, self._blocks, image)
        c = self.config.cross
        pairs = max(self.config.min_observations * c**2, self.config.batch_size * c)
        return Reference(self._blocks, arguments, num_tokens=embedded.shape[1], num_pairs=pairs)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.config.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=getattr(torch, self.config.precision))


def choose_device(config: PlasticityConfig) -> torch.device:
    """The GPU where there is one.

    Raises:
        ConfigError: a precision that only a GPU is worth using with.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device, config)
    return device


def check_device(device: torch.device, config: PlasticityConfig) -> None:
    """
    Raises:
        ConfigError: a device without float64, or a precision that only a GPU is worth using with.
    """
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"plasticity is measured on a CPU or a CUDA device, but the model is on {device}")
    if config.precision != "float32" and device.type != "cuda":
        raise ConfigError(f"plasticity.precision={config.precision} needs a GPU, and this is a {device}; take float32")


def _pair_positions(source: Part, target: Part, config: PlasticityConfig) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the images of either side, in order of measurement; whole groups, so as many on both sides."""
    count = count_images(len(source), len(target), config)
    left, right = (
        np.random.default_rng(derive_seed(config.seed, "pairs", role)).permutation(len(part))[:count]
        for role, part in (("source", source), ("target", target))
    )
    return left, right


def _check_weights(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        group = group_of(name) or name
        if group != "head" and not bool(torch.isfinite(parameter).all()):
            block, _, component = group.partition(".")
            where = f"block {block} {component}" if component in COMPONENTS else group
            raise ModelError(f"the weights of {where} hold NaN or infinity ({name}); load sound ones")


def _check_finite(values: np.ndarray, mode: str) -> None:
    broken = np.argwhere(~np.isfinite(values).all(0))
    if len(broken):
        names = ", ".join(f"block {block} {COMPONENTS[component]}" for block, component in broken[:8])
        raise ModelError(
            f"plasticity ({mode}) is NaN or infinite in {names}; check the weights and the images (a component whose "
            f"inputs are equal for different images, as behind a layer of zeros, has none)"
        )


@contextlib.contextmanager
def _exact_float32() -> Iterator[None]:
    """No TF32 on a GPU, which convolutions use unless told otherwise: its 10 bits move a rate by some 5e-5."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]
    own = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, own, strict=True):
            backend.fp32_precision = precision


@contextlib.contextmanager
def _layer_norm_eps(module: nn.Module, eps: float | None) -> Iterator[None]:
    """Every LayerNorm of the model with this epsilon instead of its own."""
    norms = [norm for norm in module.modules() if isinstance(norm, nn.LayerNorm)] if eps is not None else []
    own = [norm.eps for norm in norms]
    try:
        for norm in norms:
            norm.eps = eps  # type: ignore[assignment]
        yield
    finally:
        for norm, value in zip(norms, own, strict=True):
            norm.eps = value
