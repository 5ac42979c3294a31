import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image

from unfreeze.config import DataConfig
from unfreeze.data.pixels.decode import stored_side
from unfreeze.data.pixels.part import Part
from unfreeze.data.sets import catalog
from unfreeze.data.sets.catalog import load_source, load_test, load_train_val
from unfreeze.data.sets.stage import local_tree, stage_file
from unfreeze.errors import DataError
from unfreeze.records import DataFacts

REAL = Path(__file__).resolve().parents[4] / "shared" / "real" / "data"
Tree = dict[str, int]


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(
        name="folder", path=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache"), val_share=0.25, test_share=0.25
    )


def plant(config: DataConfig, tree: Tree) -> Path:
    """An image folder: "train/cat" → number of images, each of a colour of its own to tell them apart."""
    assert config.path is not None
    colours = count(1)
    for folder, num_images in tree.items():
        place = Path(config.path) / folder
        place.mkdir(parents=True, exist_ok=True)
        for index in range(num_images):
            colour = next(colours)
            Image.new("RGB", (10, 8), (colour % 256, colour // 256, 7)).save(place / f"{index}.png")
    return Path(config.path)


def contents(part: Part) -> list[str]:
    """One digest per image."""
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in part.take(np.arange(len(part)))]


def class_counts(part: Part) -> list[int]:
    return np.bincount(part.labels).tolist()


SEPARATE = {"train/cat": 8, "train/dog": 12, "test/cat": 3, "test/dog": 2}
WITH_VAL = {**SEPARATE, "val/cat": 2, "val/dog": 4}
SINGLE = {"cat": 16, "dog": 32}


@pytest.mark.parametrize(
    ("tree", "train", "val", "test"),
    [
        (SEPARATE, [6, 9], [2, 3], [3, 2]),
        (WITH_VAL, [8, 12], [2, 4], [3, 2]),
        (SINGLE, [9, 18], [3, 6], [4, 8]),
        ({"train/cat": 16, "train/dog": 32}, [9, 18], [3, 6], [4, 8]),
        ({"train/cat": 16, "train/dog": 32, "val/cat": 1, "val/dog": 1}, [12, 24], [1, 1], [4, 8]),
    ],
    ids=["train-test", "train-val-test", "single", "train-alone", "train-val"],
)
def test_a_folder_is_split(config: DataConfig, tree: Tree, train: list[int], val: list[int], test: list[int]) -> None:
    plant(config, tree)
    dataset, sealed = load_train_val(config, image_size=8), load_test(config, image_size=8)
    assert dataset.classes == ("cat", "dog")
    assert class_counts(dataset.train) == train
    assert class_counts(dataset.val) == val
    assert class_counts(sealed) == test
    assert dataset.num_test == len(sealed)
    assert dataset.bad_files == ()
    everything = contents(dataset.train) + contents(dataset.val) + contents(sealed)
    assert len(set(everything)) == len(everything) == sum(tree.values())


def test_images_keep_their_class(config: DataConfig) -> None:
    root = plant(config, SINGLE)
    by_colour = {Image.open(path).getpixel((0, 0)): path.parent.name for path in root.rglob("*.png")}
    dataset = load_train_val(config, image_size=8)
    for part in (dataset.train, dataset.val, load_test(config, image_size=8)):
        images = part.take(np.arange(len(part)))
        found = [by_colour[tuple(int(value) for value in image[0, 0])] for image in images]
        assert found == [dataset.classes[label] for label in part.labels]


def test_a_split_is_the_same_each_time_and_another_for_another_seed(config: DataConfig) -> None:
    plant(config, SINGLE)
    first, again = load_train_val(config, image_size=8), load_train_val(config, image_size=8)
    assert contents(first.train) == contents(again.train)
    assert first.digest == again.digest
    config.split_seed = 1
    assert set(contents(load_train_val(config, image_size=8).val)) != set(contents(first.val))


def test_the_sealed_images_are_not_decoded_before_their_time(config: DataConfig) -> None:
    root = plant(config, SEPARATE)
    (root / "test" / "cat" / "0.png").write_bytes(b"broken")
    config.max_bad_share = 0.0
    assert load_train_val(config, image_size=8).num_test == 5
    with pytest.raises(DataError, match=r"cat/0\.png"):
        load_test(config, image_size=8)


def test_limits_give_nested_subsets_and_leave_the_rest_alone(config: DataConfig) -> None:
    plant(config, SINGLE)
    full, sealed = load_train_val(config, image_size=8), load_test(config, image_size=8)
    subsets = []
    for limit in (4, 10, 27, 1000):
        config.max_train_images, config.max_val_images = limit, min(limit, 6)
        dataset = load_train_val(config, image_size=8)
        assert len(dataset.train) == min(limit, len(full.train))
        assert len(dataset.val) == min(limit, 6)
        assert set(contents(dataset.val)) <= set(contents(full.val))
        assert contents(load_test(config, image_size=8)) == contents(sealed)
        subsets.append(set(contents(dataset.train)))
    assert subsets[0] < subsets[1] < subsets[2] == subsets[3] == set(contents(full.train))


def test_a_limit_below_the_number_of_classes_is_refused(config: DataConfig) -> None:
    plant(config, SINGLE)
    config.max_train_images = 1
    with pytest.raises(DataError, match="train images: 1 images cannot hold one of each of 2"):
        load_train_val(config, image_size=8)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"cat": 5, "dog": 1}, "test split needs at least two .* dog;"),
        ({"cat": 5, "dog": 2}, "val split needs at least two .* dog;"),
        ({"train/cat": 5, "train/dog": 1, "test/cat": 1, "test/dog": 1}, "val split needs at least two .* dog;"),
        ({"train/cat": 5, "train/dog": 5, "test/cat": 1}, "test has no images of class dog;"),
        ({"train/cat": 5, "train/dog": 5, "test/cat": 1, "test/dog": 0}, "test has no images of class dog;"),
        ({"train/cat": 5, "train/dog": 5, "val/cat": 1}, "val has no images of class dog;"),
        ({"train/cat": 5, "train/dog": 5, "test/cat": 1, "test/dog": 1, "test/yak": 1}, "training images lack: yak"),
        ({"cat": 5, "dog": 5, "owl": 0}, "has no images of class owl;"),
        ({"train/cat": 5, "train/dog": 0, "test/cat": 1, "test/dog": 1}, "train has no images of class dog;"),
        ({"cat": 5}, "at least two, but got \\['cat'\\]"),
        ({"": 5}, "at least two, but got \\[\\]"),
        ({"train": 5}, "train must hold one folder per class"),
    ],
)
def test_a_tree_that_cannot_serve_is_refused_with_the_class(config: DataConfig, tree: Tree, says: str) -> None:
    plant(config, tree)
    with pytest.raises(DataError, match=says):
        load_train_val(config, image_size=8)


