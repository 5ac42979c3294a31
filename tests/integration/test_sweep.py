"""Whole sweeps as a user runs them: the entry script, local Ray, real trials; disturbed, resumed, finished."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import mlflow
import psutil
import pytest
import timm
from safetensors.torch import load_file

import unfreeze.models.tiny  # noqa: F401 - makes `unfreeze_tiny` known to timm
from unfreeze.records import TrialRecord, TrialState
from unfreeze.storage.ledger import Ledger

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300
# Long enough that a kill lands in the middle of trials: 10 × 2 to 3 s on two slots.
OPTIONS = (
    "experiment=demo",
    "sweep.name=test",
    "data.max_train_images=100",
    "finetune.epochs=20",
    "search.num_trials=8",
    "search.start_learning_rates=[0.1]",
    "search.confirm_top=1",
    "search.confirm_seeds=2",
)


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "sweeps/vit_components.py"), *OPTIONS, *options]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment(folder))


def environment(folder: Path) -> dict[str, str]:
    # Token and cache of the test's own; matplotlib's font list is a machine's and takes seconds to make.
    fonts = os.environ.get("MPLCONFIGDIR", matplotlib.get_cachedir())
    own = {"HOME": str(folder), "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": fonts}
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | own


def run(folder: Path, *options: str) -> str:
    process = start(folder, *options)
    code = process.wait(TIMEOUT_S)
    log = (folder / "log.txt").read_text()
    assert code == 0, log
    return log


def ledger_of(folder: Path) -> Ledger:
    return Ledger(str(folder / "runs"), "test")


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


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes], what: str) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert process.poll() is None, f"the sweep ended before {what}"
        time.sleep(0.1)
    raise AssertionError(f"no {what} in {TIMEOUT_S} s")


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
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder)
    return folder


def test_sweep_answers_with_report_and_model(undisturbed: Path) -> None:
    records = ledger_of(undisturbed).trials()
    assert [record.spec.index for record in records] == list(range(10))
    assert {record.state for record in records} <= {TrialState.FINISHED, TrialState.STOPPED}
    final = ledger_of(undisturbed).read_json("final.json")
    log = (undisturbed / "log.txt").read_text()
    assert "Recommendation of test" in log
    assert f"│ unfreeze             │ {final['selection']} " in log
    assert (undisturbed / "runs/test/report.html").stat().st_size > 10_000
    assert 0.5 < final["test_correct"] / final["num_test"] <= 1


def test_exported_model_loads_into_timm(undisturbed: Path) -> None:
    final = ledger_of(undisturbed).read_json("final.json")
    path = undisturbed / "runs/test" / final["export"]
    model = timm.create_model(final["model_name"], checkpoint_path=str(path), **final["create_kwargs"])
    exported = load_file(path)
    assert all((value == exported[name]).all() for name, value in model.state_dict().items())


def test_mlflow_has_one_run_per_trial(undisturbed: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{undisturbed / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("unfreeze").experiment_id])
    trials = sorted(run.data.tags["unfreeze.trial"] for run in runs if "unfreeze.trial" in run.data.tags)
    assert trials == [f"trial-{index:05d}" for index in range(10)]
    sweeps = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(sweeps) == 1
    assert "correlation/reference/components/spearman" in sweeps[0].data.metrics
    assert "report.html" in {item.path for item in client.list_artifacts(sweeps[0].info.run_id)}
    assert len(client.search_model_versions("name = 'unfreeze-test'")) == 1


def test_finished_sweep_only_prints_its_report(undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (undisturbed / "runs/test/trials").iterdir()}
    started = time.monotonic()
    log = run(undisturbed)
    assert log.count("Recommendation of test") == 2
    assert before == {path: path.stat().st_mtime_ns for path in (undisturbed / "runs/test/trials").iterdir()}
    assert time.monotonic() - started < 60


def test_kills_leave_the_same_ledger(undisturbed: Path, tmp_path: Path) -> None:
    """A slot's worker, then the driver are killed in mid-trial, MLflow is unreachable: nothing lost or done twice."""
    ledger = ledger_of(tmp_path)

    def running() -> list[TrialRecord]:
        return [r for r in ledger.trials() if r.state is TrialState.RUNNING and len(r.reports) >= 2]

    first = start(tmp_path, f"tracking.uri=http://127.0.0.1:{closed_port()}")
    wait_for(running, first, "first reports")
    victim = slot_workers(first)[0]
    victim.send_signal(signal.SIGKILL)
    wait_for(lambda: any(r.attempts > 1 for r in ledger.trials()), first, "trial taken up again")
    wait_for(lambda: sum(r.state.is_final for r in ledger.trials()) >= 3 and running(), first, "trial to interrupt")
    children = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.wait(TIMEOUT_S)
    psutil.wait_procs(children, timeout=60)  # Ray's processes follow their driver
    assert not ledger.read_json("final.json")

    run(tmp_path)
    assert comparable(ledger.trials()) == comparable(ledger_of(undisturbed).trials())
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("unfreeze").experiment_id])
    assert sum("unfreeze.trial" in run.data.tags for run in runs) == 10


def test_two_workers_give_the_numbers_of_one_and_an_interrupt_keeps_them(undisturbed: Path, tmp_path: Path) -> None:
    """Data-parallel workers see the same global batches; gradients differ in the last bits alone."""
    ledger = ledger_of(tmp_path)
    process = start(tmp_path, "cluster.workers_per_trial=2")
    wait_for(lambda: sum(r.state.is_final for r in ledger.trials()) >= 2, process, "two trials")
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT_S) == 130, (tmp_path / "log.txt").read_text()
    assert "run the same command" in (tmp_path / "log.txt").read_text()
    two = ledger.trials()
    one = ledger_of(undisturbed).trials()[: len(two)]
    assert [record.spec for record in one] == [record.spec for record in two]
    assert TrialState.FAILED not in {record.state for record in two}
    for left, right in zip(one[:2], two[:2], strict=True):
        losses = [report.val_loss for report in left.reports]
        assert [report.val_loss for report in right.reports] == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("model.name=swin_tiny_patch4_window7_224", "model.weights=random"), "SwinTransformer has no single stack"),
        (("cluster.num_slots=50",), "50 slot(s) of 1 worker(s) need 50 CPU"),
    ],
)
def test_bad_input_stops_before_a_trial(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    process = start(tmp_path, *options)
    assert process.wait(TIMEOUT_S) == 2
    log = (tmp_path / "log.txt").read_text()
    assert message in log
    assert "Traceback" not in log
    assert not (tmp_path / "runs/test").exists()  # the name is still free for the mended command


def test_unwritable_storage_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    process = start(tmp_path, f"storage={tmp_path / 'file'}")
    assert process.wait(TIMEOUT_S) == 2
    assert "cannot write" in (tmp_path / "log.txt").read_text()


def test_name_of_another_configuration_is_refused(undisturbed: Path) -> None:
    process = start(undisturbed, "finetune.epochs=41")
    assert process.wait(TIMEOUT_S) == 2
    assert "finetune.epochs: stored 20.0, now 41.0" in (undisturbed / "log.txt").read_text()
    assert json.loads((undisturbed / "runs/test/config.json").read_text())["finetune"]["epochs"] == 20.0
