import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from unfreeze.errors import StorageError
from unfreeze.storage.base import Storage, check_writable, open_storage
from unfreeze.storage.folder import FolderStorage
from unfreeze.storage.s3 import S3Storage


@pytest.fixture
def s3_bucket(s3_environment: None) -> Iterator[str]:
    bucket = boto3.resource("s3").Bucket("sweeps")
    bucket.create()
    yield bucket.name
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture(params=["folder", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "root")
    return f"s3://{request.getfixturevalue('s3_bucket')}/some/prefix"


@pytest.fixture
def storage(location: str) -> Storage:
    return open_storage(location)


class TestContract:
    """What every storage does."""

    def test_reads_what_was_written(self, storage: Storage) -> None:
        content = bytes(range(256)) * 3
        storage.write("a.bin", content)
        storage.write("deep/er/b c.bin", b"")
        assert storage.read("a.bin") == content
        assert storage.read("deep/er/b c.bin") == b""

    def test_replaces(self, storage: Storage) -> None:
        storage.write("a", b"long before")
        storage.write("a", b"new")
        assert storage.read("a") == b"new"
        assert storage.keys() == ["a"]

    def test_creates_once(self, storage: Storage) -> None:
        assert storage.create("x/a", b"first")
        assert not storage.create("x/a", b"second")
        assert storage.read("x/a") == b"first"
        assert storage.keys() == ["x/a"]
        storage.delete("x/a")
        assert storage.create("x/a", b"third")

    def test_of_many_who_create_one_succeeds(self, storage: Storage) -> None:
        with ThreadPoolExecutor(8) as threads:
            for name in "abcde":
                made = list(threads.map(lambda who, name=name: storage.create(name, bytes([who])), range(8)))
                assert made.count(True) == 1
                assert storage.read(name) == bytes([made.index(True)])

    def test_writing_beside_deleting_finds_its_place(self, storage: Storage) -> None:
        """A folder that holds nothing more goes with its last object, perhaps under another writer's hands."""
        with ThreadPoolExecutor(4) as threads:
            for _ in range(20):
                writes = [threads.submit(storage.write, f"deep/down/{name}", b"x") for name in "ab"]
                deletes = [threads.submit(storage.delete, f"deep/down/{name}") for name in "ab"]
                assert [done.exception() for done in writes + deletes] == [None] * 4

    def test_a_missing_object_is_a_key_error(self, storage: Storage) -> None:
        storage.write("folder/a", b"1")
        for key in ("b", "folder/b", "nowhere/a", "folder/a/b"):
            with pytest.raises(KeyError, match=key):
                storage.read(key)

    def test_a_folder_is_no_object(self, storage: Storage) -> None:
        storage.write("folder/a", b"1")
        with pytest.raises(KeyError):
            storage.read("folder")

    def test_lists_sorted_by_prefix(self, storage: Storage) -> None:
        written = ["b", "a/2", "a/10", "a/1", "ab/1", "a/c/d", "Z"]
        for key in written:
            storage.write(key, b"x")
        assert storage.keys() == sorted(written)
        assert storage.keys("a/") == ["a/1", "a/10", "a/2", "a/c/d"]
        assert storage.keys("a") == ["a/1", "a/10", "a/2", "a/c/d", "ab/1"]
        assert storage.keys("a/1") == ["a/1", "a/10"]
        assert storage.keys("a/1/") == []
        assert storage.keys("nothing/here") == []

    def test_lists_nothing_before_the_first_write(self, storage: Storage) -> None:
        assert storage.keys() == []
        assert storage.keys("trials/") == []

    def test_lists_and_keeps_many(self, storage: Storage) -> None:
        keys = [f"trials/{index:05d}" for index in range(60)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda key: storage.write(key, key.encode()), keys))
        assert storage.keys("trials/") == keys
        assert storage.read(keys[-1]) == keys[-1].encode()

    def test_deletes(self, storage: Storage) -> None:
        storage.write("x/a", b"1")
        storage.write("x/b", b"2")
        storage.delete("x/a")
        assert storage.keys() == ["x/b"]
        with pytest.raises(KeyError):
            storage.read("x/a")
        storage.write("x/a", b"again")
        assert storage.read("x/a") == b"again"

    def test_deleting_what_is_not_there_is_no_error(self, storage: Storage) -> None:
        storage.delete("a")
        storage.delete("nowhere/a")

    def test_deleting_below_an_object_is_no_error(self, storage: Storage) -> None:
        storage.write("a", b"1")
        storage.delete("a/b")
        assert storage.keys() == ["a"]

    def test_the_writable_check_leaves_nothing(self, storage: Storage) -> None:
        check_writable(storage)
        assert storage.keys() == []

    def test_survives_pickling(self, storage: Storage) -> None:
        storage.write("a", b"1")
        copy = pickle.loads(pickle.dumps(storage))
        copy.write("b", b"2")
        assert copy.read("a") == b"1"
        assert storage.read("b") == b"2"
        assert copy.url("b") == storage.url("b")

    def test_the_url_is_below_the_location(self, storage: Storage, location: str) -> None:
        assert storage.url("deep/a") == f"{location}/deep/a"

    def test_a_trailing_slash_means_the_same_place(self, storage: Storage, location: str) -> None:
        storage.write("a", b"1")
        assert open_storage(f"{location}/").read("a") == b"1"

    def test_neighbours_do_not_mix(self, storage: Storage, location: str) -> None:
        storage.write("a", b"1")
        assert open_storage(f"{location}-2").keys() == []

    def test_a_writer_may_race_a_reader(self, storage: Storage) -> None:
        contents = [bytes([value]) * 50_000 for value in range(8)]
        storage.write("a", contents[0])
        with ThreadPoolExecutor(4) as threads:
            writes = [threads.submit(storage.write, "a", content) for content in contents * 3]
            seen = [storage.read("a") for _ in range(24)]
        assert all(write.exception() is None for write in writes)
        assert set(seen) <= set(contents)


