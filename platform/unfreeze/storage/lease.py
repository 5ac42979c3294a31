"""One driver per sweep: whoever creates the next ``lease/<number>.json`` has it, until a higher number is there.

Storage creates an object once, so of two starts one gets the number, on S3 and in a shared folder alike; and nobody
writes another's object, so a driver that slept through its end cannot take anything back. None is deleted while the
sweep is there: its number could be had a second time. The number is the fencing token: every write of the ledger looks
for a higher one first, and every trial's record bears its own.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from unfreeze.errors import InfrastructureError, StorageError, SweepHeldError
from unfreeze.storage.ledger import Ledger

_LIFE_S = 60.0  # without a renewal, and a lease has ended
_RENEW_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """Who runs a sweep: an object of its storage."""

    owner: str  # of this very start
    host: str
    pid: int
    process: str  # tells the process from every other on the host, before and after
    job: str | None  # of Ray's job submission or Slurm
    since_ms: int  # wall clock, Unix time
    renewed_ms: int
    expires_ms: int
    released: bool = False

    def is_gone(self) -> bool:
        """Whether the holder has let go, or was a process of this host and is none any more."""
        if self.released:
            return True
        return self.host == socket.gethostname() and _machine() == self.process.rpartition("/")[0] and not self._runs()

    def _runs(self) -> bool:
        return _process(self.pid) == self.process

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since_ms / 1000).astimezone().isoformat(sep=" ", timespec="seconds")
        job = f", job {self.job}" if self.job else ""
        silent = max(0.0, time.time() - self.renewed_ms / 1000)
        return f"process {self.pid} on {self.host}{job}, since {since}, with a sign of life {silent:.0f} s ago"


@contextlib.contextmanager
def hold(
    ledger: Ledger, *, takeover: bool = False, life_s: float = _LIFE_S, renew_s: float = _RENEW_S
) -> Iterator[Ledger]:
    """The ledger for the one driver of its sweep. Its writes raise `InfrastructureError` once another has the sweep.

    A lease whose process is known to be gone is taken at once. One that ran out, on a machine that cannot be asked, is
    watched for a renewal first: two clocks may differ. ``takeover``: one that has not run out is waited for.

    Raises:
        SweepHeldError: another driver has the sweep; says which, since when, and the way out.
    """
    number, lease = _take(ledger, takeover=takeover, life_s=life_s, renew_s=renew_s)
    own = Ledger(ledger.location, ledger.sweep, lease=number)
    released = threading.Event()

    def renew() -> None:
        while not released.wait(renew_s):
            with contextlib.suppress(StorageError, InfrastructureError):  # writes of the sweep's own will tell
                own.write_json(_key(number), asdict(_renewed(lease, life_s)))

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield own
    finally:
        released.set()
        thread.join()
        with contextlib.suppress(StorageError, InfrastructureError):  # then it runs out
            if own.read_json("config.json") is None:  # no sweep came of it: the name is free
                own.delete(_key(number))
            else:
                own.write_json(_key(number), asdict(replace(lease, released=True)))


def _take(ledger: Ledger, *, takeover: bool, life_s: float, renew_s: float) -> tuple[int, Lease]:
    while True:
        number, held = last_lease(ledger)
        if held is not None and not held.is_gone():
            _wait_for_the_end(ledger, number, held, takeover=takeover, life_s=life_s, renew_s=renew_s)
        own = _new(life_s)
        if ledger.create_json(_key(number + 1), asdict(own)):
            if ledger.highest_lease() == number + 1:
                return number + 1, own
            ledger.delete(_key(number + 1))  # free again because a start came to nothing, and others have begun since


def _wait_for_the_end(
    ledger: Ledger, number: int, held: Lease, *, takeover: bool, life_s: float, renew_s: float
) -> None:
    """Return when the lease has ended.

    Raises:
        SweepHeldError: it has not, or its holder gave a sign of life meanwhile.
    """
    has_run_out = time.time() > held.expires_ms / 1000
    if has_run_out or takeover:
        until = time.monotonic() + (1.5 * renew_s if has_run_out else life_s)
        while time.monotonic() < until:
            time.sleep(min(1.0, renew_s / 4))
            now = _read(ledger, number)
            if now is None or now.is_gone():
                return
            if now.renewed_ms != held.renewed_ms:
                held = now
                break
        else:
            return
    raise SweepHeldError(
        f"sweep {ledger.sweep!r} in {ledger.url('')} is being run by {held}. Two drivers would spoil it: let that one "
        f"finish, or stop it and run the same command, which goes on; sweep.takeover=true waits {life_s:g} s for a "
        f"holder that may be dead"
    )


def _new(life_s: float) -> Lease:
    now = round(1000 * time.time())
    return Lease(
        owner=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        process=_process(os.getpid()),
        job=submitted_job(),
        since_ms=now,
        renewed_ms=now,
        expires_ms=now + round(1000 * life_s),
    )


def _renewed(lease: Lease, life_s: float) -> Lease:
    now = round(1000 * time.time())
    return replace(lease, renewed_ms=now, expires_ms=now + round(1000 * life_s))


def last_lease(ledger: Ledger) -> tuple[int, Lease | None]:
    """The number of the sweep's last lease, and what it says, ended or not; 0 and None before the first."""
    number = ledger.highest_lease()
    return number, _read(ledger, number) if number else None


def _read(ledger: Ledger, number: int) -> Lease | None:
    raw = ledger.read_json(_key(number))
    try:
        return None if raw is None else Lease(**raw)
    except TypeError as error:
        raise StorageError(f"{ledger.url(_key(number))} is no lease ({error}); delete it if no driver runs") from error


def _key(number: int) -> str:
    return f"lease/{number:05d}.json"


def submitted_job() -> str | None:
    """Of Slurm, or of `ray job submit`, which hands its driver a JSON object with the submission's id."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return os.environ.get("SLURM_JOB_ID") or config.get("metadata", {}).get("job_submission_id")


def _machine() -> str:
    """The running system and its table of processes: containers of one host may not see each other's."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return "-"


def _process(pid: int) -> str:
    """A process that runs, told from another of the same number by its start; "" for one that does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # another user's
        pass
    try:
        # "pid (name) state …": the 22nd is the start in ticks since the boot.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return f"{_machine()}/-"
    return "" if state == "Z" else f"{_machine()}/{rest[18]}"
