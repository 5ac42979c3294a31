"""The ledger over a bad line and on a full disk: right in the end, or one sentence; nothing is torn."""

import itertools
import pickle
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from botocore.config import Config as BotoConfig
from faulty_proxy import Fault, FaultyProxy
from small_disk import SmallDisk

from unfreeze.errors import StorageError
from unfreeze.storage import patience, s3
from unfreeze.storage.base import check_writable
from unfreeze.storage.ledger import Ledger
from unfreeze.storage.patience import patiently
from unfreeze.storage.s3 import S3Storage

WHOLE = {"number": 0.1234567890123, "text": "x" * 700}


@pytest.fixture
def ledger(faulty_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """Each request is tried once by botocore, so that all other tries are ours; a second of silence is long."""
    brief = BotoConfig(retries={"total_max_attempts": 1, "mode": "standard"}, read_timeout=1)
    monkeypatch.setattr(s3, "_CLIENT", s3._CLIENT.merge(brief))
    monkeypatch.setattr(s3, "_SLOW_S", 0.2)
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(patience, "_LONGEST_PAUSE_S", 0.01)
    bucket = boto3.resource("s3").Bucket("faults")
    bucket.create()
    yield Ledger("s3://faults/runs", "study")
    faulty_proxy.plan(())
    bucket.objects.all().delete()
    bucket.delete()


@pytest.mark.parametrize("fault", sorted(set(Fault) - {Fault.UNKNOWN, Fault.FORBIDDEN}))  # answers, not faults
def test_a_fault_of_the_line_is_tried_again(fault: Fault, ledger: Ledger, faulty_proxy: FaultyProxy) -> None:
    def spoil() -> None:
        # Only what is read may trickle; of a listing there is no checksum.
        faulty_proxy.plan([fault], of=lambda method, _: method == "GET" or fault is not Fault.TRICKLE)

    spoil()
    ledger.write_json("a.json", WHOLE)
    spoil()
    assert ledger.read_json("a.json") == WHOLE
    assert len(faulty_proxy.met) == (1 if fault is Fault.LATE else 2)  # what arrives late arrives
    spoil()
    assert ledger.create_json("b.json", WHOLE)
    spoil()
    assert not ledger.create_json("b.json", {})
    assert ledger.read_json("b.json") == WHOLE
    if fault not in (Fault.DAMAGED, Fault.TRICKLE):
        spoil()
    assert patiently(ledger.storage.keys) == ["study/a.json", "study/b.json"]
    spoil()
    ledger.delete("b.json")
    assert patiently(ledger.storage.keys) == ["study/a.json"]  # half an empty answer shows in the next


def storm(seed: int, share: float) -> Iterator[Fault | None]:
    rng = random.Random(seed)
    kinds = [Fault.RESET, Fault.UNANSWERED, Fault.BUSY, Fault.HALF, Fault.DAMAGED]  # the others only take time
    while True:
        yield rng.choice(kinds) if rng.random() < share else None


def test_what_was_written_in_a_storm_is_there(ledger: Ledger, faulty_proxy: FaultyProxy) -> None:
    faulty_proxy.plan(storm(0, 0.6))

    def keep(number: int) -> None:
        for version in range(3):
            ledger.write_json(f"trials/{number}.json", [number, version])
            assert ledger.read_json(f"trials/{number}.json") == [number, version]

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(keep, range(6)))
    assert sum(fault is not None for _, fault in faulty_proxy.met) > 15
    faulty_proxy.plan(())
    assert [ledger.read_json(f"trials/{number}.json") for number in range(6)] == [[n, 2] for n in range(6)]