def test_a_missing_folder_is_named(config: DataConfig) -> None:
    with pytest.raises(DataError, match=f"no such image folder: '{config.path}'"):
        load_train_val(config, image_size=8)


def test_stray_and_hidden_files_do_not_matter(config: DataConfig) -> None:
    root = plant(config, SINGLE)
    before = contents(load_train_val(config, image_size=8).train)
    (root / "README.txt").write_text("about")
    (root / ".DS_Store").write_bytes(b"x")
    (root / "cat" / ".hidden.png").write_bytes(b"x")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("x")
    assert contents(load_train_val(config, image_size=8).train) == before


@pytest.mark.parametrize("name", ["val", "train/bird"])
def test_a_link_to_nowhere_is_no_part_or_class_that_is_left_out(config: DataConfig, name: str) -> None:
    (plant(config, SEPARATE) / name).symlink_to("/nowhere")
    with pytest.raises(DataError, match=rf"holds links to nowhere: {Path(name).name}; mend or remove them"):
        load_train_val(config, image_size=8)


def test_images_may_lie_deeper_than_their_class(config: DataConfig) -> None:
    plant(config, {"cat/indoors": 4, "cat/outdoors": 4, "dog": 8})
    dataset = load_train_val(config, image_size=8)
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.train) + len(dataset.val) + dataset.num_test == 16


