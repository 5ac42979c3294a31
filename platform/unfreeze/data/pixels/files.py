"""Trees of files: their names, which of them are images, and what tells a changed tree from an unchanged one."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

_ENDINGS = (
    *("", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".j2k", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)


def list_files(root: Path) -> list[str]:
    """Relative paths of the files below ``root``, sorted; hidden ones left out.

    Links to folders are followed, as torchvision and timm do, but not back to a folder that they lie in.
    """
    found = []
    above = {str(root): {root.resolve()}}  # the real folders that a folder lies in, itself included
    for folder, subfolders, files in os.walk(root, followlinks=True):
        own = above.pop(folder)
        real = {name: (Path(folder) / name).resolve() for name in subfolders if not name.startswith(".")}
        subfolders[:] = [name for name in real if real[name] not in own]
        above |= {os.path.join(folder, name): own | {real[name]} for name in subfolders}
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def split_off_images(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """(images by their names, all else: captions, Thumbs.db, what a Mac's archive adds); a bare name may be one."""
    is_image = [PurePath(name).suffix.lower() in _ENDINGS and "__MACOSX" not in PurePath(name).parts for name in files]
    chosen, rest = ([name for name, own in zip(files, is_image, strict=True) if own is kind] for kind in (True, False))
    return chosen, rest


def fingerprint(root: Path, files: Sequence[str]) -> list[list[Any]]:
    """What tells an unchanged tree from a changed one without reading it: path, size, modification time."""
    entries: list[list[Any]] = []
    for name in files:
        try:
            stat = (root / name).stat()
            entries.append([name, stat.st_size, stat.st_mtime_ns])
        except OSError:  # a link to nowhere; decoding names it
            entries.append([name, None, None])
    return entries


def list_names(names: Sequence[str], *, most: int = 10) -> str:
    """The first ``most``, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
