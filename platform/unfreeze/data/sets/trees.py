"""Sets that are trees of image files: any folder of class folders, and DomainNet's domains."""

from pathlib import Path

import numpy as np

from unfreeze.config import DataConfig
from unfreeze.data.pixels.decode import list_files
from unfreeze.data.sets.raw import Images, RawSet, cache_dir, downstream_squares, read_files
from unfreeze.data.sets.splits import paper_split
from unfreeze.data.sets.stage import local_tree
from unfreeze.errors import DataError

# What torchvision's ImageFolder takes for an image.
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def load_folder(config: DataConfig, image_size: int) -> RawSet:
    """An ImageFolder tree: ``train/`` [``val/``] [``test/``], or class folders at the top, split by seed."""
    assert config.path is not None
    root = local_tree(config.path, cache_dir=cache_dir(config))
    has_train = (root / "train").is_dir()
    pool_root = root / "train" if has_train else root
    classes = _classes(pool_root)
    squares = downstream_squares(config, image_size)

    def load(part: Path) -> Images:
        return read_files(config, part, *_labelled_files(part, classes), squares)

    val = load(root / "val") if has_train and (root / "val").is_dir() else None
    if has_train and (root / "test").is_dir():
        num_test = len(_labelled_files(root / "test", classes)[0])
        return RawSet(classes, load(pool_root), val, num_test, lambda: load(root / "test"))
    return RawSet(classes, load(pool_root), val, None, None)


def load_domainnet(config: DataConfig, image_size: int) -> RawSet:
    """One domain of DomainNet (Peng et al., ICCV 2019), split 80 to 20 as the paper's code does.

    ``data.path`` holds a folder for each domain, and that one for each class. The files' order, which decides the
    split, is torchvision's ImageFolder's.
    """
    assert config.path is not None
    assert config.domain is not None
    location = f"{config.path.rstrip('/')}/{config.domain}"
    root = local_tree(location, cache_dir=cache_dir(config))
    classes = _classes(root)
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

    def load(chosen: np.ndarray) -> Images:
        return read_files(config, root, [files[i] for i in chosen], [labels[i] for i in chosen], squares)

    return RawSet(classes, load(train), None, len(test), lambda: load(test))


def _classes(root: Path) -> tuple[str, ...]:
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if len(classes) < 2:
        raise DataError(f"{root} must hold one folder per class and at least two, but got {list(classes)}")
    return classes


def _labelled_files(root: Path, classes: tuple[str, ...]) -> tuple[list[str], list[int]]:
    files = list_files(root)
    top = {name.split("/", 1)[0] for name in files if "/" in name}
    unknown, empty = sorted(top - set(classes)), sorted(set(classes) - top)
    if unknown:
        raise DataError(f"{root} has classes that the training images lack: {', '.join(unknown)}")
    if empty:
        raise DataError(f"{root} has no images of class {', '.join(empty)}; add some or remove the class everywhere")
    files = [name for name in files if "/" in name]
    label_of = {name: label for label, name in enumerate(classes)}
    return files, [label_of[name.split("/", 1)[0]] for name in files]