def test_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=f"{tmp_path}/file/runs/.*choose another storage"):
        check_writable(FolderStorage(tmp_path / "file" / "runs"))


def test_folder_without_objects_is_gone(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path / "root")
    storage.write("x/y/a", b"1")
    storage.write("x/b", b"2")
    storage.delete("x/y/a")
    assert [path.name for path in (tmp_path / "root/x").iterdir()] == ["b"]
    storage.delete("x/b")
    assert list(tmp_path.iterdir()) == [tmp_path / "root"]
    assert list((tmp_path / "root").iterdir()) == []


def test_folder_shows_no_partial_file_after_a_failing_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FolderStorage(tmp_path)
    storage.write("a", b"before")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    for key in ("a", "b"):
        with pytest.raises(StorageError, match="No space left on device"):
            storage.write(key, b"half")
    assert storage.keys() == ["a"]
    assert storage.read("a") == b"before"
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_folder_lists_no_unfinished_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FolderStorage(tmp_path)
    listed: list[list[str]] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: listed.append(storage.keys()))
    storage.write("x/a", b"1")
    assert listed == [[]]
    assert storage.keys() == ["x/a"]


@pytest.mark.parametrize("key", ["../a", "x/../../a", "x/../a", "/etc/passwd"])
def test_folder_refuses_keys_that_leave_it(tmp_path: Path, key: str) -> None:
    storage = FolderStorage(tmp_path / "root")
    for act in (storage.read, storage.delete, storage.keys, lambda key: storage.write(key, b"1")):
        with pytest.raises(StorageError, match="must stay below"):
            act(key)
    assert list(tmp_path.rglob("*")) == []


def test_folder_does_not_follow_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = FolderStorage(Path("runs"))
    storage.write("a", b"1")
    monkeypatch.chdir("/")
    assert storage.read("a") == b"1"
    assert pickle.loads(pickle.dumps(storage)).read("a") == b"1"


def test_s3_missing_bucket_says_the_way_out(s3_bucket: str) -> None:
    storage = S3Storage("s3://no-such-bucket/runs")
    for act in (check_writable, lambda s: s.read("a"), lambda s: s.keys(), lambda s: s.delete("a")):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket/runs/.*check bucket, AWS_ENDPOINT_URL"):
            act(storage)


def test_s3_may_be_a_whole_bucket(s3_bucket: str) -> None:
    storage = S3Storage(f"s3://{s3_bucket}")
    storage.write("x/a", b"1")
    assert storage.keys() == ["x/a"]
    assert storage.url("x/a") == f"s3://{s3_bucket}/x/a"
    assert S3Storage(f"s3://{s3_bucket}/x").read("a") == b"1"


def test_s3_lists_beyond_one_page_of_a_thousand(s3_bucket: str) -> None:
    keys = [f"trials/{index:05d}" for index in range(1050)]
    server = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]  # the server lives in this process; over HTTP this takes 8 s
    for key in keys:
        server.put_object(s3_bucket, f"runs/{key}", b"x")
    assert S3Storage(f"s3://{s3_bucket}/runs").keys("trials/") == keys


def test_s3_fingerprints_tell_a_change_and_download_fetches(s3_bucket: str, tmp_path: Path) -> None:
    storage = S3Storage(f"s3://{s3_bucket}/x")
    storage.write("a", b"1")
    storage.write("b", b"2")
    before = dict(storage.fingerprints())
    storage.write("b", b"3")
    after = dict(storage.fingerprints())
    assert before["a"] == after["a"]
    assert before["b"] != after["b"]
    storage.download("b", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"3"
    with pytest.raises(StorageError, match="s3://sweeps/x/c"):
        storage.download("c", tmp_path / "c")


def test_s3_without_a_bucket_is_refused() -> None:
    with pytest.raises(StorageError, match="s3://bucket/prefix"):
        open_storage("s3:///prefix")


@pytest.mark.parametrize("location", ["gs://bucket/x", "file:///tmp/x", "http://host/x", "S3://bucket"])
def test_other_schemes_are_refused(location: str) -> None:
    with pytest.raises(StorageError, match=location):
        open_storage(location)
