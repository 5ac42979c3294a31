"""Splits and subsets as index arrays, a pure function of labels and seed."""

from collections.abc import Sequence

import numpy as np

from unfreeze.data.pixels.files import list_names
from unfreeze.errors import DataError
from unfreeze.seeding import derive_seed


def stratified_split(
    labels: np.ndarray, share: float, *, seed: int, purpose: str, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (rest, part), both sorted, with ``share`` of each class in ``part``, at least one image on each side.

    ``labels``: int (N,). ``purpose`` ("val", "test") gives each split a stream of its own.

    Raises:
        DataError: names the classes with fewer than two images.
    """
    part: list[np.ndarray] = []
    too_small = [name for label, name in enumerate(classes) if np.count_nonzero(labels == label) < 2]
    if too_small:
        raise DataError(
            f"a {purpose} split needs at least two images of each class, but got fewer for: {list_names(too_small)}; "
            f"add images or remove the class"
        )
    for label in range(len(classes)):
        members = np.flatnonzero(labels == label)
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        part.append(_rng(seed, purpose, label).permutation(members)[:count])
    chosen = np.sort(np.concatenate(part))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def stratified_subset(
    labels: np.ndarray, num_images: int | None, *, seed: int, purpose: str, balanced: bool
) -> np.ndarray:
    """Sorted indices of at most ``num_images`` images; None: all.

    Each class has its share of them, to one image, and one at least; ``balanced``: as many as any other, or all it has.

    Nested: the subset of 200 contains the subset of 100 (each class gives its images in one fixed order).

    Raises:
        DataError: fewer images asked for than there are classes.
    """
    if num_images is None or num_images >= len(labels):
        return np.arange(len(labels))
    present = np.unique(labels)
    if num_images < len(present):
        raise DataError(
            f"{purpose}: {num_images} images cannot hold one of each of {len(present)} classes; raise the limit"
        )
    queues = {label: _rng(seed, purpose, int(label)).permutation(np.flatnonzero(labels == label)) for label in present}
    # The k-th image of a class comes when k of its kind are due: with every round, or where it stands among its own.
    ranked = sorted(
        (rank if balanced or not rank else (rank + 0.5) / len(queue), int(label), int(index))
        for label, queue in queues.items()
        for rank, index in enumerate(queue)
    )
    return np.sort(np.array([index for _, _, index in ranked[:num_images]]))


def paper_split(num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, test), both sorted: 80 % and 20 %, of sets that have no split of their own.

    The same permutation as in the paper's code (ambroiseodt/vit-plasticity): NumPy's legacy generator, seed 42.
    """
    order = np.random.RandomState(42).permutation(num_images)
    num_train = int(0.8 * num_images)
    return np.sort(order[:num_train]), np.sort(order[num_train:])


def _rng(seed: int, purpose: str, label: int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, "split", purpose, label))
