"""A real `mlflow server` behind a proxy that fails, down altogether, and a disk that is full: no trial waits, there is
one warning, nothing is lost. What it costs the sweep: ops/bench/tracking.py."""

import itertools
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_proxy import OUTAGES, Fault, FaultyProxy
from finished_sweep import make_evidence, make_ledger, make_trial
from mlflow_runs import runs_by_key, serve
from small_disk import SmallDisk

from unfreeze.config import TrackingConfig
from unfreeze.errors import ConfigError, InfrastructureError
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.gather import read_evidence
from unfreeze.sweep.publish import synchronise
from unfreeze.tracking.mirror import MlflowMirror

pytestmark = pytest.mark.slow

LATE_S = 5.0  # a call
NUM_LATER = 4  # trials that end while MLflow is watched
AT_ONCE_S = 1.0  # a call that only wakes a thread, on a busy machine; MLflow's own calls take 5 s where it is slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, fresh_database: Path) -> Iterator[str]:
    """The address of a server with a database of its own."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(fresh_database, folder / "mlflow.db")
    with serve(folder) as address:
        yield address


@pytest.fixture
def proxy(server: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(server, late_s=LATE_S) as proxy:
        yield proxy


@pytest.fixture
def tracking(proxy: FaultyProxy, request: pytest.FixtureRequest) -> TrackingConfig:
    """An experiment of the test's own."""
    return TrackingConfig(uri=proxy.url, experiment=request.node.name)


def run_on(mirror: MlflowMirror, ledger: Ledger, indices: range) -> None:
    """What a sweep does while trials end; fails if telling the mirror takes time."""
    for index in indices:
        ledger.write_trial(make_trial(index, "ln2", 0.8))
        began = time.monotonic()
        mirror.notify()
        assert time.monotonic() - began < AT_ONCE_S


@pytest.mark.parametrize("when", ["start", "middle", "end"])
@pytest.mark.parametrize("fault", OUTAGES)
def test_one_warning_no_waiting_and_all_there_afterwards(
    fault: str,
    when: str,
    proxy: FaultyProxy,
    tracking: TrackingConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger = make_ledger(tmp_path / "runs", make_evidence())
    half = 20 + NUM_LATER // 2
    mirror = MlflowMirror(tracking, ledger, read_evidence)
    with caplog.at_level(logging.WARNING, "unfreeze"):
        if when == "start":
            proxy.plan(itertools.repeat(fault))
        mirror.__enter__()
        run_on(mirror, ledger, range(20, half))
        if when == "middle":
            proxy.plan(itertools.repeat(fault))
        run_on(mirror, ledger, range(half, 20 + NUM_LATER))
        if when == "end":
            proxy.plan(itertools.repeat(fault))
        thread = mirror._thread
        mirror.close(timeout_s=0.5)
    assert len({record.getMessage() for record in caplog.records if record.name.startswith("unfreeze")}) <= 2
    warned = [record for record in caplog.records if "keeps trying" in record.getMessage()]
    assert len(warned) == 1
    proxy.plan(())
    assert thread is not None
    thread.join()  # which a process that ends does not wait for; two writers at once would be no outage
    said = synchronise(tracking, ledger)
    assert said.endswith(f"has sweep demo with the {12 + NUM_LATER} trials that have ended")
    client, runs = runs_by_key(tracking)  # fails where a key is there twice
    assert len(runs) == 2 + 12 + NUM_LATER
    assert {run.info.status for run in runs.values()} == {"FINISHED", "KILLED", "FAILED"}
    points = client.get_metric_history(runs["sweep"].info.run_id, "correlation/n")
    assert [point.step for point in points] == list(range(1, 9 + NUM_LATER + 1))
    for index in range(20, 20 + NUM_LATER):
        run_id = runs[f"trial-{index:05d}"].info.run_id
        assert len(client.get_metric_history(run_id, "val_accuracy")) == 3


def test_the_history_goes_to_another_server_too(
    tracking: TrackingConfig, config: TrackingConfig, tmp_path: Path
) -> None:
    ledger = make_ledger(tmp_path / "runs", make_evidence())
    for place in (config, tracking):
        synchronise(place, ledger)
    told = []
    for place in (config, tracking):
        client, runs = runs_by_key(place)
        names = {key: run.info.run_name for key, run in runs.items()}
        data = {key: (run.data.params, run.data.metrics.keys()) for key, run in runs.items()}
        told.append((names, data, len(client.get_metric_history(runs["sweep"].info.run_id, "verdict/worth"))))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("fault", "words"), [(Fault.RESET, "does not answer"), (Fault.UNKNOWN, "MLFLOW_TRACKING_TOKEN")]
)
def test_the_command_says_what_is_wrong(
    fault: Fault, words: str, proxy: FaultyProxy, tracking: TrackingConfig, tmp_path: Path
) -> None:
    ledger = make_ledger(tmp_path / "runs", make_evidence())
    proxy.plan(itertools.repeat(fault))
    with pytest.raises(InfrastructureError, match=words):
        synchronise(tracking, ledger)
    with pytest.raises(ConfigError, match=r"tracking\.uri is null"):
        synchronise(TrackingConfig(uri=None), ledger)


def test_a_registry_that_the_credentials_may_not_write(
    proxy: FaultyProxy, tracking: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = make_ledger(tmp_path / "runs", make_evidence())
    proxy.plan(itertools.repeat(Fault.FORBIDDEN), of_path=lambda path: "registered-models" in path)
    with pytest.raises(InfrastructureError, match="has not everything yet"):
        synchronise(tracking, ledger)
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("unfreeze")]
    assert said.startswith("MLflow has the sweep, but its model cannot be registered from here: ")
    assert "ask whoever runs it for the permission" in said
    assert len(runs_by_key(tracking)[1]) == 2 + 12


def test_a_full_disk_under_sqlite(
    config: TrackingConfig, small_disk: SmallDisk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = make_ledger(tmp_path / "runs", make_evidence())
    shutil.move(str(config.uri).removeprefix("sqlite:///"), small_disk.path / "mlflow.db")
    on_it = TrackingConfig(uri=f"sqlite:///{small_disk.path}/mlflow.db", experiment=config.experiment)
    mirror = MlflowMirror(on_it, ledger, read_evidence).__enter__()
    small_disk.fill()
    run_on(mirror, ledger, range(20, 20 + NUM_LATER))
    mirror.close(timeout_s=30)
    assert sum("keeps trying" in record.getMessage() for record in caplog.records) == 1
    assert "full" in caplog.text
    small_disk.make_room()
    synchronise(on_it, ledger)
    assert len(runs_by_key(on_it)[1]) == 2 + 12 + NUM_LATER


def test_a_server_that_is_not_there_while_the_sweep_runs(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = make_ledger(tmp_path / "runs", make_evidence())
    with FaultyProxy(server) as gone:
        pass  # its port is closed now
    with MlflowMirror(TrackingConfig(uri=gone.url, experiment="gone"), ledger, read_evidence) as mirror:
        run_on(mirror, ledger, range(20, 20 + NUM_LATER))
    assert [record.getMessage().count("does not answer") for record in caplog.records] == [1]
    back = TrackingConfig(uri=server, experiment="gone")
    synchronise(back, ledger)
    assert len(runs_by_key(back)[1]) == 2 + 12 + NUM_LATER
