"""Random resized crops and flips, in batches on the training device: uint8 squares → a model's input."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Random resized crop as torchvision's defaults have it (Inception): area share and aspect ratio.
_CROP_AREA = (0.08, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_CROP_TRIES = 10


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How a model wants its input: side in px, per-channel mean and standard deviation of values in 0 to 1."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"  # where evaluation enlarges; or bilinear


def crop_flip(images: Tensor, boxes: Tensor, flips: Tensor, spec: InputSpec) -> Tensor:
    """Each image's box, resized to the input's side and flipped where told to.

    uint8 (B, S, S, 3) → float32 (B, 3, H, W). ``boxes`` int64 (B, 4): left, top, width, height in px; ``flips`` bool
    (B,); both on the CPU, where they are drawn. One interpolation, bilinear and antialiased: the numbers are those of
    torchvision's `resized_crop` with antialias on a float image.
    """
    # Per image a GPU would wait for hundreds of launches; on a CPU the dense products cost four times the resize.
    resize = resize_each if images.device.type == "cpu" else resize_together
    return normalise(resize(images, boxes, flips, spec.image_size).div_(255), spec)


def resize_each(images: Tensor, boxes: Tensor, flips: Tensor, side: int) -> Tensor:
    """The crops of `crop_flip`, one after the other: float32 (B, 3, side, side), 0 to 255."""
    crops = torch.empty(len(images), 3, side, side)
    for image, (left, top, width, height), flip, crop in zip(
        images, boxes.tolist(), flips.tolist(), crops, strict=True
    ):
        box = image[top : top + height, left : left + width].permute(2, 0, 1)[None].float()
        resized = F.interpolate(box, size=(side, side), mode="bilinear", antialias=True)[0]
        crop.copy_(resized.flip(-1) if flip else resized)
    return crops


def resize_together(images: Tensor, boxes: Tensor, flips: Tensor, side: int) -> Tensor:
    """The same for a whole batch: a resize is separable, so two batched matrix products whatever the boxes are."""
    left, top, width, height = boxes.to(images.device, non_blocking=True).unbind(1)
    stored = images.shape[1]
    across = _resize_weights(left, width, side=side, stored=stored)
    across = torch.where(flips.to(images.device, non_blocking=True)[:, None, None], across.flip(1), across)
    down = _resize_weights(top, height, side=side, stored=stored)
    rows = images.permute(0, 3, 1, 2).float().flatten(1, 2) @ across.mT  # (B, 3 · S, side)
    return down[:, None] @ rows.view(-1, 3, stored, side)


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


def draw_crops(count: int, *, stored: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes int64 (count, 4) and flips bool (count,) of a global batch, as torchvision's RandomResizedCrop draws them.

    Ten tries for a box that fits, else the whole square. Drawn on the CPU, so that every device gives the same.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, _CROP_TRIES, 2, generator=generator)
    area = stored**2 * (_CROP_AREA[0] + (_CROP_AREA[1] - _CROP_AREA[0]) * draws[..., 0])
    low, high = np.log(_CROP_RATIO[0]), np.log(_CROP_RATIO[1])
    ratio = torch.exp(low + (high - low) * draws[..., 1])
    sizes = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=-1).round().long()  # width, height
    fits = ((sizes > 0) & (sizes <= stored)).all(-1)
    first = fits.long().argmax(1)  # of the tries that fit; 0 where none does
    chosen = torch.where(fits.any(1)[:, None], sizes[torch.arange(count), first], stored)
    places = torch.rand(count, 2, generator=generator)
    corners = (places * (stored - chosen + 1)).long()
    return torch.cat([corners, chosen], dim=1), torch.rand(count, generator=generator) < 0.5


def normalise(pixels: Tensor, spec: InputSpec) -> Tensor:
    """float32 (B, 3, H, W) of values in 0 to 1, centred and scaled per channel."""
    mean, std = _constants(spec, pixels.device)
    return (pixels - mean).div_(std)


@functools.cache
def _constants(spec: InputSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1, 3, 1, 1), made once: from the host each batch, they would wait for the device."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return mean, std
