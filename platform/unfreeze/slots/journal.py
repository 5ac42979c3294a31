"""A trial's record and checkpoints, as its slot reads them at the start and writes them beside the training."""

import contextlib
import logging
from dataclasses import replace

from unfreeze.errors import CheckpointError, UnfreezeError
from unfreeze.finetune.checkpoint import Checkpoint
from unfreeze.finetune.loop import Progress
from unfreeze.records import TrialRecord, TrialSpec, TrialState
from unfreeze.slots.outcome import failed
from unfreeze.slots.slot import Slot

logger = logging.getLogger(__name__)


class Journal:
    """What the ledger has of one trial, on every worker of its slot; the leader alone writes.

    ``record``: as an earlier attempt left it where that is final, otherwise this attempt's.
    """

    def __init__(self, slot: Slot, trial: TrialSpec) -> None:
        self._slot, self._trial = slot, trial
        # Read once and told to all ranks: a slot that was given up may still be writing.
        self._before: TrialRecord | None = slot.agree(slot.ledger.trial(trial.trial_id) if slot.is_leader else None)
        self._attempt = self._before.attempts + 1 if self._before is not None else 1
        if self._before is not None and self._before.state.is_final:
            self.record = self._before
            return
        self.record = TrialRecord(spec=trial, state=TrialState.RUNNING, slot=slot.slot_id, attempts=self._attempt)

    def open(self) -> Checkpoint | None:
        """Write that this attempt has begun; returns where to go on from, None where the trial starts over."""
        resume = self._read_checkpoint()
        if resume is not None and self._before is not None:
            self.record = replace(
                self.record,
                reports=resume.reports,
                checkpoint=self._before.checkpoint,
                checkpoint_bytes=self._before.checkpoint_bytes,
                trainable_parameters=self._before.trainable_parameters,
            )
        if self._slot.is_leader:
            self._slot.ledger.write_trial(self.record)
        return resume

    def keep(self, progress: Progress, *, goes_on: bool) -> None:
        """Hand record and checkpoints to the slot's writer.

        What a record names is there before it, and its reports are there before the checkpoint that goes on from them:
        a kill in between leaves a report too many, never one too few.
        """
        ledger = self._slot.ledger
        parameters = self._slot.warm.module.parameters()
        self.record = replace(
            self.record,
            reports=progress.reports,
            trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        )
        best = progress.checkpoint.for_evaluation().snapshot() if progress.is_best else None
        last = progress.checkpoint.snapshot() if goes_on else None
        if best is not None:
            self.record = replace(self.record, checkpoint=self._key("best"), checkpoint_bytes=best.num_bytes)
        record = self.record

        def write() -> None:
            if self._is_late():
                return
            if best is not None:
                ledger.write_bytes(self._key("best"), best.to_bytes())
            ledger.write_trial(record)
            if last is not None:
                ledger.write_bytes(self._key("last"), last.to_bytes())

        self._slot.writer.submit(write)

    def settle(self, state: TrialState) -> None:
        """Wait until all is written; the trial stands at ``state``."""
        self._slot.writer.flush()
        self.record = replace(self.record, state=state)

    def diverge(self, error: str) -> None:
        """The loop was cut by the loss: what was last written stands."""
        self.record = replace(self._as_written(), state=TrialState.DIVERGED, error=error)

    def fail(self, error: Exception) -> None:
        """The loop was cut by an error that is the trial's own: what was last written stands."""
        self.record = failed(self._as_written(), f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Write a final record, which has no use for a checkpoint to go on from; an open one is left to go on."""
        if not self._slot.is_leader or not self.record.state.is_final:
            return
        if self.record is not self._before:
            if self._is_late():
                return
            self.write()
        self._slot.ledger.delete(self._key("last"))

    def write(self) -> None:
        self._slot.ledger.write_trial(self.record)

    def _as_written(self) -> TrialRecord:
        with contextlib.suppress(UnfreezeError, RuntimeError):  # the writer's may be what cut the loop
            self._slot.writer.flush()
        return self._slot.ledger.trial(self._trial.trial_id) or self.record

    def _is_late(self) -> bool:
        """Whether this slot was given up and another has the trial: its record and checkpoints are no longer ours."""
        now = self._slot.ledger.trial(self._trial.trial_id)
        if now is None:
            return False
        return now.state.is_final or (now.lease, now.attempts) > (self._slot.ledger.lease or 0, self._attempt)

    def _read_checkpoint(self) -> Checkpoint | None:
        """The trial's last checkpoint with the reports up to it; None where there is none that fits."""
        slot, data = self._slot, None
        if slot.is_leader:
            with contextlib.suppress(KeyError):
                data = slot.ledger.read_bytes(self._key("last"))
        data = slot.agree(data)
        if data is None or self._before is None:
            return None
        try:
            checkpoint = Checkpoint.from_bytes(data, base_digest=slot.warm.base.facts.digest)
        except CheckpointError as error:
            logger.warning("%s starts over: %s", self._trial.trial_id, error)
            return None
        images = checkpoint.step * slot.config.finetune.batch_size
        reports = tuple(report for report in self._before.reports if report.images_seen <= images)
        if checkpoint.spec != self._trial or not reports or reports[-1].images_seen != images:
            return None
        return replace(checkpoint, reports=reports)

    def _key(self, which: str) -> str:
        return f"checkpoints/{self._trial.trial_id}/{which}.safetensors"
