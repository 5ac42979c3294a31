"""The data catalog: a table of data sets, each as train, validation, test and source-domain images.

The test images are sealed: `load_train_val` never touches them, no model sees what `load_test` gives but in finalize.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from unfreeze.config import DataConfig
from unfreeze.data.pixels.decode import ImageArray, Squares, make_array
from unfreeze.data.pixels.files import list_files, list_names, split_off_images
from unfreeze.data.pixels.part import Images, Part
from unfreeze.data.sets.arrays import load_cifar_c, load_digits
from unfreeze.data.sets.embedded import render_glyphs
from unfreeze.data.sets.layout import PARTS
from unfreeze.data.sets.raw import RawSet, decoded_key, downstream_squares, keep, read_files
from unfreeze.data.sets.splits import stratified_split, stratified_subset
from unfreeze.data.sets.stage import tree_of
from unfreeze.data.sets.trees import load_domainnet, load_folder
from unfreeze.data.sets.vision import load_vision
from unfreeze.errors import DataError
from unfreeze.records import DataFacts

_NUM_GLYPHS = 2048  # rendered source-domain images; the pre-pass pairs a few hundred


@dataclass(frozen=True, slots=True)
class Dataset:
    """What trials may see: never the test images."""

    classes: tuple[str, ...]
    train: Part
    val: Part
    num_test: int
    digest: str
    bad_files: tuple[str, ...]
    notes: tuple[str, ...] = ()  # how the set was understood, for people

    def check(self, facts: DataFacts) -> None:
        """
        Raises:
            DataError: these are not the images and classes that ``facts`` were taken of.
        """
        _check_same(facts, self.classes, "training and validation", facts.digest, self.digest)


def load_train_val(config: DataConfig, *, image_size: int) -> Dataset:
    """The training and validation images, split as the configuration says; the same for every trial.

    Raises:
        DataError: missing, unreadable, or impossible to split.
    """
    raw = _LOADERS[config.name](config, image_size)
    rest, num_test = np.arange(len(raw.pool)), raw.num_test
    if raw.load_test is None:
        rest, test = _split(raw, rest, config.test_share, config, "test")
        num_test = len(test)
    if raw.val is None:
        train, val_indices = _split(raw, rest, config.val_share, config, "val")
        val_array = raw.pool
    else:
        train, val_array, val_indices = rest, raw.val, np.arange(len(raw.val))

    def limit(labels: np.ndarray, most: int | None, purpose: str) -> np.ndarray:
        balanced = config.subset == "balanced"
        return stratified_subset(labels, most, seed=config.split_seed, purpose=purpose, balanced=balanced)

    train = train[limit(raw.pool.labels[train], config.max_train_images, "train images")]
    chosen = limit(val_array.labels[val_indices], config.max_val_images, "val images")
    parts = {"training": Part(raw.pool, train), "validation": Part(val_array, val_indices[chosen])}
    for purpose, part in parts.items():
        absent = set(range(len(raw.classes))) - set(part.labels.tolist())
        if absent:
            raise DataError(
                f"no {purpose} image of class {list_names([raw.classes[label] for label in sorted(absent)])}"
            )
    assert num_test is not None
    notes = (*_describe(raw, config, len(parts["training"]), len(parts["validation"]), num_test), *raw.notes)
    bad = raw.pool.bad_files + (raw.val.bad_files if raw.val else ())
    digest = raw.pool.digest + (raw.val.digest if raw.val else "")
    return Dataset(raw.classes, parts["training"], parts["validation"], num_test, digest, bad, notes)


def load_test(config: DataConfig, *, image_size: int, facts: DataFacts | None = None) -> Part:
    """The sealed test images: before anything starts, for their digest and unreadable files alone; then for finalize.

    A model sees them once, after the selection is chosen.

    Raises:
        DataError: unreadable, or not the images and classes that ``facts`` were taken of.
    """
    raw = _LOADERS[config.name](config, image_size)
    if raw.load_test is not None:
        array = raw.load_test()
        part = Part(array, np.arange(len(array)))
    else:
        _, test = _split(raw, np.arange(len(raw.pool)), config.test_share, config, "test")
        part = Part(raw.pool, test)
    if facts is not None:
        _check_same(facts, raw.classes, "test", facts.test_digest, part.digest)
    return part


def _check_same(facts: DataFacts, classes: tuple[str, ...], purpose: str, before: str, now: str) -> None:
    changed = [name for name in (*facts.classes, *classes) if (name in facts.classes) != (name in classes)]
    if changed or facts.classes != classes:
        raise DataError(
            f"the classes here are not those that the sweep began with: {list_names(changed or classes)}; bring the "
            f"images back as they were, or give them a new sweep.name"
        )
    if before != now:
        raise DataError(
            f"the {purpose} images here are not those that the sweep began with (digest {before[:12]}… → {now[:12]}…); "
            f"bring them back as they were, or give these a new sweep.name"
        )


def load_source(config: DataConfig, *, image_size: int) -> Part:
    """Source-domain images for the pre-pass; their labels mean nothing."""
    array: Images
    if config.source_path is None:

        def render() -> ImageArray:
            images, labels, _ = render_glyphs(_NUM_GLYPHS, image_size=image_size, seed=config.split_seed)
            return make_array(images, labels)

        squares = Squares(image_size)
        key = decoded_key(config, squares, set="glyphs", images=_NUM_GLYPHS, seed=config.split_seed)
        array = keep(config, key, render)
    else:
        root = tree_of(config, config.source_path)
        files, _ = split_off_images(list_files(root))
        squares = replace(downstream_squares(config, image_size), shift=None)
        array = read_files(config, root, files, [0] * len(files), squares)
    return Part(array, np.arange(len(array)))


def _describe(raw: RawSet, config: DataConfig, num_train: int, num_val: int, num_test: int) -> list[str]:
    """Which folder was taken for which part, where that had to be found."""
    if not raw.places:
        return []
    lines = [f"training: {raw.places['train']}, {num_train:,} images of {len(raw.classes):,} classes"]
    for part, count in (("val", num_val), ("test", num_test)):
        where = f"{raw.places[part]}, {count:,} images" if part in raw.places else f"{count:,} images split off"
        lines.append(f"{PARTS[part]}: {where}" + ("" if part in raw.places else " the training ones"))
    unused = [
        f"data.{part}_share={share:g} is unused: {raw.places[part]} holds the {PARTS[part]} images"
        for part in ("val", "test")
        if part in raw.places and (share := getattr(config, f"{part}_share")) != getattr(DataConfig(), f"{part}_share")
    ]
    return lines + unused


def _split(
    raw: RawSet, indices: np.ndarray, share: float, config: DataConfig, purpose: str
) -> tuple[np.ndarray, np.ndarray]:
    rest, part = stratified_split(
        raw.pool.labels[indices], share, seed=config.split_seed, purpose=purpose, classes=raw.classes
    )
    return indices[rest], indices[part]


_LOADERS: dict[str, Callable[[DataConfig, int], RawSet]] = {
    "digits": load_digits,
    "folder": load_folder,
    "domainnet": load_domainnet,
    "cifar10c": load_cifar_c,
    "cifar100c": load_cifar_c,
    "cifar10": load_vision,
    "cifar100": load_vision,
    "svhn": load_vision,
    "flowers102": load_vision,
    "pet": load_vision,
    "dtd": load_vision,
    "food101": load_vision,
    "stanford_cars": load_vision,
    "eurosat": load_vision,
    "caltech101": load_vision,
}
