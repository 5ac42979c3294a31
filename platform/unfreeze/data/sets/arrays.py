"""Sets that come as arrays: the embedded digits, and CIFAR-10-C and CIFAR-100-C."""

from pathlib import Path

import numpy as np
from PIL import Image

from unfreeze.config import DataConfig
from unfreeze.data.pixels.decode import ImageArray, decode_sequence, make_array
from unfreeze.data.pixels.files import fingerprint
from unfreeze.data.sets.embedded import load_digits_images
from unfreeze.data.sets.raw import RawSet, check_labels, downstream_squares, read_array
from unfreeze.data.sets.splits import paper_split
from unfreeze.data.sets.stage import tree_of
from unfreeze.errors import DataError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905
)
_SEVERITIES = 5


def load_digits(config: DataConfig, image_size: int) -> RawSet:
    """scikit-learn's 1,797 handwritten digits, 8×8 px enlarged; no split of their own."""
    squares = downstream_squares(config, image_size)

    def build() -> ImageArray:  # once per node, not per slot: scikit-learn alone takes 3 s to import
        images, labels = load_digits_images(image_size)
        if squares.shift:
            images = np.stack([squares.shift.apply(image, index) for index, image in enumerate(images)])
        return make_array(images, labels)

    array = read_array(config, {"set": "digits", "image_size": image_size}, squares, build)
    return RawSet(tuple("0123456789"), array, None, None, None)


def load_cifar_c(config: DataConfig, image_size: int) -> RawSet:
    """CIFAR-10-C or CIFAR-100-C (Hendrycks and Dietterich, ICLR 2019) at one corruption and severity.

    ``data.path`` holds ``<corruption>.npy``, uint8 (5 · n, H, W, 3), the severities one after the other, and
    ``labels.npy`` (5 · n,). The corrupted images are CIFAR's test images (n = 10,000), of which the paper's code trains
    on 80 % and tests on the rest.
    """
    assert config.path is not None
    root = tree_of(config, config.path)
    names = (f"{config.corruption}.npy", "labels.npy")
    images, labels = (_open_array(root / name) for name in names)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) % _SEVERITIES:
        raise DataError(f"{root / names[0]} must be uint8 (5 · n, H, W, 3), but got {images.dtype} {images.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
        raise DataError(
            f"{root / names[1]} must be integers ({len(images)},), a label for each image of {names[0]}, but got "
            f"{labels.dtype} {labels.shape}"
        )
    classes = CIFAR10_CLASSES if config.name == "cifar10c" else CIFAR100_CLASSES
    check_labels(labels, len(classes), str(root / names[1]))
    num_images = len(images) // _SEVERITIES
    offset = (config.severity - 1) * num_images
    train, test = paper_split(num_images)
    squares = downstream_squares(config, image_size)

    def load(chosen: np.ndarray, which: str) -> ImageArray:
        def build() -> ImageArray:
            pairs = [(Image.fromarray(images[row]), int(labels[row])) for row in offset + chosen]
            return decode_sequence(pairs, squares)

        key = {"set": config.name, "files": fingerprint(root, names), "severity": config.severity, "part": which}
        return read_array(config, {**key, "root": str(root)}, squares, build)

    return RawSet(classes, load(train, "train"), None, len(test), lambda: load(test, "test"))


def _open_array(path: Path) -> np.ndarray:
    if not path.is_file():
        there = sorted(other.name for other in path.parent.glob("*.npy"))
        raise DataError(f"no such file: {path}; there are {', '.join(there) or 'no .npy files at all'}")
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as an array: {error}; download it again") from error
