"""Entries on a node: whole or not there, damage mended, the longest unused dropped, nothing left behind."""

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_disk import SmallDisk

from unfreeze.data.pixels import cache
from unfreeze.data.pixels.cache import Entry, kept, make_room, release
from unfreeze.errors import DataError

KIB = 1024


class Build:
    def __init__(self, size: int = 100) -> None:
        self.calls, self.size = 0, size

    def __call__(self) -> Entry:
        self.calls += 1
        return Entry({"a": np.arange(self.size, dtype=np.uint8), "b": np.array([[1.5]])}, {"told": "this"})


def check(entry: Entry) -> None:
    assert entry.arrays["a"].tolist() == list(range(100))
    assert entry.arrays["b"].tolist() == [[1.5]]
    assert entry.meta == {"told": "this"}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_an_entry_is_built_once(tmp_path: Path) -> None:
    build = Build()
    for _ in range(2):
        check(kept(tmp_path / "decoded", "key", build))
    assert build.calls == 1
    kept(tmp_path / "decoded", "other", build)
    assert build.calls == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_shape(path: Path) -> None:
    np.save(path.with_suffix(""), np.zeros(3)) if path.suffix == ".npy" else path.write_text('{"shapes": {"a": [3]}}')


@pytest.mark.parametrize("name", ["a.npy", "b.npy", "meta.json"])
@pytest.mark.parametrize("damage", [cut, empty, other_shape, Path.unlink, lambda path: path.write_bytes(b"junk" * 99)])
def test_damage_is_mended(
    name: str, damage: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build = Build()
    kept(tmp_path, "key", build)
    damage(tmp_path / "key" / name)
    with caplog.at_level(logging.WARNING):
        check(kept(tmp_path, "key", build))
    assert "is damaged" in caplog.text
    check(kept(tmp_path, "key", build))
    assert build.calls == 2
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(
        DataError, match=r"cannot be kept in .*key: No space left on device; make room .*data\.cache_dir"
    ):
        kept(tmp_path, "key", Build())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_gets_full_keeps_what_it_has_and_takes_more_once_there_is_room(small_disk: SmallDisk) -> None:
    folder = small_disk.path / "decoded"
    check(kept(folder, "before", Build()))
    small_disk.fill(but=64 * KIB)
    large = Build(200 * KIB)
    with pytest.raises(DataError, match=r"cannot be kept in .*large: .*; make room or .*data\.cache_dir") as caught:
        kept(folder, "large", large)
    assert "\n" not in str(caught.value)
    assert "None" not in str(caught.value)
    assert entries(folder) == {"before"}
    check(kept(folder, "before", Build()))
    check(kept(folder, "small", Build()))  # the half has given its room back
    small_disk.make_room()
    kept(folder, "large", large)
    assert entries(folder) == {"before", "small", "large"}


def test_what_was_decoded_is_read_from_a_disk_that_is_read_only(small_disk: SmallDisk) -> None:
    check(kept(small_disk.path, "key", Build()))
    release(small_disk.path / "key")
    small_disk.make_read_only()
    build = Build()
    check(kept(small_disk.path, "key", build))
    assert build.calls == 0
    with pytest.raises(DataError, match=r"Read-only file system; .* another data\.cache_dir"):
        kept(small_disk.path, "more", build)
    assert build.calls == 0


# Both have found nothing before either begins; each says what it read, and from where.
BOTH = """
import sys, time
from pathlib import Path
import numpy as np
from unfreeze.data.pixels.cache import Entry, kept
folder, me, other = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
def build():
    me.touch()
    while not other.exists():
        time.sleep(0.001)
    return Entry({"a": np.arange(200_000)}, {"told": "this"})
for key in range(8):
    me, other = me.with_suffix(f".{key}"), other.with_suffix(f".{key}")
    entry = kept(folder, f"key{key}", build, max_bytes=10_000_000)
    assert entry.arrays["a"].tolist() == list(range(200_000))
    assert entry.meta == {"told": "this"}
"""


def test_two_sweeps_may_decode_the_same_at_once(tmp_path: Path) -> None:
    places = [str(tmp_path / name) for name in ("cache", "one", "two")]
    orders = (places, [places[0], places[2], places[1]])
    both = [subprocess.Popen([sys.executable, "-c", BOTH, *order], stderr=subprocess.PIPE) for order in orders]
    assert [(process.communicate()[1], process.returncode) for process in both] == [(b"", 0)] * 2
    assert entries(tmp_path / "cache") <= {f"key{key}" for key in range(8)}
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize("place", ["file/decoded", "/proc/unfreeze/decoded"])
def test_what_is_no_folder_is_said_before_anything_is_decoded(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    build = Build()
    with pytest.raises(DataError, match=r"choose another data\.cache_dir"):
        kept(tmp_path / place, "key", build)
    assert build.calls == 0


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".tmp-dead").mkdir()
    (tmp_path / ".tmp-dead" / "images.npy").write_bytes(b"half")
    kept(tmp_path, "key", Build())
    assert leftovers(tmp_path) == []


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_longest_unused_are_dropped(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        kept(tmp_path, name, Build(10 * KIB))
        release(tmp_path / name)  # as when its process ends
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    kept(tmp_path, "another", Build(10 * KIB), max_bytes=33 * KIB)
    assert entries(tmp_path) == {"new", "middle", "another"}
    kept(tmp_path, "middle", Build())  # used
    release(tmp_path / "middle")
    kept(tmp_path, "one more", Build(10 * KIB), max_bytes=33 * KIB)
    assert entries(tmp_path) == {"middle", "another", "one more"}


def test_what_is_used_is_never_dropped(tmp_path: Path) -> None:
    entry = kept(tmp_path, "ours", Build(10 * KIB))
    script = (
        "import sys; from pathlib import Path; from unfreeze.data.pixels.cache import hold; "
        f"hold(Path({str(tmp_path / 'theirs')!r})); print('held', flush=True); sys.stdin.read()"
    )
    kept(tmp_path, "theirs", Build(10 * KIB))
    release(tmp_path / "theirs")
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        make_room(tmp_path, 10 * KIB, KIB)
        assert entries(tmp_path) == {"ours", "theirs"}
        process.communicate(b"")
    make_room(tmp_path, 10 * KIB, KIB)
    assert entries(tmp_path) == {"ours"}
    assert entry.arrays["a"][-1] == (10 * KIB - 1) % 256
    assert tmp_path / "ours" in cache._held
