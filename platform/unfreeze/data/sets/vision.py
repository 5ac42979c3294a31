"""torchvision's sets, by their own downloaders: a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.config import DataConfig
from unfreeze.data.pixels.decode import Squares, decode_sequence
from unfreeze.data.pixels.files import fingerprint
from unfreeze.data.sets.downloads import download_root, downloaded_files
from unfreeze.data.sets.raw import (
    Images,
    RawSet,
    check_labels,
    downstream_squares,
    read_array,
    read_files,
)
from unfreeze.data.sets.stage import tree_of
from unfreeze.errors import DataError

_Part = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Row:
    """One of torchvision's sets: its class there, and what to call it with for each part; None: it has no such part."""

    name: str
    train: _Part
    val: _Part | None = None
    test: _Part | None = None
    has_files: bool = False  # it takes a `loader` of paths, so the paths can be had undecoded
    # Where it keeps paths and labels, which it gives out decoded only; names that torchvision calls private.
    file_attributes: tuple[str, str] | None = None
    downloads: bool = True


_ROWS: dict[str, _Row] = {
    "cifar10": _Row("CIFAR10", {"train": True}, test={"train": False}),
    "cifar100": _Row("CIFAR100", {"train": True}, test={"train": False}),
    "svhn": _Row("SVHN", {"split": "train"}, test={"split": "test"}),
    "flowers102": _Row("Flowers102", {"split": "train"}, {"split": "val"}, {"split": "test"}, has_files=True),
    "pet": _Row("OxfordIIITPet", {"split": "trainval"}, test={"split": "test"}, file_attributes=("_images", "_labels")),
    "dtd": _Row(
        "DTD",
        {"split": "train", "partition": 1},
        {"split": "val", "partition": 1},
        {"split": "test", "partition": 1},
        has_files=True,
    ),
    "food101": _Row("Food101", {"split": "train"}, test={"split": "test"}, has_files=True),
    "stanford_cars": _Row("StanfordCars", {"split": "train"}, test={"split": "test"}, has_files=True, downloads=False),
    "eurosat": _Row("EuroSAT", {}, has_files=True),
    "caltech101": _Row("Caltech101", {}),
}
_DIGITS = tuple("0123456789")  # SVHN alone names no classes


def load_vision(config: DataConfig, image_size: int) -> RawSet:
    """Raises `DataError` where the set cannot be had, or a label is none of its classes."""
    row, root = _ROWS[config.name], _root(config)
    squares = downstream_squares(config, image_size)
    named = _open(config, row, root, row.train if row.test is None else row.test)
    classes = tuple(getattr(named, "classes", None) or getattr(named, "categories", None) or _DIGITS)

    def load(part: _Part, squares: Squares) -> Images:
        pairs = _undecoded(config, row, root, part)
        if pairs is not None:
            labels = [int(label) for _, label in pairs]
            check_labels(np.array(labels), len(classes), f"data={config.name}")
            return read_files(config, root, [str(Path(path).relative_to(root)) for path, _ in pairs], labels, squares)
        files = fingerprint(root, downloaded_files(config.name, root))
        key = {"set": config.name, **part, "root": str(root), "files": files}
        array = read_array(config, key, squares, lambda: decode_sequence(_open(config, row, root, part), squares))
        check_labels(array.labels, len(classes), f"data={config.name}")
        return array

    pool = load(row.train, squares)
    alike = squares.with_white(pool.seen.white)
    val = load(row.val, alike) if row.val is not None else None
    test = row.test
    if test is None:
        return RawSet(classes, pool, val, None, None)
    return RawSet(classes, pool, val, len(named), lambda: load(test, alike))


def _undecoded(config: DataConfig, row: _Row, root: Path, part: _Part) -> list[tuple[Any, int]] | None:
    """(path, label) of every image; None for a set without files of its own."""
    if row.has_files:
        source = _open(config, row, root, {**part, "loader": str})
        return [source[index] for index in range(len(source))]
    if row.file_attributes is not None:
        source = _open(config, row, root, part)
        paths, labels = (getattr(source, name) for name in row.file_attributes)
        return list(zip(paths, labels, strict=True))
    return None


def _root(config: DataConfig) -> Path:
    if config.path is not None and config.path.startswith("s3://"):
        return tree_of(config, config.path)
    return download_root(config)


def _open(config: DataConfig, row: _Row, root: Path, part: _Part) -> Any:
    import torchvision.datasets

    # A staged copy is as it is in S3: what it lacks, no download may add.
    downloads = row.downloads and not (config.path or "").startswith("s3://")
    try:
        return getattr(torchvision.datasets, row.name)(str(root), **part, download=downloads)
    except (OSError, RuntimeError) as error:
        if downloads:
            raise DataError(f"data={config.name} could not be downloaded to {root}: {error}") from error
        raise DataError(
            f"data={config.name} is not complete below data.path={config.path} ({error}), and is not downloaded; put "
            f"it there as torchvision's {row.name} describes"
        ) from error
