"""Image files: what their headers say, what is read of them, and which cannot be read."""

import hashlib
import io
import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from unfreeze.data.pixels.files import list_names
from unfreeze.data.pixels.grey import OVERSHOOT, Depth, White, depths_of, is_deep, is_deep_colour
from unfreeze.errors import DataError

logger = logging.getLogger(__name__)

# What is opened: of Pillow's other decoders some start programs (EPS: Ghostscript), whatever a file's name says.
_KNOWN = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
Image.init()
FORMATS = tuple(name for name in _KNOWN if name in Image.OPEN)  # not every Pillow is built with all of them
DECODE_THREADS = 4  # PIL releases the GIL while it decodes; beyond a few threads the disk is the limit
_ORIENTATION = 0x0112  # the EXIF tag
_DARK = 1 / 16  # of white: 12 bits among 16, or fewer, of which 16 grey levels are left
# What Pillow raises on files that are no images, cut short, or bombs: SyntaxError for broken PNG chunks, RuntimeError
# for AVIF and odd JPEG 2000.
UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was noticed of the files of a set while they were read."""

    white: White
    rotated: int  # images with an EXIF orientation other than upright
    bad_files: tuple[str, ...]  # unreadable, left out
    dark_files: tuple[str, ...] = ()  # deep grey of which `white` leaves 16 levels or fewer
    cut_files: tuple[str, ...] = ()  # deep grey that goes far beyond `white`

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Seen":
        names = (tuple(raw[kind]) for kind in ("bad_files", "dark_files", "cut_files"))
        return cls(White(**raw["white"]), raw["rotated"], *names)


NOTHING_SEEN = Seen(White(), 0, ())


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its image before that is decoded."""

    size: tuple[int, int]  # width, height in px
    is_deep: bool
    is_deep_colour: bool


def read_headers(root: Path, files: Sequence[str]) -> list[Header | None]:
    """The header of each file; None where there is none to be read.

    Raises:
        DataError: no files.
    """
    if not files:
        raise DataError(f"no image files below {root}; expected one folder of images per class")

    def read(name: str) -> Header | None:
        try:
            with Image.open(root / name, formats=FORMATS) as image:
                return Header(image.size, is_deep(image), is_deep_colour(image))
        except UNREADABLE:
            return None

    with ThreadPoolExecutor(DECODE_THREADS) as threads:
        return list(threads.map(read, files))


def read_depths(root: Path, files: Sequence[str], headers: Sequence[Header | None]) -> dict[str, Depth]:
    """How far each deep grey image of a set goes; they are read for it.

    Raises:
        DataError: names an image whose values are no grey levels, or deep colours of which 8 bits would keep little.
    """

    def opened(name: str) -> Iterator[tuple[str, Image.Image]]:
        try:
            with Image.open(root / name, formats=FORMATS) as image:
                image.load()
        except UNREADABLE:  # left out when it is decoded
            return
        yield name, image

    pairs = list(zip(files, headers, strict=True))
    deep = [name for name, header in pairs if header and header.is_deep]
    colours = [name for name, header in pairs if header and header.is_deep_colour]
    most = [max(high for _, high in _extrema(image)) for name in colours for _, image in opened(name)]
    if most and max(most) < 128:
        raise DataError(
            f"{len(colours):,} files below {root} hold colours of 16 bits that use less than half of them, of which "
            f"Pillow keeps {max(most) + 1} levels at most: {list_names(colours)}; rescale them to 8 bits"
        )
    return depths_of(pair for name in deep for pair in opened(name))


def _extrema(image: Image.Image) -> Sequence[tuple[int, int]]:
    """Least and largest value of each channel, opacity left out."""
    found: Any = image.convert("RGB").getextrema()
    return found


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading one file has told."""

    size: tuple[int, int]
    content: int  # `hash_of` the file
    rotated: bool


def open_image(path: Path, *, upright: bool, check_only: bool = False) -> tuple[Image.Image, Reading]:
    """The loaded image of a file, and what there is to know of it. Raises one of `UNREADABLE`.

    ``check_only``: every byte is read, but a JPEG is decoded to an eighth of its sides (60 kB: 1.9, not 3.0 ms).
    """
    content = path.read_bytes()
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.filename = str(path)
        size = image.size
        if check_only:
            image.draft(None, (1, 1))
        image.load()
        orientation = _orientation(image)
    rotated = orientation != 1
    turned = ImageOps.exif_transpose(image) if upright and rotated else image
    size = size[::-1] if upright and orientation >= 5 else size
    return turned, Reading(size, hash_of(content), rotated)


def _orientation(image: Image.Image) -> int:
    """As EXIF has it: 1 is upright, and so is nonsense; from 5 on, width and height change places."""
    try:
        noted = image.getexif().get(_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, struct.error):  # damaged, so it says nothing
        return 1
    return noted if noted in range(2, 9) else 1


def sum_up(
    root: Path,
    files: Sequence[str],
    readings: Sequence[Reading | None],
    white: White,
    depths: Mapping[str, Depth],
) -> tuple[np.ndarray, np.ndarray, Seen]:
    """(which files are good: bool (N,), the good ones' hashes: uint64, what was noticed).

    Raises:
        DataError: none is.
    """
    good = np.array([reading is not None for reading in readings])
    bad = tuple(name for name, is_good in zip(files, good, strict=True) if not is_good)
    if not good.any():
        raise DataError(f"none of the {len(files)} files below {root} can be read as an image: {list_names(bad)}")
    read = [reading for reading in readings if reading is not None]
    hashes = np.array([reading.content for reading in read], dtype=np.uint64)
    shares = {name: depth.share_of(white) for name, depth in depths.items()}
    dark = tuple(name for name, share in shares.items() if share < _DARK)
    cut = tuple(name for name, share in shares.items() if share > OVERSHOOT)
    return good, hashes, Seen(white, sum(reading.rotated for reading in read), bad, dark, cut)


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


def hash_of(content: Any) -> int:
    """64 bits of the content's BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
