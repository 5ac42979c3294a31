"""Any image as RGB of 8 bits. What is deeper is scaled by what its set holds, never cut off.

12 bits are stored in 16, and floats mean 0 to 1 in one set and 0 to 255 in another: only the whole set says which
value is white. Pillow gives grey of more than 8 bits whole, but of deep colour the upper 8 bits alone.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from unfreeze.errors import DataError

OVERSHOOT = 1.25  # what resampling may add to a float image of 0 … 1; beyond white it is cut off
_LEVELS = 16  # so many at least must a set have that is taken to be of 0 … 255


@dataclass(frozen=True, slots=True)
class White:
    """The value that is white in deep grey images; None: there are none of the kind."""

    integer: float | None = None
    real: float | None = None

    def of(self, image: Image.Image) -> float | None:
        """For a deep image."""
        return self.real if image.mode == "F" else self.integer

    def __str__(self) -> str:
        kinds = (("integers", self.integer), ("floats", self.real))
        return ", ".join(f"{value:,.0f} in {kind}" for kind, value in kinds if value is not None)


@dataclass(frozen=True, slots=True)
class Depth:
    """The largest value of a deep grey image."""

    highest: float
    is_real: bool

    def share_of(self, white: White) -> float:
        """Above 1: it is cut off."""
        full = white.real if self.is_real else white.integer
        assert full is not None
        return self.highest / full


def is_deep(image: Image.Image) -> bool:
    """Grey of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def is_deep_colour(image: Image.Image) -> bool:
    """Colour, or grey with transparency, of 16 bits; told before the image is loaded."""
    tiles = getattr(image, "tile", ())
    raw = [part for tile in tiles for part in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))]
    return not is_deep(image) and any(isinstance(part, str) and ";16" in part for part in raw)


def find_white(images: Iterable[tuple[str, Image.Image]]) -> White:
    """What is white in a set, of its deep grey images: `white_among` their depths. Raises as `depths_of` and that."""
    return white_among(depths_of(images).values())


def depths_of(images: Iterable[tuple[str, Image.Image]]) -> dict[str, Depth]:
    """How far each deep grey image goes.

    Raises:
        DataError: names an image whose values are no grey levels.
    """
    found = {}
    for name, image in images:
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and math.isfinite(high)):
            raise DataError(
                f"{name} holds values from {low:g} to {high:g}, which are no grey levels; rescale them to 0 … 255"
            )
        found[name] = Depth(high, image.mode == "F")
    return found


def white_among(depths: Collection[Depth]) -> White:
    """The least of 255, 511, 1,023 … that holds all, 1 for floats.

    Raises:
        DataError: floats that are neither of 0 … 1 nor of 0 … 255.
    """
    integer, real = (
        max((each.highest for each in depths if each.is_real == is_real), default=None) for is_real in (False, True)
    )
    if real is not None and OVERSHOOT < real < _LEVELS:
        raise DataError(
            f"grey images of floats hold values up to {real:g}, which is neither 0 … 1 nor 0 … 255; rescale them to "
            f"one of the two"
        )
    return White(
        None if integer is None else _full_scale(integer),
        None if real is None else 1.0 if real <= OVERSHOOT else _full_scale(real),
    )


def _full_scale(most: float) -> float:
    return float(2 ** max(8, math.ceil(most).bit_length()) - 1)


def to_rgb(image: Image.Image, white: White | None = None) -> Image.Image:
    """Any mode as RGB; a deep image of whose kind no ``white`` is known is a set of one. Raises `DataError` as
    `find_white`."""
    if is_deep(image):
        full = (white or White()).of(image)
        if full is None:
            full = find_white([(str(getattr(image, "filename", "") or "an image"), image)]).of(image)
        assert full is not None
        values = np.asarray(image, dtype=np.float64) * (255 / full)
        image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:  # straight to RGB it warns and guesses
        image = image.convert("RGBA")
    return image.convert("RGB")
