"""Unchanged inputs told from changed ones, without reading them."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from unfreeze.config import Config
from unfreeze.data.sets.inputs import describe_inputs
from unfreeze.load import load_config


def plant(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


@pytest.fixture
def trees(tmp_path: Path) -> dict[str, str]:
    """Downstream images, source images and weights in files of a few bytes: nobody decodes them here."""
    plant(tmp_path / "birds", "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png")
    plant(tmp_path / "imagenet", "1.png", "deep/er/2.png")
    plant(tmp_path / "weights", "vit.safetensors", "vit.safetensors.bak")
    return {
        "path": str(tmp_path / "birds"),
        "source_path": str(tmp_path / "imagenet"),
        "weights": str(tmp_path / "weights" / "vit.safetensors"),
    }


def make_config(trees: dict[str, str | None], **sections: Any) -> Config:
    data = {"name": "folder", "path": trees["path"], "source_path": trees["source_path"]}
    model = {"weights": trees["weights"]}
    return load_config({"data": data, "model": model, **sections})


def described(config: Config) -> str:
    """As text, since that is what becomes a key."""
    description = describe_inputs(config)
    assert description is not None
    return json.dumps(description, sort_keys=True)


# --- local files ------------------------------------------------------------------------------------------------------


def test_unchanged_files_are_described_alike(trees: dict[str, str]) -> None:
    assert described(make_config(trees)) == described(make_config(trees))


def rewrite(path: Path) -> None:
    path.write_bytes(b"longer than it was")


def touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def rename(path: Path) -> None:
    path.rename(path.with_name("other.png"))


@pytest.mark.parametrize("change", [rewrite, touch, rename, Path.unlink])
@pytest.mark.parametrize(
    "name", ["birds/train/b/1.png", "birds/test/a/1.png", "imagenet/deep/er/2.png", "weights/vit.safetensors"]
)
def test_a_changed_file_is_told(
    name: str, change: Callable[[Path], object], trees: dict[str, str], tmp_path: Path
) -> None:
    config = make_config(trees)
    before = describe_inputs(config)
    change(tmp_path / name)
    assert describe_inputs(config) != before


def test_a_new_file_is_told_and_a_hidden_one_is_not(trees: dict[str, str], tmp_path: Path) -> None:
    config = make_config(trees)
    before = described(config)
    plant(tmp_path / "birds", "train/a/.DS_Store", ".cache/x")
    plant(tmp_path / "weights", "another.safetensors")
    assert described(config) == before
    plant(tmp_path / "birds", "train/a/2.png")
    assert described(config) != before


@pytest.mark.parametrize("name", ["path", "source_path", "weights"])
def test_what_this_machine_cannot_see_has_no_description(name: str, trees: dict[str, str]) -> None:
    assert describe_inputs(make_config({**trees, name: "/on/the/nodes/alone"})) is None


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"name": "deit_tiny_patch16_224"}},
        {"model": {"image_size": 64}},
        {"model": {"kwargs": {"num_heads": 4}}},
        {"model": {"weights": "random"}},
        {"data": {"name": "digits", "split_seed": 1}},
        {"data": {"name": "digits", "val_share": 0.3}},
        {"data": {"name": "digits", "test_share": 0.3}},
        {"data": {"name": "digits", "max_train_images": 100}},
        {"data": {"name": "digits", "corruption": "fog"}},
        {"data": {"name": "digits", "crop_share": 1.0}},
        {"data": {"name": "digits", "interpolation": "bilinear"}},
    ],
)
def test_an_option_that_decides_is_told(sections: dict[str, Any]) -> None:
    assert described(load_config(sections, typed=())) != described(load_config({}))


@pytest.mark.parametrize(
    "sections", [{"data": {"cache_dir": "/elsewhere"}}, {"data": {"num_workers": 7}}, {"finetune": {"epochs": 1.0}}]
)
def test_an_option_that_does_not_decide_is_not(sections: dict[str, Any]) -> None:
    assert described(load_config(sections)) == described(load_config({}))


@pytest.mark.parametrize("name", ["path", "source_path"])
def test_an_empty_folder_has_no_description(name: str, trees: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert describe_inputs(make_config({**trees, name: str(tmp_path / "empty")})) is None


def test_files_behind_links_are_looked_at(trees: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train").symlink_to(tmp_path / "birds" / "train")
    config = make_config({**trees, "path": str(tmp_path / "linked")})
    before = described(config)
    rewrite(tmp_path / "birds" / "train" / "a" / "1.png")
    assert described(config) != before


def test_embedded_and_fetched_inputs_need_no_file() -> None:
    """Where torchvision downloads to need not be there, nor is it looked at."""
    assert describe_inputs(load_config({})) is not None
    assert describe_inputs(load_config({"model": {"weights": "random"}})) is not None


def test_of_torchvision_s_folder_the_set_s_own_files_are_looked_at(trees: dict[str, str], tmp_path: Path) -> None:
    data = {"name": "cifar10", "path": str(tmp_path / "downloads"), "source_path": trees["source_path"]}
    config = load_config({"data": data})
    assert describe_inputs(config) is None  # not there yet
    plant(tmp_path / "downloads", "cifar-10-batches-py/data_batch_1")
    before = described(config)
    plant(tmp_path / "downloads", "cifar-100-python/train")
    assert described(config) == before
    rewrite(tmp_path / "downloads" / "cifar-10-batches-py" / "data_batch_1")
    assert described(config) != before


def test_of_sharded_weights_every_shard_is_looked_at(trees: dict[str, str], tmp_path: Path) -> None:
    plant(tmp_path / "sharded", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors")
    config = make_config({**trees, "weights": str(tmp_path / "sharded" / "model.safetensors.index.json")})
    before = described(config)
    rewrite(tmp_path / "sharded" / "model-2.safetensors")
    assert described(config) != before


@pytest.mark.parametrize("name", ["cifar10c", "cifar100c"])
def test_arrays_of_the_user_s_own_are_looked_at(name: str, tmp_path: Path) -> None:
    plant(tmp_path, "c/fog.npy", "c/labels.npy", "source/1.png")
    data = {"name": name, "path": str(tmp_path / "c"), "corruption": "fog", "source_path": str(tmp_path / "source")}
    config = load_config({"data": data})
    before = described(config)
    rewrite(tmp_path / "c" / "fog.npy")
    assert described(config) != before


def test_of_domainnet_the_domain_alone_is_looked_at(tmp_path: Path) -> None:
    plant(tmp_path, "d/sketch/a/1.png", "d/clipart/a/1.png", "source/1.png")
    data = {"name": "domainnet", "path": f"{tmp_path}/d/", "domain": "sketch", "source_path": str(tmp_path / "source")}
    config = load_config({"data": data})
    before = described(config)
    rewrite(tmp_path / "d" / "clipart" / "a" / "1.png")
    assert described(config) == before
    rewrite(tmp_path / "d" / "sketch" / "a" / "1.png")
    assert described(config) != before


# --- S3 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(s3_environment: None) -> Iterator[Any]:
    bucket = boto3.resource("s3").Bucket("inputs")
    bucket.create()
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture
def in_s3(bucket: Any) -> dict[str, str]:
    for key in ("birds/train/a/1.png", "birds/train/b/1.png", "imagenet/1.png", "weights/vit.safetensors"):
        bucket.put_object(Key=key, Body=key.encode())
    return {
        "path": "s3://inputs/birds",
        "source_path": "s3://inputs/imagenet/",
        "weights": "s3://inputs/weights/vit.safetensors",
    }


def test_objects_are_described_by_their_tags(in_s3: dict[str, str], bucket: Any) -> None:
    config = make_config(in_s3)
    before = described(config)
    assert described(config) == before
    bucket.put_object(Key="birds/train/a/1.png", Body=b"birds/train/a/1.png")  # another time, the same bytes
    assert described(config) == before


@pytest.mark.parametrize("key", ["birds/train/b/1.png", "imagenet/1.png", "weights/vit.safetensors"])
def test_a_changed_object_is_told(key: str, in_s3: dict[str, str], bucket: Any) -> None:
    config = make_config(in_s3)
    before = described(config)
    bucket.put_object(Key=key, Body=b"other")
    assert described(config) != before


def test_a_new_object_is_told_and_a_neighbour_is_not(in_s3: dict[str, str], bucket: Any) -> None:
    config = make_config(in_s3)
    before = described(config)
    for key in ("birds-of-prey/1.png", "weights/vit.safetensors.bak", "imagenet-v2/1.png"):
        bucket.put_object(Key=key, Body=b"neighbour")
    assert described(config) == before
    bucket.put_object(Key="birds/train/b/2.png", Body=b"new")
    assert described(config) != before


def test_a_whole_bucket_is_a_tree_too(in_s3: dict[str, str], bucket: Any) -> None:
    """`local_tree` takes it."""
    config = make_config({**in_s3, "source_path": "s3://inputs"})
    before = described(config)
    bucket.put_object(Key="imagenet/1.png", Body=b"other")
    assert described(config) != before


@pytest.mark.parametrize("name", ["path", "source_path", "weights"])
def test_nothing_in_s3_has_no_description(name: str, in_s3: dict[str, str]) -> None:
    assert describe_inputs(make_config({**in_s3, name: "s3://inputs/nowhere"})) is None


def test_a_bucket_that_the_nodes_alone_can_read_has_no_description(
    trees: dict[str, str], s3_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert describe_inputs(make_config({**trees, "source_path": "s3://no-such-bucket/imagenet"})) is None
