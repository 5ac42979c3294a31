"""The planner as a Ray Tune searcher: Tune asks it for trials and tells it of their ends, the ledger knows the rest."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from ray.tune.search import Searcher

from unfreeze.errors import InfrastructureError, StorageError
from unfreeze.records import TrialRecord, TrialSpec, TrialState, to_dict
from unfreeze.search.budget import losers
from unfreeze.slots.outcome import Deadly, Lost, Outcome, failed
from unfreeze.storage.ledger import Ledger

logger = logging.getLogger(__name__)

# A trial that Tune or the board let go of is handed out again so many times before the sweep is.
_MAX_REPEATS = 3


class Plan(Protocol):
    """What is tried, trial by trial: `Planner` and `GridPlanner`."""

    @property
    def max_trials(self) -> int: ...

    def is_ready(self, index: int, final: Mapping[int, TrialRecord]) -> bool: ...

    def plan(
        self, index: int, final: Mapping[int, TrialRecord], planned: Mapping[int, TrialSpec]
    ) -> TrialSpec | None: ...


class PlannedSearch(Searcher):
    """Suggests what the planner plans; final trials of the ledger are not run again, interrupted ones are taken up.

    ``suggest`` answers None while a trial may not start, because of predecessors still running: Tune asks again.
    """

    def __init__(self, planner: Plan, ledger: Ledger, *, max_checkpoint_bytes: int = 0, keep_top: int = 1) -> None:
        """``max_checkpoint_bytes``: above it the losers' are deleted, see `losers`; 0: all are kept."""
        super().__init__(metric="best_val_accuracy", mode="max")
        self._planner = planner
        self._ledger = ledger
        self._max_checkpoint_bytes, self._keep_top = max_checkpoint_bytes, keep_top
        records = {record.spec.index: record for record in ledger.trials()}
        self._recorded = {index: record.spec for index, record in records.items()}
        self._planned: dict[int, TrialSpec] = {}
        self._running: dict[str, TrialSpec] = {}  # by Tune's id
        self._open: list[TrialSpec] = []  # ended without an outcome: handed out again
        self._repeats: Counter[int] = Counter()
        self._next_index = 0
        self.final = {index: record for index, record in records.items() if record.state.is_final}
        self.abandoned: str | None = None  # why nothing more is tried: the infrastructure's fault

    @property
    def max_trials(self) -> int:
        return self._planner.max_trials

    @property
    def is_complete(self) -> bool:
        """Whether every trial the planner wants has an outcome."""
        index = len(self.final)
        if set(self.final) != set(range(index)) or not self._planner.is_ready(index, self.final):
            return False
        specs = {i: record.spec for i, record in self.final.items()}
        return self._planner.plan(index, self.final, specs) is None

    def suggest(self, trial_id: str) -> Any:
        while not self.abandoned:
            if self._open:
                return self._hand_out(trial_id, self._open.pop(0))
            index = self._next_index
            if not self._planner.is_ready(index, self.final):
                return None
            spec = self._recorded.get(index) or self._planner.plan(index, self.final, self._planned)
            if spec is None:
                # Tune does not ask again after FINISHED, and what runs may yet have to be handed out again.
                return None if self._running else Searcher.FINISHED
            self._planned[index] = spec
            self._next_index += 1
            if index not in self.final:
                return self._hand_out(trial_id, spec)
        return Searcher.FINISHED

    def _hand_out(self, trial_id: str, spec: TrialSpec) -> dict[str, Any]:
        self._running[trial_id] = spec
        return {"trial": to_dict(spec)}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Read the outcome from the ledger. Where there is none the trial stays open, unless it kills its workers."""
        spec = self._running.pop(trial_id, None)
        if spec is None:  # Tune says it again where something of its own went wrong at a trial's end
            return
        try:
            self._settle(spec, (result or {}).get("outcome"))
        except (StorageError, InfrastructureError) as fault:  # Tune would log it and go on
            self.abandoned = self.abandoned or str(fault)

    def _settle(self, spec: TrialSpec, outcome: Outcome | None) -> None:
        record = self._ledger.trial(spec.trial_id)
        if record is None or not record.state.is_final:
            if not isinstance(outcome, Deadly):
                self._leave_open(spec, outcome.reason if isinstance(outcome, Lost) else None)
                return
            record = failed(record or TrialRecord(spec=spec, state=TrialState.RUNNING), outcome.error)
            self._ledger.write_trial(record)
        if record.error:
            logger.warning("%s (%s) %s: %s", spec.trial_id, spec.selection, record.state, record.error)
        self.final[spec.index] = record
        if self._max_checkpoint_bytes:
            self._make_room()

    def _leave_open(self, spec: TrialSpec, reason: str | None) -> None:
        """No outcome, and not by the trial's fault. ``reason``: what the infrastructure lacks; None: Tune lost sight of
        the trial, or let go of it."""
        self._repeats[spec.index] += 1
        if reason is None and self._repeats[spec.index] > _MAX_REPEATS:
            reason = f"Ray Tune lost {spec.trial_id} {self._repeats[spec.index]} times"
        if reason is not None:
            self.abandoned = self.abandoned or reason
            return
        logger.warning("%s ended without an outcome and is run again: Ray Tune lost sight of it", spec.trial_id)
        self._open = sorted([*self._open, spec], key=lambda open_spec: open_spec.index)

    def _make_room(self) -> None:
        """Delete the losers' checkpoints, where all together are larger than the sweep may keep."""
        final = list(self.final.values())
        for record in losers(final, max_bytes=self._max_checkpoint_bytes, keep_top=self._keep_top):
            assert record.checkpoint is not None
            # First the record: a kill in between leaves an object nobody names, never a name without its object.
            self.final[record.spec.index] = replace(record, checkpoint=None)
            self._ledger.write_trial(self.final[record.spec.index])
            self._ledger.delete(record.checkpoint)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True  # the space is the planner's

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune saves a searcher for a restore of its own, and a sweep is resumed from the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed by running its command again")