def test_of_two_who_create_over_a_bad_line_one_succeeds(ledger: Ledger, faulty_proxy: FaultyProxy) -> None:
    faulty_proxy.plan(storm(1, 0.5))
    with ThreadPoolExecutor(2) as threads:
        for number in range(4):
            created = list(threads.map(lambda who, n=number: ledger.create_json(f"lease/{n}", [who]), "ab"))
            assert sorted(created) == [False, True]
            assert ledger.read_json(f"lease/{number}") == ["ab"[created.index(True)]]


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.BUSY, Fault.HALF, Fault.DAMAGED, Fault.TRICKLE])
def test_a_fault_that_stays_is_told_when_the_time_is_over(
    fault: Fault, ledger: Ledger, faulty_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.write_json("a.json", WHOLE)
    monkeypatch.setitem(patiently.__kwdefaults__ or {}, "patience_s", 0.5)
    faulty_proxy.plan(itertools.repeat(fault))
    with pytest.raises(StorageError, match=r"cannot read s3://faults/runs/study/a\.json: ") as caught:
        ledger.read_json("a.json")
    assert "\n" not in str(caught.value)
    assert len(faulty_proxy.met) > 1 or fault is Fault.TRICKLE


def test_an_endpoint_that_cannot_be_reached_is_waited_for_once_it_has_answered(
    ledger: Ledger, faulty_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(patiently.__kwdefaults__ or {}, "patience_s", 0.5)
    with FaultyProxy(faulty_proxy.url) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL", line.url)
        known, unknown = Ledger(ledger.location, "study"), Ledger(ledger.location, "study")
        known.write_json("a.json", WHOLE)
    known = pickle.loads(pickle.dumps(known))  # to a worker
    for own, is_waited_for in ((unknown, False), (known, True)):
        caplog.clear()
        with pytest.raises(StorageError, match="Could not connect to the endpoint URL"):
            own.read_json("a.json")
        assert ("trying again" in caplog.text) is is_waited_for


def test_expired_credentials_are_told_before_a_sweep_and_read_anew_in_its_middle(
    ledger: Ledger, faulty_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"

    def write(key: str) -> None:
        credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    write("OLD")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # which has credentials of another test
    ledger.write_json("a.json", 1)
    faulty_proxy.plan(itertools.repeat(Fault.EXPIRED), of=lambda _, headers: "OLD/" in headers["Authorization"])
    with pytest.raises(StorageError, match=r"ExpiredToken.*; check .* credentials"):
        check_writable(S3Storage("s3://faults/runs"))
    assert len(faulty_proxy.met) == 1
    with ThreadPoolExecutor(1) as thread:
        written = thread.submit(ledger.write_json, "a.json", 2)
        while len(faulty_proxy.met) < 4:
            assert not written.done()
        write("NEW")
        written.result()
    assert ledger.read_json("a.json") == 2


def test_a_full_disk_is_one_sentence_tears_nothing_and_goes_on_once_there_is_room(small_disk: SmallDisk) -> None:
    ledger = Ledger(str(small_disk.path / "runs"), "study")
    ledger.write_json("a.json", WHOLE)
    small_disk.fill()
    for key in ("a.json", "b.json", "new/folder/c.json"):
        with pytest.raises(StorageError, match=r"\.json: No space left on device; make room there, or") as caught:
            ledger.write_json(key, [WHOLE] * 3)
        assert "\n" not in str(caught.value)
        assert not caught.value.may_pass
    with pytest.raises(StorageError, match="No space left on device"):
        ledger.create_json("lease/00001.json", {})
    assert ledger.storage.keys("study/") == ["study/a.json"]
    assert ledger.read_json("a.json") == WHOLE
    small_disk.make_room()
    assert [path.name for path in small_disk.path.rglob("*") if path.is_file()] == ["a.json"]
    ledger.write_json("a.json", [WHOLE] * 3)
    assert ledger.create_json("lease/00001.json", {})
    assert ledger.read_json("a.json") == [WHOLE] * 3


def test_an_object_that_fits_in_part_only_is_not_there(small_disk: SmallDisk) -> None:
    ledger = Ledger(str(small_disk.path / "runs"), "study")
    ledger.write_bytes("best.safetensors", b"1" * 1_000)
    small_disk.fill(but=64 * 1024)
    with pytest.raises(StorageError, match="No space left"):
        ledger.write_bytes("best.safetensors", b"2" * 256 * 1024)
    assert ledger.read_bytes("best.safetensors") == b"1" * 1_000
    ledger.write_bytes("best.safetensors", b"3" * 32 * 1024)  # the half has given its room back
    assert ledger.read_bytes("best.safetensors") == b"3" * 32 * 1024
