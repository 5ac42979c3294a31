"""CIFAR-10-C and CIFAR-100-C: which rows, the paper's split, and files that are not what they should be."""

from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from unfreeze.config import DataConfig
from unfreeze.data.pixels.part import Part
from unfreeze.data.sets.arrays import CIFAR10_CLASSES, CIFAR100_CLASSES
from unfreeze.data.sets.catalog import load_test, load_train_val
from unfreeze.errors import DataError

COUNT = 200  # images of one severity; the real files have 10,000


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    root = tmp_path / "CIFAR-10-C"
    root.mkdir()
    rows = np.arange(5 * COUNT)
    images = np.zeros((5 * COUNT, 32, 32, 3), np.uint8)
    images[..., 0], images[..., 1] = (rows % COUNT)[:, None, None], (rows // COUNT)[:, None, None]
    np.save(root / "contrast.npy", images)
    np.save(root / "labels.npy", (rows % COUNT % 10).astype(np.uint8))
    return DataConfig(
        name="cifar10c", path=str(root), corruption="contrast", severity=4, cache_dir=str(tmp_path / "cache")
    )


def numbers(part: Part) -> list[int]:
    return part.take(np.arange(len(part)))[:, 3, 5, 0].tolist()


def test_the_paper_s_split_of_the_severity_s_rows(config: DataConfig) -> None:
    dataset, sealed = load_train_val(config, image_size=224), load_test(config, image_size=224)
    order = np.random.RandomState(42).permutation(COUNT)
    assert sorted(numbers(dataset.train) + numbers(dataset.val)) == sorted(order[:160].tolist())
    assert numbers(sealed) == sorted(order[160:].tolist())
    assert dataset.num_test == 40
    for part in (dataset.train, dataset.val, sealed):
        images = part.take(np.arange(len(part)))
        assert images.shape[1:] == (32, 32, 3)
        assert (images[..., 1] == 3).all()
        assert part.labels.tolist() == [number % 10 for number in numbers(part)]
    assert dataset.classes == CIFAR10_CLASSES
    assert abs(len(dataset.val) - 32) <= 5


@pytest.mark.parametrize("severity", [1, 5])
def test_each_severity_has_its_rows(config: DataConfig, severity: int) -> None:
    config.severity = severity
    assert set(load_test(config, image_size=32).take(np.arange(40))[..., 1].flat) == {severity - 1}


def test_their_corruption_is_not_applied_once_more(config: DataConfig) -> None:
    assert numbers(load_test(config, image_size=32)) == sorted(np.random.RandomState(42).permutation(COUNT)[160:])


def test_the_files_may_lie_in_s3(config: DataConfig, s3_environment: None) -> None:
    local = load_train_val(config, image_size=32)
    assert config.path is not None
    bucket = boto3.resource("s3").Bucket("cifarc")
    bucket.create()
    for path in Path(config.path).iterdir():
        bucket.put_object(Key=f"c10/{path.name}", Body=path.read_bytes())
    config.path = "s3://cifarc/c10"
    assert load_train_val(config, image_size=32).digest == local.digest
    bucket.objects.all().delete()
    bucket.delete()


def test_cifar_100_has_its_hundred_classes(config: DataConfig) -> None:
    assert len(set(CIFAR100_CLASSES)) == 100
    assert list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)
    config.name = "cifar100c"
    with pytest.raises(DataError, match=r"two images of each class.* bowl"):
        load_train_val(config, image_size=32)


def test_a_missing_file_is_named_with_what_is_there(config: DataConfig) -> None:
    config.corruption = "fog"
    with pytest.raises(DataError, match=r"no such file: .*fog\.npy; there are contrast\.npy, labels\.npy"):
        load_train_val(config, image_size=32)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (
            "contrast",
            np.zeros((10, 4, 4, 3), np.float32),
            r"contrast\.npy must be uint8 .* got float32 \(10, 4, 4, 3\)",
        ),
        ("contrast", np.zeros((10, 4, 4), np.uint8), r"must be uint8 \(5 · n, H, W, 3\), but got uint8 \(10, 4, 4\)"),
        ("contrast", np.zeros((11, 4, 4, 3), np.uint8), r"5 · n, H, W, 3\), but got uint8 \(11, 4, 4, 3\)"),
        ("labels", np.zeros(999, np.uint8), r"labels\.npy must be integers \(1000,\).* got uint8 \(999,\)"),
        ("labels", np.zeros(1000, np.float64), r"labels\.npy must be integers \(1000,\).* got float64"),
        ("labels", np.full(1000, 10), r"labels\.npy: image 0 has the label 10, but the 10 classes are 0 to 9"),
        ("labels", np.full(1000, -1), r"image 0 has the label -1"),
    ],
)
def test_a_file_of_another_kind_is_refused(config: DataConfig, file: str, content: Any, says: str) -> None:
    np.save(Path(str(config.path)) / f"{file}.npy", content)
    with pytest.raises(DataError, match=says):
        load_train_val(config, image_size=32)


def test_a_file_cut_short_is_named(config: DataConfig) -> None:
    path = Path(str(config.path)) / "contrast.npy"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"contrast\.npy cannot be read as an array: .*; download it again"):
        load_train_val(config, image_size=32)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"contrast\.npy cannot be read as an array"):
        load_train_val(config, image_size=32)
