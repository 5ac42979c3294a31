"""A data set before our splits, and the ways its images are read: decoded once, or streamed from their files."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.config import DataConfig
from unfreeze.data.pixels.cache import kept
from unfreeze.data.pixels.corrupt import Shift
from unfreeze.data.pixels.decode import ImageArray, Squares, cached, decode_files, stored_side
from unfreeze.data.pixels.files import fingerprint
from unfreeze.data.pixels.keys import digest_of, specification
from unfreeze.data.pixels.part import Images
from unfreeze.data.pixels.reading import check_bad_files, read_headers
from unfreeze.data.pixels.stream import open_files, survey_files
from unfreeze.data.sets.stage import cache_bytes, cache_dir
from unfreeze.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RawSet:
    """A set before our splits: its own train pool, and its own validation and test images where it has them."""

    classes: tuple[str, ...]
    pool: Images
    val: Images | None
    # Called for the sealed part alone, so that counting it does not decode it.
    num_test: int | None
    load_test: Callable[[], Images] | None
    notes: tuple[str, ...] = ()  # what people should know of its files
    places: Mapping[str, str] = field(default_factory=dict)  # part → its folder, where that had to be found


def downstream_squares(config: DataConfig, image_size: int) -> Squares:
    """How the downstream images are stored: corrupted where that is asked for.

    Raises:
        DataError: a corruption that needs what nobody has here.
    """
    size = stored_side(image_size, config.crop_share)
    if config.corruption is None or config.name in ("cifar10c", "cifar100c"):  # theirs is in their files
        shift = None
    else:
        shift = Shift(config.corruption, config.severity, config.split_seed)
    return Squares(size, config.interpolation, shift, upright=config.exif == "apply")


def read_files(config: DataConfig, root: Path, files: Sequence[str], labels: Sequence[int], squares: Squares) -> Images:
    """The images of ``files`` below ``root``, in memory or streamed as ``data.loading`` says.

    Raises:
        DataError: no image, or more unreadable ones than ``data.max_bad_share``.
    """
    key = decoded_key(config, squares, root=str(root), files=fingerprint(root, files), labels=list(labels))
    images: Images
    if _streams(config, root, files, squares):
        survey = kept(
            cache_dir(config) / "decoded",
            digest_of("survey", key),
            lambda: survey_files(root, files, squares),
            max_bytes=cache_bytes(config),
        )
        images = open_files(root, files, labels, squares, survey, num_workers=config.num_workers)
    else:
        images = keep(config, key, lambda: decode_files(root, files, labels, squares))
        if squares.shift is None:
            bad = set(images.bad_files)
            paths = tuple(root / name for name in files if name not in bad)
            images = replace(images, files=paths, upright=squares.upright)
    check_bad_files(images, root, max_bad_share=config.max_bad_share)
    return images


def decoded_key(config: DataConfig, squares: Squares, **content: Any) -> dict[str, Any]:
    """What decoded images depend on: the options, how squares are made, and ``content``, what they are made of."""
    return specification("decoded", config) | {"squares": squares.key()} | content


def _streams(config: DataConfig, root: Path, files: Sequence[str], squares: Squares) -> bool:
    if config.loading != "auto":
        return config.loading == "stream"
    limit = config.max_decoded_gib * 2**30
    if len(files) * squares.size**2 * 3 <= limit:
        return False
    sides = [min(header.size) for header in read_headers(root, files) if header is not None]
    need = len(files) * min(squares.size, max(sides, default=squares.size)) ** 2 * 3
    if need > limit:
        logger.info("%s is streamed: decoded, it takes %.1f GiB", root, need / 2**30)
    return need > limit


def read_array(
    config: DataConfig, key: dict[str, Any], squares: Squares, build: Callable[[], ImageArray]
) -> ImageArray:
    """Images of a set that is no folder of files, in memory whatever its size, built once a node."""
    return keep(config, decoded_key(config, squares, **key), build)


def keep(config: DataConfig, key: dict[str, Any], build: Callable[[], ImageArray]) -> ImageArray:
    """`cached` on this node."""
    return cached(cache_dir(config), key, build, max_bytes=cache_bytes(config))


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Raises `DataError` with the first label that is none of the classes."""
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise DataError(
            f"{where}: image {outside[0]} has the label {labels[outside[0]]}, but the {num_classes} classes are 0 to "
            f"{num_classes - 1} ({len(outside)} such images)"
        )
