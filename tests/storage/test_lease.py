"""One driver per sweep, in a folder and on S3: never two writers, and no dead one in the way."""

import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import boto3
import pytest

from unfreeze.config import Config
from unfreeze.errors import InfrastructureError, SweepHeldError
from unfreeze.records import TrialRecord, TrialSpec, TrialState
from unfreeze.storage import lease
from unfreeze.storage.lease import Lease, hold
from unfreeze.storage.ledger import Ledger

FAR = "another-machine"


@pytest.fixture(params=["folder", "s3"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "folder":
        return Ledger(str(tmp_path / "runs"), "study")
    request.getfixturevalue("s3_environment")
    bucket = boto3.resource("s3").Bucket("leases")
    bucket.create()
    bucket.objects.all().delete()
    return Ledger("s3://leases/runs", "study")


def held(ledger: Ledger, number: int = 1) -> Lease:
    return Lease(**ledger.read_json(f"lease/{number:05d}.json"))


def leave_behind(ledger: Ledger, **changes: object) -> None:
    """A lease as a driver that was killed leaves it."""
    with hold(ledger):
        found = held(ledger)
    ledger.write_json("lease/00001.json", asdict(replace(found, **changes)))


def test_the_second_start_is_refused_with_who_and_since_when(ledger: Ledger) -> None:
    with hold(ledger) as own:
        assert own.lease == 1
        with pytest.raises(SweepHeldError, match=r"study.* is being run by process \d+ on .*, since 20.*takeover=true"):
            hold(ledger).__enter__()
        own.claim(Config())
    with hold(ledger) as again:  # released
        assert again.lease == 2
        assert again.is_claimed(Config())
    assert ledger.storage.keys("study/lease/") == ["study/lease/00001.json", "study/lease/00002.json"]


def test_what_came_to_nothing_leaves_nothing(ledger: Ledger) -> None:
    with hold(ledger):
        pass
    assert ledger.storage.keys() == []
    if not ledger.location.startswith("s3:"):
        assert list(Path(ledger.location).iterdir()) == []


def test_of_two_starts_at_once_one_writes_fifty_times_in_a_row(ledger: Ledger) -> None:
    ledger.claim(Config())
    together = threading.Barrier(2)

    def start(stack: ExitStack) -> Ledger | None:
        together.wait()
        try:
            return stack.enter_context(hold(ledger, renew_s=60))
        except SweepHeldError:
            return None

    with ThreadPoolExecutor(2) as threads:
        for number in range(1, 13 if ledger.location.startswith("s3:") else 51):
            with ExitStack() as stack:
                found = list(threads.map(start, [stack, stack]))
                assert [own.lease for own in found if own is not None] == [number]


def test_of_fifty_starts_at_once_one_writes(ledger: Ledger) -> None:
    ledger.claim(Config())
    together, after = threading.Barrier(50), threading.Barrier(50)

    def start(_: int) -> int | None:
        together.wait()
        try:
            with hold(ledger, renew_s=60) as own:
                after.wait()  # held until all have tried
                return own.lease
        except SweepHeldError:
            after.wait()
            return None

    with ThreadPoolExecutor(50) as threads:
        assert [lease for lease in threads.map(start, range(50)) if lease is not None] == [1]


def count_up(location: str, path: Path, until: float) -> None:
    """Take the sweep again and again; while it is held nobody else may touch the file."""
    ledger = Ledger(location, "study")
    while time.time() < until:
        try:
            with hold(ledger, renew_s=60):
                before = int(path.read_text())
                time.sleep(0.001)
                assert int(path.read_text()) == before, "two writers"
                path.write_text(str(before + 1))
        except SweepHeldError:
            time.sleep(0.001)


def test_six_processes_never_write_at_once(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "runs"), "study")
    ledger.claim(Config())
    path = tmp_path / "counter"
    path.write_text("0")
    forked = multiprocessing.get_context("fork")
    starts = [forked.Process(target=count_up, args=(ledger.location, path, time.time() + 2)) for _ in range(6)]
    for process in starts:
        process.start()
    for process in starts:
        process.join()
    assert [process.exitcode for process in starts] == [0] * 6
    assert int(path.read_text()) == ledger.highest_lease() > 10


def test_a_killed_driver_of_this_host_is_in_nobodys_way(ledger: Ledger) -> None:
    ledger.claim(Config())
    code = "from unfreeze.storage.lease import hold; from unfreeze.storage.ledger import Ledger; import os\n"
    code += f"hold(Ledger({ledger.location!r}, 'study')).__enter__(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert held(ledger).expires_ms > 1000 * time.time() + 30_000
    with hold(ledger) as own:
        assert own.lease == 2


def test_a_number_that_another_process_has_now_is_not_the_driver(ledger: Ledger) -> None:
    ledger.claim(Config())
    mine = lease._process(1) or lease._process(multiprocessing.current_process().pid or 0)
    leave_behind(ledger, released=False, process=f"{mine}0")  # started at another time
    with hold(ledger) as own:
        assert own.lease == 2


def test_one_elsewhere_that_has_not_run_out_is_respected_and_taken_over_when_it_does(ledger: Ledger) -> None:
    ledger.claim(Config())
    leave_behind(ledger, released=False, host=FAR)
    with pytest.raises(SweepHeldError, match=FAR):
        hold(ledger).__enter__()
    started = time.monotonic()
    with hold(ledger, takeover=True, life_s=0.4) as own:
        assert own.lease == 2
    assert time.monotonic() - started > 0.4


def test_one_elsewhere_that_ran_out_is_taken(ledger: Ledger) -> None:
    ledger.claim(Config())
    leave_behind(ledger, released=False, host=FAR, expires_ms=round(1000 * time.time()) - 1)
    with hold(ledger, renew_s=0.2) as own:
        assert own.lease == 2


@pytest.mark.parametrize("takeover", [False, True])
def test_one_that_gives_a_sign_of_life_keeps_it_whatever_the_clocks_say(takeover: bool, ledger: Ledger) -> None:
    """Its clock is an hour slow, so each of its renewals has run out as soon as it is written."""
    ledger.claim(Config())
    past = round(1000 * time.time()) - 3_600_000
    leave_behind(ledger, released=False, host=FAR, renewed_ms=past, expires_ms=past)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(0.1):
            found = held(ledger)
            now = found.renewed_ms + 100
            ledger.write_json("lease/00001.json", asdict(replace(found, renewed_ms=now, expires_ms=now)))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(SweepHeldError, match=FAR):
            hold(ledger, takeover=takeover, life_s=2, renew_s=0.4).__enter__()
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps_takes_it_from_nobody(
    jump_s: float, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, jumped = time.time, threading.Event()
    monkeypatch.setattr(lease.time, "time", lambda: real() + jump_s * jumped.is_set())
    with hold(ledger, renew_s=0.1) as own:
        own.claim(Config())
        monkeypatch.setattr(Lease, "is_gone", lambda held: held.released)  # as on a machine that cannot be asked
        jumped.set()
        with pytest.raises(SweepHeldError):
            hold(ledger, renew_s=0.4).__enter__()
        own.write_json("final.json", {})
    with hold(ledger) as again:
        assert again.lease == 2


def test_it_is_renewed_while_it_is_held(ledger: Ledger) -> None:
    with hold(ledger, renew_s=0.05):
        first = held(ledger)
        deadline = time.monotonic() + 10
        while held(ledger).renewed_ms == first.renewed_ms and time.monotonic() < deadline:
            time.sleep(0.02)
        assert held(ledger).expires_ms > first.expires_ms
        assert held(ledger).since_ms == first.since_ms


def test_who_lost_it_writes_and_deletes_nothing_more(ledger: Ledger) -> None:
    record = TrialRecord(
        spec=TrialSpec(index=0, selection="mha", learning_rate=0.1, seed=0, origin="search"), state=TrialState.RUNNING
    )
    acts: list[Callable[[Ledger], object]] = [
        lambda own: own.claim(Config()),
        lambda own: own.write_trial(replace(record, state=TrialState.FINISHED)),
        lambda own: own.write_json("final.json", {}),
        lambda own: own.write_bytes("checkpoints/trial-00000/best.safetensors", b"late"),
        lambda own: own.delete("trials/trial-00000.json"),
    ]
    with hold(ledger, renew_s=0.05) as own:
        own.claim(Config())
        own.write_trial(record)
        assert ledger.trial("trial-00000") == replace(record, lease=1)
        assert ledger.create_json("lease/00002.json", {**asdict(held(ledger)), "host": FAR})
        before = {key: ledger.storage.read(key) for key in ledger.storage.keys("study/")}
        for act in acts:
            with pytest.raises(InfrastructureError, match=r"another driver has taken sweep 'study' over"):
                act(own)
        time.sleep(0.2)  # nor is it renewed
    assert {key: ledger.storage.read(key) for key in ledger.storage.keys("study/")} == before


def test_a_job_is_named(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"metadata": {"job_submission_id": "raysubmit_abc"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    with hold(ledger):
        assert "job raysubmit_abc" in str(held(ledger))
        monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with hold(ledger):
        assert held(ledger).job == "77"
