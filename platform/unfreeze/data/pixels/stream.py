"""Sets larger than memory: images stay in their files, and each is decoded when it is asked for."""

import hashlib
import json
import multiprocessing
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
from unfreeze.data.pixels.decode import (
    DECODE_THREADS,
    UNREADABLE,
    Squares,
    decode_one,
    fingerprint,
    image_sizes,
    open_rgb,
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
            raise DataError(f"{path} cannot be read as an image: {error}; mend or remove it") from error
        pixels = np.asarray(crop.resize((side, side), Image.Resampling.BILINEAR))
        return pixels[:, ::-1] if wanted.flip else pixels

    def whole(self, path: Path, number: int) -> Image.Image:
        """The image as it is in its file, RGB, of a corrupted set its square. Raises one of `UNREADABLE`."""
        if self.squares.shift:
            return Image.fromarray(decode_one(path, number, self.squares, self.stored))
        return open_rgb(path)


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """What `ImageArray` is for images that are not held in memory."""

    decoder: Decoder
    files: tuple[str, ...]
    numbers: np.ndarray  # int64 (N,), of each file before the unreadable ones were left out
    labels: np.ndarray  # int64 (N,)
    sizes: np.ndarray  # int64 (N, 2): width and height in px of what crops are drawn from
    digest: str  # of the files' names, sizes and times, not of their pixels
    bad_files: tuple[str, ...]
    num_workers: int

    def __len__(self) -> int:
        return len(self.labels)

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


def open_files(
    root: Path, files: Sequence[str], labels: Sequence[int], squares: Squares, *, num_workers: int
) -> ImageFiles:
    """Read the headers of ``files``: those without one are left out and named in the result.

    Raises:
        DataError: no image is left.
    """
    found = image_sizes(root, files)
    numbers = np.array([number for number, size in enumerate(found) if size is not None], dtype=np.int64)
    if not len(numbers):
        raise DataError(f"none of the {len(files)} files below {root} can be read as an image, such as {files[0]}")
    sizes = np.array([size for size in found if size is not None], dtype=np.int64)
    stored = min(squares.size, int(sizes.min(1).max()))
    key = json.dumps([fingerprint(root, files), list(labels), squares.key()])
    return ImageFiles(
        decoder=Decoder(root, squares, stored),
        files=tuple(files[number] for number in numbers),
        numbers=numbers,
        labels=np.asarray(labels, dtype=np.int64)[numbers],
        sizes=np.full_like(sizes, stored) if squares.shift else sizes,
        digest=hashlib.sha256(key.encode()).hexdigest(),
        bad_files=tuple(name for name, size in zip(files, found, strict=True) if size is None),
        num_workers=num_workers,
    )
