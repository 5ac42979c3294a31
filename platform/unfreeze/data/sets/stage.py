"""``s3://`` trees and files as local ones: downloaded once per node, checked, several objects at once.

A download that is cut short keeps the objects it had finished, and a copy that lost some gets them back. Processes that
stage the same tree at once share the work, each beginning elsewhere and leaving out what is there; renames are atomic,
so none reads half a file and none needs a lock, which a shared file system may not have.
"""

import contextlib
import hashlib
import random
import re
import shutil
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from unfreeze.config import DataConfig
from unfreeze.data.pixels.cache import hold, make_room, release
from unfreeze.data.pixels.keys import digest_of
from unfreeze.errors import DataError
from unfreeze.storage.patience import patiently

if TYPE_CHECKING:
    from unfreeze.storage.s3 import S3Storage

_DOWNLOADS = 8
_ATTEMPTS = 2
_PLAIN_MD5 = re.compile(r'"[0-9a-f]{32}"')  # of an object uploaded in parts, it ends in their number

_Entry = tuple[str, str, int]  # key, ETag, size in bytes


def cache_dir(config: DataConfig) -> Path:
    return Path(config.cache_dir).expanduser()


def tree_of(config: DataConfig, location: str) -> Path:
    """`local_tree` on this node."""
    return local_tree(location, cache_dir=cache_dir(config), max_bytes=cache_bytes(config))


def cache_bytes(config: DataConfig) -> float:
    """What ``decoded/`` and ``staged/`` may hold, each."""
    return config.cache_gib * 2**30


def local_tree(location: str, *, cache_dir: Path, max_bytes: float = float("inf")) -> Path:
    """The folder that holds ``location``: itself when local, a staged copy when ``s3://``.

    ``max_bytes``: of all copies below ``cache_dir``; the longest unused make room.

    Raises:
        DataError: there is nothing there, or what arrives is not what was sent.
        StorageError: it cannot be reached.
    """
    if not location.startswith("s3://"):
        root = Path(location).expanduser().resolve()
        if not root.is_dir():
            raise DataError(f"no such image folder: {location!r}; give an ImageFolder tree or s3://bucket/prefix")
        return root
    from unfreeze.storage.s3 import S3Storage

    storage = S3Storage(location)
    # Consoles create empty objects named like folders; they are no files.
    entries = [entry for entry in patiently(storage.objects) if entry[0] and not entry[0].endswith("/")]
    if not entries:
        raise DataError(f"no objects below {location!r}; give the prefix of an ImageFolder tree")
    return _staged(storage, location, entries, cache_dir, max_bytes)


def stage_file(location: str, *, cache_dir: Path) -> Path:
    """One ``s3://bucket/key`` object as a local file, downloaded once per node.

    Raises:
        DataError: there is nothing there, or what arrives is not what was sent.
        StorageError: it cannot be reached.
    """
    prefix, _, name = location.rpartition("/")
    from unfreeze.storage.s3 import S3Storage

    storage = S3Storage(prefix)
    entries = [entry for entry in patiently(lambda: storage.objects(name)) if entry[0] == name]
    if not entries:
        raise DataError(f"no object at {location!r}")
    return _staged(storage, location, entries, cache_dir, float("inf")) / name


