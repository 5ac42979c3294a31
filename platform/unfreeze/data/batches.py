"""Batches on the training device: which images, in which order, and how uint8 becomes a model's input.

Order and augmentation are pure functions of (seed, step): the same selection and seed sees the same batches whatever
the slot, the number of workers, or how often the trial was interrupted (common random numbers).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unfreeze.data.catalog import Part
from unfreeze.data.crops import InputSpec, crop_flip, draw_crops, normalise
from unfreeze.seeding import derive_seed


def batch_positions(num_images: int, step: int, *, batch_size: int, seed: int) -> np.ndarray:
    """Positions of the images of optimizer step ``step`` (from 0): int64 (batch_size,).

    One endless sequence of epochs, each a permutation of its own; a batch may span two of them, so no image is dropped
    and none is padded.
    """
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // num_images, (last - 1) // num_images + 1)
    order = np.concatenate(
        [np.random.default_rng(derive_seed(seed, "order", e)).permutation(num_images) for e in epochs]
    )
    offset = epochs[0] * num_images
    return order[first - offset : last - offset]


@dataclass(frozen=True, slots=True)
class TrainBatches:
    """Training batches of one trial, one rank's share of each."""

    part: Part
    spec: InputSpec
    batch_size: int  # over all ranks
    seed: int
    augment: str
    device: torch.device
    rank: int = 0
    world_size: int = 1

    def get(self, step: int) -> tuple[Tensor, Tensor]:
        """This rank's images float32 (B / world_size, 3, H, W) and labels int64 of optimizer step ``step``."""
        share = self.batch_size // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        positions = batch_positions(len(self.part), step, batch_size=self.batch_size, seed=self.seed)[mine]
        images = to_device(self.part.take(positions), self.device)
        labels = torch.from_numpy(self.part.labels[positions]).to(self.device, non_blocking=True)
        if self.augment == "none":
            return eval_view(images, self.spec), labels
        boxes, flips = draw_crops(self.batch_size, stored=images.shape[1], seed=derive_seed(self.seed, "augment", step))
        return crop_flip(images, boxes[mine], flips[mine], self.spec), labels


def eval_batches(
    part: Part, spec: InputSpec, *, batch_size: int, device: torch.device, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image exactly once over all ranks: no padding, so counts are exact."""
    positions = np.arange(len(part))[rank::world_size]
    for start in range(0, len(positions), batch_size):
        chosen = positions[start : start + batch_size]
        images = to_device(part.take(chosen), device)
        yield eval_view(images, spec), torch.from_numpy(part.labels[chosen]).to(device, non_blocking=True)


def to_device(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (B, S, S, 3) → the same on the device; a quarter of the bytes of float32 cross the bus."""
    return pinned(images, device).to(device, non_blocking=True)


def pinned(images: np.ndarray, device: torch.device) -> Tensor:
    """The images in host memory that the device can read by itself, still on the host."""
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return tensor.pin_memory() if device.type == "cuda" else tensor


def eval_view(images: Tensor, spec: InputSpec) -> Tensor:
    """Centre crop (or enlargement) and normalisation: uint8 (B, S, S, 3) → float32 (B, 3, H, W)."""
    size, stored = spec.image_size, images.shape[1]
    if stored > size:
        start = (stored - size) // 2
        images = images[:, start : start + size, start : start + size]
    pixels = _to_unit(images)
    if stored < size:
        pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp_(0, 1)
    return normalise(pixels, spec)


def _to_unit(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float().div_(255)
