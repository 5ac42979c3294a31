"""Sets that are trees of image files: any folder of class folders, and DomainNet's domains."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unfreeze.config import DataConfig
from unfreeze.data.pixels.decode import Squares
from unfreeze.data.pixels.files import list_files, list_names, split_off_images
from unfreeze.data.sets.layout import Folder, class_name, find_folders, labels_of
from unfreeze.data.sets.raw import Images, RawSet, downstream_squares, read_files, tree_of
from unfreeze.data.sets.splits import paper_split
from unfreeze.errors import DataError

# What torchvision's ImageFolder takes for an image.
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder's parts and classes, before any image is read."""

    classes: tuple[str, ...]
    folders: dict[str, Folder]  # by part
    roots: dict[str, Path]
    strays: list[str]  # files that are no images by their names

    def labels(self, part: str) -> list[int]:
        """Of the part's files. Raises `DataError` for a class that lacks there, or that the training images lack."""
        return labels_of(self.folders[part].files, self.classes, self.folders[part].name)


def read_tree(config: DataConfig) -> Tree:
    """A tree whose folders are called ``train/`` [``val/``] [``test/``] or alike, or class folders.

    ``data.train``, ``data.val`` and ``data.test`` name the folder of a part, whatever it and those in it are called.

    Raises:
        DataError: no such folder, folders that may be parts or classes, or fewer than two classes.
    """
    strays: list[str] = []

    def look(tree: str) -> tuple[list[str], list[str]]:
        root = tree_of(config, tree)
        images, others = split_off_images(list_files(root))
        strays.extend(others)
        return images, _folders(root)

    folders = find_folders(config, look)
    roots = {part: tree_of(config, each.tree) / each.below for part, each in folders.items()}
    # Of the folders, not of the images' paths: a class without any is named.
    classes = tuple(sorted({class_name(name) for name in _folders(roots["train"])}))
    if len(classes) < 2:
        raise DataError(
            f"{folders['train'].name} must hold one folder per class and at least two, but got {list(classes)}"
        )
    return Tree(classes, folders, roots, strays)


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
    for name in (name for root in roots for name in _folders(root)):
        found.setdefault(class_name(name), set()).add(name)
    return found


def _folders(root: Path) -> list[str]:
    """The top folders, those without images too."""
    return [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]


def load_domainnet(config: DataConfig, image_size: int) -> RawSet:
    """One domain of DomainNet (Peng et al., ICCV 2019), split 80 to 20 as the paper's code does.

    ``data.path`` holds a folder for each domain, and that one for each class. The files' order, which decides the
    split, is torchvision's ImageFolder's.
    """
    assert config.path is not None
    assert config.domain is not None
    location = f"{config.path.rstrip('/')}/{config.domain}"
    root = tree_of(config, location)
    classes = tuple(sorted(_folders(root)))
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
