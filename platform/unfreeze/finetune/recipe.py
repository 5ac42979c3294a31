"""What a trial is taught beyond plain cross-entropy: smoothed labels, mixed images, a moving average of its weights."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unfreeze.config import FinetuneConfig
from unfreeze.seeding import derive_seed


@dataclass(frozen=True, slots=True)
class Targets:
    """What a batch's logits are held against."""

    labels: Tensor  # int64 (B,)
    partners: Tensor | None = None  # int64 (B,): labels of the images mixed in; None: nothing is mixed
    weight: float = 1.0  # of `labels`; the partners have the rest

    def loss_sum(self, logits: Tensor, part: slice, *, smoothing: float) -> Tensor:
        """Sum of the cross-entropies of the images in ``part``, to which ``logits`` (b, classes) belong."""
        losses = F.cross_entropy(logits.float(), self.labels[part], reduction="sum", label_smoothing=smoothing)
        if self.partners is None:
            return losses
        others = F.cross_entropy(logits.float(), self.partners[part], reduction="sum", label_smoothing=smoothing)
        return self.weight * losses + (1 - self.weight) * others


def mix(images: Tensor, labels: Tensor, config: FinetuneConfig, *, seed: int) -> tuple[Tensor, Targets]:
    """MixUp (arXiv 1710.09412) or CutMix (arXiv 1905.04899) of a batch (B, 3, H, W); as it is where both are off.

    Image i is mixed with its neighbour i ± 1: the order is random already, and a worker's even share of a batch holds
    both, so that any number of workers mixes the same pairs. ``seed``: of this step; one weight for the whole batch.
    """
    if not (config.mixup_alpha or config.cutmix_alpha):
        return images, Targets(labels)
    rng = np.random.default_rng(seed)
    cut = config.cutmix_alpha > 0 and (config.mixup_alpha == 0 or rng.random() < 0.5)
    alpha = config.cutmix_alpha if cut else config.mixup_alpha
    weight = float(rng.beta(alpha, alpha))
    neighbour = torch.arange(len(images), device=images.device) ^ 1
    others = images[neighbour]
    if cut:
        top, bottom, left, right = _box(images.shape[-2], images.shape[-1], 1 - weight, rng)
        images = images.clone()
        images[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        weight = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
    else:
        images = torch.lerp(others, images, weight)
    return images, Targets(labels, labels[neighbour], weight)


def _box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box of about ``share`` of the area around a random centre, cut at the edges: top, bottom, left, right."""
    tall, wide = height * share**0.5, width * share**0.5
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    top, bottom = (round(min(max(edge, 0), height)) for edge in (y - tall / 2, y + tall / 2))
    left, right = (round(min(max(edge, 0), width)) for edge in (x - wide / 2, x + wide / 2))
    return top, bottom, left, right


def mix_seed(trial_seed: int, step: int) -> int:
    return derive_seed(trial_seed, "mix", step)


class MovingAverage:
    """An exponential moving average of the trained weights, validated and kept in their place.

    The decay grows to its value as (1 + steps) / (10 + steps), so that the average does not remember the start.
    """

    def __init__(self, trained: Mapping[str, Tensor], decay: float) -> None:
        self._trained = list(trained.values())
        self._decay = decay
        self.values = {name: value.detach().clone() for name, value in trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step`` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), self._trained, 1 - decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's."""
        for name, own in self.values.items():
            own.copy_(values[name])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the average inside, its own weights again after."""
        own = [value.detach().clone() for value in self._trained]
        with torch.no_grad():
            torch._foreach_copy_(self._trained, list(self.values.values()))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._trained, own)
