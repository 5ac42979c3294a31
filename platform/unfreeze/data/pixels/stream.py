"""Sets larger than memory: images stay in their files, and each is decoded when it is asked for."""

import hashlib
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unfreeze.data.pixels.boxes import Crops
from unfreeze.data.pixels.cache import Entry
from unfreeze.data.pixels.decode import Squares, decode_one, open_rgb
from unfreeze.data.pixels.grey import White, white_among
from unfreeze.data.pixels.reading import (
    DECODE_THREADS,
    UNREADABLE,
    Reading,
    Seen,
    open_image,
    read_depths,
    read_headers,
    sum_up,
)
from unfreeze.errors import DataError

# Images that a worker process decodes at once: at 224 px 10 MB of shared memory, of which containers have little.
_PIECE = 64


class Wanted(NamedTuple):
    """One image to decode."""

    name: str  # of its file
    number: int  # of the image in its set, for the corruption
    box: tuple[int, int, int, int] | None = None  # left, top, width, height in px; None: the stored square
    flip: bool = False


@dataclass(frozen=True, slots=True)
class Decoder:
    """From a file to pixels. Small: every worker process gets a copy."""

    root: Path
    squares: Squares
    stored: int  # side of the squares, px

    def decode(self, wanted: Wanted, side: int) -> np.ndarray:
        """The square, uint8 (stored, stored, 3), or the crop resized to ``side``, uint8 (side, side, 3).

        A crop is cut from the whole image, as torchvision's RandomResizedCrop has it on Pillow's images: bilinear and
        antialiased, nothing of what is around the box in it. Of a corrupted set it is cut from the corrupted square.

        Raises:
            DataError: the file cannot be read any more; names it.
        """
        path = self.root / wanted.name
        try:
            if wanted.box is None:
                return decode_one(path, wanted.number, self.squares, self.stored)
            left, top, width, height = wanted.box
            crop = self.whole(path, wanted.number).crop((left, top, left + width, top + height))
        except UNREADABLE as error:
            raise DataError(
                f"{path} cannot be read as an image: {error}; it could when the data were first read: bring it back as "
                f"it was (sweep.retry_failed=true runs again what failed by it)"
            ) from error
        pixels = np.asarray(crop.resize((side, side), Image.Resampling.BILINEAR))
        return pixels[:, ::-1] if wanted.flip else pixels

    def whole(self, path: Path, number: int) -> Image.Image:
        """The image as it is in its file, RGB, of a corrupted set its square. Raises one of `UNREADABLE`."""
        if self.squares.shift:
            return Image.fromarray(decode_one(path, number, self.squares, self.stored))
        return open_rgb(path, upright=self.squares.upright, white=self.squares.white)


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """What `ImageArray` is for images that are not held in memory."""

    decoder: Decoder
    files: tuple[str, ...]
    numbers: np.ndarray  # int64 (N,), of each file before the unreadable ones were left out
    labels: np.ndarray  # int64 (N,)
    sizes: np.ndarray  # int64 (N, 2): width and height in px of what crops are drawn from
    digest: str  # of the files' content and labels, and of how squares are made of them
    hashes: np.ndarray  # uint64 (N,), of each file's content: equal ones are copies
    seen: Seen
    num_workers: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def bad_files(self) -> tuple[str, ...]:
        return self.seen.bad_files

    @property
    def stored(self) -> int:
        """Side of the squares, px."""
        return self.decoder.stored

    def original(self, index: int) -> Image.Image:
        """The image as it is in its file, RGB. Raises one of `UNREADABLE`."""
        return self.decoder.whole(self.decoder.root / self.files[index], int(self.numbers[index]))

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Squares at ``indices``, decoded now by threads: uint8 (B, S, S, 3). Raises DataError."""
        return self._decode(self.wanted(indices, None), self.decoder.stored)

    def crops(self, indices: np.ndarray, crops: Crops, *, side: int) -> np.ndarray:
        """Crops of the images at ``indices``, decoded now by threads: uint8 (B, side, side, 3). Raises DataError."""
        return self._decode(self.wanted(indices, crops), side)

    def wanted(self, indices: np.ndarray, crops: Crops | None) -> list[Wanted]:
        named = [(self.files[index], int(self.numbers[index])) for index in indices]
        if crops is None:
            return [Wanted(*each) for each in named]
        drawn = zip(named, crops.boxes.tolist(), crops.flips.tolist(), strict=True)
        return [Wanted(*each, tuple(box), flip) for each, box, flip in drawn]

    def _decode(self, wanted: Sequence[Wanted], side: int) -> np.ndarray:
        with ThreadPoolExecutor(DECODE_THREADS) as threads:
            return np.stack(list(threads.map(lambda one: self.decoder.decode(one, side), wanted)))

    def decode_batches(self, batches: Iterable[Sequence[Wanted]], *, side: int) -> Generator[Tensor]:
        """The same pixels for one batch after another, decoded by ``num_workers`` processes a few pieces ahead."""
        pieces: deque[int] = deque()

        def cut() -> Iterator[Sequence[Wanted]]:
            for batch in batches:
                length = min(_PIECE, -(-len(batch) // self.num_workers))
                starts = range(0, len(batch), length)
                pieces.append(len(starts))
                yield from (batch[start : start + length] for start in starts)

        context = multiprocessing.get_context("forkserver")  # a fork of a process with threads and a GPU may hang
        context.set_forkserver_preload(["unfreeze.data.pixels.stream"])  # torch is imported once, not by every worker
        loader = iter(
            DataLoader(
                _Pieces(self.decoder, side),
                batch_size=None,
                sampler=cut(),
                num_workers=self.num_workers,
                multiprocessing_context=context,
                generator=torch.Generator(),  # else it takes a number from the stream that dropout draws from
            )
        )
        try:
            for first in loader:
                decoded = [first, *(next(loader) for _ in range(pieces.popleft() - 1))]
                broken = [piece for piece in decoded if isinstance(piece, str)]
                if broken:
                    raise DataError(broken[0])
                yield torch.cat(decoded)
        finally:
            del loader  # ends the processes; left to the garbage collector after an error, that takes 5 s for each


class _Pieces(Dataset[Any]):
    """What a worker process runs."""

    def __init__(self, decoder: Decoder, side: int) -> None:
        self._decoder, self._side = decoder, side

    def __getitem__(self, wanted: Sequence[Wanted]) -> Tensor | str:
        try:
            return torch.from_numpy(np.stack([self._decoder.decode(one, self._side) for one in wanted]))
        except DataError as error:  # raised here, its message would come back within a traceback
            return str(error)


def survey_files(root: Path, files: Sequence[str], squares: Squares) -> Entry:
    """Read every file once, as decoding does: which are good, their sizes and hashes, what was noticed.

    So an unreadable file is left out and named before anything starts, whether images are streamed or decoded at once.

    Raises:
        DataError: no image is left, or grey levels that are none.
    """
    headers = read_headers(root, files)
    depths = read_depths(root, files, headers)
    squares = squares.with_white(white_among(depths.values()))

    def read(name: str) -> Reading | None:
        try:
            return open_image(root / name, upright=squares.upright, check_only=True)[1]
        except UNREADABLE:
            return None

    with ThreadPoolExecutor(max(DECODE_THREADS, len(os.sched_getaffinity(0)))) as threads:
        readings = list(threads.map(read, files))
    good, hashes, seen = sum_up(root, files, readings, squares.white or White(), depths)
    sizes = np.array([reading.size for reading in readings if reading is not None], dtype=np.int64)
    side = max(min(header.size) for header in headers if header is not None)
    return Entry({"good": good, "sizes": sizes, "hashes": hashes}, {"seen": seen.to_dict(), "side": side})


def open_files(
    root: Path, files: Sequence[str], labels: Sequence[int], squares: Squares, survey: Entry, *, num_workers: int
) -> ImageFiles:
    """The images of ``files`` that `survey_files` found good."""
    seen = Seen.from_dict(survey.meta["seen"])
    squares = squares.with_white(seen.white)
    numbers = np.flatnonzero(survey.arrays["good"]).astype(np.int64)
    sizes, hashes = (np.array(survey.arrays[name]) for name in ("sizes", "hashes"))
    stored = min(squares.size, survey.meta["side"])
    good_labels = np.asarray(labels, dtype=np.int64)[numbers]
    digest = hashlib.sha256(json.dumps([stored, squares.key()]).encode())
    digest.update(hashes.tobytes() + good_labels.tobytes())
    return ImageFiles(
        decoder=Decoder(root, squares, stored),
        files=tuple(files[number] for number in numbers.tolist()),
        numbers=numbers,
        labels=good_labels,
        sizes=np.full_like(sizes, stored) if squares.shift else sizes,
        digest=digest.hexdigest(),
        hashes=hashes,
        seen=seen,
        num_workers=num_workers,
    )
