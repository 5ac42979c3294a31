"""The embedded default data: real handwritten digits (downstream) and rendered glyphs (source domain), no download."""

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Letters only, and none that a printed 0 or 1 looks like (O, o, I, l): source and downstream classes stay apart. With
# digits among them, blurrier glyphs and a longer pretraining (not told apart), a linear probe reached 96.6 % of the
# downstream digits from 200 images, within about 1 point of everything else. Nor lower-case letters with their
# capital's form (c, k, p, s, u … z): each glyph is scaled to its own bounding box, so two labels would share a picture.
GLYPH_CLASSES = tuple("ABCDEFGHJKLMNPQRSTUVWXYZabdefghijmnqrt")

# matplotlib ships these; four families, four styles each.
GLYPH_FONTS = (
    *(f"DejaVuSans{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")),
)

_MASTER_PX = 72  # font size of the master drawing, above twice the glyph's size at 32 px so that scaling only shrinks
_MAX_STROKE_PX = 4  # added around the outline of the master drawing
_SUPERSAMPLING = 2


def load_digits_images(image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits, upsampled from 8 × 8.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998 (its test part).

    Args:
        image_size: height and width of the result, pixels.

    Returns:
        Images, uint8 (1797, image_size, image_size, 3), ink bright on black, the original 0 … 16 scaled to 0 … 255;
        labels, int64 (1797,), 0 … 9.
    """
    from sklearn.datasets import load_digits  # 3 s; the slots read the cached array and never call this

    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    size = (image_size, image_size)
    grey = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in small])
    return _to_rgb(grey), digits.target.astype(np.int64)


def render_glyphs(num_images: int, *, image_size: int, seed: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Printed letters in 16 fonts, distorted: the source domain of the embedded model.

    Image ``i`` is a function of (``seed``, ``i``, ``image_size``) alone, so a longer set starts with the shorter one.
    Labels go round robin. The pixels are the same for the same versions of Pillow and of matplotlib's fonts.

    Args:
        num_images: how many.
        image_size: height and width, pixels.
        seed: non-negative.

    Returns:
        Images, uint8 (num_images, image_size, image_size, 3), ink bright on black; labels, int64 (num_images,), indices
        into the third value, the class names (one character each).
    """
    labels = np.arange(num_images, dtype=np.int64) % len(GLYPH_CLASSES)
    grey = np.empty((num_images, image_size, image_size), np.uint8)
    for index, label in enumerate(labels):
        grey[index] = _render(GLYPH_CLASSES[label], image_size, np.random.default_rng((seed, index)))
    return _to_rgb(grey), labels, GLYPH_CLASSES


def _render(character: str, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """One distorted glyph, uint8 (image_size, image_size)."""
    font = GLYPH_FONTS[rng.integers(len(GLYPH_FONTS))]
    glyph = _master(font, character, int(rng.integers(_MAX_STROKE_PX + 1)))

    rotation = np.deg2rad(rng.uniform(-12, 12))
    shear = rng.uniform(-0.25, 0.25)
    height = rng.uniform(0.65, 0.95) * image_size
    aspect = rng.uniform(0.8, 1.25)
    shift = rng.uniform(-0.06, 0.06, size=2) * image_size
    # The digits' 8 × 8 is 0.25 of 32 px: that all glyphs are sharper is a part of the domain shift.
    resolution = max(2, round(rng.uniform(0.7, 1.0) * image_size))
    contrast = rng.uniform(0.7, 1.0)
    noise = rng.uniform(0.0, 0.06)

    canvas = image_size * _SUPERSAMPLING
    scale = _SUPERSAMPLING * height / max(glyph.size)
    cos, sin = np.cos(rotation), np.sin(rotation)
    forward = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]]) @ np.diag([scale * aspect, scale])
    inverse = np.linalg.inv(forward)  # Image.transform asks where in the input an output pixel comes from
    offset = np.array(glyph.size) / 2 - inverse @ (canvas / 2 + _SUPERSAMPLING * shift)
    coefficients = (*inverse[0], offset[0], *inverse[1], offset[1])

    image = glyph.transform((canvas, canvas), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    image = image.resize((resolution, resolution), Image.Resampling.BOX)
    image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.float32) * contrast + rng.normal(0, 255 * noise, (image_size, image_size))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


@lru_cache(maxsize=len(GLYPH_FONTS) * len(GLYPH_CLASSES) * (_MAX_STROKE_PX + 1))
def _master(font_file: str, character: str, stroke_px: int) -> Image.Image:
    """The undistorted glyph, white on black, cropped to its ink plus one pixel of black on each side."""
    font = _font(font_file)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character, stroke_width=stroke_px))
    image = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(image).text((1 - left, 1 - top), character, fill=255, font=font, stroke_width=stroke_px)
    return image


@lru_cache(maxsize=len(GLYPH_FONTS))
def _font(font_file: str) -> ImageFont.FreeTypeFont:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    # The basic layout engine is always there; with Raqm, where installed, the pixels would depend on the machine.
    return ImageFont.truetype(str(folder / font_file), _MASTER_PX, layout_engine=ImageFont.Layout.BASIC)


def _to_rgb(grey: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W) to (N, H, W, 3)."""
    return np.repeat(grey[..., np.newaxis], 3, axis=-1)
