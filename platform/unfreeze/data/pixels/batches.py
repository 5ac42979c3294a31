"""Batches on the training device: which images, in which order, and how uint8 becomes a model's input.

Order and augmentation are pure functions of (seed, step): the same selection and seed sees the same batches whatever
the slot, the number of workers, or how often the trial was interrupted (common random numbers).
"""

import functools
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unfreeze.data.pixels.boxes import Crops, step_crops, view_crops
from unfreeze.data.pixels.crops import InputSpec, crop_flip, enlarge, normalise
from unfreeze.data.pixels.part import Part
from unfreeze.data.pixels.prefetch import Batch, prefetched
from unfreeze.data.pixels.stream import ImageFiles
from unfreeze.seeding import derive_seed


def batch_positions(num_images: int, step: int, *, batch_size: int, seed: int) -> np.ndarray:
    """Positions of the images of optimizer step ``step`` (from 0): int64 (batch_size,).

    One endless sequence of epochs, each a permutation of its own; a batch may span two of them, so no image is dropped
    and none is padded.
    """
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // num_images, (last - 1) // num_images + 1)
    order = np.concatenate([_epoch_order(num_images, epoch, seed) for epoch in epochs])
    offset = epochs[0] * num_images
    return order[first - offset : last - offset]


@functools.lru_cache(maxsize=4)  # 20 ms for a million images, and every step of the epoch asks for it
def _epoch_order(num_images: int, epoch: int, seed: int) -> np.ndarray:
    order = np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(num_images)
    order.flags.writeable = False
    return order


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
    num_views: int = 0  # epoch e shows view e % num_views of each image; 0: a new one each time

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's images of step ``step`` and which view of each: int64 (B / world_size,) twice.

        Views are 0 where there is one (``augment`` none), and where each is new (``num_views`` 0).
        """
        first = step * self.batch_size
        epochs = np.arange(first, first + self.batch_size) // len(self.part)
        views = epochs % self.num_views if self.num_views and self.augment != "none" else np.zeros_like(epochs)
        return self._all_positions(step)[self.mine], views[self.mine]

    def get(self, step: int) -> Batch:
        """This rank's images float32 (B / world_size, 3, H, W) and labels int64 of optimizer step ``step``."""
        positions, _ = self.positions(step)
        images = _make_views(self.part, positions, self._crops(step), self.spec, self.device)
        return images, self._labels(positions)

    def iterate(self, first_step: int, num_steps: int) -> Generator[Batch]:
        """What `get` gives for ``first_step`` … ``num_steps`` − 1, each made ready while the one before is used.

        Close it where it may not be run to its end: the thread and the decoding processes end then.
        """
        return prefetched(self._each(range(first_step, num_steps)), self.device, streams=self.part.streams)

    def _each(self, steps: range) -> Generator[Batch]:
        files = self.part.array
        if not isinstance(files, ImageFiles):
            yield from map(self.get, steps)
            return
        wanted = (files.wanted(self.part.indices[self.positions(step)[0]], self._crops(step)) for step in steps)
        for step, pixels in zip(steps, files.decode_batches(wanted, side=self.spec.image_size), strict=True):
            yield eval_view(to_device(pixels, self.device), self.spec), self._labels(self.positions(step)[0])

    def _crops(self, step: int) -> Crops | None:
        """This rank's crops; those of the whole batch are drawn, so that the number of ranks changes nothing."""
        if self.augment == "none":
            return None
        if self.num_views:
            positions, views = self.positions(step)
            return view_crops(self.part.sizes(positions), positions, views)
        sizes = self.part.sizes(self._all_positions(step))
        return step_crops(sizes, seed=derive_seed(self.seed, "augment", step)).share(self.mine)

    @property
    def mine(self) -> slice:
        """This rank's places in each batch."""
        share = self.batch_size // self.world_size
        return slice(self.rank * share, (self.rank + 1) * share)

    def _all_positions(self, step: int) -> np.ndarray:
        return batch_positions(len(self.part), step, batch_size=self.batch_size, seed=self.seed)

    def _labels(self, positions: np.ndarray) -> Tensor:
        labels = self.part.array.labels[self.part.indices[positions]]  # of these alone, not of the whole part
        return torch.from_numpy(labels).to(self.device, non_blocking=True)


def training_views(
    part: Part, positions: np.ndarray, views: np.ndarray, spec: InputSpec, *, augment: str, device: torch.device
) -> Tensor:
    """Fixed views of images, the same for every trial: float32 (B, 3, H, W).

    View v of the image at position p depends on (p, v) alone, so what is computed from it can be kept. With
    ``augment`` none there is one, that of evaluation.
    """
    crops = None if augment == "none" else view_crops(part.sizes(positions), positions, views)
    return _make_views(part, positions, crops, spec, device)


def eval_batches(
    part: Part, spec: InputSpec, *, batch_size: int, device: torch.device, rank: int = 0, world_size: int = 1
) -> Generator[Batch]:
    """Every image exactly once over all ranks: no padding, so counts are exact."""

    def each() -> Generator[Batch]:
        positions, every_label = np.arange(len(part))[rank::world_size], part.labels
        for start in range(0, len(positions), batch_size):
            chosen = positions[start : start + batch_size]
            labels = torch.from_numpy(every_label[chosen]).to(device, non_blocking=True)
            yield eval_view(to_device(part.take(chosen), device), spec), labels

    return prefetched(each(), device, streams=part.streams)


def _make_views(
    part: Part, positions: np.ndarray, crops: Crops | None, spec: InputSpec, device: torch.device
) -> Tensor:
    if crops is None:
        return eval_view(to_device(part.take(positions), device), spec)
    if isinstance(part.array, ImageFiles):  # cut and resized already, so that what is left is to normalise
        cut = part.array.crops(part.indices[positions], crops, side=spec.image_size)
        return eval_view(to_device(cut, device), spec)
    return crop_flip(to_device(part.take(positions), device), crops.boxes, crops.flips, spec)


def to_device(images: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """uint8 (B, S, S, 3) → the same on the device; a quarter of the bytes of float32 cross the bus."""
    return pinned(images, device).to(device, non_blocking=True)


def pinned(images: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """The images in host memory that the device can read by itself, still on the host."""
    tensor = images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    return tensor.pin_memory() if device.type == "cuda" else tensor


def eval_view(images: Tensor, spec: InputSpec) -> Tensor:
    """Centre crop (or enlargement) and normalisation: uint8 (B, S, S, 3) → float32 (B, 3, H, W)."""
    size, stored = spec.image_size, images.shape[1]
    if stored < size and images.device.type == "cpu":  # four times as fast there
        return enlarge(images, spec, spec.interpolation)
    if stored > size:
        start = (stored - size) // 2
        images = images[:, start : start + size, start : start + size]
    pixels = _to_unit(images)
    if stored < size:
        pixels = F.interpolate(pixels, size=(size, size), mode=spec.interpolation, antialias=True).clamp_(0, 1)
    return normalise(pixels, spec)


def _to_unit(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float().div_(255)
