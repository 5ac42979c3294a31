"""What Prometheus is told of a sweep, as it is recorded; what a head then exports is in integration/test_metrics.py."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from finished_sweep import make_trial

from unfreeze.errors import StorageError
from unfreeze.records import TrialState, to_dict
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep import metrics
from unfreeze.sweep.metrics import COUNTERS, GAUGES, SweepMetrics

FINAL = [
    make_trial(0, "mha", 0.95, state=TrialState.STOPPED),
    make_trial(1, "fc1", 0.76),
    make_trial(2, "all", 0.90, state=TrialState.FAILED),
]
RUNNING = make_trial(3, "fc2", 0.5, state=TrialState.RUNNING)


class Recorded:
    """In a metric's place: the last value by tags, a counter's sum."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        self.tag_keys, self.values = set(tag_keys), {}

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == self.tag_keys
        self.values[tags.get("state", "")] = value

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.set(self.values.get("", 0) + value, tags)


def tune_trial(status: str = "RUNNING") -> Any:
    return SimpleNamespace(trial_id="a1", status=status, config={"trial": to_dict(RUNNING.spec)})


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepMetrics:
    monkeypatch.setattr(metrics, "Gauge", Recorded)
    monkeypatch.setattr(metrics, "Counter", Recorded)
    monkeypatch.setattr(ray, "get", lambda status, timeout: status)
    ledger = Ledger(str(tmp_path), "birds")
    ledger.write_trial(RUNNING)
    search = SimpleNamespace(final={trial.spec.index: trial for trial in FINAL}, max_trials=9)
    status = {"slots": ["slot-0", "slot-1"], "queued": ["trial-00004"], "running": ["trial-00003"]}
    board = SimpleNamespace(status=SimpleNamespace(remote=lambda: status))
    return SweepMetrics(search, ledger, board, SimpleNamespace(num_settled=1))  # type: ignore[arg-type]


def values(watched: SweepMetrics) -> dict[str, dict[str, float]]:
    return {name: metric.values for name, metric in {**watched._gauges, **watched._counters}.items()}  # type: ignore[attr-defined]


def test_a_look_tells_all_that_is_declared(watched: SweepMetrics) -> None:
    watched.on_trial_result(0, [], tune_trial(), {"images_seen": 100, "timestamp_ms": 5_000})
    watched.on_step_end(0, [tune_trial(), tune_trial("PENDING")])
    newest = max(trial.reports[-1].timestamp_ms for trial in [*FINAL, RUNNING]) / 1000
    assert values(watched) == {
        "unfreeze_trials": {"running": 1, "finished": 1, "stopped": 1, "diverged": 0, "failed": 1},
        "unfreeze_trials_planned": {"": 9},
        "unfreeze_trials_retaken": {"": 0},
        "unfreeze_queue": {"": 1},
        "unfreeze_slots": {"busy": 1, "idle": 1},
        "unfreeze_best_accuracy": {"": FINAL[1].best_val_accuracy},  # of what finished; a stopped one had seen more
        "unfreeze_report_time_seconds": {"": 5.0},
        "unfreeze_ledger_time_seconds": {"": newest},
        "unfreeze_mlflow_behind": {"": 1},  # the failed one may yet run again
        "unfreeze_images": {"": 100},
    }
    assert set(values(watched)) == {*GAUGES, *COUNTERS}


def test_an_image_counts_once(watched: SweepMetrics) -> None:
    for seen in (100, 250, 250, 200, 300):  # a trial's last result is said twice, one taken up again starts behind
        watched.on_trial_result(0, [], tune_trial(), {"images_seen": seen})
    assert values(watched)["unfreeze_images"] == {"": 300}


def test_what_cannot_be_learned_ends_no_sweep(watched: SweepMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise ray.exceptions.GetTimeoutError

    def away(*_: Any) -> None:
        raise StorageError("S3 is away")

    monkeypatch.setattr(ray, "get", gone)
    monkeypatch.setattr(Ledger, "trial", away)
    watched.on_step_end(0, [tune_trial()])
    told = values(watched)
    assert told["unfreeze_trials"]["running"] == 1
    assert not told["unfreeze_queue"]
    assert not told["unfreeze_ledger_time_seconds"]
    watched.on_step_end(0, [])  # not again so soon
    assert told["unfreeze_trials"]["running"] == 1


def test_without_mlflow_nothing_is_behind(watched: SweepMetrics) -> None:
    watched._mirror = SimpleNamespace(num_settled=None)  # type: ignore[assignment]
    watched.on_step_end(0, [])
    assert not values(watched)["unfreeze_mlflow_behind"]
