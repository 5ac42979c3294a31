"""What a slot's Ray Train workers run: take a job, train it, report it, take the next. Model and data stay warm."""

import logging
from typing import Any

import ray

from unfreeze.finetune.loop import Diverged, finetune
from unfreeze.records import TrialState, to_dict, trial_spec_from_dict
from unfreeze.slots.cutoff import misses_cutoff
from unfreeze.slots.journal import Journal
from unfreeze.slots.outcome import Fault, Interrupted, Lost, Outcome, Settled, whose
from unfreeze.slots.slot import POLL_S, Slot, warm_up

logger = logging.getLogger(__name__)


def serve(arguments: dict[str, Any]) -> None:
    """A Ray Train loop function: serve jobs until the board closes, or a node of the slot's is about to go.
    ``arguments``: those of `warm_up`."""
    slot = warm_up(**arguments)
    slot.join()
    slot.await_jobs()
    while (job := next_job(slot)) is not None:
        run_job(slot, job)


def next_job(slot: Slot) -> dict[str, Any] | None:
    """The next job, the same on every rank; None when the board has closed, or the slot has to leave."""
    while not slot.must_leave():
        answer = ray.get(slot.board.take.remote(slot.slot_id, POLL_S)) if slot.is_leader else None
        answer = slot.agree(answer)
        if answer.get("closed"):
            return None
        if answer["job"] is not None:
            return answer["job"]
    if slot.is_leader:
        ray.get(slot.board.hand_back.remote(slot.slot_id))
    return None


def run_job(slot: Slot, job: dict[str, Any]) -> None:
    """Train one job and tell the board how it ended.

    Raises what is the slot's fault, so that its processes are made anew, and of several workers whatever it is: the
    others wait in a collective, and only a restarted group is in step again.
    """
    slot.held = job
    try:
        outcome = attempt(slot, job)
    except Exception as error:
        fault, reason = whose(error), f"{type(error).__name__}: {error}"
        logger.exception("%s: the %s's fault", job["job_id"], fault)
        if slot.is_leader and fault is Fault.SLOT:
            ray.get(slot.board.drop.remote(slot.slot_id, job, reason))
        elif slot.is_leader:
            _finish(slot, job, Settled() if fault is Fault.TRIAL else Lost(reason))
        if fault is Fault.SLOT or slot.worker.world_size > 1:
            raise
        return
    if slot.is_leader and slot.is_leaving and isinstance(outcome, Interrupted):
        slot.held = None
        ray.get(slot.board.hand_back.remote(slot.slot_id, job))
    elif slot.is_leader:
        _finish(slot, job, outcome)


def _finish(slot: Slot, job: dict[str, Any], outcome: Outcome) -> None:
    slot.held = None  # before: a sign of life must not bring back what is over
    ray.get(slot.board.finish.remote(slot.slot_id, job, outcome))


def attempt(slot: Slot, job: dict[str, Any]) -> Outcome:
    """Train one job to its end. Raises what is not the trial's doing; what is, the ledger knows."""
    journal = Journal(slot, trial_spec_from_dict(job["trial"]))
    if not journal.record.state.is_final:  # else the slot that ran it died between the ledger and the board
        try:
            journal.settle(train(slot, journal, job))
        except Diverged as error:
            journal.diverge(str(error))
        except Exception as error:
            if whose(error) is not Fault.TRIAL:
                raise
            journal.fail(error)
            if slot.worker.world_size > 1:  # recorded by whichever rank met it, or each attempt would meet it again
                journal.write()
                raise
    journal.close()
    return Settled() if journal.record.state.is_final else Interrupted()


def train(slot: Slot, journal: Journal, job: dict[str, Any]) -> TrialState:
    """Drive the loop: keep each report with its checkpoint, then ask whether to go on. Returns how it ended."""
    trial = journal.record.spec
    progress_of = finetune(
        slot.warm,
        slot.data,
        trial,
        slot.config.finetune,
        augment=slot.config.data.augment,
        num_views=slot.config.data.num_views,
        prefixes=slot.prefixes,
        resume=journal.open(),
        worker=slot.worker,
    )
    for progress in progress_of:
        stopped = misses_cutoff(progress.reports, trial.stop_below)
        go_on = True
        if slot.is_leader:
            journal.keep(progress, goes_on=not (progress.is_last or stopped))
            reports = [to_dict(report) for report in progress.reports]
            go_on = ray.get(slot.board.push.remote(slot.slot_id, job, reports))
        go_on = slot.agree(go_on)
        if stopped:
            return TrialState.STOPPED
        if not go_on:  # cancelled, or given to another slot: the record stays open for whoever goes on
            return TrialState.RUNNING
        if not progress.is_last and slot.must_leave():  # from the checkpoint that was just kept
            return TrialState.RUNNING
    return TrialState.FINISHED
