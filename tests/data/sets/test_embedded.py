import numpy as np
import pytest

from unfreeze.data.sets import embedded
from unfreeze.data.sets.embedded import GLYPH_CLASSES, GLYPH_FONTS, load_digits_images, render_glyphs


def test_digits_are_the_whole_set_as_bright_ink_on_black() -> None:
    images, labels = load_digits_images(32)
    assert images.shape == (1797, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (1797,)
    assert labels.dtype == np.int64
    assert set(labels) == set(range(10))
    assert (images[..., :1] == images).all()
    assert images.max() == 255
    assert (images[:, 16, 16] > 127).mean() > (images[:, 0, 0] > 127).mean()


def test_digits_keep_their_grey_values_at_their_own_size() -> None:
    images, _ = load_digits_images(8)
    first_row = [0, 0, 5, 13, 9, 1, 0, 0]  # of 16, from the data set's documentation
    assert images[0, 0, :, 0].tolist() == [round(value * 255 / 16) for value in first_row]


def test_digits_are_deterministic() -> None:
    first, second = load_digits_images(16), load_digits_images(16)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_glyphs_have_every_class_in_equal_numbers() -> None:
    images, labels, classes = render_glyphs(3 * len(GLYPH_CLASSES), image_size=32, seed=0)
    assert images.shape == (len(labels), 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert classes == GLYPH_CLASSES
    assert len(set(classes)) == len(classes)
    assert np.bincount(labels).tolist() == [3] * len(classes)
    assert (images[..., :1] == images).all()
    assert images.reshape(len(images), -1).max(axis=1).min() > 100  # no image without ink


@pytest.mark.parametrize("image_size", [8, 32, 48])
def test_glyphs_depend_on_seed_and_index_alone(image_size: int) -> None:
    longer, _, _ = render_glyphs(60, image_size=image_size, seed=3)
    shorter, _, _ = render_glyphs(20, image_size=image_size, seed=3)
    other, _, _ = render_glyphs(20, image_size=image_size, seed=4)
    assert longer.shape[1:] == (image_size, image_size, 3)
    assert np.array_equal(longer[:20], shorter)
    assert all(not np.array_equal(a, b) for a, b in zip(shorter, other, strict=True))


def test_glyphs_use_all_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[str] = set()
    draw = embedded._master

    def spy(font_file: str, character: str, stroke_px: int) -> object:
        used.add(font_file)
        return draw(font_file, character, stroke_px)

    monkeypatch.setattr(embedded, "_master", spy)
    render_glyphs(480, image_size=8, seed=0)
    assert used == set(GLYPH_FONTS)


def test_fonts_and_classes_draw_different_ink() -> None:
    in_fonts = {embedded._master(font, "g", 0).tobytes() for font in GLYPH_FONTS}
    of_classes = {embedded._master(GLYPH_FONTS[0], character, 0).tobytes() for character in GLYPH_CLASSES}
    assert len(in_fonts) == len(GLYPH_FONTS)
    assert len(of_classes) == len(GLYPH_CLASSES)
