"""What the machine has that the command was started on: cores to use, a folder and a token for a Ray of its own."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from unfreeze.errors import ClusterError

# A socket's path has 107 bytes at most, and Ray's end in this.
_IN_RAY = "/session_2026-11-27_22-25-11_615149_4194304/sockets/plasma_store"
_FOLDER_BYTES = 107 - len(_IN_RAY)
_TRAIN = "RAY_TRAIN_V2_ENABLED"


def count_cpus(root: Path = Path("/")) -> int:
    """Cores to use: the fewest of the machine's, this process's affinity and its cgroups' quotas; at least one.

    A quota of 1.5 cores is one: two workers would wait for one another. ``root``: where /proc and /sys are found.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return max(1, int(min(os.cpu_count() or 1, affinity or 1 << 30, *_quotas(root))))


def _quotas(root: Path) -> Iterator[float]:
    """Of this process's cgroup and of every one above it, in cores; none where there is no limit."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        own = top / place.strip("/")
        # A container sees its own cgroup at the top, whatever its place is called outside.
        for folder in (own, *own.parents):
            if not folder.is_relative_to(top):
                break
            # Version 2 has "quota period" in one file, "max" for none; version 1 two files, -1 for none.
            words = (
                (_read(folder / "cpu.cfs_quota_us") + " " + _read(folder / "cpu.cfs_period_us")).split()
                if controllers
                else _read(folder / "cpu.max").split()
            )
            if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal():
                yield int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def check_train() -> None:
    """Raises ClusterError where Ray Train's first version is asked for: slots are made of the second."""
    value = os.environ.get(_TRAIN)
    if value is not None and value.lower() not in ("1", "true"):
        raise ClusterError(f"{_TRAIN}={value} asks for Ray Train V1, and slots need V2: unset {_TRAIN}")


def find_token() -> str | None:
    """The token that Ray will use: of RAY_AUTH_TOKEN, of RAY_AUTH_TOKEN_PATH's file, of the home; in this order.

    Raises:
        ClusterError: the file that is named cannot be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    if place := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        if token := _read(Path(place)).strip():
            return token
        raise ClusterError(
            f"RAY_AUTH_TOKEN_PATH={place} is no file with a token that can be read; `ray get-auth-token --generate` "
            f"writes one to ~/.ray/auth_token, which serves when the variable is unset"
        )
    home = os.environ.get("HOME")  # Ray looks nowhere else
    return _read(Path(home, ".ray/auth_token")).strip() or None if home else None


def provide_token() -> None:
    """A Ray started here asks for a token, and makes one in the home. Where that cannot be, it gets one of its own.

    Raises:
        ClusterError: as `find_token`.
    """
    home = os.environ.get("HOME")
    if find_token() is None and not (home and _can_keep(Path(home, ".ray"))):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def ray_folder() -> str | None:
    """Where a Ray started here keeps sockets and logs; None: where it does by itself.

    Below TMPDIR, if its sockets fit there: a batch system's is often too long.

    Raises:
        ClusterError: RAY_TMPDIR will not do, or no folder does.
    """
    asked = os.environ.get("RAY_TMPDIR")
    if asked:
        problem = _unfit(Path(asked, "ray"))
        if problem:
            raise ClusterError(f"RAY_TMPDIR={asked} {problem}; choose a short one that can be written, or unset it")
        return None
    usual = Path(os.environ.get("TMPDIR", "/tmp"), "ray")
    # Another user's /tmp/ray may not be ours to write.
    others = [Path(place, f"ray-{os.getuid()}") for place in (usual.parent, "/tmp", "/var/tmp", "/dev/shm")]
    for folder in (usual, *others):
        if not _unfit(folder):
            return None if folder == usual else str(folder)
    raise ClusterError(f"Ray needs a folder for its sockets, but {usual} {_unfit(usual)}; set RAY_TMPDIR to another")


def _unfit(folder: Path) -> str:
    """Why Ray cannot live there; empty: it can."""
    if len(os.fsencode(folder.absolute())) > _FOLDER_BYTES:
        return f"is longer than the {_FOLDER_BYTES - len('/ray')} bytes that a socket's path leaves"
    return "" if _can_keep(folder) else "cannot be written"


def _can_keep(folder: Path) -> bool:
    """Whether a byte can be written to a file there; the folder is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\n")
    except OSError:
        return False
    return True
