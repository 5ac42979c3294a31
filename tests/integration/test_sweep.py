"""Whole sweeps as a user runs them: the entry script, local Ray, real trials; disturbed, resumed, finished."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import ray
import timm
import timm.data
import torch
from processes import Processes
from safetensors.torch import load_file

import unfreeze.models.tiny  # noqa: F401 - makes `unfreeze_tiny` known to timm
from unfreeze.data.sets.catalog import load_test
from unfreeze.errors import ClusterError, StorageError, SweepMismatchError
from unfreeze.load import load_config
from unfreeze.records import TrialRecord, TrialState
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.run import run_sweep

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
SWEEP_S = 300  # a sweep's wait on a quiet machine, where it takes a minute
OPTIONS = (
    "experiment=demo",
    "sweep.name=test",
    "data.max_train_images=100",
    "search.num_trials=8",
    "search.start_learning_rates=[0.1]",
    "search.confirm_top=1",
    "search.confirm_seeds=2",
)
BRIEF = "finetune.epochs=8"
LONG = "finetune.epochs=20"  # long enough that a kill lands in the middle of trials: 10 × 2 to 3 s on two slots


class Sweep:
    """The command in a folder of its own, and what it has left there; with Ray of its own, or joined to a head."""

    def __init__(self, folder: Path, processes: Processes, environment: dict[str, str]) -> None:
        self.folder, self._processes, self._environment = folder, processes, environment

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, ROOT / "sweeps/vit_components.py", *OPTIONS, *options]
        with (self.folder / "log.txt").open("ab") as log:
            return self._processes.start(command, cwd=self.folder, log=log, env=self._environment)

    def run(self, *options: str, code: int = 0) -> str:
        """The log of all that ran here so far."""
        assert self.wait(self.start(*options)) == code, self.log
        return self.log

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        return self._processes.wait(process, SWEEP_S)

    def wait_for(self, condition: Callable[[], Any], process: subprocess.Popen[bytes], what: str) -> Any:
        def found() -> Any:
            assert process.poll() is None, f"the sweep ended before {what}: {self.log}"
            return condition()

        return self._processes.patience.wait(found, SWEEP_S, what)

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    @property
    def ray_starts(self) -> int:
        return len(list(Path(self._environment["RAY_TMPDIR"]).glob("ray/session_2*")))

    @property
    def ledger(self) -> Ledger:
        return Ledger(str(self.folder / "runs"), "test")

    @property
    def trials(self) -> list[TrialRecord]:
        return self.ledger.trials()


def comparable(records: list[TrialRecord]) -> list[Any]:
    """What must not depend on timing, slots, kills or resumption."""
    return [
        (
            record.spec,
            record.state,
            record.trainable_parameters,
            [(r.images_seen, r.train_loss, r.val_loss, r.val_accuracy) for r in record.reports],
        )
        for record in records
    ]


def slot_workers(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(driver.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # gone meanwhile
            continue
    return found


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def make_sweep(
    tmp_path_factory: pytest.TempPathFactory, module_processes: Processes, environment: Callable[..., dict[str, str]]
) -> Callable[[str], Sweep]:
    """One that runs to its end, with a Ray that the command starts itself."""

    def make(length: str) -> Sweep:
        folder = tmp_path_factory.mktemp("sweep")
        sweep = Sweep(folder, module_processes, environment(folder))
        sweep.run(length)
        return sweep

    return make


@pytest.fixture(scope="module")
def finished(make_sweep: Callable[[str], Sweep]) -> Sweep:
    return make_sweep(BRIEF)


@pytest.fixture(scope="module")
def undisturbed(make_sweep: Callable[[str], Sweep]) -> Sweep:
    return make_sweep(LONG)


@pytest.fixture
def alone(tmp_path: Path, processes: Processes, environment: Callable[..., dict[str, str]]) -> Sweep:
    """Another, that starts Ray itself."""
    return Sweep(tmp_path, processes, environment(tmp_path))


def test_sweep_answers_with_report_and_model(finished: Sweep) -> None:
    records = finished.trials
    assert [record.spec.index for record in records] == list(range(10))
    assert {record.state for record in records} <= {TrialState.FINISHED, TrialState.STOPPED}
    final = finished.ledger.read_json("final.json")
    assert "Recommendation of test" in finished.log
    assert re.search(rf"│ unfreeze +│ {re.escape(final['selection'])} ", finished.log)
    assert (finished.folder / "runs/test/report.html").stat().st_size > 10_000
    assert 0.5 < final["test_correct"] / final["num_test"] <= 1


def test_exported_model_loads_into_timm(finished: Sweep) -> None:
    final = finished.ledger.read_json("final.json")
    path = finished.folder / "runs/test" / final["export"]
    model = timm.create_model(f"local-dir:{path.parent}", pretrained=True).eval()
    exported = load_file(path)
    assert all((value == exported[name]).all() for name, value in model.state_dict().items())
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    test = load_test(load_config(finished.ledger.read_json("config.json")).data, image_size=32)
    inputs = torch.stack([transform(test.original(position)) for position in range(len(test))])
    with torch.inference_mode():
        correct = int((model(inputs).argmax(1) == torch.from_numpy(test.labels)).sum())
    assert (correct, len(test)) == (final["test_correct"], final["num_test"])


def test_mlflow_has_one_run_per_trial(finished: Sweep) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("unfreeze").experiment_id])
    trials = sorted(run.data.tags["unfreeze.trial"] for run in runs if "unfreeze.trial" in run.data.tags)
    assert trials == [f"trial-{index:05d}" for index in range(10)]
    sweeps = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(sweeps) == 1
    assert "correlation/selections" in sweeps[0].data.metrics
    assert "report.html" in {item.path for item in client.list_artifacts(sweeps[0].info.run_id)}
    assert len(client.search_model_versions("name = 'unfreeze-test'")) == 1


def test_finished_sweep_only_prints_its_report(finished: Sweep) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished.folder / "runs/test/trials").iterdir()}
    log = finished.run(BRIEF)
    assert log.count("Recommendation of test") == 2
    assert before == {path: path.stat().st_mtime_ns for path in (finished.folder / "runs/test/trials").iterdir()}
    assert finished.ray_starts == 1


@pytest.mark.slow
def test_kills_leave_the_same_ledger(undisturbed: Sweep, alone: Sweep, processes: Processes) -> None:
    """A slot's worker, then the driver are killed in mid-trial, MLflow is unreachable, and somebody starts the same
    sweep again meanwhile: nothing is lost or done twice."""

    def running() -> list[TrialRecord]:
        return [r for r in alone.trials if r.state is TrialState.RUNNING and len(r.reports) >= 2]

    def three_are_final() -> bool:
        return sum(record.state.is_final for record in alone.trials) >= 3

    first = alone.start(LONG, f"tracking.uri=http://127.0.0.1:{closed_port()}")
    alone.wait_for(running, first, "first reports")
    slot_workers(first)[0].send_signal(signal.SIGKILL)
    alone.wait_for(lambda: any(r.attempts > 1 for r in alone.trials), first, "trial taken up again")
    assert alone.wait(alone.start(LONG)) == 75
    assert "is being run by process" in alone.log
    alone.wait_for(lambda: three_are_final() and running(), first, "trial to interrupt")
    first.send_signal(signal.SIGKILL)
    processes.wait_for_the_rest()  # Ray's processes follow their driver
    assert "(raylet)" not in alone.log  # which has seen the worker die
    assert not alone.ledger.read_json("final.json")

    alone.run(LONG)
    assert comparable(alone.trials) == comparable(undisturbed.trials)
    client = mlflow.MlflowClient(f"sqlite:///{alone.folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("unfreeze").experiment_id])
    assert sum("unfreeze.trial" in run.data.tags for run in runs) == 10


@pytest.mark.slow
def test_two_workers_give_the_numbers_of_one_and_an_interrupt_keeps_them(undisturbed: Sweep, alone: Sweep) -> None:
    """Data-parallel workers see the same global batches; gradients differ in the last bits alone."""
    process = alone.start(LONG, "cluster.workers_per_trial=2")
    alone.wait_for(lambda: sum(record.state.is_final for record in alone.trials) >= 2, process, "two trials")
    process.send_signal(signal.SIGTERM)  # Ray and Tune have handlers of their own, of which nothing may be left
    assert alone.wait(process) == 143, alone.log
    assert alone.log.count("stopped by SIGTERM: nothing that finished is lost, run the same command") == 1
    assert "Traceback" not in alone.log
    assert "Stack trace" not in alone.log
    two = alone.trials
    one = undisturbed.trials[: len(two)]
    assert [record.spec for record in one] == [record.spec for record in two]
    assert TrialState.FAILED not in {record.state for record in two}
    for left, right in zip(one[:2], two[:2], strict=True):
        losses = [report.val_loss for report in left.reports]
        assert [report.val_loss for report in right.reports] == pytest.approx(losses, rel=1e-3)


# --- what the user must mend ------------------------------------------------------------------------------------------


def test_bad_input_stops_before_a_trial(
    tmp_path: Path, processes: Processes, environment: Callable[..., dict[str, str]], head: Any
) -> None:
    """By the command, and known only after a worker of the head has built the model; the others are called."""
    joined = Sweep(tmp_path, processes, environment(tmp_path, head))
    log = joined.run("model.name=swin_tiny_patch4_window7_224", "model.weights=random", code=2)
    assert "error: " in log
    assert "SwinTransformer has no single stack" in log
    assert "Traceback" not in log
    assert not (tmp_path / "runs/test").exists()  # the name is still free for the mended command


def test_more_slots_than_the_cluster_holds_stop_before_a_trial(tmp_path: Path, head: Any) -> None:
    cluster = {"address": head.address, "num_slots": 50}
    with pytest.raises(ClusterError, match=r"50 slot\(s\) of 1 worker\(s\) need 50 CPU, the cluster has 2 CPU"):
        run_sweep(load_config({"storage": str(tmp_path / "runs"), "cluster": cluster}))
    assert not ray.is_initialized()
    assert not (tmp_path / "runs/sweep").exists()


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise AssertionError("Ray is not needed")

    monkeypatch.setattr(ray, "init", refuse)


@pytest.mark.usefixtures("no_ray")
def test_unwritable_storage_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        run_sweep(load_config({"storage": str(tmp_path / "file")}))


@pytest.mark.usefixtures("no_ray")
def test_name_of_another_configuration_is_refused(finished: Sweep) -> None:
    stored = finished.ledger.read_json("config.json")
    assert stored["finetune"]["epochs"] == 8.0
    changed = {**stored, "storage": str(finished.folder / "runs"), "finetune": {**stored["finetune"], "epochs": 41.0}}
    with pytest.raises(SweepMismatchError, match=r"finetune\.epochs: stored 8\.0, now 41\.0"):
        run_sweep(load_config(changed))
    assert finished.ledger.read_json("config.json") == stored
