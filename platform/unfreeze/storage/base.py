"""The storage protocol and the choice of an implementation."""

import uuid
from pathlib import Path
from typing import Protocol

from unfreeze.errors import StorageError
from unfreeze.load import inside_job


class Storage(Protocol):
    """Objects by key below one root. A key is a relative path with ``/``.

    Writes are atomic: a reader sees the whole old object or the whole new one, whatever is killed when.
    """

    def read(self, key: str) -> bytes:
        """The object's bytes. Raises `KeyError` when there is none, `StorageError` when it cannot be read."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Create or replace an object. Raises `StorageError`."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that must not be there yet; False where it is. Of several callers at once, one gets True."""
        ...

    def keys(self, prefix: str = "") -> list[str]:
        """The keys that start with ``prefix``, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...

    def url(self, key: str) -> str:
        """Where a person finds the object."""
        ...


def open_storage(location: str) -> Storage:
    """A folder path or ``s3://bucket/prefix`` → its storage.

    Raises:
        StorageError: a scheme nothing here speaks, or a folder that would be gone with a Ray job.
    """
    if location.startswith("s3://"):
        from unfreeze.storage.s3 import S3Storage

        return S3Storage(location)
    if "://" in location:
        raise StorageError(f"storage must be a folder or s3://bucket/prefix, but got {location!r}")
    if inside_job() and not Path(location).is_absolute():
        raise StorageError(
            f"storage={location} is relative, and inside a Ray job that is a temporary copy, gone with it: give "
            f"s3://bucket/prefix or the absolute path of a folder that all nodes share"
        )
    from unfreeze.storage.folder import FolderStorage

    return FolderStorage(Path(location))


def check_writable(storage: Storage) -> None:
    """Write, read back and delete a small object, so that a sweep does not find out after its first trial.

    Raises:
        StorageError: with the location and the cause.
    """
    key, content = f".unfreeze-write-check-{uuid.uuid4().hex}", b"ok"  # two starts at once must not meet
    storage.write(key, content)
    if storage.read(key) != content:
        raise StorageError(f"{storage.url('')} does not return what was written to it; choose another storage=…")
    storage.delete(key)
