"""Faults of the store that pass, those that do not, and how long they are waited for."""

import errno
import os
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError

from unfreeze.errors import StorageError
from unfreeze.storage.folder import FolderStorage
from unfreeze.storage.ledger import Ledger
from unfreeze.storage.patience import patiently
from unfreeze.storage.s3 import S3Storage

PASSING = StorageError("the line is cut", may_pass=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds slept, one pause after another; nobody waits for them."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("time.monotonic", lambda: sum(slept))
    return slept


def test_what_passes_is_waited_for_with_longer_and_longer_pauses(clock: list[float]) -> None:
    errors = [PASSING] * 7

    def act() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert patiently(act) == "done"
    assert clock == [0.5, 1, 2, 4, 8, 10, 10]


def test_what_does_not_pass_in_time_is_told(clock: list[float]) -> None:
    def act() -> None:
        raise PASSING

    with pytest.raises(StorageError, match="the line is cut"):
        patiently(act, patience_s=30)
    assert 20 < sum(clock) <= 30


@pytest.mark.parametrize("error", [StorageError("access denied"), KeyError("no such object")])
def test_what_does_not_pass_by_itself_is_told_at_once(error: Exception, clock: list[float]) -> None:
    def act() -> None:
        raise error

    with pytest.raises(type(error)):
        patiently(act)
    assert clock == []


@pytest.mark.parametrize(
    ("number", "may_pass"), [(errno.EIO, True), (errno.ESTALE, True), (errno.ENOSPC, False), (errno.EACCES, False)]
)
def test_a_folders_faults(number: int, may_pass: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StorageError) as caught:
        FolderStorage(tmp_path).write("a", b"1")
    assert caught.value.may_pass is may_pass


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (ReadTimeoutError(endpoint_url="http://s3"), True),
        (ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "PutObject"), True),
        (ClientError({"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "P"), False),
        (NoCredentialsError(), False),
    ],
)
def test_s3s_faults(error: Exception, may_pass: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def put_object(self, **_: object) -> None:
            raise error

    storage = S3Storage("s3://bucket/runs")
    monkeypatch.setattr(storage, "_lazy_client", Client())
    with pytest.raises(StorageError) as caught:
        storage.write("a", b"1")
    assert caught.value.may_pass is may_pass


def test_the_ledger_is_patient(tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(str(tmp_path), "study")
    failures = {"write": 2, "read": 1, "keys": 3, "delete": 1, "create": 1}

    def sometimes(name: str) -> None:
        whole = getattr(ledger.storage, name)

        def act(*arguments: object) -> object:
            if failures[name]:
                failures[name] -= 1
                raise PASSING
            return whole(*arguments)

        monkeypatch.setattr(ledger.storage, name, act)

    for name in failures:
        sometimes(name)
    ledger.write_json("a.json", 1)
    assert ledger.read_json("a.json") == 1
    assert ledger.trials() == []
    assert ledger.create_json("b.json", 2)
    ledger.delete("b.json")
    assert set(failures.values()) == {0}
    assert len(clock) == 8
