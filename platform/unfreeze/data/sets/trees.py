"""Sets that are trees of image files: any folder of class folders, and DomainNet's domains."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from unfreeze.config import DataConfig
from unfreeze.data.pixels.decode import Squares
from unfreeze.data.pixels.files import list_files, list_names
from unfreeze.data.sets.folders import folder_names, read_tree
from unfreeze.data.sets.layout import class_name
from unfreeze.data.sets.raw import Images, RawSet, downstream_squares, read_files
from unfreeze.data.sets.splits import paper_split
from unfreeze.data.sets.stage import tree_of
from unfreeze.errors import DataError

# What torchvision's ImageFolder takes for an image.
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def load_folder(config: DataConfig, image_size: int) -> RawSet:
    """The images of `read_tree`, split by seed where it has no part for validation or test.

    Raises:
        DataError: as `read_tree`, or classes without images.
    """
    tree = read_tree(config)
    squares = downstream_squares(config, image_size)

    def load(part: str, squares: Squares) -> Images:
        return read_files(config, tree.roots[part], tree.folders[part].files, tree.labels(part), squares)

    pool = load("train", squares)
    alike = squares.with_white(pool.seen.white)
    notes: tuple[str, ...] = ()
    if twins := [name for names in _written(tree.roots.values()).values() if len(names) > 1 for name in sorted(names)]:
        notes = (f"folders of one class, whose names differ in their Unicode form alone: {list_names(twins)}",)
    if tree.strays:
        notes += (f"left out {len(tree.strays):,} files that are no images by their names: {list_names(tree.strays)}",)
    has_test = "test" in tree.folders
    return RawSet(
        tree.classes,
        pool,
        load("val", alike) if "val" in tree.folders else None,
        len(tree.labels("test")) if has_test else None,
        (lambda: load("test", alike)) if has_test else None,
        notes=notes,
        places={part: folder.name for part, folder in tree.folders.items()},
    )


def _written(roots: Iterable[Path]) -> dict[str, set[str]]:
    """Class → how its folders' names are written, byte by byte."""
    found: dict[str, set[str]] = {}
    for name in (name for root in roots for name in folder_names(root)):
        found.setdefault(class_name(name), set()).add(name)
    return found


def load_domainnet(config: DataConfig, image_size: int) -> RawSet:
    """One domain of DomainNet (Peng et al., ICCV 2019), split 80 to 20 as the paper's code does.

    ``data.path`` holds a folder for each domain, and that one for each class. The files' order, which decides the
    split, is torchvision's ImageFolder's.
    """
    assert config.path is not None
    assert config.domain is not None
    location = f"{config.path.rstrip('/')}/{config.domain}"
    root = tree_of(config, location)
    classes = tuple(sorted(folder_names(root)))
    if len(classes) < 2:
        raise DataError(f"{root} must hold one folder per class and at least two, but got {list(classes)}")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [Path(file) for file in list_files(root / name) if file.lower().endswith(_EXTENSIONS)]
        if not found:
            raise DataError(f"{root / name} has no images; add some or remove the class")
        files += [f"{name}/{file.as_posix()}" for file in sorted(found, key=lambda file: (str(file.parent), file.name))]
        labels += [label] * len(found)
    train, test = paper_split(len(files))
    squares = downstream_squares(config, image_size)

    def load(chosen: np.ndarray, squares: Squares) -> Images:
        return read_files(config, root, [files[i] for i in chosen], [labels[i] for i in chosen], squares)

    pool = load(train, squares)
    return RawSet(classes, pool, None, len(test), lambda: load(test, squares.with_white(pool.seen.white)))
