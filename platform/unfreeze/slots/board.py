"""The board: an async actor where Tune's trials post jobs and slots take them. Slots pull, so any number of them may
exist, start late, or die."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unfreeze.slots.outcome import Deadly, Interrupted, Lost, Outcome

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0  # between two of a slot's signs of life
# A job that took this many slots down in a row without a new report is given up; more would only burn accelerators.
_MAX_FRUITLESS = 3


@dataclass(slots=True)
class _Job:
    trial: dict[str, Any]
    attempt: int = 0  # times a slot took it
    fruitless: int = 0  # the last so many of them brought no report
    slot: str | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)
    outcome: Outcome | None = None
    followers: set[str] = field(default_factory=set)
    cancelled: bool = False


@dataclass(slots=True)
class _Slot:
    last_heard: float
    nodes: tuple[str, ...] = ()  # of its workers; (): not known
    job_id: str | None = None
    is_useful: bool = False  # it has brought a report, or a job to its end


class Board:
    """Jobs, slots and the messages between them. All in memory: the ledger is what survives.

    Every message of a slot brings the job and the attempt it speaks of, so a slot that was given up and comes back late
    cannot touch the run that replaced it. From the same messages a board that died is made anew: Ray restarts it empty,
    slots tell what they hold, followers submit again, and nothing is handed out before the pool says which slots there
    are. Every method may be called twice for the same thing: Ray repeats what it heard no answer to.
    """

    def __init__(self, heartbeat_timeout_s: float) -> None:
        self._timeout_s = heartbeat_timeout_s
        self._jobs: dict[str, _Job] = {}
        self._queue: list[str] = []
        self._slots: dict[str, _Slot] = {}
        self._expected_slots: set[str] | None = None
        self._last_loss = ""
        self._closed = False
        self._changed = asyncio.Condition()
        self._reaper: asyncio.Task | None = None

    # --- the trials' side -------------------------------------------------------------------------------------------

    async def submit(self, job_id: str, trial: dict[str, Any], follower: str) -> None:
        """Queue a job on behalf of ``follower``; a job that is already known only gains a follower."""
        known = self._jobs.get(job_id)
        if known is not None:
            known.followers.add(follower)
            known.cancelled = False
            if isinstance(known.outcome, Interrupted | Lost):
                known.outcome = None
                known.fruitless = 0
                self._queue.append(job_id)
                self._drop_if_no_slot_is_left()
                await self._announce()
            return
        self._jobs[job_id] = _Job(trial, followers={follower})
        self._queue.append(job_id)
        self._drop_if_no_slot_is_left()
        await self._announce()

    async def follow(self, job_id: str, seen: int, wait_s: float) -> dict[str, Any] | None:
        """Reports beyond the first ``seen`` and the outcome, once there is either; both empty after ``wait_s``. None:
        the board was made anew since the job was submitted."""
        job = self._jobs.get(job_id)
        if job is None:
            return None
        await self._wait(lambda: len(job.reports) > seen or job.outcome is not None, wait_s)
        return {"reports": job.reports[seen:], "outcome": job.outcome}

    async def leave(self, job_id: str, follower: str) -> None:
        """A follower loses interest. When the last one has, a queued job never starts, a running one ends at its next
        report.

        Tune may start a new actor for a trial and then hand the trial to a cached one (``reuse_actors``): the one that
        goes away must not take the job of the other with it.
        """
        job = self._jobs.get(job_id)
        if job is None:
            return
        job.followers.discard(follower)
        if job.followers:
            return
        job.cancelled = True
        if job.outcome is None and job_id in self._queue:
            self._queue.remove(job_id)
            job.outcome = Interrupted()
        await self._announce()

    async def holders(self) -> dict[str, str]:
        """Job → the slot that runs it."""
        return {slot.job_id: slot_id for slot_id, slot in self._slots.items() if slot.job_id is not None}

    # --- the slots' side --------------------------------------------------------------------------------------------

    async def join(self, slot_id: str, nodes: Sequence[str] = ()) -> None:
        """A slot's workers are up, on these nodes, perhaps again: whatever they held before is queued anew."""
        await self._release(slot_id, "its worker group was restarted")
        before = self._slots.get(slot_id)
        is_useful = before is not None and before.is_useful
        self._slots[slot_id] = _Slot(last_heard=time.monotonic(), nodes=tuple(nodes), is_useful=is_useful)
        await self._announce()

    async def await_opening(self, wait_s: float) -> bool:
        """Whether jobs are handed out, or no more will be; False after ``wait_s``."""

        def is_open() -> bool:
            return self._expected_slots is not None or self._closed

        await self._wait(is_open, wait_s)
        return is_open()

    async def take(self, slot_id: str, wait_s: float) -> dict[str, Any]:
        """The next job as ``{"job": …}``, ``{"job": None}`` after ``wait_s``, or ``{"closed": True}``."""
        self._hear(slot_id)

        def has_news() -> bool:
            waiting = bool(self._queue) and self._expected_slots is not None
            return self._closed or waiting or slot_id not in self._slots or self._slots[slot_id].job_id is not None

        await self._wait(has_news, wait_s)
        if self._closed:
            return {"closed": True}
        slot = self._slots.get(slot_id)
        if slot is None:  # lost while it waited
            return {"job": None}
        if slot.job_id is None:  # else it asks again, not having heard the answer
            if not self._queue or self._expected_slots is None:
                return {"job": None}
            slot.job_id = self._queue.pop(0)
            job = self._jobs[slot.job_id]
            job.attempt += 1
            job.fruitless += 1
            job.slot = slot_id
        job = self._jobs[slot.job_id]
        return {"job": {"job_id": slot.job_id, "trial": job.trial, "attempt": job.attempt}}

    async def push(self, slot_id: str, held: dict[str, Any], reports: list[dict[str, Any]]) -> bool:
        """Set a job's reports (all so far); False: stop, the job was cancelled or given to another slot."""
        self._hear(slot_id, held)
        job = self._jobs[held["job_id"]]
        if not self._is_current(job, slot_id, held):
            return False
        # A resumed job repeats nothing: its followers have seen a prefix of these.
        if len(reports) > len(job.reports):
            job.reports = reports
            job.fruitless = 0
            self._slots[slot_id].is_useful = True
        await self._announce()
        return not job.cancelled

    async def finish(self, slot_id: str, held: dict[str, Any], outcome: Outcome) -> None:
        """A job is over; its slot is free."""
        self._hear(slot_id, held)
        job = self._jobs[held["job_id"]]
        if self._is_current(job, slot_id, held):
            job.outcome = outcome
            self._slots[slot_id].job_id = None
            self._slots[slot_id].is_useful = True
        await self._announce()

    async def drop(self, slot_id: str, held: dict[str, Any], reason: str) -> None:
        """A slot goes down over a job and could still say why."""
        self._hear(slot_id, held)
        if self._is_current(self._jobs[held["job_id"]], slot_id, held):
            await self._release(slot_id, reason)
            await self._announce()

    async def hand_back(self, slot_id: str, held: dict[str, Any] | None = None) -> None:
        """A slot leaves before its node does. Its job goes to the next that asks, and nothing is held against either;
        None: it has none."""
        self._hear(slot_id, held)
        slot = self._slots[slot_id]
        slot.is_useful = True  # to be started again, elsewhere
        if held is not None and self._is_current(self._jobs[held["job_id"]], slot_id, held):
            self._jobs[held["job_id"]].fruitless = 0
            await self._release(slot_id, "its node is about to go")
        await self._announce()

    async def heartbeat(self, slot_id: str, held: dict[str, Any] | None = None) -> None:
        """A sign of life, with the job that the slot has in hand."""
        self._hear(slot_id, held)

    # --- the pool's side --------------------------------------------------------------------------------------------

    async def expect(self, slot_ids: list[str]) -> None:
        """Which slots there should be: from now on jobs are handed out, and when the last slot is lost, waiting jobs
        end as lost instead of waiting for ever."""
        self._expected_slots = set(slot_ids)
        if self._reaper is None:
            self._reaper = asyncio.create_task(self._reap())
        self._drop_if_no_slot_is_left()
        await self._announce()

    async def is_new(self) -> bool:
        """Whether nobody has said which slots to expect: a board that was just made, perhaps instead of another."""
        return self._expected_slots is None

    async def lose(self, slot_id: str, reason: str) -> bool:
        """A slot's Train run has failed. True: start another; False: the slot got nothing done, it is given up."""
        await self._release(slot_id, reason)
        slot = self._slots.pop(slot_id, None)
        is_useful = slot is not None and slot.is_useful
        if not is_useful:
            self._last_loss = reason
            if self._expected_slots is not None:
                self._expected_slots.discard(slot_id)
            self._drop_if_no_slot_is_left()
        await self._announce()
        return is_useful

    async def lose_all_but(self, nodes: list[str]) -> None:
        """Take the jobs of slots with a worker on another node than these: it is gone, and Ray Train may wait long for
        one in its place."""
        for slot_id, slot in self._slots.items():
            if not set(slot.nodes) <= set(nodes):
                slot.nodes = ()
                await self._release(slot_id, "its node is gone")
                await self._announce()

    async def status(self) -> dict[str, Any]:
        """Slots that are up, jobs waiting, jobs running."""
        running = [job_id for job_id, job in self._jobs.items() if job.slot and job.outcome is None]
        return {"slots": sorted(self._slots), "queued": list(self._queue), "running": running}

    async def close(self) -> None:
        """Send every slot home."""
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
        await self._announce()

    # ----------------------------------------------------------------------------------------------------------------

    async def _reap(self) -> None:
        """Take the job from a slot that fell silent. Should it speak again, it is behind by an attempt and stops."""
        now = time.monotonic()
        while True:
            await asyncio.sleep(self._timeout_s / 4)
            before, now = now, time.monotonic()
            if now - before > self._timeout_s / 2:  # this process stood still: their signs of life are yet to be read
                continue
            for slot_id, slot in list(self._slots.items()):
                if slot.job_id is not None and now - slot.last_heard > self._timeout_s:
                    await self._release(slot_id, f"no sign of life for {self._timeout_s:.0f} s")
                    await self._announce()

    async def _release(self, slot_id: str, reason: str) -> None:
        slot = self._slots.get(slot_id)
        if slot is None or slot.job_id is None:
            return
        job_id, slot.job_id = slot.job_id, None
        job = self._jobs[job_id]
        if job.outcome is not None:
            return
        job.slot = None
        logger.warning("%s lost %s (attempt %d): %s", slot_id, job_id, job.attempt, reason)
        if job.cancelled:
            job.outcome = Interrupted()
        elif job.fruitless >= _MAX_FRUITLESS:
            job.outcome = Deadly(f"killed its worker three times in a row without a report; the last time: {reason}")
            slot.is_useful = True
        else:
            self._queue.insert(0, job_id)  # first in line: its checkpoint is the furthest

    def _drop_if_no_slot_is_left(self) -> None:
        if self._expected_slots is None or self._expected_slots:
            return
        while self._queue:
            job = self._jobs[self._queue.pop(0)]
            job.outcome = Lost(f"no slot is left: {self._last_loss}")

    def _is_current(self, job: _Job, slot_id: str, held: dict[str, Any]) -> bool:
        return job.outcome is None and job.slot == slot_id and job.attempt == held["attempt"]

    def _hear(self, slot_id: str, held: dict[str, Any] | None = None) -> None:
        """Note a sign of life. A slot, or a job in its hands, that this board never saw is from before it was made."""
        slot = self._slots.setdefault(slot_id, _Slot(last_heard=0.0, is_useful=True))
        slot.last_heard = time.monotonic()
        if held is None:
            return
        job_id = held["job_id"]
        job = self._jobs.setdefault(job_id, _Job(held["trial"]))
        if job.attempt == 0 and job.outcome is None and slot.job_id is None:
            if job_id in self._queue:
                self._queue.remove(job_id)
            job.attempt, job.slot, slot.job_id = held["attempt"], slot_id, job_id

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, condition: Any, wait_s: float) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(condition), wait_s)
            except TimeoutError:
                return
