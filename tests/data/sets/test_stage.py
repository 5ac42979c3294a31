"""S3 trees as local folders: checked, resumed, shared by processes that stage at once."""

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from unfreeze.data.pixels.cache import release
from unfreeze.data.sets.stage import local_tree, stage_file
from unfreeze.errors import DataError, StorageError
from unfreeze.storage.s3 import S3Storage

CONTENT = {f"class{index % 3}/{index:02d}": bytes([index]) * (index + 1) for index in range(20)}


@pytest.fixture
def bucket(s3_environment: None) -> Iterator[Any]:
    bucket = boto3.resource("s3").Bucket("staging")
    bucket.create()
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture
def tree(bucket: Any) -> str:
    for key, content in CONTENT.items():
        bucket.put_object(Key=f"tree/{key}", Body=content)
    return "s3://staging/tree"


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(cache_dir: Path) -> list[str]:
    return [path.name for path in (cache_dir / "staged").iterdir() if path.name.startswith(".")]


class Downloads:
    """Stands in for `S3Storage.download`: counts, and does what a test wants before the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[str] = []
        self.cut_after: int | None = None
        self.damage = 0  # how many downloads arrive with a wrong byte
        self.shorten = 0
        self._lock = threading.Lock()
        real = S3Storage.download

        def download(storage: S3Storage, key: str, target: Path) -> None:
            with self._lock:
                if self.cut_after is not None and len(self.keys) >= self.cut_after:
                    raise StorageError("the line is dead")
                self.keys.append(key)
                damage, self.damage = self.damage > 0, self.damage - 1
                shorten, self.shorten = self.shorten > 0, self.shorten - 1
            real(storage, key, target)
            content = target.read_bytes()
            if damage:
                target.write_bytes(
                    hashlib.sha256(target.name.encode() + bytes([self.damage % 256])).digest()[:1] * len(content)
                )
            if shorten:
                target.write_bytes(content[:-1])

        monkeypatch.setattr(S3Storage, "download", download)


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Downloads:
    return Downloads(monkeypatch)


def test_a_tree_arrives_whole_and_once(tree: str, downloads: Downloads, tmp_path: Path) -> None:
    folder = local_tree(tree, cache_dir=tmp_path)
    assert files_below(folder) == CONTENT
    assert local_tree(tree, cache_dir=tmp_path) == folder
    assert sorted(downloads.keys) == sorted(CONTENT)
    assert leftovers(tmp_path) == []


def test_a_cut_download_goes_on_where_it_was(tree: str, downloads: Downloads, tmp_path: Path) -> None:
    downloads.cut_after = 7
    with pytest.raises(StorageError, match="the line is dead"):
        local_tree(tree, cache_dir=tmp_path)
    downloads.cut_after = None
    assert files_below(local_tree(tree, cache_dir=tmp_path)) == CONTENT
    assert sorted(downloads.keys) == sorted(CONTENT)
    assert leftovers(tmp_path) == []


def test_what_a_killed_process_leaves_half_written_is_not_taken(
    tree: str, downloads: Downloads, tmp_path: Path
) -> None:
    downloads.cut_after = 7
    with pytest.raises(StorageError):
        local_tree(tree, cache_dir=tmp_path)
    (partial,) = leftovers(tmp_path)
    arriving = tmp_path / "staged" / partial.replace(".partial-", ".tmp-")
    arriving.mkdir()
    (arriving / "0123").write_bytes(b"half")
    downloads.cut_after = None
    assert files_below(local_tree(tree, cache_dir=tmp_path)) == CONTENT
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("fault", ["damage", "shorten"])
def test_a_fault_on_the_way_is_noticed_and_mended(fault: str, tree: str, downloads: Downloads, tmp_path: Path) -> None:
    setattr(downloads, fault, 1)
    assert files_below(local_tree(tree, cache_dir=tmp_path)) == CONTENT
    assert len(downloads.keys) == len(CONTENT) + 1


def test_a_lasting_fault_is_named(bucket: Any, downloads: Downloads, tmp_path: Path) -> None:
    bucket.put_object(Key="tree/a", Body=b"whole")
    downloads.shorten = 99
    with pytest.raises(DataError, match="s3://staging/tree/a arrives damaged, 2 times; it should have 5 bytes"):
        local_tree("s3://staging/tree", cache_dir=tmp_path)


def test_tags_of_an_encrypting_bucket_are_no_checksums(
    tree: str, downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = S3Storage.objects

    def objects(storage: S3Storage, prefix: str = "") -> list[tuple[str, str, int]]:
        return [(key, f'"{hashlib.md5(tag.encode()).hexdigest()}"', size) for key, tag, size in real(storage, prefix)]

    monkeypatch.setattr(S3Storage, "objects", objects)
    monkeypatch.setattr("unfreeze.data.sets.stage._DOWNLOADS", 1)
    assert files_below(local_tree(tree, cache_dir=tmp_path)) == CONTENT
    assert len(downloads.keys) == len(CONTENT) + 1  # found out with the first, not once more for each


def test_an_object_uploaded_in_parts_is_checked_by_its_size(bucket: Any, downloads: Downloads, tmp_path: Path) -> None:
    client, part = boto3.client("s3"), b"x" * 5 * 2**20
    upload = client.create_multipart_upload(Bucket="staging", Key="big")["UploadId"]
    where = {"Bucket": "staging", "Key": "big", "UploadId": upload}
    tags = [client.upload_part(**where, PartNumber=n, Body=body)["ETag"] for n, body in ((1, part), (2, b"end"))]
    parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
    client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    downloads.shorten = 1
    assert stage_file("s3://staging/big", cache_dir=tmp_path).read_bytes() == part + b"end"
    assert len(downloads.keys) == 2


def test_several_at_once_get_the_same_whole_tree(tree: str, downloads: Downloads, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        folders = list(threads.map(lambda _: local_tree(tree, cache_dir=tmp_path), range(4)))
    assert len(set(folders)) == 1
    assert files_below(folders[0]) == CONTENT
    assert len(downloads.keys) < 4 * len(CONTENT)  # they share the work


def test_one_that_finishes_in_the_middle_of_another_hurts_neither(
    tree: str, downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower one's partial folder is renamed away while it holds an object that has just arrived."""
    real, nested = S3Storage.download, threading.Event()

    def download(storage: S3Storage, key: str, target: Path) -> None:
        real(storage, key, target)
        if not nested.is_set():
            nested.set()
            local_tree(tree, cache_dir=tmp_path)

    monkeypatch.setattr(S3Storage, "download", download)
    monkeypatch.setattr("unfreeze.data.sets.stage._DOWNLOADS", 1)
    folder = local_tree(tree, cache_dir=tmp_path)
    assert files_below(folder) == CONTENT
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("key", ["a/../../x", "/tmp/x"])
def test_a_key_that_leaves_its_prefix_is_refused(
    key: str, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3Storage, "objects", lambda *_: [(key, '"0"', 1)])
    with pytest.raises(DataError, match="leaves its prefix"):
        local_tree("s3://staging/tree", cache_dir=tmp_path)
    assert not (tmp_path / "staged").exists()


