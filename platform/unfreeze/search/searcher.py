"""The planner as a Ray Tune searcher: Tune asks it for trials and tells it of their ends, the ledger knows the rest."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from ray.tune.search import Searcher

from unfreeze.records import TrialRecord, TrialSpec, TrialState, to_dict
from unfreeze.search.budget import losers
from unfreeze.slots.board import LOST
from unfreeze.storage.ledger import Ledger

logger = logging.getLogger(__name__)


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
        self._by_tune_id: dict[str, TrialSpec] = {}
        self._next_index = 0
        self.final = {index: record for index, record in records.items() if record.state.is_final}
        self.abandoned: str | None = None  # why nothing more is tried: no slot is left

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
            index = self._next_index
            if not self._planner.is_ready(index, self.final):
                return None
            spec = self._recorded.get(index) or self._planner.plan(index, self.final, self._planned)
            if spec is None:
                break
            self._planned[index] = spec
            self._next_index += 1
            if index not in self.final:
                self._by_tune_id[trial_id] = spec
                return {"trial": to_dict(spec)}
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Read the outcome from the ledger; a trial that failed without leaving one there is recorded."""
        spec = self._by_tune_id[trial_id]
        outcome = result or {}
        if outcome.get("state") == LOST:
            self.abandoned = outcome["error"]
        record = self._ledger.trial(spec.trial_id)
        if record is None or not record.state.is_final:
            if not error and outcome.get("state") != TrialState.FAILED:
                return  # interrupted: its checkpoint stands, the next run of the sweep goes on with it
            reason = outcome.get("error") or "Tune lost the trial; see Ray's logs"
            begun = record or TrialRecord(spec=spec, state=TrialState.RUNNING)
            record = replace(begun, state=TrialState.FAILED, error=reason)
            self._ledger.write_trial(record)
        if record.error:
            logger.warning("%s (%s) %s: %s", spec.trial_id, spec.selection, record.state, record.error)
        self.final[spec.index] = record
        if self._max_checkpoint_bytes:
            self._make_room()

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
