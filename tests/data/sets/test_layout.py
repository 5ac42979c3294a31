"""Which folders are parts and which are classes, by their names alone; with images: test_catalog.py."""

from itertools import product

import pytest

from unfreeze.config import DataConfig
from unfreeze.data.sets.layout import Folder, find_folders, read_layout
from unfreeze.errors import DataError


def files_of(*folders: str) -> list[str]:
    """Two images in each folder."""
    return [f"{folder}/{number}.jpg" for folder in folders for number in range(2)]


def tree(*parts: str) -> list[str]:
    """Cats and dogs in each."""
    return files_of(*(f"{part}/{name}" for part in parts for name in ("cat", "dog")))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("train", "test"), {"train": "train", "test": "test"}),
        (("Train", "Test"), {"train": "Train", "test": "Test"}),
        (("TRAINING", "testing"), {"train": "TRAINING", "test": "testing"}),
        *((("train", name), {"train": "train", "val": name}) for name in ("valid", "Validation", "dev", "eval", "VAL")),
        (("training",), {"train": "training"}),
    ],
)
def test_the_usual_names_are_understood(names: tuple[str, ...], found: dict[str, str]) -> None:
    assert read_layout(tree(*names), names, "/data") == found


def test_class_folders_are_split() -> None:
    assert read_layout(files_of("cat", "dog", "train station"), (), "/data") == {"train": ""}
    assert read_layout(files_of("cat/indoors", "cat/outdoors", "dog"), (), "/data") == {"train": ""}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (tree("val", "test"), r"has val/ and test/, but no training images"),
        (tree("Test"), r"has Test/, but no training images"),
        (files_of("bus", "car", "train"), r"has train/, named like parts, beside bus/, car/"),
        (tree("train", "holdout"), r"has train/, named like parts, beside holdout/"),
        (tree("train", "val", "valid"), r"has val/ and valid/, which both mean validation images"),
        (tree("train", "Train"), r"has Train/ and train/, which both mean training images"),
        (tree("fold1", "fold2"), r"fold1/ \(cat/, dog/\), fold2/ \(cat/, dog/\), so they may be no classes;"),
        (tree("seg_train/seg_train", "seg_test/seg_test"), r"seg_train/ \(seg_train/\), seg_test/ \(seg_test/\)"),
        (tree("clipart", "sketch") + files_of("extra"), r"clipart/ \(cat/, dog/\), sketch/"),
        (tree("birds"), r"so they may be no classes; did you mean /data/birds\?"),
        (tree("birds/train", "birds/test"), r"did you mean /data/birds\?"),
        (tree("train/fold1", "train/fold2", "test"), r"the folders of /data/train hold folders, fold1/"),
        (files_of("train/images", "train/masks"), r"folders of /data/train are named as what belongs to an image"),
        (files_of("Images", "Annotations"), r"named as what belongs to an image, Images/, Annotations/"),
        ([*tree("train"), "test/1.jpg"], r"/data/test must hold one folder per class, but holds 1 images alone"),
        (tree(*(f"domain{number}" for number in range(9))), r"domain3/ \(cat/, dog/\) and 5 more, so they may be"),
    ],
)
def test_what_may_be_parts_or_classes_is_refused_with_what_was_seen(files: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_layout(files, (), "/data")
    assert "data.train=… data.val=… data.test=…" in str(caught.value)


def test_an_empty_part_is_no_missing_one() -> None:
    with pytest.raises(DataError, match="/data/valid has no images"):
        read_layout(tree("train"), ("train", "valid"), "/data")


TREES = {
    "/data": [*tree("Train", "holdout"), *files_of("bus")],
    "/data/Train": ["cat/0.jpg", "dog/0.jpg"],
    "/data/holdout": ["cat/0.jpg", "dog/0.jpg", "loose.jpg"],
    "/parted": tree("train", "val", "test"),
    "/elsewhere": files_of("train/deep", "val", "test/deep"),
    "/elsewhere/val": files_of("cat", "dog"),
    "/parted/train": files_of("cat", "dog"),
}


def look(place: str) -> tuple[list[str], list[str]]:
    return TREES[place], []


def found(**options: str) -> dict[str, Folder]:
    return find_folders(DataConfig(name="folder", **options), look)


def test_what_is_named_is_taken_as_it_is() -> None:
    folders = found(train="/elsewhere", test="/data/holdout/")
    assert folders["train"] == Folder("/elsewhere", "", TREES["/elsewhere"])
    assert folders["test"] == Folder("/data/holdout", "", ["cat/0.jpg", "dog/0.jpg"])
    assert list(folders) == ["train", "test"]


def test_a_named_part_stands_for_the_tree_s_own() -> None:
    folders = found(path="/parted", val="/data/holdout")
    assert [(part, folder.name) for part, folder in folders.items()] == [
        ("train", "/parted/train"),
        ("val", "/data/holdout"),
        ("test", "/parted/test"),
    ]
    assert found(path="/parted", train="/elsewhere").keys() == {"train", "test", "val"}
    with pytest.raises(DataError, match="beside bus/, holdout/"):
        found(path="/data")
    with pytest.raises(DataError, match="beside bus/"):
        found(path="/data", test="/data/holdout")


@pytest.mark.parametrize(
    "options",
    [
        {"path": "/parted", "val": "/parted/train"},
        {"train": "/elsewhere", "val": "/elsewhere/"},
        {"path": "/elsewhere/val", "test": "/elsewhere/val"},
        {"train": "/elsewhere", "val": "/data/holdout", "test": "/data/holdout"},
    ],
)
def test_a_folder_is_of_one_part(options: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"would hold the .* images and the .* images: give each part a folder"):
        found(**options)


def test_the_tree_that_was_refused_is_taken_with_what_the_refusal_says() -> None:
    for path, val in product(({}, {"path": "/data"}), ({}, {"val": "/data/holdout"})):
        folders = found(train="/data/Train", **path, **val)
        assert folders["train"].files == TREES["/data/Train"]
        assert ("val" in folders) == bool(val)
