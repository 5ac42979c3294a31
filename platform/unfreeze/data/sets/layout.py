"""Which folders of a tree are its parts, by the usual names in any case; what can be read in two ways is refused."""

import itertools
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from unfreeze.config import DataConfig
from unfreeze.data.pixels.files import list_names
from unfreeze.errors import DataError

PARTS = {"train": "training", "val": "validation", "test": "test"}
_USUAL = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
_ROLES = {name: part for part, names in _USUAL.items() for name in names}
# What belongs to an image in sets for segmentation or detection: no classes.
_SIDES = {"image", "images", "img", "imgs", "mask", "masks", "label", "labels", "annotation", "annotations"}


def read_layout(files: Sequence[str], folders: Collection[str], where: str) -> dict[str, str]:
    """Part → its folder in the tree ``where``, "" for the tree itself.

    ``files``: relative paths of its images; ``folders``: names of its top folders, empty ones too.

    Raises:
        DataError: the folders may mean parts or classes; says what was seen, and how to say it.
    """
    tops = by_top(files)
    found = find_parts((*tops, *folders), where)
    if not found:
        check_classes(files, where)
        return {"train": ""}
    seen = " and ".join(f"{name}/" for name in found.values())
    others = sorted(tops.keys() - set(found.values()))
    if others:
        raise _refuse(f"{where} has {seen}, named like parts, beside {_folders(others)}", where)
    if "train" not in found:
        raise _refuse(f"{where} has {seen}, but no training images (train/ or training/)", where)
    for name in found.values():
        own = tops.get(name, [])
        if not own:
            raise DataError(f"{where}/{name} has no images; add some or remove the folder")
        if not by_top(own):
            raise _refuse(f"{where}/{name} must hold one folder per class, but holds {len(own)} images alone", where)
        check_classes(own, f"{where}/{name}")
    return found


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the images of one part are: ``files``, each in its class's folder, relative to ``below`` in ``tree``."""

    tree: str
    below: str  # "" for the tree itself
    files: list[str]

    @property
    def name(self) -> str:
        return f"{self.tree}/{self.below}".rstrip("/")


def find_folders(config: DataConfig, look: Callable[[str], tuple[list[str], list[str]]]) -> dict[str, Folder]:
    """Part → its folder: as ``data.train``, ``data.val`` and ``data.test`` name it, or as found below ``data.path``.

    ``look``: place of a tree → relative paths of its images, names of its top folders.

    Raises:
        DataError: as `read_layout`.
    """
    given = {part: location.rstrip("/") for part in PARTS if (location := getattr(config, part)) is not None}
    folders = {part: Folder(tree, "", look(tree)[0]) for part, tree in given.items()}
    if config.path is not None:
        tree = config.path.rstrip("/")
        if "train" not in given:
            _check_apart(given, tree)
        taken = {location.removeprefix(f"{tree}/").partition("/")[0] for location in given.values()}
        files, tops = look(tree)
        files = [name for name in files if name.partition("/")[0] not in taken]
        tops = [name for name in tops if name not in taken]
        found = find_parts((*tops, *by_top(files)), tree) if "train" in given else read_layout(files, tops, tree)
        own = {"": files} | by_top(files)
        folders |= {part: Folder(tree, below, own.get(below, [])) for part, below in found.items() if part not in given}
    for (one, first), (other, second) in itertools.combinations(folders.items(), 2):
        if first.name == second.name:
            raise _shared(first.name, one, other)
    return {
        part: replace(folders[part], files=[name for name in folders[part].files if "/" in name])
        for part in PARTS
        if part in folders
    }


def _check_apart(given: Mapping[str, str], tree: str) -> None:
    """Refuse a part of its own that is where the training images of ``tree`` are, by its name.

    Raises:
        DataError: says which.
    """
    for part, location in given.items():
        below = location.removeprefix(f"{tree}/")
        if location != below and _ROLES.get(below.casefold()) == "train":
            raise _shared(location, "train", part)


def _shared(where: str, one: str, other: str) -> DataError:
    return DataError(
        f"{where} would hold the {PARTS[one]} images and the {PARTS[other]} images: give each part a folder of its "
        f"own, or leave out data.{other}, and data.{other}_share of the training images is split off"
    )


def find_parts(names: Collection[str], where: str) -> dict[str, str]:
    """Part → its folder, of those among ``names`` that are called as usual.

    Raises:
        DataError: two folders are the same part.
    """
    found: dict[str, str] = {}
    for name in sorted(set(names)):
        part = _ROLES.get(name.casefold())
        if part in found:
            raise _refuse(f"{where} has {found[part]}/ and {name}/, which both mean {PARTS[part]} images", where)
        if part is not None:
            found[part] = name
    return {part: found[part] for part in PARTS if part in found}


def check_classes(files: Sequence[str], where: str) -> None:
    """Refuse top folders that are no classes: all of them hold folders alone, two hold the same, or they are masks.

    Raises:
        DataError: says what was seen, and how to say that they are classes all the same.
    """
    deeper = {name: by_top(rest) for name, rest in by_top(files).items()}
    below = [folder for inner in deeper.values() for folder in inner]
    nested = all("/" in file for rest in by_top(files).values() for file in rest)
    if deeper and (nested or len(set(below)) < len(below)):
        seen = list_names([f"{name}/ ({_folders(list(inner))})" for name, inner in deeper.items() if inner], most=4)
        only = f"; did you mean {where}/{next(iter(deeper))}?" if len(deeper) == 1 else ""
        raise _refuse(f"the folders of {where} hold folders, {seen}, so they may be no classes{only}", where)
    if len(deeper) > 1 and {name.casefold() for name in deeper} <= _SIDES:
        raise _refuse(f"the folders of {where} are named as what belongs to an image, {_folders(list(deeper))}", where)


def by_top(files: Sequence[str]) -> dict[str, list[str]]:
    """Top folder → the paths below it; what lies in none is left out."""
    found: dict[str, list[str]] = {}
    for top, slash, rest in (name.partition("/") for name in files):
        if slash:
            found.setdefault(top, []).append(rest)
    return found


def class_name(folder: str) -> str:
    """The class of a folder: its name in Unicode's composed form, since some systems take it apart."""
    return unicodedata.normalize("NFC", folder)


def labels_of(files: Sequence[str], classes: Sequence[str], where: str) -> list[int]:
    """The class of each file, by its top folder.

    Raises:
        DataError: a folder that is no class, or a class without images.
    """
    found = {class_name(name) for name in by_top(files)}
    unknown, empty = sorted(found - set(classes)), sorted(set(classes) - found)
    if unknown:
        raise DataError(f"{where} has classes that the training images lack: {list_names(unknown)}")
    if empty:
        raise DataError(f"{where} has no images of class {list_names(empty)}; add some or remove the class everywhere")
    numbers: Mapping[str, int] = {name: label for label, name in enumerate(classes)}
    return [numbers[class_name(name.partition("/")[0])] for name in files]


def _folders(names: Sequence[str]) -> str:
    return list_names([f"{name}/" for name in names], most=4)


def _refuse(seen: str, where: str) -> DataError:
    return DataError(
        f"{seen}; say which folder holds each part's class folders: data.train=… data.val=… data.test=… instead of "
        f"data.path, the last two if there are any (data.train={where}: its top folders are the classes)"
    )