def test_how_a_tree_was_understood_is_told(config: DataConfig) -> None:
    plant(config, {"Train/cat": 8, "Train/dog": 12, "valid/cat": 3, "valid/dog": 2})
    dataset = load_train_val(config, image_size=8)
    assert dataset.notes == (
        f"training: {config.path}/Train, 15 images of 2 classes",
        f"validation: {config.path}/valid, 5 images",
        "test: 5 images split off the training ones",
        f"data.val_share=0.25 is unused: {config.path}/valid holds the validation images",
    )


def test_parts_may_be_named(config: DataConfig, tmp_path: Path) -> None:
    root = plant(config, {"bus/day": 8, "train/day": 8, "car/day": 8, "later/bus": 3, "later/train": 3, "later/car": 3})
    with pytest.raises(DataError, match=r"data\.train"):
        load_train_val(config, image_size=8)
    config.path, config.test = None, str(root / "later")
    (root / "later").rename(tmp_path / "later")
    config.train, config.test = str(root), str(tmp_path / "later")
    dataset, sealed = load_train_val(config, image_size=8), load_test(config, image_size=8)
    assert dataset.classes == ("bus", "car", "train")
    assert class_counts(dataset.train) == [6, 6, 6]
    assert class_counts(sealed) == [3, 3, 3]


def test_what_is_no_image_by_its_name_is_left_out_and_told(config: DataConfig) -> None:
    root = plant(config, {"train/cat": 8, "train/dog": 12, "train/__MACOSX/cat": 1})
    (root / "train/cat/Thumbs.db").write_bytes(b"x")
    (root / "train/dog/1.txt").write_text("a dog")
    (root / "train/dog/2.PNG").write_bytes((root / "train/dog/2.png").read_bytes())
    config.max_bad_share = 0.0
    dataset = load_train_val(config, image_size=8)
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.train) + len(dataset.val) + dataset.num_test == 21
    (note,) = [note for note in dataset.notes if "no images by their names" in note]
    assert note.startswith("left out 3 files")
    assert "train/cat/Thumbs.db" in note


def test_class_names_are_the_same_in_either_unicode_form(config: DataConfig) -> None:
    composed, apart = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))
    assert composed != apart
    plant(config, {f"train/{composed}": 8, "train/dog": 8, f"test/{apart}": 2, "test/dog": 2})
    assert load_train_val(config, image_size=8).classes == (composed, "dog")
    assert class_counts(load_test(config, image_size=8)) == [2, 2]
    notes = load_train_val(config, image_size=8).notes
    assert f"folders of one class, whose names differ in their Unicode form alone: {apart}, {composed}" in notes


def test_a_share_that_a_folder_makes_needless_is_said(config: DataConfig) -> None:
    root = plant(config, {"train/cat": 8, "train/dog": 8, "valid/cat": 2, "valid/dog": 2})
    notes = load_train_val(config, image_size=8).notes
    assert f"data.val_share=0.25 is unused: {root}/valid holds the validation images" in notes
    assert not any("test_share" in note for note in notes)


def test_many_classes_without_enough_images_are_counted(config: DataConfig) -> None:
    plant(config, {f"{number:04d}": 1 for number in range(1000)})
    with pytest.raises(DataError, match=r"two images of each class, .*: 0000, 0001, .* 0009 and 990 more;"):
        load_train_val(config, image_size=8)


def test_many_classes_are_counted_not_listed(config: DataConfig) -> None:
    plant(config, {f"train/{number:03d}": 2 for number in range(30)} | {"test/000": 1})
    with pytest.raises(DataError, match=r"no images of class 001, .* 010 and 19 more;"):
        load_train_val(config, image_size=8)


def test_unreadable_files_are_left_out_and_told(config: DataConfig) -> None:
    root = plant(config, WITH_VAL)
    (root / "train" / "dog" / "broken.png").write_bytes(b"")
    (root / "val" / "cat" / "cut.png").write_bytes((root / "val" / "cat" / "0.png").read_bytes()[:40])
    with pytest.raises(DataError, match="max_bad_share"):
        load_train_val(config, image_size=8)
    config.max_bad_share = 0.2
    dataset = load_train_val(config, image_size=8)
    assert set(dataset.bad_files) == {"dog/broken.png", "cat/cut.png"}
    assert class_counts(dataset.train) == [8, 12]


