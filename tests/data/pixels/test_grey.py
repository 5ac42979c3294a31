"""Deep grey: scaled by what the whole set holds, in memory and streamed, or refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unfreeze.config import DataConfig
from unfreeze.data.pixels.decode import Squares, decode_files, decode_one, decode_sequence
from unfreeze.data.pixels.grey import White
from unfreeze.data.sets.catalog import load_test, load_train_val
from unfreeze.data.sets.remarks import look_over
from unfreeze.errors import DataError

RAMP = np.tile(np.linspace(0, 65535, 64), (64, 1))  # 64 levels of 16 bits
KINDS: dict[str, tuple[np.ndarray, float]] = {
    "16.png": (RAMP.astype(np.uint16), 65535),
    "12 of 16.png": (RAMP.astype(np.uint16) >> 4, 4095),
    "10 of 16.tiff": (RAMP.astype(np.uint16) >> 6, 1023),
    "8 of 16.png": (RAMP.astype(np.uint16) >> 8, 255),
    "unit.tiff": ((RAMP / 65535).astype(np.float32), 1),
    "bytes.tiff": ((RAMP / 257).astype(np.float32), 255),
    "counts.tiff": (RAMP.astype(np.float32), 65535),
    "32.tiff": (RAMP.astype(np.int32), 65535),
    "wide.tiff": ((RAMP * 30_000).astype(np.int32), 2**31 - 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_no_level_is_lost(name: str, tmp_path: Path) -> None:
    values, white = KINDS[name]
    Image.fromarray(values).save(tmp_path / name)
    pixels = decode_one(tmp_path / name, 0, Squares(64), 64)
    assert len(np.unique(pixels)) == 64
    assert (pixels == pixels[..., :1]).all()
    assert np.abs(pixels[..., 0] - values / white * 255).max() <= 0.5
    assert np.array_equal(decode_files(tmp_path, [name], [0], Squares(64)).images[0], pixels)
    assert np.array_equal(decode_sequence([(Image.open(tmp_path / name), 0)], Squares(64)).images[0], pixels)


def test_a_set_has_one_white(tmp_path: Path) -> None:
    """A dark image stays dark."""
    bright, dark = (Image.fromarray(RAMP.astype(np.uint16) >> shift) for shift in (4, 7))
    for name, image in (("a.png", dark), ("b.png", bright)):
        image.save(tmp_path / name)
    array = decode_files(tmp_path, ["a.png", "b.png"], [0, 0], Squares(64))
    assert array.seen.white == White(integer=4095)
    assert [image.max() for image in array.images] == [32, 255]
    assert array.digest == decode_sequence([(dark, 0), (bright, 0)], Squares(64)).digest


@pytest.mark.parametrize("values", [RAMP.astype(np.float32) - 1, np.full((4, 4), np.nan, np.float32), -np.eye(4)])
def test_what_is_no_grey_level_is_refused_by_name(values: np.ndarray, tmp_path: Path) -> None:
    kind = np.float32 if values.dtype == np.float32 else np.int32
    Image.fromarray(values.astype(kind)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff holds values from .*, which are no grey levels; rescale them"):
        decode_files(tmp_path, ["a.tiff"], [0], Squares(64))


def colour_of_16_bits(path: Path, shift: int) -> None:
    """A PNG that Pillow cannot write."""
    import struct
    import zlib

    values = np.repeat(RAMP.astype(np.uint16)[..., None] >> shift, 3, axis=-1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def test_deep_colour_is_taken_whole_or_refused(tmp_path: Path) -> None:
    colour_of_16_bits(tmp_path / "whole.png", 0)
    pixels = decode_files(tmp_path, ["whole.png"], [0], Squares(64)).images[0]
    assert len(np.unique(pixels)) == 64
    colour_of_16_bits(tmp_path / "low.png", 6)
    with pytest.raises(DataError, match=r"1 files below .* colours of 16 bits .* 4 levels at most: low\.png; rescale"):
        decode_files(tmp_path, ["low.png"], [0], Squares(64))


@pytest.mark.parametrize("loading", ["memory", "stream"])
@pytest.mark.parametrize(
    ("train", "val", "says"),
    [
        (0, 4, "2 grey images of more than 8 bits reach a sixteenth of white at most and come out nearly black"),
        (
            4,
            0,
            "2 grey images of more than 8 bits go far beyond white, the training images', and come out nearly white",
        ),
        (0, 3, ""),
    ],
)
def test_what_is_of_another_depth_is_said(train: int, val: int, says: str, loading: Any, tmp_path: Path) -> None:
    for part, shift in (("train", train), ("val", val)):
        for name in ("cat", "dog"):
            (tmp_path / "x" / part / name).mkdir(parents=True)
            for index in range(2 if part == "train" else 1):
                values = np.roll(RAMP.astype(np.uint16) >> shift, index + (name == "cat") * 3)
                Image.fromarray(values).save(tmp_path / "x" / part / name / f"{part}{index}.png")
    config = DataConfig(name="folder", path=str(tmp_path / "x"), cache_dir=str(tmp_path / "cache"), loading=loading)
    for _ in range(2):  # from its files, then from what is kept
        data = load_train_val(replace(config, test_share=0.5), image_size=56)
        said = "\n".join(look_over(replace(config, max_duplicate_share=1.0), data))
        assert (f"{says}, such as cat/val0.png, dog/val0.png;" in said) if says else ("come out" not in said)


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_every_part_has_the_white_of_the_training_images(loading: Any, tmp_path: Path) -> None:
    for part, shift in (("train", 4), ("val", 5), ("test", 6)):
        for name in ("cat", "dog"):
            (tmp_path / "x" / part / name).mkdir(parents=True)
            Image.fromarray(RAMP.astype(np.uint16) >> shift).save(tmp_path / "x" / part / name / "a.png")
    config = DataConfig(name="folder", path=str(tmp_path / "x"), cache_dir=str(tmp_path / "cache"), loading=loading)
    data, test = load_train_val(config, image_size=56), load_test(config, image_size=56)
    assert [part.take(np.array([0])).max() for part in (data.train, data.val, test)] == [255, 127, 64]
    config.max_duplicate_share = 1.0
    assert "grey images of more than 8 bits: white is 4,095 in integers" in "\n".join(look_over(config, data, test))
