"""``s3://`` trees and files as local ones: downloaded once per node, checked, several objects at once.

A download that is cut short keeps the objects it had finished. Processes that stage the same tree at once share the
work, each beginning elsewhere and leaving out what is there; renames are atomic, so none reads half a file and none
needs a lock, which a shared file system may not have.
"""

import hashlib
import json
import random
import re
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unfreeze.errors import DataError

if TYPE_CHECKING:
    from unfreeze.storage.s3 import S3Storage

_DOWNLOADS = 8
_ATTEMPTS = 2
_PLAIN_MD5 = re.compile(r'"[0-9a-f]{32}"')  # of an object uploaded in parts, it ends in their number

_Entry = tuple[str, str, int]  # key, ETag, size in bytes


def local_tree(location: str, *, cache_dir: Path) -> Path:
    """The folder that holds ``location``: itself when local, a staged copy when ``s3://``.

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
    entries = [entry for entry in storage.objects() if entry[0] and not entry[0].endswith("/")]
    if not entries:
        raise DataError(f"no objects below {location!r}; give the prefix of an ImageFolder tree")
    for key, _, _ in entries:
        if ".." in Path(key).parts:
            raise DataError(f"{location!r} holds an object whose key leaves its prefix: {key!r}")
    return _staged(storage, location, entries, cache_dir)


def stage_file(location: str, *, cache_dir: Path) -> Path:
    """One ``s3://bucket/key`` object as a local file, downloaded once per node.

    Raises:
        DataError: there is nothing there, or what arrives is not what was sent.
        StorageError: it cannot be reached.
    """
    prefix, _, name = location.rpartition("/")
    from unfreeze.storage.s3 import S3Storage

    storage = S3Storage(prefix)
    entries = [entry for entry in storage.objects(name) if entry[0] == name]
    if not entries:
        raise DataError(f"no object at {location!r}")
    return _staged(storage, location, entries, cache_dir) / name


def _staged(storage: "S3Storage", location: str, entries: list[_Entry], cache_dir: Path) -> Path:
    """The folder of all ``entries``, named by what they are: a changed tree is another folder."""
    name = hashlib.sha256(json.dumps([location, entries]).encode()).hexdigest()[:32]
    folder = cache_dir / "staged" / name
    if folder.exists():
        return folder
    staging = _Staging(storage, partial=folder.with_name(f".partial-{name}"), arriving=folder.with_name(f".tmp-{name}"))
    try:
        staging.run(entries)
        staging.partial.rename(folder)
    except OSError:  # another process was first, and has taken the partial folder away with it
        if not folder.exists():
            raise
        shutil.rmtree(staging.partial, ignore_errors=True)
    shutil.rmtree(staging.arriving, ignore_errors=True)
    return folder


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
        self.arriving.mkdir(parents=True, exist_ok=True)
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
        if target.exists():
            return
        arrived = self.arriving / uuid.uuid4().hex
        digests: list[str] = []
        for _ in range(_ATTEMPTS):
            self.storage.download(key, arrived)
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
        arrived.replace(target)