def test_a_stricter_limit_counts_for_cached_images_too(config: DataConfig) -> None:
    root = plant(config, SINGLE)
    (root / "cat" / "broken.png").write_bytes(b"")
    config.max_bad_share = 0.2
    load_train_val(config, image_size=8)
    config.max_bad_share = 0.0
    with pytest.raises(DataError, match="broken"):
        load_train_val(config, image_size=8)


def test_a_class_whose_files_are_all_unreadable_is_named(config: DataConfig) -> None:
    root = plant(config, {**WITH_VAL, "train/cat": 1})
    (root / "train" / "cat" / "0.png").write_bytes(b"")
    config.max_bad_share = 0.5
    with pytest.raises(DataError, match="no training image of class cat"):
        load_train_val(config, image_size=8)


def test_a_validation_class_whose_files_are_all_unreadable_is_named(config: DataConfig) -> None:
    root = plant(config, {**WITH_VAL, "val/cat": 1})
    (root / "val" / "cat" / "0.png").write_bytes(b"")
    config.max_bad_share = 0.5
    with pytest.raises(DataError, match="no validation image of class cat"):
        load_train_val(config, image_size=8)


def test_a_corruption_changes_the_downstream_images_and_no_others(config: DataConfig) -> None:
    config.source_path = str(plant(config, SEPARATE))

    def parts() -> list[Part]:
        dataset = load_train_val(config, image_size=8)
        return [dataset.train, dataset.val, load_test(config, image_size=8), load_source(config, image_size=8)]

    clear = parts()
    for severity in (3, 5):
        config.corruption, config.severity = "gaussian_noise", severity
        noisy = parts()
        again = parts()
        for one, other, repeated in zip(clear, noisy, again, strict=True):
            assert (one.digest == other.digest) == (one is clear[3])
            assert other.digest == repeated.digest
            assert one.labels.tolist() == other.labels.tolist()
        distance = np.abs(noisy[0].take(np.arange(15)).astype(int) - clear[0].take(np.arange(15))).mean()
        assert distance > 5
    assert len(set(contents(noisy[1]))) == len(noisy[1])  # each image's noise is its own


def test_digits_can_be_corrupted(tmp_path: Path) -> None:
    config = DataConfig(cache_dir=str(tmp_path))
    clear = load_test(config, image_size=8)
    config.corruption = "contrast"
    assert load_test(config, image_size=8).digest != clear.digest


def test_frost_cannot_be_made(config: DataConfig) -> None:
    plant(config, SEPARATE)
    config.corruption = "frost"
    with pytest.raises(DataError, match="photographs"):
        load_train_val(config, image_size=8)


def test_a_changed_image_is_decoded_again(config: DataConfig) -> None:
    root = plant(config, SINGLE)
    before = load_train_val(config, image_size=8)
    Image.new("RGB", (10, 8), "white").save(root / "cat" / "0.png")
    after = load_train_val(config, image_size=8)
    assert after.digest != before.digest
    parts = (after.train, after.val, load_test(config, image_size=8))
    assert any((part.take(np.arange(len(part))) == 255).all(axis=(1, 2, 3)).any() for part in parts)


def test_the_stored_side_leaves_room_for_a_centre_crop(config: DataConfig) -> None:
    root = plant(config, SINGLE)
    assert load_train_val(config, image_size=7).train.array.images.shape[1:] == (8, 8, 3)
    assert load_train_val(config, image_size=64).train.array.images.shape[1:] == (8, 8, 3)
    for path in root.rglob("*.png"):
        Image.open(path).resize((300, 260)).save(path)
    assert load_train_val(config, image_size=224).train.array.images.shape[1:] == (256, 256, 3)
    config.crop_share = 1.0
    assert load_train_val(config, image_size=224).train.array.images.shape[1:] == (224, 224, 3)
    assert load_source(replace(config, source_path=config.path), image_size=224).array.images.shape[1] == 224


