"""The machine's use under MLflow's names, against what MLflow's own monitors say."""

import time

import pytest
import torch
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

from unfreeze.finetune.usage import Meter


def test_cpu_and_memory_as_mlflow_names_and_counts_them() -> None:
    meter, theirs = Meter(), CPUMonitor()
    ended = time.monotonic() + 0.3
    while time.monotonic() < ended:  # one core is busy
        pass
    found = meter.read()
    theirs.collect_metrics()
    assert found.keys() <= theirs.aggregate_metrics().keys()
    memory = "system_memory_usage_percentage"
    assert found[memory] == pytest.approx(theirs.aggregate_metrics()[memory], abs=5)
    assert 0 < found["cpu_utilization_percentage"] <= 100


def test_every_card_that_the_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    def utilization(card: int) -> int:
        if card == 1:
            raise ModuleNotFoundError("nvidia-ml-py")
        return 93

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (60 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    found = {name: value for name, value in Meter().read().items() if name.startswith("gpu")}
    assert found == {
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_0_memory_usage_megabytes": 20_000.0,
        "gpu_0_utilization_percentage": 93.0,
        "gpu_1_memory_usage_percentage": 25.0,
        "gpu_1_memory_usage_megabytes": 20_000.0,
    }
