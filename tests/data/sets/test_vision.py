"""torchvision's sets: the real classes on trees planted as downloads leave them, and fakes for sets of arrays."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from scipy.io import savemat

from unfreeze.config import DataConfig
from unfreeze.data.pixels.part import Part
from unfreeze.data.sets.catalog import load_test, load_train_val
from unfreeze.errors import DataError

CLASSES = ["cat", "dog"]
COUNT = 10  # images of a class and part in the planted trees


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(path=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache"), val_share=0.2, test_share=0.2)


class FakeSet:
    """The constructor and the sequence of a torchvision set; each part's images have a red value of their own."""

    classes: ClassVar[list[str]] = CLASSES
    read: ClassVar[list[int]] = []
    REDS: ClassVar[dict[Any, int]] = {True: 10, "train": 10, "trainval": 10, False: 30, "test": 30}
    labels: ClassVar[list[int]] = [0, 1]

    def __init__(self, root: str, *, download: bool = False, **part: Any) -> None:
        assert download
        assert Path(root).is_absolute()
        (which,) = part.values()
        self.red = self.REDS[which]
        self.num_images = {10: 20, 30: 10}[self.red]

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index >= self.num_images:
            raise IndexError(index)
        self.read.append(self.red)
        return Image.new("RGB", (12, 10), (self.red, index, 0)), self.labels[index % len(self.labels)]


def pixels(part: Part) -> np.ndarray:
    return part.take(np.arange(len(part)))


def class_counts(part: Part) -> list[int]:
    return np.bincount(part.labels).tolist()