@pytest.mark.parametrize("image_size", [8, 32, 96, 112, 224, 384])
def test_the_default_crop_share_is_224_of_256(image_size: int) -> None:
    assert stored_side(image_size, DataConfig().crop_share) == round(image_size * 256 / 224)


def test_interpolation_is_told_apart_in_the_cache(config: DataConfig) -> None:
    root = plant(config, SINGLE)
    rng = np.random.default_rng(0)
    for path in root.rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
    cubic = load_train_val(config, image_size=8)
    config.interpolation = "bilinear"
    linear = load_train_val(config, image_size=8)
    assert linear.digest != cubic.digest
    assert load_train_val(config, image_size=8).digest == linear.digest


def test_digits(tmp_path: Path) -> None:
    config = DataConfig(cache_dir=str(tmp_path))
    dataset, sealed = load_train_val(config, image_size=8), load_test(config, image_size=8)
    assert dataset.classes == tuple("0123456789")
    assert len(dataset.train) + len(dataset.val) + len(sealed) == 1797
    assert dataset.num_test == len(sealed)
    assert abs(len(sealed) - 0.2 * 1797) <= 10
    assert abs(len(dataset.val) - 0.2 * 0.8 * 1797) <= 10
    seen = set(contents(dataset.train)) | set(contents(dataset.val))
    assert seen.isdisjoint(contents(sealed))
    assert set(contents(dataset.train)).isdisjoint(contents(dataset.val))
    assert min(class_counts(dataset.train)) > 100


def test_source_images_are_glyphs_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_NUM_GLYPHS", 50)  # 2,048 take seconds
    config = DataConfig(cache_dir=str(tmp_path))
    first, again = load_source(config, image_size=16), load_source(config, image_size=16)
    assert first.take(np.arange(50)).shape == (50, 16, 16, 3)
    assert np.array_equal(first.array.images, again.array.images)
    assert len(set(contents(first))) == 50


def test_source_images_come_from_any_tree(config: DataConfig, tmp_path: Path) -> None:
    root = plant(config, {"a/b/c": 3, "d": 2, "": 2})
    (root / "d" / "broken.png").write_bytes(b"")
    config.source_path, config.max_bad_share = str(root), 0.2
    source = load_source(config, image_size=8)
    assert len(set(contents(source))) == 7
    assert source.array.bad_files == ("d/broken.png",)
    config.source_path = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere"):
        load_source(config, image_size=8)


def test_a_source_tree_without_images_is_refused(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config.source_path = str(tmp_path / "empty")
    with pytest.raises(DataError, match=f"no image files below {tmp_path / 'empty'}"):
        load_source(config, image_size=8)


@pytest.fixture
def bucket(s3_environment: None) -> Iterator[Any]:
    bucket = boto3.resource("s3").Bucket("images")
    bucket.create()
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


def upload(bucket: Any, root: Path, prefix: str) -> str:
    for path in root.rglob("*"):
        if path.is_file():
            bucket.put_object(Key=f"{prefix}/{path.relative_to(root).as_posix()}", Body=path.read_bytes())
    return f"s3://{bucket.name}/{prefix}"


def test_images_may_lie_in_s3(config: DataConfig, bucket: Any) -> None:
    root = plant(config, {"train/cat": 4, "train/dog": 4, "test/cat": 2, "test/dog": 2})
    local, sealed = load_train_val(config, image_size=8), load_test(config, image_size=8)
    config.path = upload(bucket, root, "pets/v1")
    config.source_path = config.path
    dataset = load_train_val(config, image_size=8)
    assert dataset.classes == local.classes
    assert dataset.digest == local.digest
    assert contents(dataset.train) == contents(local.train)
    assert contents(load_test(config, image_size=8)) == contents(sealed)
    assert len(load_source(config, image_size=8)) == 12


def test_a_tree_is_downloaded_once_and_again_when_it_changed(bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Key="a/x/1", Body=b"1")
    bucket.put_object(Key="ab/y", Body=b"a neighbour")
    first = local_tree("s3://images/a", cache_dir=tmp_path)
    assert [path.relative_to(first).as_posix() for path in first.rglob("*") if path.is_file()] == ["x/1"]
    assert local_tree("s3://images/a", cache_dir=tmp_path) == first
    bucket.put_object(Key="a/x/1", Body=b"2")
    second = local_tree("s3://images/a", cache_dir=tmp_path)
    assert (second / "x" / "1").read_bytes() == b"2"
    assert [path.name for path in (tmp_path / "staged").iterdir() if path.name.startswith(".tmp")] == []


def test_folder_markers_in_s3_are_no_images(bucket: Any, tmp_path: Path) -> None:
    for key, content in (("a/", b""), ("a/x/", b""), ("a/x/1", b"1")):
        bucket.put_object(Key=key, Body=content)
    folder = local_tree("s3://images/a", cache_dir=tmp_path)
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()] == ["x/1"]


