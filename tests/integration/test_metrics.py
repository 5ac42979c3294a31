"""What a head exports while a sweep tells it of itself: the names that ops/monitoring asks for."""

import re
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from finished_sweep import make_trial
from processes import Patience

from unfreeze.records import TrialState, to_dict
from unfreeze.slots.board import Board
from unfreeze.slots.pool import beside_driver
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.metrics import COUNTERS, GAUGES, SweepMetrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]  # Ray hands metrics on every ten seconds


def test_the_head_exports_what_the_sweep_tells(head: Any, tmp_path: Path, patience: Patience) -> None:
    ledger = Ledger(str(tmp_path), "birds")
    final, running = make_trial(0, "mha", 0.75), make_trial(1, "fc1", 0.5, state=TrialState.RUNNING)
    ledger.write_trial(running)
    ray.init(address=head.address, log_to_driver=False)
    try:
        search = SimpleNamespace(final={0: final}, max_trials=9)
        board = beside_driver(Board, 60.0)
        told = SweepMetrics(search, ledger, board, SimpleNamespace(num_settled=0))  # type: ignore[arg-type]
        trial = SimpleNamespace(trial_id="a1", status="RUNNING", config={"trial": to_dict(running.spec)})
        told.on_trial_result(0, [trial], trial, {"images_seen": 100, "timestamp_ms": 5_000})
        told.on_step_end(0, [trial])
        (node,) = ray.nodes()
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        expected = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS}

        def exported() -> dict[str, float] | None:
            text = urllib.request.urlopen(url, timeout=5).read().decode()
            found = re.findall(r'(?m)^(ray_unfreeze_\w+)\{.*sweep="birds".*\} (\S+)$', text)
            return {name: float(value) for name, value in found} if expected <= {name for name, _ in found} else None

        values = patience.wait(exported, 60, "metrics of the sweep")
        assert values["ray_unfreeze_best_accuracy"] == final.best_val_accuracy
        assert values["ray_unfreeze_images_total"] == 100
        assert values["ray_unfreeze_mlflow_behind"] == 1
        ray.kill(board)
    finally:
        ray.shutdown()
