"""What is wrong with the places that hold the images, known by names alone, before anything is read or started."""

from collections.abc import Iterator
from pathlib import Path

from unfreeze.config import DataConfig
from unfreeze.data.pixels.files import list_files, split_off_images
from unfreeze.data.sets.folders import read_tree
from unfreeze.errors import DataError

_PLACES = ("path", "train", "val", "test")


def place_problems(config: DataConfig) -> Iterator[str]:
    """A line for each; what lies in S3, or is downloaded, is seen when it is there."""
    given = {f"data.{name}": value for name in _PLACES if (value := getattr(config, name)) is not None}
    downloads = config.name not in ("folder", "domainnet", "cifar10c", "cifar100c", "stanford_cars")
    missing = {name: value for name, value in given.items() if not _is_there(value)}
    if not downloads:
        yield from (f"{name}: there is no folder {value}" for name, value in missing.items())
    if config.name == "folder" and given and not missing and not any("://" in value for value in given.values()):
        try:
            tree = read_tree(config)
            for part in tree.folders:
                tree.labels(part)
        except DataError as error:
            yield str(error)
    source = config.source_path
    if source is not None and not _is_there(source):
        yield f"data.source_path: there is no folder {source}"
    elif source is not None and "://" not in source and not _has_images(Path(source)):
        yield f"data.source_path: no image lies below {source}"


def _is_there(location: str) -> bool:
    return "://" in location or Path(location).is_dir()


def _has_images(root: Path) -> bool:
    return bool(split_off_images(list_files(root))[0])