def test_nothing_in_s3_is_a_data_error(bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Key="weights/model.safetensors.bak", Body=b"1")
    with pytest.raises(DataError, match="no objects below 's3://images/nowhere'"):
        local_tree("s3://images/nowhere", cache_dir=tmp_path)
    with pytest.raises(DataError, match=r"no object at 's3://images/weights/model\.safetensors'"):
        stage_file("s3://images/weights/model.safetensors", cache_dir=tmp_path)


def test_a_file_is_staged_once_and_again_when_it_changed(bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Key="w.pth", Body=b"1")
    first = stage_file("s3://images/w.pth", cache_dir=tmp_path)
    assert (first.name, first.read_bytes()) == ("w.pth", b"1")
    assert stage_file("s3://images/w.pth", cache_dir=tmp_path) == first
    bucket.put_object(Key="w.pth", Body=b"2")
    assert stage_file("s3://images/w.pth", cache_dir=tmp_path).read_bytes() == b"2"
    assert first.read_bytes() == b"1"


def test_other_images_or_classes_than_the_facts_are_refused(config: DataConfig) -> None:
    root = plant(config, SEPARATE)
    data, sealed = load_train_val(config, image_size=8), load_test(config, image_size=8)
    counts = {"num_train": len(data.train), "num_val": len(data.val), "num_test": len(sealed), "num_source": 0}
    facts = DataFacts(name="folder", digest=data.digest, classes=data.classes, test_digest=sealed.digest, **counts)
    data.check(facts)
    load_test(config, image_size=8, facts=facts)
    Image.new("RGB", (10, 8), "white").save(root / "test/cat/0.png")
    with pytest.raises(DataError, match="the test images here are not those that the sweep began with"):
        load_test(config, image_size=8, facts=facts)
    Image.new("RGB", (10, 8), "white").save(root / "train/cat/0.png")
    with pytest.raises(DataError, match="the training and validation images here are not those"):
        load_train_val(config, image_size=8).check(facts)
    for part in ("train", "test"):
        (root / part / "dog").rename(root / part / "aardvark")
    with pytest.raises(DataError, match="the classes here are not those that the sweep began with: dog, aardvark;"):
        load_train_val(config, image_size=8).check(facts)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real images are not at {REAL}")
@pytest.mark.parametrize(
    ("name", "image_size", "stored", "num_classes", "num_pool", "num_test"),
    [("flowers12", 32, 37, 12, 720, 240), ("cifar10-jpeg", 64, 32, 10, 5000, 1000)],
)
def test_real_images(
    tmp_path: Path, name: str, image_size: int, stored: int, num_classes: int, num_pool: int, num_test: int
) -> None:
    config = DataConfig(name="folder", path=str(REAL / name), cache_dir=str(tmp_path))
    dataset = load_train_val(config, image_size=image_size)
    assert len(dataset.classes) == num_classes
    assert len(dataset.train) + len(dataset.val) == num_pool
    assert dataset.num_test == num_test
    assert dataset.bad_files == ()
    assert dataset.train.array.images.shape[1:] == (stored, stored, 3)
    assert set(class_counts(dataset.val)) == {num_pool // num_classes // 5}