def test_a_key_with_an_absolute_part_is_never_written_there(bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Key=f"tree/{tmp_path}/outside", Body=b"x")
    with pytest.raises(DataError, match="leaves its prefix"):
        local_tree("s3://staging/tree", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "outside").exists()


def test_keys_that_are_one_path_are_refused(bucket: Any, tmp_path: Path) -> None:
    for key in ("tree/a/x", "tree/a//x"):
        bucket.put_object(Key=key, Body=key.encode())
    with pytest.raises(DataError, match="whose keys are one path: 'a/x'"):
        local_tree("s3://staging/tree", cache_dir=tmp_path)


def test_a_key_that_is_file_and_folder_is_one_clear_error(bucket: Any, tmp_path: Path) -> None:
    for key in ("tree/a", "tree/a/x"):
        bucket.put_object(Key=key, Body=key.encode())
    with pytest.raises(DataError, match=r"s3://staging/tree cannot be copied to .*choose another data\.cache_dir"):
        local_tree("s3://staging/tree", cache_dir=tmp_path)


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [lose, cut])
def test_a_copy_that_lost_files_gets_them_back(
    damage: Callable[[Path], None], tree: str, downloads: Downloads, tmp_path: Path
) -> None:
    folder = local_tree(tree, cache_dir=tmp_path)
    lost = sorted(CONTENT)[3:5]
    for name in lost:
        damage(folder / name)
    downloads.keys.clear()
    assert files_below(local_tree(tree, cache_dir=tmp_path)) == CONTENT
    assert sorted(downloads.keys) == lost
    assert leftovers(tmp_path) == []


def test_a_file_as_cache_is_one_clear_error(tree: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot be copied to .*Not a directory; .* another data\.cache_dir"):
        local_tree(tree, cache_dir=tmp_path / "file")


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half(
    tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(storage: S3Storage, key: str, target: Path) -> None:
        target.write_bytes(b"ha")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(S3Storage, "download", full)
    with pytest.raises(DataError, match="No space left on device; make room"):
        local_tree(tree, cache_dir=tmp_path)
    assert [name for name in leftovers(tmp_path) if name.startswith(".tmp")] == []
    assert files_below(tmp_path / "staged") == {}


def test_a_line_that_is_cut_again_and_again_is_our_error(
    tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: Any, **__: Any) -> None:
        raise boto3.exceptions.RetriesExceededError(OSError("connection broken"))

    storage = S3Storage(tree)
    monkeypatch.setattr(storage._client, "download_file", cut_off)
    with pytest.raises(StorageError, match="cannot download s3://staging/tree/a"):
        storage.download("a", tmp_path / "a")


def test_the_longest_unused_copies_make_room(bucket: Any, tmp_path: Path) -> None:
    folders = []
    for age, name in enumerate(("new", "old")):
        bucket.put_object(Key=f"{name}/x", Body=bytes(1000))
        folders.append(local_tree(f"s3://staging/{name}", cache_dir=tmp_path))
        release(folders[-1])  # as when its process ends
        os.utime(folders[-1], (1e9 - age, 1e9 - age))
    bucket.put_object(Key="more/x", Body=bytes(1000))
    more = local_tree("s3://staging/more", cache_dir=tmp_path, max_bytes=2500)
    assert set((tmp_path / "staged").iterdir()) == {folders[0], more}
