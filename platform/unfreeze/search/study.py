"""The planner as a Ray Tune searcher. Optuna's study here is a view: what it knows, the ledger knew first."""

import logging
from dataclasses import replace
from typing import Any

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from unfreeze.records import TrialRecord, TrialSpec, TrialState, to_dict
from unfreeze.search.budget import losers
from unfreeze.search.grid import GridPlanner
from unfreeze.search.planner import Planner, observed_value
from unfreeze.slots.board import LOST
from unfreeze.storage.ledger import Ledger

logger = logging.getLogger(__name__)

METRIC = "best_val_accuracy"


class PlannedSampler(optuna.samplers.BaseSampler):
    """Hands Optuna the parameters the planner chose."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: optuna.Study, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self.params[param_name]


class PlannedSearch(OptunaSearch):
    """Suggests what the planner plans; final trials of the ledger are not run again, interrupted ones are taken up.

    ``suggest`` answers None while a trial may not start, because of predecessors still running: Tune asks again.
    """

    def __init__(
        self, planner: Planner | GridPlanner, ledger: Ledger, *, max_checkpoint_bytes: int = 0, keep_top: int = 1
    ) -> None:
        """``max_checkpoint_bytes``: above it the losers' are deleted, see `losers`; 0: all are kept."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._plan_sampler = PlannedSampler()
        super().__init__(space=planner.space.distributions, metric=METRIC, mode="max", sampler=self._plan_sampler)
        self._planner = planner
        self._ledger = ledger
        self._max_checkpoint_bytes, self._keep_top = max_checkpoint_bytes, keep_top
        records = {record.spec.index: record for record in ledger.trials()}
        self._recorded = {index: record.spec for index, record in records.items()}
        self._final = {index: record for index, record in records.items() if record.state.is_final}
        self._planned: dict[int, TrialSpec] = {}
        self._by_tune_id: dict[str, TrialSpec] = {}
        self._next_index = 0
        self.abandoned: str | None = None  # why nothing more is tried: no slot is left
        for _, record in sorted(self._final.items()):
            self._ot_study.add_trial(planner.optuna_trial(record.spec, record))

    @property
    def max_trials(self) -> int:
        return self._planner.max_trials

    @property
    def is_complete(self) -> bool:
        """Whether every trial the planner wants has an outcome."""
        index = len(self._final)
        if set(self._final) != set(range(index)) or not self._planner.is_ready(index, self._final):
            return False
        specs = {i: record.spec for i, record in self._final.items()}
        return self._planner.plan(index, self._final, specs) is None

    @property
    def final(self) -> dict[int, TrialRecord]:
        """Final records by index."""
        return self._final

    def suggest(self, trial_id: str) -> Any:
        while True:
            if self.abandoned:
                return Searcher.FINISHED
            index = self._next_index
            if not self._planner.is_ready(index, self._final):
                return None
            spec = self._recorded.get(index) or self._planner.plan(index, self._final, self._planned)
            if spec is None:
                return Searcher.FINISHED
            self._planned[index] = spec
            self._next_index += 1
            if index not in self._final:
                break
        self._by_tune_id[trial_id] = spec
        self._plan_sampler.params = self._planner.params(spec)
        super().suggest(trial_id)
        return {"trial": to_dict(spec)}

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
            record = replace(
                record or TrialRecord(spec=spec, state=TrialState.RUNNING), state=TrialState.FAILED, error=reason
            )
            self._ledger.write_trial(record)
        if record.error:
            logger.warning("%s (%s) %s: %s", spec.trial_id, spec.selection, record.state, record.error)
        self._final[spec.index] = record
        self._make_room()
        value = observed_value(record)
        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        self._ot_study.tell(self._ot_trials[trial_id], value, state=state)
        self._completed_trials.add(trial_id)

    def _make_room(self) -> None:
        """Delete the losers' checkpoints, where all together are larger than the sweep may keep."""
        if not self._max_checkpoint_bytes:
            return
        final = list(self._final.values())
        for record in losers(final, max_bytes=self._max_checkpoint_bytes, keep_top=self._keep_top):
            assert record.checkpoint is not None
            # First the record: a kill in between leaves an object nobody names, never a name without its object.
            self._final[record.spec.index] = replace(record, checkpoint=None)
            self._ledger.write_trial(self._final[record.spec.index])
            self._ledger.delete(record.checkpoint)
