"""Copies of an image in several parts or classes are counted, said and, where they are many, refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unfreeze.config import DataConfig
from unfreeze.data.sets.catalog import load_test, load_train_val
from unfreeze.data.sets.remarks import look_over
from unfreeze.errors import DataError


@pytest.fixture(params=["memory", "stream"])
def config(tmp_path: Path, request: Any) -> DataConfig:
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 5), ("test", 5)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return DataConfig(
        name="folder", path=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache"), loading=request.param
    )


def remarks(config: DataConfig) -> list[str]:
    data = load_train_val(config, image_size=8)
    lines = look_over(config, data, load_test(config, image_size=8))
    assert lines[: len(data.notes)] == data.notes
    return list(lines[len(data.notes) :])


def copy(config: DataConfig, origin: str, *copies: str) -> None:
    for name in copies:
        shutil.copy(f"{config.path}/{origin}.png", f"{config.path}/{name}.png")


def test_without_copies_there_is_nothing_to_say(config: DataConfig) -> None:
    assert remarks(config) == []
    copy(config, "train/cat/0", "train/cat/again")  # twice in the same part and class tells nobody anything
    assert remarks(config) == []


@pytest.mark.parametrize("place", ["test/cat/0", "val/cat/3", "train/dog/0", "test/dog/new"])
def test_a_copy_in_another_part_or_class_is_said(config: DataConfig, place: str) -> None:
    copy(config, "train/cat/0", place)
    (line,) = remarks(config)
    assert line.startswith("2 of 6")
    assert "are also in another part or class, such as cat/0.png (training)" in line


def test_turned_photographs_are_counted_once_where_the_test_is_split_off(config: DataConfig) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in range(3):
        place = Path(config.path or "") / "train" / "cat" / f"turned{index}.jpg"
        Image.effect_noise((8, 8), 50 + index).convert("RGB").save(place, exif=exif)
    config.path = f"{config.path}/train"
    (line,) = [line for line in remarks(config) if "rotated" in line]
    assert line.startswith("3 images that a camera marked as rotated are taken as they are stored")


def test_many_are_an_error(config: DataConfig) -> None:
    for index in range(4):
        copy(config, f"train/dog/{index}", f"test/dog/{index}")
    with pytest.raises(
        DataError, match=r"8 of 60 images .* more than data\.max_duplicate_share=0\.1: remove the copies"
    ):
        remarks(config)
    config.max_duplicate_share = 0.2
    assert remarks(config)[0].startswith("8 of 60 images (13.3%)")


def test_the_embedded_digits_have_none(tmp_path: Path) -> None:
    config = DataConfig(cache_dir=str(tmp_path))
    assert look_over(config, load_train_val(config, image_size=8), load_test(config, image_size=8)) == ()
