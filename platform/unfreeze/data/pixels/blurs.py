"""Corruptions that move or average pixels; recipes and strengths: corrupt.py.

Each takes an image uint8 (S, S, 3), its strength and a generator, and gives float (S, S, 3) of 0 to 255.
"""

import io
import math
from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy import ndimage


def gaussian_blur(image: np.ndarray, sigma: float, _: Generator) -> np.ndarray:
    return ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), mode="nearest")


def defocus_blur(image: np.ndarray, strength: tuple[float, float], _: Generator) -> np.ndarray:
    """A disk, as out of focus."""
    from scipy.signal import fftconvolve  # half a second, which nobody else needs to wait for

    radius, alias = strength
    reach = max(8, int(radius))
    place = np.arange(-reach, reach + 1)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float64)
    disk = ndimage.gaussian_filter(disk / disk.sum(), alias, mode="mirror", radius=1 if radius <= 8 else 2)
    padded = np.pad(image.astype(np.float64), ((reach, reach), (reach, reach), (0, 0)), "reflect")
    return fftconvolve(padded, disk[..., None], mode="valid", axes=(0, 1))


def glass_blur(image: np.ndarray, strength: tuple[float, int, int], rng: Generator) -> np.ndarray:
    """Pixels taken from neighbours, between two light blurs.

    The published line swaps two views of one array, and so copies the one pixel over the other.
    """
    sigma, reach, rounds = strength
    side = len(image)
    blurred = np.clip(gaussian_blur(image, sigma, rng), 0, 255).astype(np.uint8)
    inner = np.arange(side - reach, reach, -1)
    order = (inner[:, None] * side + inner).ravel()
    places = list(range(side * side))
    for _ in range(rounds):
        moves = rng.integers(-reach, reach, (2, len(order)))
        # One after the other, each from what the last one left, so in plain lists: 50,000 copies in 10 ms.
        for here, there in zip(order.tolist(), (order + moves[0] * side + moves[1]).tolist(), strict=True):
            places[here] = places[there]
    return gaussian_blur(blurred.reshape(-1, 3)[places].reshape(image.shape), sigma, rng)


def motion_blur(image: np.ndarray, strength: tuple[float, float], rng: Generator) -> np.ndarray:
    return streak(image, *strength, angle=rng.uniform(-45, 45))


def streak(image: np.ndarray, radius: float, sigma: float, *, angle: float) -> np.ndarray:
    """The mean over a half-Gaussian tail from each pixel at ``angle`` degrees, edges repeated (as ImageMagick's)."""
    steps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    across, down = (
        np.ceil(steps * part - 0.5).astype(int) for part in (np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle)))
    )
    rows, columns = np.arange(image.shape[0]), np.arange(image.shape[1])
    blurred = np.zeros(image.shape, np.float32)
    for weight, dx, dy in zip(weights / weights.sum(), across, down, strict=True):
        moved = image[np.clip(rows + dy, 0, rows[-1])][:, np.clip(columns + dx, 0, columns[-1])]
        blurred += np.float32(weight) * moved
    return blurred


def zoom_blur(image: np.ndarray, strength: tuple[float, float], _: Generator) -> np.ndarray:
    factors = np.arange(1, *strength)
    pixels = image.astype(np.float32)
    return (pixels + sum(zoomed(pixels, factor) for factor in factors)) / (len(factors) + 1)


def zoomed(pixels: np.ndarray, factor: float) -> np.ndarray:
    """The middle of a square (S, S) or (S, S, C), as many whole pixels as the enlargement needs, enlarged to all of
    it: at 32 px rounding up to whole ones shows."""
    side = len(pixels)
    crop = math.ceil(side / factor)
    start = (side - crop) // 2
    middle = pixels[start : start + crop, start : start + crop]
    enlarged: np.ndarray = ndimage.zoom(middle, (factor, factor, 1)[: pixels.ndim], order=1)
    trim = (len(enlarged) - side) // 2
    return enlarged[trim : trim + side, trim : trim + side]


def elastic_transform(image: np.ndarray, strength: tuple[float, float, float], rng: Generator) -> np.ndarray:
    """Three points moved and the plane with them, then every pixel along a smooth random field."""
    side = len(image)
    alpha, sigma, corner = (share * side for share in strength)
    centre, reach = side // 2, max(side // 3, 1)
    points = np.array([[centre + reach] * 2, [centre + reach, centre - reach], [centre - reach] * 2], dtype=float)
    moved = points + rng.uniform(-corner, corner, points.shape)
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points)  # (3, 2): where an output pixel comes from
    noise = rng.uniform(-1, 1, (2, side, side))
    field = ndimage.gaussian_filter(noise, (0, sigma, sigma), mode="reflect", truncate=3) * alpha
    rows, columns = np.mgrid[:side, :side]
    across, down = np.stack([columns, rows, np.ones_like(rows)], axis=-1).dot(back).transpose(2, 0, 1)
    turned = _sampled(image, down, across, "mirror")
    return _sampled(turned, rows + field[0], columns + field[1], "reflect")


def _sampled(
    image: np.ndarray, rows: np.ndarray, columns: np.ndarray, beyond: Literal["mirror", "reflect"]
) -> np.ndarray:
    """The image (S, S, 3) at fractional places, bilinear; float32."""
    channels = [
        ndimage.map_coordinates(channel, [rows, columns], order=1, mode=beyond)
        for channel in image.transpose(2, 0, 1).astype(np.float32)
    ]
    return np.stack(channels, axis=-1)


def pixelate(image: np.ndarray, share: float, _: Generator) -> np.ndarray:
    side = len(image)
    small = Image.fromarray(image).resize((max(int(side * share), 1),) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((side, side), Image.Resampling.BOX))


def jpeg_compression(image: np.ndarray, quality: int, _: Generator) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
