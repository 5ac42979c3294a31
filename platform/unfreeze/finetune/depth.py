"""Stochastic depth whose choices are each image's own, so that workers and micro-batches change no number.

Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016. timm's `DropPath` draws from the process's stream for
whatever images it is given: other workers, or other micro-batches, and a trial would be another.
"""

import numpy as np
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from unfreeze.seeding import derive_seed


class ImageDropPath(DropPath):
    """A `DropPath` that is told what becomes of each image: ``factors`` (B,), or None where nothing is dropped."""

    factors: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.factors is None or not self.training:
            return x
        return x * self.factors.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


class DropPaths:
    """All stochastic depth of a model, whose `DropPath`s are replaced by `ImageDropPath`s."""

    def __init__(self, module: nn.Module) -> None:
        self._layers: list[tuple[int, ImageDropPath]] = []  # block, layer
        self._drawn: list[tuple[ImageDropPath, Tensor]] = []
        for name, layer in list(module.named_modules()):
            if type(layer) is DropPath and layer.drop_prob:
                own = ImageDropPath(layer.drop_prob, layer.scale_by_keep)
                module.set_submodule(name, own)
                self._layers.append((int(name.split(".")[1]), own))

    def rest(self) -> None:
        """Drop nothing."""
        self._drawn = []
        for _, layer in self._layers:
            layer.factors = None

    def draw(self, *, seed: int, step: int, batch_size: int, mine: slice, lowest: int, device: torch.device) -> None:
        """Which images of a batch keep which paths: a function of (seed, step, place in the batch, layer).

        ``mine``: this worker's places. Blocks below ``lowest`` are frozen and drop nothing.
        """
        if not self._layers:
            return
        chances = np.random.default_rng(derive_seed(seed, "drop path", step)).random((len(self._layers), batch_size))
        self._drawn = []
        for (block, layer), chance in zip(self._layers, chances, strict=True):
            if block >= lowest:
                kept = 1 - layer.drop_prob
                scale = 1 / kept if layer.scale_by_keep and kept else 1.0
                factors = torch.from_numpy((chance[mine] < kept) * np.float32(scale))
                self._drawn.append((layer, factors.to(device)))

    def choose(self, part: slice) -> None:
        """The images that the network is given next: ``part`` of this worker's."""
        for layer, factors in self._drawn:
            layer.factors = factors[part]
