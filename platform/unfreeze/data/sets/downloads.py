"""Where torchvision keeps the files of each set that it downloads, below one folder for all of them."""

from pathlib import Path

from unfreeze.config import DataConfig
from unfreeze.data.pixels.files import list_files

DOWNLOADED = {
    "cifar10": ("cifar-10-batches-py",),
    "cifar100": ("cifar-100-python",),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
    "flowers102": ("flowers-102",),
    "pet": ("oxford-iiit-pet",),
    "dtd": ("dtd",),
    "food101": ("food-101",),
    "stanford_cars": ("stanford_cars",),
    "eurosat": ("eurosat",),
    "caltech101": ("caltech101",),
}


def download_root(config: DataConfig) -> Path:
    """The folder of all sets, on this machine."""
    return Path(config.path or Path(config.cache_dir) / "torchvision").expanduser()


def downloaded_files(name: str, root: Path) -> list[str]:
    """What is there of the set, relative to ``root``; nothing before its download, and for other sets."""
    found = []
    for place in DOWNLOADED.get(name, ()):
        if (root / place).is_file():
            found.append(place)
        elif (root / place).is_dir():
            found += [f"{place}/{file}" for file in list_files(root / place)]
    return found