def _staged(storage: "S3Storage", location: str, entries: list[_Entry], cache_dir: Path, max_bytes: float) -> Path:
    """The folder of all ``entries``, named by what they are: a changed tree is another folder."""
    _check_keys([key for key, _, _ in entries], location)
    name = digest_of("staged", location, entries)
    folder = cache_dir / "staged" / name
    hold(folder)
    if _is_whole(folder, entries):
        return folder
    staging = _Staging(storage, partial=folder.with_name(f".partial-{name}"), arriving=folder.with_name(f".tmp-{name}"))
    try:
        make_room(folder.parent, sum(size for _, _, size in entries), max_bytes)
        if folder.exists():  # files were lost since
            replace(staging, partial=folder).run(entries)
        else:
            staging.run(entries)
            staging.partial.rename(folder)
    except OSError as error:
        if not _is_whole(folder, entries):
            raise DataError(
                f"{location} cannot be copied to {folder}: {error.strerror or error}; make room or mend its "
                f"permissions, or choose another data.cache_dir"
            ) from error
        shutil.rmtree(staging.partial, ignore_errors=True)  # another process was first
    finally:
        release(staging.partial)
        release(staging.arriving)
        with contextlib.suppress(OSError):  # another process has objects on their way
            staging.arriving.rmdir()
    shutil.rmtree(staging.arriving, ignore_errors=True)
    hold(folder)
    return folder


def _check_keys(keys: list[str], location: str) -> None:
    """
    Raises:
        DataError: a key is no path below the copy, or two are the same.
    """
    outside = [key for key in keys if ".." in PurePosixPath(key).parts or PurePosixPath(key).is_absolute()]
    if outside:
        raise DataError(f"{location!r} holds an object whose key leaves its prefix: {outside[0]!r}")
    same = [key for key, count in Counter(str(PurePosixPath(key)) for key in keys).items() if count > 1]
    if same:
        raise DataError(f"{location!r} holds objects whose keys are one path: {same[0]!r}; rename one of them")


def _is_whole(folder: Path, entries: list[_Entry]) -> bool:
    return folder.exists() and all(_has_size(folder / key, size) for key, _, size in entries)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)  # a checksum, which hardened systems allow


@dataclass(slots=True)
class _Staging:
    """A tree on its way."""

    storage: "S3Storage"
    partial: Path  # objects that have arrived, checked
    arriving: Path  # objects on their way, each under a name of its own
    tags_are_md5: bool = field(default=True)  # not where the bucket encrypts with its own keys (SSE-KMS)

    def run(self, entries: list[_Entry]) -> None:
        """Fetch what is not there yet. What has arrived stays, whatever happens to the rest."""
        for place in (self.arriving, self.partial):
            place.mkdir(parents=True, exist_ok=True)
            hold(place)
        for folder in {(self.partial / key).parent for key, _, _ in entries}:
            folder.mkdir(parents=True, exist_ok=True)
        shuffled = random.Random().sample(entries, len(entries))  # unseeded: see the top of the file
        with ThreadPoolExecutor(_DOWNLOADS) as threads:
            for future in [threads.submit(self._fetch, *entry) for entry in shuffled]:
                try:
                    future.result()
                except BaseException:
                    threads.shutdown(cancel_futures=True)
                    raise

    def _fetch(self, key: str, tag: str, size: int) -> None:
        target = self.partial / key
        if _has_size(target, size):
            return
        arrived = self.arriving / uuid.uuid4().hex
        try:
            self._fetch_whole(key, tag, size, arrived)
            arrived.replace(target)
        finally:
            arrived.unlink(missing_ok=True)

    def _fetch_whole(self, key: str, tag: str, size: int, arrived: Path) -> None:
        digests: list[str] = []
        for _ in range(_ATTEMPTS):
            patiently(lambda: self.storage.download(key, arrived))
            if arrived.stat().st_size != size:
                digests.append("")
                continue
            if not (self.tags_are_md5 and _PLAIN_MD5.fullmatch(tag)):
                break
            with arrived.open("rb") as file:
                digests.append(hashlib.file_digest(file, _md5).hexdigest())
            if digests[-1] == tag.strip('"'):
                break
            if digests.count(digests[-1]) == _ATTEMPTS:  # whole, twice the same, and yet not the tag: that is no MD5
                self.tags_are_md5 = False
                break
        else:
            raise DataError(
                f"{self.storage.url(key)} arrives damaged, {_ATTEMPTS} times; it should have {size} bytes and the tag "
                f"{tag}"
            )
