"""Corruptions of any set's images: the 18 of Hendrycks and Dietterich that need no photographs of their own.

Source: "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019; strengths and
recipes are those of its code (hendrycks/robustness, make_cifar_c.py and corruptions.py), and the tests hold ours
against its mean changes of an image. Its pixels are not reproduced: it draws from one stream for a whole set, ours are
each image's own. No package takes its place: imagecorruptions and its successors know ImageNet-C's strengths alone,
with another elastic transform, and need OpenCV, scikit-image and numba.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfreeze.data.pixels import blurs, weather
from unfreeze.errors import DataError
from unfreeze.seeding import derive_seed

# Sides up to this many px take CIFAR-C's strengths, made for 32 px; larger ones ImageNet-C's, made for 224 px.
_SMALL_SIDE = 64


@dataclass(frozen=True, slots=True)
class _Corruption:
    """``apply(image, strength, rng)``: uint8 (S, S, 3) → float (S, S, 3) of 0 to 255, clipped by the caller."""

    apply: Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]
    small: tuple[Any, ...]  # strength at severity 1 to 5
    large: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Shift:
    """A corruption at a severity of 1 to 5, each image's own by its number in the set."""

    name: str
    severity: int
    seed: int

    def __post_init__(self) -> None:
        if self.name not in _CORRUPTIONS:
            raise DataError(
                f"data.corruption={self.name} is not made here (frost is laid on from photographs of it); choose one "
                f"of {', '.join(_CORRUPTIONS)}, or read ready-made files with data=cifar10c or data=folder"
            )

    def apply(self, image: np.ndarray, index: int) -> np.ndarray:
        """uint8 (S, S, 3) → the same, corrupted: a function of the pixels, the seed and ``index`` alone."""
        corruption = _CORRUPTIONS[self.name]
        strengths = corruption.small if len(image) <= _SMALL_SIDE else corruption.large
        rng = np.random.default_rng(derive_seed(self.seed, "corruption", index))
        pixels = corruption.apply(image, strengths[self.severity - 1], rng)
        # Cut off, as published; 76.99999 is what float32 makes of 77.
        return np.clip(np.floor(pixels + 1e-3), 0, 255).astype(np.uint8)


def _gaussian_noise(image: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    return image + 255 * rng.normal(0, scale, image.shape)


def _shot_noise(image: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Poisson: ``photons`` make full brightness."""
    return rng.poisson(image / 255 * photons) * (255 / photons)


def _impulse_noise(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Salt and pepper in equal parts, value by value."""
    noise = rng.random(image.shape)
    return np.where(noise < share, np.where(noise < share / 2, 0, 255), image)


def _speckle_noise(image: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    return image * (1 + rng.normal(0, scale, image.shape))


_CORRUPTIONS: dict[str, _Corruption] = {
    "gaussian_noise": _Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": _Corruption(_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": _Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle_noise": _Corruption(_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)),
    # radius and antialiasing of the disk, px
    "defocus_blur": _Corruption(
        blurs.defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    # standard deviation in px, farthest swap in px, rounds
    "glass_blur": _Corruption(
        blurs.glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    # radius and standard deviation of the streak, px
    "motion_blur": _Corruption(
        blurs.motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    # largest zoom (not reached) and step
    "zoom_blur": _Corruption(
        blurs.zoom_blur,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "gaussian_blur": _Corruption(blurs.gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)),
    # flakes: mean, standard deviation, zoom, threshold, streak's radius and deviation; share of the image that is kept
    "snow": _Corruption(
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    # brightness of the fog, how much smoother it gets with each halving
    "fog": _Corruption(
        weather.fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": _Corruption(weather.brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": _Corruption(weather.contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    # displacement, its smoothness, shift of the corners; shares of the side, which the published code takes for 244 px
    # of its images' 224
    "elastic_transform": _Corruption(
        blurs.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        tuple(
            tuple(244 / 224 * share for share in strength)
            for strength in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
    ),
    "pixelate": _Corruption(blurs.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": _Corruption(blurs.jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    # liquid: mean, standard deviation, blur in px, threshold; strength of water or blur of mud; whether mud
    "spatter": _Corruption(
        weather.spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
    ),
    # factor of the saturation, and what is added to it
    "saturate": _Corruption(
        weather.saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    ),
}
