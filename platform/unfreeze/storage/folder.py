"""Storage in a folder, local or on a shared file system."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from unfreeze.errors import StorageError

# What a shared file system says while its server restarts or its line is cut.
_PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN}
FULL = {errno.ENOSPC, errno.EDQUOT}
_TEMPORARY = ".tmp-"


class FolderStorage:
    def __init__(self, root: Path) -> None:
        # Absolute, because Ray Tune changes the working directory of its trials.
        self._root = root.expanduser().resolve()

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise KeyError(key) from None
        except OSError as error:
            raise StorageError(
                f"cannot read {self.url(key)}: {error.strerror}; check its permissions",
                may_pass=error.errno in _PASSING,
            ) from error

    def write(self, key: str, data: bytes) -> None:
        with self._written(key, data) as (temporary, path):
            temporary.replace(path)

    def create(self, key: str, data: bytes) -> bool:
        with self._written(key, data) as (temporary, path):
            try:
                os.link(temporary, path)  # the one call that fails where there is something, on NFS too
            except FileExistsError:
                return False
            return True

    def keys(self, prefix: str = "") -> list[str]:
        # Walk only the folder the prefix names: a sweep's root holds thousands of objects below other prefixes.
        folder = self._path(prefix.rpartition("/")[0])
        keys = (
            path.relative_to(self._root).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith(_TEMPORARY)
        )
        return sorted(key for key in keys if key.startswith(prefix))

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:  # there is no such object
            return
        except OSError as error:
            raise StorageError(f"cannot delete {self.url(key)}: {error.strerror}") from error
        for folder in path.parents:  # one without objects is none, as on S3
            try:
                if folder == self._root:
                    break
                folder.rmdir()
            except OSError:  # not empty
                break

    def url(self, key: str) -> str:
        return str(self._path(key))

    @contextlib.contextmanager
    def _written(self, key: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """The bytes in a file beside the object's, which is gone afterwards if it has not been moved; and that path."""
        path = self._path(key)
        temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{path.name}")
        try:
            with _opened(temporary) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # without it a power cut can leave an empty file behind the rename
            yield temporary, path
        except OSError as error:
            way_out = "make room there" if error.errno in FULL else "mend its permissions"
            raise StorageError(
                f"cannot write {self.url(key)}: {error.strerror}; {way_out}, or choose another storage=…",
                may_pass=error.errno in _PASSING,
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        path = self._root / key
        if ".." in Path(key).parts or not path.is_relative_to(self._root):
            raise StorageError(f"a key must stay below {self._root}, but got {key!r}")
        return path


def _opened(path: Path) -> BinaryIO:
    """A new file, its folder made if need be; again where a deletion has just taken the empty folder away."""
    for _ in range(100):
        # FileExistsError: of a folder that was there for mkdir, and gone when mkdir looked what it was.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("wb")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")
