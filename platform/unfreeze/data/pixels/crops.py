"""Random resized crops and flips, in batches on the training device: uint8 squares → a model's input."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How a model wants its input: side in px, per-channel mean and standard deviation of values in 0 to 1."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"  # where evaluation enlarges; or bilinear


def crop_flip(images: Tensor, boxes: Tensor, flips: Tensor, spec: InputSpec) -> Tensor:
    """Each image's box, resized to the input's side, flipped where told to, and normalised.

    uint8 (B, S, S, 3) → float32 (B, 3, H, W). ``boxes`` int64 (B, 4): left, top, width, height in px; ``flips`` bool
    (B,); both on the CPU, where they are drawn. One interpolation, bilinear and antialiased: the numbers are those of
    torchvision's `resized_crop` with antialias on a float image, the same whatever the number of threads.
    """
    # Per image a GPU would wait for hundreds of launches; on a CPU the dense products cost twice the bags at 32 px.
    if images.device.type != "cpu":
        return resize_together(images, boxes, flips, spec)
    # The bags move whole squares, not boxes: to 224 px they win at 128 px (733 us an image against 1,237), not at 160.
    small = 3 * images.shape[1] <= 2 * spec.image_size
    return resize_small(images, boxes, flips, spec) if small else resize_each(images, boxes, flips, spec)


def resize_each(images: Tensor, boxes: Tensor, flips: Tensor, spec: InputSpec) -> Tensor:
    """The crops of `crop_flip`, one after the other, each normalised while it is in the processor's cache."""
    side = spec.image_size
    mean, std = (255 * each[0] for each in _constants(spec, images.device))
    crops = torch.empty(len(images), 3, side, side)
    for image, (left, top, width, height), flip, crop in zip(
        images, boxes.tolist(), flips.tolist(), crops, strict=True
    ):
        box = image[top : top + height, left : left + width].permute(2, 0, 1)[None].float()
        resized = F.interpolate(box, size=(side, side), mode="bilinear", antialias=True)[0]
        torch.sub(resized.flip(-1) if flip else resized, mean, out=crop).div_(std)
    return crops


def resize_small(images: Tensor, boxes: Tensor, flips: Tensor, spec: InputSpec) -> Tensor:
    """The same for squares no larger than the input, so that every box is enlarged."""
    left, top, width, height = boxes.unbind(1)
    across = _Taps.of(left, width, side=spec.image_size, kernel=_triangle, reach=1)
    across = _Taps(*(torch.where(flips[:, None, None], each.flip(1), each) for each in across))
    down = _Taps.of(top, height, side=spec.image_size, kernel=_triangle, reach=1)
    return _enlarge(images, across, down, spec)


def enlarge(images: Tensor, spec: InputSpec, interpolation: str) -> Tensor:
    """Whole squares enlarged to the input's side, ``"bicubic"`` or ``"bilinear"``, and normalised, on the CPU.

    uint8 (B, S, S, 3), S ≤ H → float32 (B, 3, H, W): torch's antialiased `interpolate`, kept within 0 to 1.
    """
    kernel, reach = (_cubic, 2) if interpolation == "bicubic" else (_triangle, 1)
    start = torch.zeros(len(images), dtype=torch.long)
    taps = _Taps.of(start, start + images.shape[1], side=spec.image_size, kernel=kernel, reach=reach)
    enlarged = _enlarge(images, taps, taps, spec)
    if interpolation == "bicubic":  # overshoots
        mean, std = _constants(spec, images.device)
        enlarged.clamp_(-mean / std, (1 - mean) / std)
    return enlarged


