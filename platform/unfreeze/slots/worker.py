"""What a slot's Ray Train workers run: take a job, train it, report it, take the next. Model and data stay warm."""

import contextlib
import logging
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from unfreeze.config import Config
from unfreeze.data.sets.catalog import Dataset, load_train_val
from unfreeze.errors import UnfreezeError
from unfreeze.finetune.checkpoint import Checkpoint
from unfreeze.finetune.loop import Diverged, Progress, Worker, finetune
from unfreeze.finetune.prefix import PrefixCache, open_cache
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import build_base
from unfreeze.records import TrialRecord, TrialSpec, TrialState, to_dict, trial_spec_from_dict
from unfreeze.slots.board import INTERRUPTED
from unfreeze.slots.cutoff import misses_cutoff
from unfreeze.slots.writer import Writer
from unfreeze.storage.ledger import Ledger

logger = logging.getLogger(__name__)

# How long rank 0 waits on the board before the other ranks hear from it again; far below any collective's timeout.
_POLL_S = 20.0
_HEARTBEAT_S = 5.0


@dataclass(slots=True)
class _Slot:
    """What stays in this process from one trial to the next."""

    slot_id: str
    worker: Worker
    board: Any
    ledger: Ledger
    config: Config
    warm: WarmModel
    data: Dataset
    prefixes: PrefixCache | None
    writer: Writer  # of the leader

    @property
    def is_leader(self) -> bool:
        return self.worker.rank == 0


def serve(arguments: dict[str, Any]) -> None:
    """A Ray Train loop function: serve jobs until the board closes.

    ``arguments``: ``slot_id``, ``board`` (actor handle), ``ledger``, ``config``, ``num_classes``.
    """
    slot = _warm_up(**arguments)
    if slot.is_leader:
        ray.get(slot.board.join.remote(slot.slot_id))
        threading.Thread(target=_beat, args=(slot.board, slot.slot_id), daemon=True).start()
    while True:
        job = _next_job(slot)
        if job is None:
            return
        _run(slot, job)


def _warm_up(slot_id: str, board: Any, ledger: Ledger, config: Config, num_classes: int) -> _Slot:
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
    cache_dir = Path(config.data.cache_dir).expanduser()
    base = build_base(config, num_classes=num_classes)
    return _Slot(
        slot_id=slot_id,
        worker=Worker(rank=context.get_world_rank(), world_size=context.get_world_size()),
        board=board,
        ledger=ledger,
        config=config,
        warm=WarmModel(base, device, shard=config.finetune.shard),
        data=load_train_val(config.data, image_size=base.spec.image_size),
        prefixes=open_cache(config.finetune, cache_dir),
        writer=Writer(),
    )


def _beat(board: Any, slot_id: str) -> None:
    """Signs of life, so that a long epoch is not taken for a dead slot."""
    pause = threading.Event()
    while not pause.wait(_HEARTBEAT_S):
        board.heartbeat.remote(slot_id)


def _next_job(slot: _Slot) -> dict[str, Any] | None:
    """The next job, the same on every rank; None when the board has closed."""
    while True:
        answer = ray.get(slot.board.take.remote(slot.slot_id, _POLL_S)) if slot.is_leader else None
        answer = _agree(slot, answer)
        if answer.get("closed"):
            return None
        if answer["job"] is not None:
            return answer["job"]


def _run(slot: _Slot, job: dict[str, Any]) -> None:
    """Train one job to its end; whatever happens, the slot lives on and the ledger knows."""
    trial = trial_spec_from_dict(job["trial"])
    # Read once and told to all ranks: a slot that was given up may still be writing.
    written = _agree(slot, slot.ledger.trial(trial.trial_id) if slot.is_leader else None)
    if written is not None and written.state.is_final:  # the slot that ran it died between the ledger and the board
        if slot.is_leader:
            slot.ledger.delete(_checkpoint_key(trial, "last"))
        _finish(slot, job, written)
        return
    attempts = written.attempts + 1 if written is not None else 1
    record = TrialRecord(spec=trial, state=TrialState.RUNNING, slot=slot.slot_id, attempts=attempts)
    try:
        record = _train(slot, trial, record, written, job)
        slot.writer.flush()
    except Diverged as error:
        record = replace(_last_written(slot, record), state=TrialState.DIVERGED, error=str(error))
    except (UnfreezeError, RuntimeError) as error:  # RuntimeError: out of memory and other device errors
        logger.exception("%s failed", trial.trial_id)
        record = replace(_last_written(slot, record), state=TrialState.FAILED, error=f"{type(error).__name__}: {error}")
        if slot.worker.world_size > 1:
            # The other ranks wait in a collective; only a restarted group is in step again. What another attempt would
            # meet again is recorded by whichever rank met it, or it would take the slot down once more each time.
            if isinstance(error, UnfreezeError):
                slot.ledger.write_trial(record)
            raise
    if record.state.is_final and slot.is_leader:
        slot.ledger.write_trial(record)
        slot.ledger.delete(_checkpoint_key(trial, "last"))
    _finish(slot, job, record)


