"""Decode once: image files → one uint8 array in a node-local cache that every slot of the node maps into memory."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unfreeze.data.pixels.cache import Entry, kept
from unfreeze.data.pixels.corrupt import Shift
from unfreeze.data.pixels.grey import White, find_white, is_deep, to_rgb, white_among
from unfreeze.data.pixels.keys import digest_of
from unfreeze.data.pixels.reading import (
    DECODE_THREADS,
    NOTHING_SEEN,
    UNREADABLE,
    Reading,
    Seen,
    hash_of,
    open_image,
    read_depths,
    read_headers,
    sum_up,
)


@dataclass(frozen=True, slots=True)
class ImageArray:
    """Decoded images: ``images`` uint8 (N, S, S, 3), ``labels`` int64 (N,), the digest of both."""

    images: np.ndarray
    labels: np.ndarray
    digest: str
    hashes: np.ndarray  # uint64 (N,), of each image's file, or of its pixels where it has none: equal ones are copies
    seen: Seen = NOTHING_SEEN
    files: tuple[Path, ...] = ()  # of the images; (): they come from none, or are not as in their files
    upright: bool = False  # whether the files' images were turned as EXIF says

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def bad_files(self) -> tuple[str, ...]:
        return self.seen.bad_files

    @property
    def stored(self) -> int:
        """Side of the squares, px."""
        return self.images.shape[1]

    def original(self, index: int) -> Image.Image:
        """The image as it is in its file, RGB; the square where it has none."""
        if not self.files:
            return Image.fromarray(self.images[index])
        return open_rgb(self.files[index], upright=self.upright, white=self.seen.white)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Images at ``indices``: uint8 (B, S, S, 3)."""
        return self.images[indices]


@dataclass(frozen=True, slots=True)
class Squares:
    """How an image becomes the square that is stored of it. All of it is part of the cache key."""

    size: int  # px; less where all images of a set are smaller
    interpolation: str = "bicubic"
    shift: Shift | None = None
    upright: bool = False  # turned as EXIF says
    white: White | None = None  # of deep grey images; None: what the set itself holds

    def make(self, image: Image.Image, index: int, size: int) -> np.ndarray:
        """uint8 (size, size, 3) of the image with number ``index``."""
        pixels = square(to_rgb(image, self.white), size, self.interpolation)
        return self.shift.apply(pixels, index) if self.shift else pixels

    def with_white(self, found: White) -> "Squares":
        """With what a set holds where it is not told already by the set that this one goes with."""
        told = self.white or White()
        return replace(self, white=White(told.integer or found.integer, told.real or found.real))

    def key(self) -> dict[str, Any]:
        return asdict(self)


def stored_side(image_size: int, crop_share: float) -> int:
    """Side in px of a stored square: the centre crop is ``crop_share`` of it (0.875: the usual 256 for 224)."""
    return round(image_size / crop_share)


def cached(
    cache_dir: Path, key: dict[str, Any], build: Callable[[], ImageArray], *, max_bytes: float = float("inf")
) -> ImageArray:
    """The array stored under ``key``, built on the first call, and again where what is stored is damaged.

    Raises:
        DataError: it cannot be stored.
    """

    def make() -> Entry:
        array = build()
        arrays = {"images": array.images, "labels": array.labels, "hashes": array.hashes}
        return Entry(arrays, {"digest": array.digest, "seen": array.seen.to_dict(), "key": key})

    entry = kept(cache_dir / "decoded", digest_of(key), make, max_bytes=max_bytes)
    return ImageArray(
        images=entry.arrays["images"],
        labels=np.array(entry.arrays["labels"]),
        digest=entry.meta["digest"],
        hashes=np.array(entry.arrays["hashes"]),
        seen=Seen.from_dict(entry.meta["seen"]),
    )


def make_array(
    images: np.ndarray, labels: np.ndarray, *, hashes: np.ndarray | None = None, seen: Seen = NOTHING_SEEN
) -> ImageArray:
    """Wrap decoded images with their digest."""
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels.astype(np.int64)).tobytes())
    if hashes is None:
        hashes = np.array([hash_of(np.ascontiguousarray(image).data) for image in images], dtype=np.uint64)
    return ImageArray(images, labels.astype(np.int64), digest.hexdigest(), hashes, seen)


def decode_files(root: Path, files: Sequence[str], labels: Sequence[int], squares: Squares) -> ImageArray:
    """Decode ``files`` to squares: short side resized, centre cropped.

    The side is ``squares.size`` px, or the largest short side among the images when all are smaller: enlarging is left
    to the training device, so a 32-px set costs 32-px memory.

    Files that cannot be read are left out and named in the result; `check_bad_files` judges their share.

    Raises:
        DataError: nothing to decode, or grey levels that are none.
    """
    headers = read_headers(root, files)
    depths = read_depths(root, files, headers)
    squares = squares.with_white(white_among(depths.values()))
    stored = min(squares.size, max((min(found.size) for found in headers if found is not None), default=squares.size))
    images = np.empty((len(files), stored, stored, 3), np.uint8)  # filled in place: there may be no room for it twice

    def decode(index: int) -> Reading | None:
        try:
            image, reading = open_image(root / files[index], upright=squares.upright)
            images[index] = squares.make(image, index, stored)
        except UNREADABLE:
            return None
        return reading

    with ThreadPoolExecutor(DECODE_THREADS) as threads:
        readings = list(threads.map(decode, range(len(files))))
    good, hashes, seen = sum_up(root, files, readings, squares.white or White(), depths)
    return make_array(images if good.all() else images[good], np.array(labels)[good], hashes=hashes, seen=seen)


def decode_sequence(source: Sequence[tuple[Image.Image, int]], squares: Squares) -> ImageArray:
    """The same for (image, label) pairs that are made when indexed, such as torchvision's sets; one held at a time."""
    labels = np.empty(len(source), np.int64)
    decoded: list[np.ndarray] = []
    for index in range(len(source)):
        image, labels[index] = source[index]
        if squares.white is None and is_deep(image):
            every = ((f"image {number}", source[number][0]) for number in range(len(source)))
            squares = squares.with_white(find_white(each for each in every if is_deep(each[1])))
        decoded.append(squares.make(image, index, min(squares.size, *image.size)))
    stored = max(len(pixels) for pixels in decoded)
    for index, pixels in enumerate(decoded):
        if len(pixels) < stored:
            decoded[index] = squares.make(source[index][0], index, stored)
    return make_array(np.stack(decoded), labels, seen=replace(NOTHING_SEEN, white=squares.white or White()))


def open_rgb(path: Path, *, upright: bool = False, white: White | None = None) -> Image.Image:
    """The whole image of one file. Raises one of `UNREADABLE`."""
    return to_rgb(open_image(path, upright=upright)[0], white)


def decode_one(path: Path, index: int, squares: Squares, size: int) -> np.ndarray:
    """The square of one file: uint8 (size, size, 3). Raises one of `UNREADABLE`."""
    image, _ = open_image(path, upright=squares.upright)
    return squares.make(image, index, size)


def square(image: Image.Image, size: int, interpolation: str = "bicubic") -> np.ndarray:
    """The centre square, resized to ``size`` px (antialiased): uint8 (size, size, 3)."""
    image = to_rgb(image)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    # The crop as the resize's box: a strip of 1 × 60,000 px is never enlarged as a whole.
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling[interpolation.upper()], box=box))
