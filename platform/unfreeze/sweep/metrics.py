"""What Prometheus is told of a sweep: numbers that people put on a wall and be woken by. See ops/monitoring."""

import contextlib
import time
from collections import Counter as Tally
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from unfreeze.errors import StorageError
from unfreeze.records import TrialState, trial_spec_from_dict
from unfreeze.search.searcher import PlannedSearch
from unfreeze.slots.callback import DriverCallback
from unfreeze.storage.ledger import Ledger
from unfreeze.tracking.mirror import MlflowMirror

_LOOK_S = 10.0  # Ray hands metrics on no more often
_ANSWER_S = 2.0

# Name → what it says, and the tags beside `sweep`. Ray puts `ray_` before a name, and `_total` behind a counter's.
GAUGES = {
    "unfreeze_trials": ("Trials by state", ("state",)),
    "unfreeze_trials_planned": ("Trials that the sweep will have at most", ()),
    "unfreeze_trials_retaken": ("Times that a trial was taken up again: its slot, node or driver was lost", ()),
    "unfreeze_queue": ("Trials that wait for a slot", ()),
    "unfreeze_slots": ("Slots that are up: busy, idle", ("state",)),
    "unfreeze_best_accuracy": ("Best validation accuracy of a finished trial, 0 to 1", ()),
    "unfreeze_report_time_seconds": ("Unix time of the newest report that reached the driver", ()),
    "unfreeze_ledger_time_seconds": ("Unix time of the newest report that the ledger holds", ()),
    "unfreeze_mlflow_behind": ("Trials with an outcome that MLflow does not have", ()),
}
COUNTERS = {"unfreeze_images": ("Training images that trials reported; again from 0 where a driver takes one up", ())}


class SweepMetrics(DriverCallback):
    """Looks every few seconds while Tune runs. Whatever it cannot learn it leaves as it was: no sweep ends over it."""

    def __init__(self, search: PlannedSearch, ledger: Ledger, board: Any, mirror: MlflowMirror) -> None:
        self._search, self._ledger, self._board, self._mirror = search, ledger, board, mirror
        self._gauges = {name: Gauge(name, text, ("sweep", *tags)) for name, (text, tags) in GAUGES.items()}
        self._counters = {name: Counter(name, text, ("sweep", *tags)) for name, (text, tags) in COUNTERS.items()}
        self._images: Tally[str] = Tally()  # by trial
        self._next_look = 0.0

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        fresh = result["images_seen"] - self._images[trial.trial_id]
        if fresh > 0:
            self._images[trial.trial_id] += fresh
            self._counters["unfreeze_images"].inc(fresh, {"sweep": self._ledger.sweep})
        if "timestamp_ms" in result:
            self._set("unfreeze_report_time_seconds", result["timestamp_ms"] / 1000)

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_S
            self.look([trial for trial in trials if trial.status == "RUNNING"])

    def look(self, running: list[Any]) -> None:
        """``running``: Tune's trials."""
        final = self._search.final.values()
        states = Tally(record.state for record in final)
        states[TrialState.RUNNING] = len(running)
        for state in TrialState:
            self._set("unfreeze_trials", states[state], state=str(state))
        self._set("unfreeze_trials_planned", self._search.max_trials)
        best = [
            r.best_val_accuracy for r in final if r.state is TrialState.FINISHED and r.best_val_accuracy is not None
        ]
        if best:
            self._set("unfreeze_best_accuracy", max(best))
        settled = self._mirror.num_settled
        if settled is not None:
            self._set("unfreeze_mlflow_behind", max(0, len(final) - states[TrialState.FAILED] - settled))
        with contextlib.suppress(ray.exceptions.RayError):  # a board that is made anew, say
            status = ray.get(self._board.status.remote(), timeout=_ANSWER_S)
            self._set("unfreeze_queue", len(status["queued"]))
            self._set("unfreeze_slots", len(status["running"]), state="busy")
            self._set("unfreeze_slots", max(0, len(status["slots"]) - len(status["running"])), state="idle")
        with contextlib.suppress(StorageError):
            ids = [trial_spec_from_dict(trial.config["trial"]).trial_id for trial in running]
            records = [*final, *filter(None, map(self._ledger.trial, ids))]
            self._set("unfreeze_trials_retaken", sum(record.attempts - 1 for record in records))
            written = [record.reports[-1].timestamp_ms for record in records if record.reports]
            if written:
                self._set("unfreeze_ledger_time_seconds", max(written) / 1000)

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._gauges[name].set(value, {"sweep": self._ledger.sweep, **tags})