def _finish(slot: _Slot, job: dict[str, Any], record: TrialRecord) -> None:
    if slot.is_leader:
        state = str(record.state) if record.state.is_final else INTERRUPTED
        outcome = {"state": state, "error": record.error}
        ray.get(slot.board.finish.remote(slot.slot_id, job["job_id"], job["attempt"], outcome))


def _train(
    slot: _Slot, trial: TrialSpec, record: TrialRecord, written: TrialRecord | None, job: dict[str, Any]
) -> TrialRecord:
    """Drive the loop: write checkpoint and record at each report, then ask whether to go on.

    ``written``: the record of an attempt before this one.
    """
    resume = _read_checkpoint(slot, trial, written)
    if resume is not None and written is not None:
        record = replace(
            record,
            reports=resume.reports,
            checkpoint=written.checkpoint,
            checkpoint_bytes=written.checkpoint_bytes,
            trainable_parameters=written.trainable_parameters,
        )
    if slot.is_leader:
        slot.ledger.write_trial(record)
    progress_of = finetune(
        slot.warm,
        slot.data,
        trial,
        slot.config.finetune,
        augment=slot.config.data.augment,
        num_views=slot.config.data.num_views,
        prefixes=slot.prefixes,
        resume=resume,
        worker=slot.worker,
    )
    for progress in progress_of:
        go_on = True
        stopped = misses_cutoff(progress.reports, trial.stop_below)
        if slot.is_leader:
            record = replace(record, reports=progress.reports, trainable_parameters=_num_trainable(slot))
            record = _store(slot, record, progress, goes_on=not (progress.is_last or stopped))
            reports = [to_dict(report) for report in progress.reports]
            go_on = ray.get(slot.board.push.remote(slot.slot_id, job["job_id"], job["attempt"], reports))
        go_on = _agree(slot, go_on)
        if stopped:
            return replace(record, state=TrialState.STOPPED)
        if not go_on:  # cancelled, or given to another slot: the record stays open for whoever goes on
            return record
    return replace(record, state=TrialState.FINISHED)


def _store(slot: _Slot, record: TrialRecord, progress: Progress, *, goes_on: bool) -> TrialRecord:
    """Hand checkpoints and record to the writer; returns the record as it will be there.

    What a record names is there before it, and its reports are there before the checkpoint that goes on from them: a
    kill in between leaves a report too many, never one too few.
    """
    ledger, spec = slot.ledger, record.spec
    best = progress.checkpoint.for_evaluation().snapshot() if progress.is_best else None
    last = progress.checkpoint.snapshot() if goes_on else None
    if best is not None:
        record = replace(record, checkpoint=_checkpoint_key(spec, "best"), checkpoint_bytes=best.num_bytes)

    def write() -> None:
        now = ledger.trial(spec.trial_id)
        if now is not None and (now.state.is_final or now.attempts > record.attempts):
            return  # this slot was given up, and another has the trial
        if best is not None:
            ledger.write_bytes(_checkpoint_key(spec, "best"), best.to_bytes())
        ledger.write_trial(record)
        if last is not None:
            ledger.write_bytes(_checkpoint_key(spec, "last"), last.to_bytes())

    slot.writer.submit(write)
    return record


def _num_trainable(slot: _Slot) -> int:
    return sum(p.numel() for p in slot.warm.module.parameters() if p.requires_grad)


def _last_written(slot: _Slot, record: TrialRecord) -> TrialRecord:
    """The record with the reports so far, after an error cut the loop."""
    with contextlib.suppress(UnfreezeError, RuntimeError):  # it may be the error
        slot.writer.flush()
    return slot.ledger.trial(record.spec.trial_id) or record


def _read_checkpoint(slot: _Slot, trial: TrialSpec, written: TrialRecord | None) -> Checkpoint | None:
    """The trial's last checkpoint with its reports; None where there is none to go on from: the trial starts over."""
    data = None
    if slot.is_leader:
        with contextlib.suppress(KeyError):
            data = slot.ledger.read_bytes(_checkpoint_key(trial, "last"))
    data = _agree(slot, data)
    if data is None or written is None:
        return None
    checkpoint = Checkpoint.from_bytes(data, base_digest=slot.warm.base.facts.digest)
    images = checkpoint.step * slot.config.finetune.batch_size
    reports = tuple(report for report in written.reports if report.images_seen <= images)
    if checkpoint.spec != trial or not reports or reports[-1].images_seen != images:
        return None
    return replace(checkpoint, reports=reports)


def _checkpoint_key(trial: TrialSpec, which: str) -> str:
    return f"checkpoints/{trial.trial_id}/{which}.safetensors"


def _agree(slot: _Slot, value: Any) -> Any:
    """Rank 0's value on every rank."""
    if slot.worker.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
