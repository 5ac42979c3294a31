"""What a node keeps between runs: entries of arrays in folders, whole or not there, the longest unused dropped first.

An entry that this or another process reads is held by a lock on its folder, which ends with the process, and is never
dropped. Whoever finds an entry damaged builds it again.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.errors import DataError

logger = logging.getLogger(__name__)

_META = "meta.json"
_held: dict[Path, int] = {}  # folder → the descriptor that holds its lock


@dataclass(frozen=True, slots=True)
class Entry:
    """Arrays by name, mapped from the disk, and what is told of them, JSON-ready."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def kept(folder: Path, key: str, build: Callable[[], Entry], *, max_bytes: float = float("inf")) -> Entry:
    """The entry ``key`` below ``folder``, built where it is missing or damaged.

    Two processes that build at once do the work twice and store the same bytes; a rename is atomic, so neither reads
    half of it, on shared file systems without locks too.

    Raises:
        DataError: it cannot be written: no folder, no room, no permission.
    """
    place = folder / key
    if place.exists():
        hold(place)
        try:
            return _read(place)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            logger.warning("%s is damaged (%s) and is made again", place, error)
            discard(place)
    with _writing(place):
        make_room(folder, 0, max_bytes)
        probe = folder / f".new-{uuid.uuid4().hex}"  # to build may take an hour
        probe.mkdir()
        probe.rmdir()
    entry = build()
    with _writing(place):
        make_room(folder, sum(array.nbytes for array in entry.arrays.values()), max_bytes)
        _write(place, entry)
        return _read(place)


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"decoded images cannot be kept in {place}: {error.strerror or error}; make room or mend its permissions, "
            f"or choose another data.cache_dir"
        ) from error


def hold(folder: Path) -> None:
    """Keep ``folder`` from being dropped while this process lives, and note that it was used."""
    with contextlib.suppress(OSError):  # gone again, or a file system without locks: nothing there is dropped
        os.utime(folder)
        descriptor = _held.get(folder)
        if descriptor is not None and os.fstat(descriptor).st_ino == folder.stat().st_ino:
            return
        release(folder)
        _held[folder] = os.open(folder, os.O_RDONLY)
        fcntl.flock(_held[folder], fcntl.LOCK_SH | fcntl.LOCK_NB)


def release(folder: Path) -> None:
    """Let go of what `hold` keeps."""
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


def make_room(folder: Path, needed: float, max_bytes: float) -> None:
    """Drop what nobody uses, the longest unused first, until ``needed`` bytes more fit; what was cut short in any case.

    Raises:
        OSError: there is no such folder and it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = sorted((path for path in folder.iterdir() if path.is_dir()), key=_last_used)
    for path in entries:
        if path.name.startswith(".tmp-") and not _is_used(path):
            shutil.rmtree(path, ignore_errors=True)
    if max_bytes == float("inf"):
        return
    sizes = {path: _size(path) for path in entries if not path.name.startswith((".new-", ".tmp-"))}
    total = sum(sizes.values())
    for path, size in sizes.items():
        if total + needed <= max_bytes:
            return
        if not _is_used(path):
            discard(path)
            total -= size


def discard(folder: Path) -> None:
    """Away at once, so that nobody finds half of it."""
    release(folder)
    gone = folder.with_name(f".tmp-{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):  # another process was first
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _read(place: Path) -> Entry:
    meta = json.loads((place / _META).read_text())
    arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in meta["shapes"]}
    for name, array in arrays.items():
        if list(array.shape) != meta["shapes"][name]:
            raise ValueError(f"{name} has the shape {array.shape}, not {meta['shapes'][name]}")
    return Entry(arrays, meta["told"])


def _write(place: Path, entry: Entry) -> None:
    """Store an entry and hold it, without a moment between in which another process might drop it."""
    unheld = place.with_name(f".new-{uuid.uuid4().hex}")
    unheld.mkdir()
    hold(unheld)
    temporary = unheld.rename(place.with_name(f".tmp-{uuid.uuid4().hex}"))  # held before anybody may clear it away
    try:
        for name, array in entry.arrays.items():
            np.save(temporary / f"{name}.npy", array)
        shapes = {name: array.shape for name, array in entry.arrays.items()}
        (temporary / _META).write_text(json.dumps({"shapes": shapes, "told": entry.meta}, indent=1))
        temporary.rename(place)
    except OSError:
        if not (place / _META).exists():  # else another process was first
            raise
    finally:
        hold(place)
        release(unheld)
        shutil.rmtree(temporary, ignore_errors=True)


def _is_used(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # gone by now
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _size(folder: Path) -> int:
    """Bytes below ``folder``; files that go away meanwhile count nothing."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