def _enlarge(images: Tensor, across: "_Taps", down: "_Taps", spec: InputSpec) -> Tensor:
    """Columns are mixed first, then rows: float32 (B, 3, side, side).

    A resize is a weighted sum of two or four rows of a table, for which torch has a fast kernel: the embedding bag. The
    weights sum to 1, so the stored pixels are normalised and not the up to fifty times as many of the result.
    """
    count, stored = images.shape[:2]
    columns = images.permute(0, 2, 3, 1).contiguous().float().div_(255)  # (B, x, 3, y)
    columns = normalise(columns.transpose(1, 2), spec).transpose(1, 2).reshape(count, stored, 3 * stored)
    rows = across.mix(columns).transpose(1, 2).reshape(count, 3, stored, spec.image_size)
    tripled = _Taps(*(each.repeat_interleave(3, 0) for each in down))  # each channel is a table of its own
    return tripled.mix(rows.flatten(0, 1)).view(count, 3, spec.image_size, spec.image_size)


class _Taps(NamedTuple):
    """Which stored pixels make each pixel of the result along one axis, and how much of each: both (B, side, taps)."""

    places: Tensor  # int64
    weights: Tensor  # float32, sum to 1 over the taps

    @classmethod
    def of(cls, start: Tensor, length: Tensor, *, side: int, kernel: Callable[[Tensor], Tensor], reach: int) -> "_Taps":
        """Of boxes no longer than ``side``: ``kernel`` of the distance in px is zero from ``reach`` on."""
        centre = (length.double() / side)[:, None, None] * (torch.arange(side)[:, None] + 0.5)
        places = (centre - reach + 0.5).floor() + torch.arange(2 * reach)
        last = (length - 1)[:, None, None].double()
        weights = torch.where((places >= 0) & (places <= last), kernel((places + 0.5 - centre).abs()), 0.0)
        inside = places.clamp(min=0).minimum(last).long()
        return cls(inside + start[:, None, None], (weights / weights.sum(-1, keepdim=True)).float())

    def mix(self, tables: Tensor) -> Tensor:
        """Float32 (B, stored, values) → (B, side, values)."""
        count, side, taps = self.places.shape
        first = torch.arange(count)[:, None, None] * tables.shape[1]
        places, weights = (self.places + first).view(-1, taps), self.weights.reshape(-1, taps)
        mixed = F.embedding_bag(places, tables.flatten(0, 1), mode="sum", per_sample_weights=weights)
        return mixed.view(count, side, -1)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, as Pillow and torch's antialiased resize have it."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def resize_together(images: Tensor, boxes: Tensor, flips: Tensor, spec: InputSpec) -> Tensor:
    """The crops of a whole batch: a resize is separable, so two batched matrix products whatever the boxes are."""
    side, stored = spec.image_size, images.shape[1]
    left, top, width, height = boxes.to(images.device, non_blocking=True).unbind(1)
    across = _resize_weights(left, width, side=side, stored=stored)
    across = torch.where(flips.to(images.device, non_blocking=True)[:, None, None], across.flip(1), across)
    down = _resize_weights(top, height, side=side, stored=stored)
    rows = images.permute(0, 3, 1, 2).float().flatten(1, 2) @ across.mT  # (B, 3 · S, side)
    return normalise((down[:, None] @ rows.view(-1, 3, stored, side)).div_(255), spec)


def _resize_weights(start: Tensor, length: Tensor, *, side: int, stored: int) -> Tensor:
    """What each stored pixel adds to each pixel of the result along one axis: float32 (B, side, stored), rows sum to 1.

    A triangle around the pixel's centre, as wide as the pixel is in the box, and never less than one stored pixel.
    """
    scale = (length.double() / side)[:, None, None]
    centre = scale * (torch.arange(side, device=start.device)[:, None] + 0.5)
    place = torch.arange(stored, device=start.device) - start[:, None, None]
    triangle = (1 - (place + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    inside = (place >= 0) & (place < length[:, None, None])
    weights = torch.where(inside, triangle, 0.0)
    return (weights / weights.sum(-1, keepdim=True)).float()


def normalise(pixels: Tensor, spec: InputSpec) -> Tensor:
    """float32 (B, 3, H, W) of values in 0 to 1, centred and scaled per channel."""
    mean, std = _constants(spec, pixels.device)
    return (pixels - mean).div_(std)


@functools.cache
def _constants(spec: InputSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1, 3, 1, 1), made once: from the host each batch, they would wait for the device."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return mean, std
