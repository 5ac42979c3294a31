"""DomainNet: torchvision's order, the paper's split, and what is wrong with a tree. Folders: test_catalog.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_disk import SmallDisk
from torchvision.datasets import ImageFolder

from unfreeze.config import DataConfig
from unfreeze.data.sets.catalog import load_test, load_train_val
from unfreeze.errors import DataError

# Names that sort otherwise as paths than class by class ("a b/" comes before "a/").
CLASSES = ("a", "a b", "a-b", "zebra")


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    root = tmp_path / "domainnet" / "sketch"
    colours = iter(range(256))
    for name in CLASSES:
        for file in ("10.jpg", "9.jpg", "B.JPG", "deep/1.png", "c.png", "deep er/2.png", "e.png", "f.png", "g.png"):
            path = root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (next(colours), 0, 0)).save(path, "PNG")  # whatever its name says
        (root / name / "notes.txt").write_text("no image")
    return DataConfig(
        name="domainnet", path=str(root.parent), domain="sketch", cache_dir=str(tmp_path / "cache"), max_bad_share=0.0
    )


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_the_split_is_of_torchvision_s_order(config: DataConfig, loading: Any) -> None:
    config.loading = loading
    theirs = ImageFolder(f"{config.path}/sketch")
    colours = np.array([Image.open(path).getpixel((0, 0))[0] for path, _ in theirs.samples])  # type: ignore[index]
    order = np.random.RandomState(42).permutation(len(colours))
    num_train = int(0.8 * len(colours))
    dataset, sealed = load_train_val(config, image_size=8), load_test(config, image_size=8)
    found = sealed.take(np.arange(len(sealed)))[:, 0, 0, 0]
    assert found.tolist() == colours[np.sort(order[num_train:])].tolist()
    assert sealed.labels.tolist() == [theirs.targets[index] for index in np.sort(order[num_train:])]
    trained = [*dataset.train.take(np.arange(len(dataset.train))), *dataset.val.take(np.arange(len(dataset.val)))]
    assert sorted(image[0, 0, 0] for image in trained) == sorted(colours[order[:num_train]])
    assert dataset.num_test == len(sealed)
    assert dataset.classes == CLASSES


def test_a_class_without_images_is_named(config: DataConfig) -> None:
    (Path(str(config.path)) / "sketch" / "yak").mkdir()
    with pytest.raises(DataError, match="yak has no images; add some or remove the class"):
        load_train_val(config, image_size=8)


def test_a_missing_domain_is_named(config: DataConfig) -> None:
    config.domain = "clipart"
    with pytest.raises(DataError, match=r"no such image folder: .*domainnet/clipart"):
        load_train_val(config, image_size=8)


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_images_may_lie_on_a_disk_that_is_read_only(config: DataConfig, loading: Any, small_disk: SmallDisk) -> None:
    config.loading = loading
    images = [Image.new("RGB", (9, 9), (index, 0, 0)) for index in range(12)]
    for index, image in enumerate(images):
        path = small_disk.path / "domainnet" / "sketch" / CLASSES[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    small_disk.make_read_only()
    config.path = str(small_disk.path / "domainnet")
    dataset = load_train_val(config, image_size=8)
    assert len(dataset.train) + len(dataset.val) + dataset.num_test == 12
    config.cache_dir = str(small_disk.path / "cache")
    if loading == "memory":
        with pytest.raises(DataError, match=r"Read-only file system; .* another data\.cache_dir"):
            load_train_val(config, image_size=8)
