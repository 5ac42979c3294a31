"""Which crops: boxes and flips as torchvision's RandomResizedCrop draws them, of images of any size."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unfreeze.seeding import derive_seed

# torchvision's defaults (Inception): area share and aspect ratio.
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10
_NUMBERS = 2 * _TRIES + 3  # per image: area and ratio of each try, the place, the flip


@dataclass(frozen=True, slots=True)
class Crops:
    """The crops of a batch, on the CPU."""

    boxes: Tensor  # int64 (B, 4): left, top, width, height in px
    flips: Tensor  # bool (B,)

    def share(self, chosen: slice) -> "Crops":
        return Crops(self.boxes[chosen], self.flips[chosen])


def step_crops(sizes: Tensor, *, seed: int) -> Crops:
    """New crops for a batch of images of ``sizes`` int64 (B, 2): width, height in px."""
    generator, count = torch.Generator().manual_seed(seed), len(sizes)
    tries = torch.rand(count, _TRIES, 2, generator=generator)
    places = torch.rand(count, 2, generator=generator)
    return _crops(sizes, tries, places, torch.rand(count, generator=generator))


def view_crops(sizes: Tensor, positions: np.ndarray, views: np.ndarray) -> Crops:
    """The crops of given views (B,) of given images (B,): the same for every trial, seed and batch they turn up in."""
    numbers = torch.from_numpy(_uniform(positions, views))
    return _crops(sizes, numbers[:, :-3].view(-1, _TRIES, 2), numbers[:, -3:-1], numbers[:, -1])


def _uniform(positions: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) by position and view: float32 (B, 23).

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of a counter: a generator for each image took 75 ms a batch of 512.
    """
    image = (views.astype(np.uint64) << np.uint64(35)) + positions.astype(np.uint64)
    counter = image[:, None] * np.uint64(32) + np.arange(1, _NUMBERS + 1, dtype=np.uint64)
    z: np.ndarray = counter * np.uint64(0x9E3779B97F4A7C15) + np.uint64(derive_seed(0, "view"))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def _crops(sizes: Tensor, tries: Tensor, places: Tensor, coins: Tensor) -> Crops:
    """Ten tries for a box that fits, else the largest one in the middle whose ratio is allowed; uniform numbers in."""
    area = sizes.prod(1)[:, None] * (_AREA[0] + (_AREA[1] - _AREA[0]) * tries[..., 0])
    low, high = np.log(_RATIO[0]), np.log(_RATIO[1])
    ratio = torch.exp(low + (high - low) * tries[..., 1])
    tried = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=-1).round().long()  # width, height
    fits = ((tried > 0) & (tried <= sizes[:, None])).all(-1)
    first = fits.long().argmax(1)  # of the tries that fit; 0 where none does
    fitting, found = tried[torch.arange(len(sizes)), first], fits.any(1)[:, None]
    width, height = sizes.unbind(1)
    largest = torch.stack([torch.minimum(width, (height * _RATIO[1]).round().long()), height], dim=1)
    largest[:, 1] = torch.minimum(height, (width / _RATIO[0]).round().long())
    chosen = torch.where(found, fitting, largest.clamp(min=1))
    corners = torch.where(found, (places * (sizes - chosen + 1)).long(), (sizes - chosen) // 2)
    return Crops(torch.cat([corners, chosen], dim=1), coins < 0.5)