@pytest.mark.parametrize(("name", "torchvision_name"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_sets_of_arrays(config: DataConfig, monkeypatch: pytest.MonkeyPatch, name: Any, torchvision_name: str) -> None:
    reads: list[int] = []
    monkeypatch.setattr(torchvision.datasets, torchvision_name, type(torchvision_name, (FakeSet,), {"read": reads}))
    config.name = name
    dataset = load_train_val(config, image_size=224)
    assert dataset.classes == tuple(CLASSES)
    assert 30 not in reads
    assert dataset.num_test == 10
    assert (class_counts(dataset.train), class_counts(dataset.val)) == ([8, 8], [2, 2])
    assert set(pixels(dataset.train)[..., 0].flat) == set(pixels(dataset.val)[..., 0].flat) == {10}
    greens = [*pixels(dataset.train)[:, 0, 0, 1], *pixels(dataset.val)[:, 0, 0, 1]]
    assert sorted(greens) == list(range(20))
    sealed = load_test(config, image_size=224)
    assert class_counts(sealed) == [5, 5]
    assert pixels(sealed).shape == (10, 10, 10, 3)
    assert set(pixels(sealed)[..., 0].flat) == {30}
    num_reads = len(reads)
    assert np.array_equal(pixels(load_train_val(config, image_size=224).train), pixels(dataset.train))
    assert len(reads) == num_reads


def test_svhn_names_no_classes(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = {"classes": None, "labels": list(range(10))}
    monkeypatch.setattr(torchvision.datasets, "SVHN", type("SVHN", (FakeSet,), digits))
    config.name, config.val_share = "svhn", 0.5
    dataset = load_train_val(config, image_size=8)
    assert dataset.classes == tuple("0123456789")
    assert (len(dataset.train), len(dataset.val), dataset.num_test) == (10, 10, 10)


def test_a_label_outside_the_classes_is_named_with_its_index(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", type("CIFAR10", (FakeSet,), {"labels": [0, 1, 0, 1, 2]}))
    config.name = "cifar10"
    with pytest.raises(
        DataError, match=r"data=cifar10: image 4 has the label 2, but the 2 classes are 0 to 1 \(4 such"
    ):
        load_train_val(config, image_size=8)


def test_a_failed_download_says_where(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(root: str, **part: Any) -> None:
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    config.name = "cifar10"
    with pytest.raises(DataError, match=f"data=cifar10 could not be downloaded to {config.path}: File not found"):
        load_train_val(config, image_size=32)


# --- planted trees ----------------------------------------------------------------------------------------------------

PARTS = {"train": 10, "val": 20, "test": 30}  # part → red value of its images


def picture(path: Path, red: int, label: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (red, label * 100, 0)).save(path)
    return path.name


def plant_dtd(root: Path) -> None:
    for part, red in PARTS.items():
        lines = []
        for label, name in enumerate(CLASSES):
            for index in range(COUNT):
                file = picture(root / "dtd/dtd/images" / name / f"{part}_{index}.png", red, label)
                lines.append(f"{name}/{file}")
        for partition, chosen in ((1, lines), (2, lines[:1])):
            listing = root / "dtd/dtd/labels" / f"{part}{partition}.txt"
            listing.parent.mkdir(exist_ok=True)
            listing.write_text("\n".join(chosen))


def plant_food101(root: Path) -> None:
    for part, red in (("train", 10), ("test", 30)):
        listing: dict[str, list[str]] = {name: [] for name in CLASSES}
        for label, name in enumerate(CLASSES):
            for index in range(COUNT):
                file = picture(root / "food-101/images" / name / f"{part}_{index}.jpg", red, label)
                listing[name].append(f"{name}/{file.removesuffix('.jpg')}")
        (root / "food-101/meta").mkdir(exist_ok=True)
        (root / f"food-101/meta/{part}.json").write_text(json.dumps(listing))


def plant_flowers102(root: Path) -> None:
    folder, labels, ids = root / "flowers-102", [], {"trnid": [], "valid": [], "tstid": []}
    for key, red in zip(ids, PARTS.values(), strict=True):
        for label in range(102):
            labels.append(label + 1)
            picture(folder / "jpg" / f"image_{len(labels):05d}.jpg", red, label % 2)
            ids[key].append(len(labels))
    savemat(folder / "imagelabels.mat", {"labels": np.array(labels)})
    savemat(folder / "setid.mat", {key: np.array(value) for key, value in ids.items()})


def plant_stanford_cars(root: Path) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    for part, red in (("train", 10), ("test", 30)):
        rows = []
        for index in range(2 * COUNT):
            label = index % 2
            file = picture(folder / f"cars_{part}" / f"{index:05d}.jpg", red, label)
            rows.append((file, label + 1))
        annotations = np.array(rows, dtype=[("fname", object), ("class", object)])
        name = "devkit/cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
        savemat(folder / name, {"annotations": annotations})
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(CLASSES, dtype=object)})


def plant_eurosat(root: Path) -> None:
    for label, name in enumerate(CLASSES):
        for index in range(COUNT):
            picture(root / "eurosat/2750" / name / f"{index}.jpg", 10, label)


def plant_caltech101(root: Path) -> None:
    for label, name in enumerate([*CLASSES, "BACKGROUND_Google"]):
        for index in range(COUNT):
            picture(root / "caltech101/101_ObjectCategories" / name / f"image_{index + 1:04d}.jpg", 10, label)


def plant_pet(root: Path) -> None:
    for part, red in (("trainval", 10), ("test", 30)):
        lines = []
        for label, name in enumerate(CLASSES):
            for index in range(COUNT):
                file = picture(root / "oxford-iiit-pet/images" / f"{name}_{part}{index}.jpg", red, label)
                lines.append(f"{file.removesuffix('.jpg')} {label + 1} {label + 1} 1")
        listing = root / "oxford-iiit-pet/annotations" / f"{part}.txt"
        listing.parent.mkdir(exist_ok=True)
        listing.write_text("\n".join(lines))


TREES = [
    ("dtd", plant_dtd, [10, 10], [10, 10], [10, 10]),
    ("food101", plant_food101, [8, 8], [2, 2], [10, 10]),
    ("stanford_cars", plant_stanford_cars, [8, 8], [2, 2], [10, 10]),
    ("pet", plant_pet, [8, 8], [2, 2], [10, 10]),
    ("flowers102", plant_flowers102, [1] * 102, [1] * 102, [1] * 102),
    ("eurosat", plant_eurosat, [6, 6], [2, 2], [2, 2]),
    ("caltech101", plant_caltech101, [6, 6], [2, 2], [2, 2]),
]


@pytest.mark.parametrize(("name", "plant", "train", "val", "test"), TREES, ids=[row[0] for row in TREES])
def test_sets_of_files(
    config: DataConfig,
    monkeypatch: pytest.MonkeyPatch,
    name: Any,
    plant: Callable[[Path], None],
    train: list[int],
    val: list[int],
    test: list[int],
) -> None:
    """The right part, its own validation images where it has them, and each image with the label of its class."""
    assert config.path is not None
    plant(Path(config.path))
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)  # of the .mat files
    config.name = name
    dataset, sealed = load_train_val(config, image_size=8), load_test(config, image_size=8)
    assert len(dataset.classes) == len(train)
    if name != "flowers102":
        assert [text.lower() for text in dataset.classes] == CLASSES
    assert [class_counts(part) for part in (dataset.train, dataset.val, sealed)] == [train, val, test]
    assert dataset.num_test == len(sealed)
    own_test, own_val = name not in ("eurosat", "caltech101"), name in ("dtd", "flowers102")
    for part, red in ((dataset.train, 10), (dataset.val, 20 if own_val else 10), (sealed, 30 if own_test else 10)):
        colours = pixels(part)[:, 4, 4].astype(int)
        assert np.abs(colours[:, 0] - red).max() <= 6  # JPEG
        assert np.abs(colours[:, 1] - part.labels % 2 * 100).max() <= 6


def test_cars_that_are_not_there_are_not_downloaded(config: DataConfig) -> None:
    config.name = "stanford_cars"
    says = f"data=stanford_cars is not complete below data.path={config.path} .*, and is not downloaded; put it there"
    with pytest.raises(DataError, match=says):
        load_train_val(config, image_size=8)


def test_an_unreadable_image_of_a_set_of_files_is_named(config: DataConfig) -> None:
    assert config.path is not None
    plant_eurosat(Path(config.path))
    (Path(config.path) / "eurosat/2750/cat/3.jpg").write_bytes(b"broken")
    config.name = "eurosat"
    with pytest.raises(DataError, match=r"eurosat/2750/cat/3\.jpg"):
        load_train_val(config, image_size=8)


@pytest.mark.parametrize(("name", "plant"), [("food101", plant_food101), ("pet", plant_pet)])
def test_a_set_of_files_streams(name: Any, plant: Callable[[Path], None], config: DataConfig) -> None:
    assert config.path is not None
    plant(Path(config.path))
    config.name = name
    held = load_train_val(config, image_size=8)
    config.loading = "stream"
    streamed = load_train_val(config, image_size=8)
    assert streamed.train.streams
    assert np.array_equal(pixels(streamed.train), pixels(held.train))
    assert streamed.train.labels.tolist() == held.train.labels.tolist()
