"""The folders of an image tree: its parts and classes, known without an image decoded and without torch imported."""

from dataclasses import dataclass
from pathlib import Path

from unfreeze.config import DataConfig
from unfreeze.data.pixels.files import list_files, list_names, split_off_images
from unfreeze.data.sets.layout import Folder, class_name, find_folders, labels_of
from unfreeze.data.sets.stage import tree_of
from unfreeze.errors import DataError


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
        DataError: no such folder, links to nowhere, folders that may be parts or classes, or fewer than two classes.
    """
    strays: list[str] = []

    def look(tree: str) -> tuple[list[str], list[str]]:
        root = tree_of(config, tree)
        images, others = split_off_images(list_files(root))
        strays.extend(others)
        return images, folder_names(root)

    folders = find_folders(config, look)
    roots = {part: tree_of(config, each.tree) / each.below for part, each in folders.items()}
    # Of the folders, not of the images' paths: a class without any is named.
    classes = tuple(sorted({class_name(name) for name in folder_names(roots["train"])}))
    if len(classes) < 2:
        raise DataError(
            f"{folders['train'].name} must hold one folder per class and at least two, but got {list(classes)}"
        )
    return Tree(classes, folders, roots, strays)


def folder_names(root: Path) -> list[str]:
    """The top folders, those without images too.

    Raises:
        DataError: links to nowhere, which may have been a part or a class.
    """
    if lost := sorted(path.name for path in root.iterdir() if path.is_symlink() and not path.exists()):
        raise DataError(f"{root} holds links to nowhere: {list_names(lost)}; mend or remove them")
    return [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]
