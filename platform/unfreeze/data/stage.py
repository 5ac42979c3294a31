"""An ``s3://`` tree as a local folder: downloaded once per node, atomically, several objects at once."""

import contextlib
import hashlib
import json
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unfreeze.errors import DataError

_DOWNLOADS = 8


def local_tree(location: str, *, cache_dir: Path) -> Path:
    """The folder that holds ``location``: itself when local, a staged copy when ``s3://``.

    Raises:
        DataError: there is nothing there.
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
    entries = [(key, tag) for key, tag in storage.fingerprints() if key and not key.endswith("/")]
    if not entries:
        raise DataError(f"no objects below {location!r}; give the prefix of an ImageFolder tree")
    name = hashlib.sha256(json.dumps([location, entries]).encode()).hexdigest()[:32]
    folder = cache_dir / "staged" / name
    if not folder.exists():
        temporary = folder.with_name(f".tmp-{uuid.uuid4().hex}")
        try:
            for key, _ in entries:
                if ".." in Path(key).parts:
                    raise DataError(f"{location!r} holds an object whose key leaves its prefix: {key!r}")
                (temporary / key).parent.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(_DOWNLOADS) as threads:
                list(threads.map(lambda entry: storage.download(entry[0], temporary / entry[0]), entries))
            with contextlib.suppress(OSError):  # another process was first
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def stage_file(location: str, *, cache_dir: Path) -> Path:
    """One ``s3://bucket/key`` object as a local file, downloaded once per node.

    Raises:
        DataError: there is nothing there.
        StorageError: it cannot be reached.
    """
    prefix, _, name = location.rpartition("/")
    from unfreeze.storage.s3 import S3Storage

    storage = S3Storage(prefix)
    tags = [tag for key, tag in storage.fingerprints(name) if key == name]
    if not tags:
        raise DataError(f"no object at {location!r}")
    target = cache_dir / "staged" / hashlib.sha256(f"{location}{tags[0]}".encode()).hexdigest()[:32] / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".tmp-{uuid.uuid4().hex}")
        storage.download(name, temporary)
        temporary.replace(target)
    return target
