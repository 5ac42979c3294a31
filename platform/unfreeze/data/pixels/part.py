"""A part of a data set: images of one role, wherever they are kept."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from unfreeze.data.pixels.decode import ImageArray
from unfreeze.data.pixels.grey import White
from unfreeze.data.pixels.stream import ImageFiles

Images = ImageArray | ImageFiles


@dataclass(frozen=True, slots=True)
class Part:
    """Images of one role: a view by index of images in memory, or in their files."""

    array: Images
    indices: np.ndarray  # int64 (N,), into the array

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> np.ndarray:
        return self.array.labels[self.indices]

    @property
    def digest(self) -> str:
        """sha256 of which images these are, in which order."""
        chosen = np.ascontiguousarray(self.indices, dtype=np.int64).tobytes()
        return hashlib.sha256(self.array.digest.encode() + chosen).hexdigest()

    @property
    def hashes(self) -> np.ndarray:
        """uint64 (N,): equal ones are copies."""
        return self.array.hashes[self.indices]

    @property
    def streams(self) -> bool:
        """Whether each image is decoded from its file when it is taken."""
        return isinstance(self.array, ImageFiles)

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Images at ``positions`` of this part: uint8 (B, S, S, 3)."""
        return self.array.take(self.indices[positions])

    @property
    def stored(self) -> int:
        """Side in px of the squares that are cut from the images."""
        return self.array.stored

    @property
    def white(self) -> White:
        """What is white in its deep grey images."""
        return self.array.seen.white

    def original(self, position: int) -> Image.Image:
        """One image as it came, RGB, neither resized nor cropped; its square where that is all there is of it."""
        return self.array.original(int(self.indices[position]))

    def sizes(self, positions: np.ndarray) -> torch.Tensor:
        """Width and height in px of what random crops are cut from: the square, or the whole image in its file."""
        if isinstance(self.array, ImageFiles):
            return torch.from_numpy(self.array.sizes[self.indices[positions]])
        return torch.full((len(positions), 2), self.array.stored)
