"""Decode once: image files → one uint8 array in a node-local cache that every slot of the node maps into memory."""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np
from PIL import Image

from unfreeze.data.pixels.corrupt import Shift
from unfreeze.data.pixels.keys import digest_of
from unfreeze.errors import DataError

logger = logging.getLogger(__name__)

# What is opened: of Pillow's other decoders some start programs (EPS: Ghostscript), whatever a file's name says.
_KNOWN = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
Image.init()
FORMATS = tuple(name for name in _KNOWN if name in Image.OPEN)  # not every Pillow is built with all of them
_ENDINGS = (
    *("", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".j2k", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
DECODE_THREADS = 4  # PIL releases the GIL while it decodes; beyond a few threads the disk is the limit


@dataclass(frozen=True, slots=True)
class ImageArray:
    """Decoded images: ``images`` uint8 (N, S, S, 3), ``labels`` int64 (N,), the digest of both."""

    images: np.ndarray
    labels: np.ndarray
    digest: str
    bad_files: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()  # of the images; (): they come from none, or are not as in their files

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def stored(self) -> int:
        """Side of the squares, px."""
        return self.images.shape[1]

    def original(self, index: int) -> Image.Image:
        """The image as it is in its file, RGB; the square where it has none."""
        return open_rgb(self.files[index]) if self.files else Image.fromarray(self.images[index])

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Images at ``indices``: uint8 (B, S, S, 3)."""
        return self.images[indices]


@dataclass(frozen=True, slots=True)
class Squares:
    """How an image becomes the square that is stored of it. All of it is part of the cache key."""

    size: int  # px; less where all images of a set are smaller
    interpolation: str = "bicubic"
    shift: Shift | None = None

    def make(self, image: Image.Image, index: int, size: int) -> np.ndarray:
        """uint8 (size, size, 3) of the image with number ``index``."""
        pixels = square(image, size, self.interpolation)
        return self.shift.apply(pixels, index) if self.shift else pixels

    def key(self) -> dict[str, Any]:
        return asdict(self)


def stored_side(image_size: int, crop_share: float) -> int:
    """Side in px of a stored square: the centre crop is ``crop_share`` of it (0.875: the usual 256 for 224)."""
    return round(image_size / crop_share)


def cached(cache_dir: Path, key: dict[str, Any], build: Callable[[], ImageArray]) -> ImageArray:
    """The array stored under ``key``, built on the first call.

    Two processes that build at once do the work twice and store the same bytes; the folder's rename is atomic, so
    neither reads half of it. No lock: on a shared file system there is none to trust.
    """
    folder = cache_dir / "decoded" / digest_of(key)
    if not folder.exists():
        array = build()
        temporary = folder.with_name(f".tmp-{uuid.uuid4().hex}")
        temporary.mkdir(parents=True)
        np.save(temporary / "images.npy", array.images)
        np.save(temporary / "labels.npy", array.labels)
        meta = {"digest": array.digest, "bad_files": array.bad_files, "key": key}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
        try:
            temporary.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(temporary)
    meta = json.loads((folder / "meta.json").read_text())
    return ImageArray(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        labels=np.load(folder / "labels.npy"),
        digest=meta["digest"],
        bad_files=tuple(meta["bad_files"]),
    )


def make_array(images: np.ndarray, labels: np.ndarray, bad_files: Sequence[str] = ()) -> ImageArray:
    """Wrap decoded images with their digest."""
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels.astype(np.int64)).tobytes())
    return ImageArray(images, labels.astype(np.int64), digest.hexdigest(), tuple(bad_files))


def list_files(root: Path) -> list[str]:
    """Relative paths of the files below ``root``, sorted; hidden ones left out.

    Links to folders are followed, as torchvision and timm do, but not back to a folder that they lie in.
    """
    found = []
    above = {str(root): {root.resolve()}}  # the real folders that a folder lies in, itself included
    for folder, subfolders, files in os.walk(root, followlinks=True):
        own = above.pop(folder)
        real = {name: (Path(folder) / name).resolve() for name in subfolders if not name.startswith(".")}
        subfolders[:] = [name for name in real if real[name] not in own]
        above |= {os.path.join(folder, name): own | {real[name]} for name in subfolders}
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def split_off_images(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """(images by their names, all else: captions, Thumbs.db, what a Mac's archive adds); a bare name may be one."""
    is_image = [PurePath(name).suffix.lower() in _ENDINGS and "__MACOSX" not in PurePath(name).parts for name in files]
    chosen, rest = ([name for name, own in zip(files, is_image, strict=True) if own is kind] for kind in (True, False))
    return chosen, rest


def fingerprint(root: Path, files: Sequence[str]) -> list[list[Any]]:
    """What tells an unchanged tree from a changed one without reading it: path, size, modification time."""
    entries: list[list[Any]] = []
    for name in files:
        try:
            stat = (root / name).stat()
            entries.append([name, stat.st_size, stat.st_mtime_ns])
        except OSError:  # a link to nowhere; decoding names it
            entries.append([name, None, None])
    return entries


def decode_files(
    root: Path,
    files: Sequence[str],
    labels: Sequence[int],
    *,
    size: int,
    interpolation: str = "bicubic",
    shift: Shift | None = None,
) -> ImageArray:
    """Decode ``files`` to squares: short side resized, centre cropped.

    The side is ``size`` px, or the largest short side among the images when all are smaller: enlarging is left
    to the training device, so a 32-px set costs 32-px memory.

    Files that cannot be read are left out and named in the result; `check_bad_files` judges their share.

    Raises:
        DataError: nothing to decode.
    """
    sides = [min(found) for found in image_sizes(root, files) if found is not None]
    stored, squares = min(size, max(sides, default=size)), Squares(size, interpolation, shift)

    images = np.empty((len(files), stored, stored, 3), np.uint8)  # filled in place: there may be no room for it twice

    def decode(index: int) -> bool:
        try:
            images[index] = decode_one(root / files[index], index, squares, stored)
        except UNREADABLE:
            return False
        return True

    with ThreadPoolExecutor(DECODE_THREADS) as threads:
        good = np.array(list(threads.map(decode, range(len(files)))))
    bad = [name for name, is_good in zip(files, good, strict=True) if not is_good]
    if not good.any():
        raise DataError(f"none of the {len(files)} files below {root} can be read as an image: {list_names(bad)}")
    return make_array(images[good] if bad else images, np.array(labels)[good], bad)


def decode_sequence(source: Sequence[tuple[Image.Image, int]], squares: Squares) -> ImageArray:
    """The same for (image, label) pairs that are made when indexed, such as torchvision's sets; one held at a time."""
    labels = np.empty(len(source), np.int64)
    decoded: list[np.ndarray] = []
    for index in range(len(source)):
        image, labels[index] = source[index]
        decoded.append(squares.make(image, index, min(squares.size, *image.size)))
    stored = max(len(pixels) for pixels in decoded)
    for index, pixels in enumerate(decoded):
        if len(pixels) < stored:
            decoded[index] = squares.make(source[index][0], index, stored)
    return make_array(np.stack(decoded), labels)


def image_sizes(root: Path, files: Sequence[str]) -> list[tuple[int, int] | None]:
    """Width and height in px of each file's image, from its header; None where there is none to be read.

    Raises:
        DataError: no files.
    """
    if not files:
        raise DataError(f"no image files below {root}; expected one folder of images per class")

    def read(name: str) -> tuple[int, int] | None:
        try:
            with Image.open(root / name, formats=FORMATS) as image:
                return image.size
        except UNREADABLE:
            return None

    with ThreadPoolExecutor(DECODE_THREADS) as threads:
        return list(threads.map(read, files))


def open_rgb(path: Path) -> Image.Image:
    """The whole image of one file. Raises one of `UNREADABLE`."""
    with Image.open(path, formats=FORMATS) as image:
        return to_rgb(image)


def decode_one(path: Path, index: int, squares: Squares, size: int) -> np.ndarray:
    """The square of one file: uint8 (size, size, 3). Raises one of `UNREADABLE`."""
    with Image.open(path, formats=FORMATS) as image:
        return squares.make(image, index, size)


class _Readable(Protocol):
    """Images of files, of which some could not be read."""

    @property
    def bad_files(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...


def check_bad_files(images: _Readable, root: Path, *, max_bad_share: float) -> None:
    """Judge the unreadable files, found now or when the cache was filled.

    Raises:
        DataError: their share is above ``max_bad_share``; names them.
    """
    bad, total = images.bad_files, len(images) + len(images.bad_files)
    if len(bad) > max_bad_share * total:
        raise DataError(
            f"{len(bad)} of {total} files below {root} cannot be read as images, more than "
            f"data.max_bad_share={max_bad_share}: {list_names(bad)}; mend or remove them"
        )
    if bad:
        logger.warning("left out %d of %d files below %s, unreadable: %s", len(bad), total, root, list_names(bad))


def list_names(names: Sequence[str], *, most: int = 10) -> str:
    """The first ``most``, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def square(image: Image.Image, size: int, interpolation: str = "bicubic") -> np.ndarray:
    """The centre square, resized to ``size`` px (antialiased): uint8 (size, size, 3)."""
    image = to_rgb(image)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    # The crop as the resize's box: a strip of 1 × 60,000 px is never enlarged as a whole.
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling[interpolation.upper()], box=box))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255: all white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:  # straight to RGB it warns and guesses
        image = image.convert("RGBA")
    return image.convert("RGB")


# What Pillow raises on files that are no images, cut short, or bombs: SyntaxError for broken PNG chunks, RuntimeError
# for AVIF and odd DDS.
UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError)
