"""What people should know of the images before anything starts: depth, orientation, and copies that leak labels."""

from collections.abc import Collection, Mapping
from pathlib import PurePath

import numpy as np

from unfreeze.config import DataConfig
from unfreeze.data.pixels.files import list_names
from unfreeze.data.pixels.grey import White
from unfreeze.data.pixels.part import Part
from unfreeze.data.pixels.reading import Seen
from unfreeze.data.sets.catalog import Dataset
from unfreeze.data.sets.layout import PARTS
from unfreeze.errors import DataError


def look_over(config: DataConfig, data: Dataset, test: Part | None = None) -> tuple[str, ...]:
    """One line for each thing that was found, ``data.notes`` first.

    Raises:
        DataError: more copies in several parts or classes than ``data.max_duplicate_share``.
    """
    parts = {"train": data.train, "val": data.val} | ({} if test is None else {"test": test})
    # By content: the test is opened apart, and may lie in the same pool.
    seen = {part.array.digest: part.array.seen for part in parts.values()}.values()
    lines = [*data.notes]
    whites = {str(each.white) for each in seen if each.white != White()}
    if whites:
        lines.append(f"grey images of more than 8 bits: white is {'; '.join(sorted(whites))}, by what the images hold")
    lines += _depths(seen)
    rotated = sum(each.rotated for each in seen)
    if rotated:
        how = (
            "turned upright"
            if config.exif == "apply"
            else "taken as they are stored, as torchvision does; data.exif=apply turns them"
        )
        lines.append(f"{rotated:,} images that a camera marked as rotated are {how}")
    return (*lines, *_copies(parts, data.classes, config.max_duplicate_share))


def _depths(seen: Collection[Seen]) -> list[str]:
    """Grey that is of another depth than most: black for the model, or cut off."""
    dark = [name for each in seen for name in each.dark_files]
    cut = [name for each in seen for name in each.cut_files]
    lines = []
    if dark:
        lines.append(
            f"{len(dark):,} grey images of more than 8 bits reach a sixteenth of white at most and come out nearly "
            f"black, such as {list_names(dark, most=3)}; where they are of fewer bits than the others, rescale them"
        )
    if cut:
        lines.append(
            f"{len(cut):,} grey images of more than 8 bits go far beyond white, the training images', and come out "
            f"nearly white, such as {list_names(cut, most=3)}; rescale them as those are"
        )
    return lines


def _copies(parts: Mapping[str, Part], classes: tuple[str, ...], max_share: float) -> list[str]:
    """A line on the images that are present in two parts or two classes; none where there are no such."""
    hashes, labels = (
        np.concatenate(each) for each in zip(*((p.hashes, p.labels) for p in parts.values()), strict=True)
    )
    roles = np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
    _, group, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    differs = np.zeros(len(counts), dtype=bool)
    for kind in (roles, labels):
        low, high = np.full(len(counts), np.iinfo(np.int64).max), np.full(len(counts), -1)
        np.minimum.at(low, group, kind)
        np.maximum.at(high, group, kind)
        differs |= low < high
    found = np.flatnonzero(differs[group])
    if not len(found):
        return []
    names = [name for part, own in parts.items() for name in _names(part, own, classes)]
    pairs = found[np.argsort(group[found], kind="stable")][:4]
    line = (
        f"{len(found):,} of {len(hashes):,} images ({len(found) / len(hashes):.1%}) are also in another part or class, "
        f"such as {', '.join(names[index] for index in pairs)}"
    )
    if len(found) > max_share * len(hashes):
        raise DataError(f"{line}; more than data.max_duplicate_share={max_share:g}: remove the copies, or raise it")
    return [line]


def _names(part: str, images: Part, classes: tuple[str, ...]) -> list[str]:
    files = images.array.files
    if files:
        return [f"{'/'.join(PurePath(files[index]).parts[-2:])} ({PARTS[part]})" for index in images.indices]
    return [f"{PARTS[part]} image {index} ({classes[label]})" for index, label in enumerate(images.labels)]
