from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor

from unfreeze.data.pixels.boxes import step_crops
from unfreeze.data.pixels.crops import (
    InputSpec,
    crop_flip,
    enlarge,
    resize_each,
    resize_small,
    resize_together,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
Box = tuple[int, int, int, int]
Resize = Callable[[Tensor, Tensor, Tensor, InputSpec], Tensor]


def squares(count: int, stored: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, stored, stored, 3), dtype=np.uint8))


def spec(side: int) -> InputSpec:
    return InputSpec(side, MEAN, STD)


def unit(normalised: Tensor) -> Tensor:
    """Back to 0 to 1."""
    return normalised * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def as_torchvision(image: Tensor, box: Box, flip: bool, side: int) -> Tensor:
    """The same by torchvision, image by image, on a float64 image."""
    left, top, width, height = box
    pixels = image.permute(2, 0, 1).double() / 255
    resized = tv.resized_crop(pixels, top, left, height, width, [side, side], antialias=True)
    resized = tv.hflip(resized) if flip else resized
    return (resized - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


# resize_small only enlarges.
KERNELS = [(resize, side) for resize in (resize_each, resize_together) for side in (1, 5, 8, 16, 24, 224)]
KERNELS += [(resize_small, side) for side in (16, 17, 24, 224)]
KERNELS += [(crop_flip, side) for side in (5, 23, 24, 25)]  # both sides of its threshold


@pytest.mark.parametrize(("resize", "side"), KERNELS)
def test_a_crop_is_torchvisions(resize: Resize, side: int) -> None:
    """Boxes at the corners, of one pixel, narrow, whole; enlarged and shrunk; both ways round."""
    images = squares(8, 16)
    boxes = [(0, 0, 16, 16), (0, 0, 1, 1), (15, 15, 1, 1), (3, 2, 9, 5), (10, 0, 6, 16), (0, 12, 16, 4), (5, 5, 2, 11)]
    boxes.append((1, 1, 14, 14))
    for flips in ([False] * 8, [True, False] * 4):
        result = resize(images, torch.tensor(boxes), torch.tensor(flips), spec(side))
        expected = [as_torchvision(*each, side) for each in zip(images, boxes, flips, strict=True)]
        assert result.is_contiguous()
        torch.testing.assert_close(result, torch.stack(expected).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("stored", "side"), [(40, 17), (40, 96), (32, 224)])
def test_a_crop_is_pillows_to_the_rounding_of_its_8_bits(stored: int, side: int) -> None:
    images = squares(3, stored)
    boxes = [(0, 0, stored, stored), (7, 3, 24, 21), (20, 10, 12, 19)]
    pixels = unit(crop_flip(images, torch.tensor(boxes), torch.tensor([False] * 3), spec(side)))
    for image, (left, top, width, height), result in zip(images, boxes, pixels, strict=True):
        cropped = Image.fromarray(image.numpy()).crop((left, top, left + width, top + height))
        expected = np.asarray(cropped.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.abs(result.numpy() * 255 - expected).max() < 1.01  # Pillow rounds after either axis


@pytest.mark.parametrize("stored", [32, 256])
def test_crops_do_not_depend_on_threads_or_neighbours(stored: int) -> None:
    """Bit for bit: a rank's share of a batch is what one process makes of the whole."""
    images, drawn = squares(12, stored), step_crops(torch.full((12, 2), stored), seed=1)
    boxes, flips = drawn.boxes, drawn.flips
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = crop_flip(images, boxes, flips, spec(224))
        torch.set_num_threads(3)
        together = crop_flip(images, boxes, flips, spec(224))
        shares = [crop_flip(images[half], boxes[half], flips[half], spec(224)) for half in (slice(5), slice(5, 12))]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone, together)
    assert torch.equal(alone, torch.cat(shares))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("stored", "side"), [(1, 8), (8, 8), (8, 9), (8, 32), (32, 224)])
def test_enlarged_squares_are_torchs(stored: int, side: int, interpolation: str) -> None:
    images = squares(3, stored)
    pixels = images.permute(0, 3, 1, 2).double() / 255
    expected = F.interpolate(pixels, size=(side, side), mode=interpolation, antialias=True).clamp(0, 1).float()
    torch.testing.assert_close(unit(enlarge(images, spec(side), interpolation)), expected, atol=2e-6, rtol=0)
