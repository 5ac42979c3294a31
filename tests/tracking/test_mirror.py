"""The mirror against a real MLflow on SQLite: writing twice, crashes, and a server that is not there."""

import contextlib
import dataclasses
import logging
import re
import shutil
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version

import alembic.command
import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _get_alembic_config
from mlflow_runs import runs_by_key

from unfreeze.config import Config, TrackingConfig
from unfreeze.errors import InfrastructureError, SweepInterrupted
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.gather import read_evidence
from unfreeze.sweep.publish import synchronise
from unfreeze.tracking.mirror import MlflowMirror
from unfreeze.tracking.runs import RunTree
from unfreeze.tracking.server import check_reachable, connect, explain, open_experiment, page_of, sqlite_path


@pytest.fixture
def dead_uri() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def snapshot(config: TrackingConfig):
    """All that a second sync must leave as it was."""
    client, runs = runs_by_key(config)
    return {
        key: (
            run.info.run_id,
            run.info.status,
            run.info.end_time,
            run.data.params,
            run.data.tags,
            {name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics},
        )
        for key, run in runs.items()
    }


class TestDeletedInTheUi:
    def test_runs_come_back_below_a_new_sweep(self, config, ledger, build_trial):
        mirror = MlflowMirror(config, ledger, read_evidence)
        mirror.sync()
        client, before = runs_by_key(config)
        for key in ("sweep", "trial-00004"):
            client.delete_run(before[key].info.run_id)
        ledger.write_trial(build_trial(20, "ln2", 0.9))
        with pytest.raises(MlflowException, match="deleted"):
            mirror.sync()
        mirror.sync()
        _, after = runs_by_key(config)
        assert set(after) == {*before, "trial-00020"}
        assert {run.data.tags["mlflow.parentRunId"] for key, run in after.items() if key != "sweep"} == {
            after["sweep"].info.run_id
        }
        assert len(client.get_metric_history(after["sweep"].info.run_id, "correlation/n")) == 10


class TestTwice:
    def test_the_same_mirror_and_another_process(self, config, ledger, evidence):
        mirror = MlflowMirror(config, ledger, read_evidence)
        mirror.log_figures({"best_so_far.svg": b"<svg/>"})
        mirror.sync()
        before = snapshot(config)
        mirror.sync()
        again = MlflowMirror(config, ledger, read_evidence)
        again.log_figures({"best_so_far.svg": b"<svg/>"})
        again.sync()
        assert snapshot(config) == before

    def test_what_a_resumed_sweep_may_change(self, config, ledger):
        MlflowMirror(config, ledger, read_evidence).sync()
        changed = Config()
        changed.cluster.num_slots, changed.tracking.experiment, changed.trial.selection = 3, "other", "mha"
        changed.probe.pool, changed.paper.root, changed.search.select_on = "mean", "/data", "test"
        changed.finetune.micro_batch_size, changed.data.num_workers = 8, 7
        ledger.claim(changed)
        ledger.write_json("environment.json", {"python": "3.12"})
        MlflowMirror(config, ledger, read_evidence).sync()
        _, runs = runs_by_key(config)
        sweep = runs["sweep"].data
        assert sweep.tags["environment.python"] == "3.12"
        assert sweep.tags["finetune.micro_batch_size"] == "8"
        assert "finetune.micro_batch_size" not in sweep.params
        assert "finetune.batch_size" in sweep.params

    def test_killed_between_create_and_log(self, config, ledger, monkeypatch):
        monkeypatch.setattr(RunTree, "write", _killed_at("trial-00003", RunTree.write))
        with pytest.raises(KeyboardInterrupt):
            MlflowMirror(config, ledger, read_evidence).sync()
        _, runs = runs_by_key(config)
        assert runs["trial-00003"].info.status == "RUNNING"
        assert runs["trial-00003"].data.metrics == {}
        assert "trial-00004" not in runs
        monkeypatch.undo()
        MlflowMirror(config, ledger, read_evidence).sync()
        _, after = runs_by_key(config)
        assert after["trial-00003"].info.run_id == runs["trial-00003"].info.run_id
        assert after["trial-00003"].info.status == "FINISHED"
        assert after["trial-00003"].data.metrics["best_val_accuracy"] == pytest.approx(0.88)
        assert "trial-00004" in after

    def test_a_failed_trial_taken_up_again(self, config, ledger, build_trial):
        mirror = MlflowMirror(config, ledger, read_evidence)
        mirror.sync()
        ledger.write_trial(dataclasses.replace(build_trial(11, "mha@0-1", 0.5), attempts=2))
        mirror.sync()
        _, runs = runs_by_key(config)
        assert runs["trial-00011"].info.status == "FINISHED"
        assert runs["trial-00011"].data.tags["unfreeze.attempts"] == "2"

    def test_equal_names_stay_apart(self, config, ledger, tmp_path):
        MlflowMirror(config, ledger, read_evidence).sync()
        elsewhere = Ledger(str(tmp_path / "other"), "demo")
        elsewhere.claim(Config())
        MlflowMirror(config, elsewhere, read_evidence).sync()
        shutil.rmtree(tmp_path / "other/demo")  # started over
        elsewhere.claim(Config(storage="x"))
        MlflowMirror(config, elsewhere, read_evidence).sync()
        client = connect(config.uri)
        experiment_id = client.get_experiment_by_name(config.experiment).experiment_id
        assert len(client.search_runs([experiment_id], "tags.\"unfreeze.run\" = 'sweep'")) == 3


def _killed_at(key, write):
    def killed(self, this, **rest):
        if this == key:
            raise KeyboardInterrupt
        write(self, this, **rest)

    return killed


class TestThread:
    def test_follows_the_ledger_and_ends(self, config, ledger, build_trial):
        with MlflowMirror(config, ledger, read_evidence) as mirror:
            for index in range(30, 34):
                ledger.write_trial(build_trial(index, "ln2", 0.8))
                mirror.notify()
        _, runs = runs_by_key(config)
        assert {f"trial-{index:05d}" for index in range(30, 34)} <= set(runs)
        assert runs["sweep"].info.status == "FINISHED"
        mirror.close()  # a second time does nothing

    @pytest.mark.parametrize(
        ("error", "status"),
        [(KeyboardInterrupt(), "KILLED"), (SweepInterrupted(signal.SIGTERM), "KILLED"), (RuntimeError(), "FAILED")],
    )
    def test_status_of_a_sweep_that_broke_off_and_of_its_resumption(self, config, ledger, error, status):
        ledger.delete("final.json")
        with pytest.raises(type(error)), MlflowMirror(config, ledger, read_evidence):
            raise error
        _, runs = runs_by_key(config)
        assert runs["sweep"].info.status == status
        with MlflowMirror(config, ledger, read_evidence):
            pass
        _, runs = runs_by_key(config)
        assert runs["sweep"].info.status == "FINISHED"

    def test_off(self, ledger, evidence):
        with MlflowMirror(TrackingConfig(uri=None), ledger, read_evidence) as mirror:
            mirror.notify()
            mirror.notify()
            mirror.sync()
        assert ledger.read_json("mlflow.json") is None

    def test_before_the_name_is_claimed(self, config, tmp_path):
        MlflowMirror(config, Ledger(str(tmp_path / "empty"), "demo"), read_evidence).sync()
        assert not (tmp_path / "empty").exists()


class TestArtifactsOutOfReach:
    """A server with `--no-serve-artifacts` hands out a place that is its own, not the client's."""

    @pytest.fixture(autouse=True)
    def experiment(self, config):
        connect(config.uri).create_experiment(config.experiment, artifact_location="file:///proc/mlruns")

    def test_the_rest_is_there_and_one_warning(self, config, ledger, evidence, caplog):
        with MlflowMirror(config, ledger, read_evidence) as mirror:
            mirror.log_figures({"best_so_far.svg": b"<svg/>"})
        _, runs = runs_by_key(config)
        assert len(runs) == 2 + 12
        assert runs["sweep"].info.status == "FINISHED"
        assert runs["sweep"].data.params["search.num_trials"] == "32"
        assert runs["sweep"].data.metrics["test_accuracy"] == pytest.approx(0.96)
        assert runs["sweep"].data.tags["recommendation.selection"] == "mha+fc1"
        assert runs["trial-00000"].data.metrics["best_val_accuracy"] == pytest.approx(0.95)
        (record,) = caplog.records
        assert "artifacts cannot be written from here: " in record.getMessage()
        assert record.getMessage().endswith(f"They are in {ledger.url('')}")

    def test_within_reach_again_the_same_command_brings_them(self, config, ledger, monkeypatch):
        MlflowMirror(config, ledger, read_evidence).sync()
        seen = []
        monkeypatch.setattr(RunTree, "upload", lambda self, key, path, content: seen.append((key, path)))
        MlflowMirror(config, ledger, read_evidence).sync()
        assert {("sweep", "config.json"), ("pre-pass", "plasticity.json"), ("sweep", "report.html")} <= set(seen)


def test_an_experiment_is_found_by_mlflow_s_variable_of_its_number(config, ledger, monkeypatch):
    client = connect(config.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", client.create_experiment("elsewhere"))
    MlflowMirror(dataclasses.replace(config, experiment="auto"), ledger, read_evidence).sync()
    assert client.get_experiment_by_name("unfreeze") is None
    assert len(runs_by_key(dataclasses.replace(config, experiment="elsewhere"))[1]) == 2 + 12


def test_a_deleted_experiment_is_named_with_its_ways_out(config, ledger, caplog):
    client = connect(config.uri)
    experiment_id = client.create_experiment(config.experiment)
    client.delete_experiment(experiment_id)
    with MlflowMirror(config, ledger, read_evidence):
        pass
    (record,) = caplog.records
    said = record.getMessage()
    assert "experiment 'tests'" in said
    assert f"`mlflow experiments restore --experiment-id {experiment_id}`" in said
    assert "tracking.experiment=…" in said
    assert "run the same command" not in said
    client.restore_experiment(experiment_id)
    MlflowMirror(config, ledger, read_evidence).sync()
    assert len(runs_by_key(config)[1]) == 2 + 12


class TestOtherVersions:
    """A database that another MLflow has made is left as it is, and the command that mends it is named."""

    @staticmethod
    def revision(config):
        with contextlib.closing(sqlite3.connect(sqlite_path(config.uri))) as database:
            return database.execute("select version_num from alembic_version").fetchone()[0]

    def test_a_pending_migration(self, config, ledger, caplog):
        newest = self.revision(config)
        alembic.command.downgrade(_get_alembic_config(config.uri), "-1")
        older = self.revision(config)
        with MlflowMirror(config, ledger, read_evidence):
            pass
        (record,) = caplog.records
        command = f"`mlflow db upgrade {config.uri}`"
        assert command in record.getMessage()
        assert "make a copy" in record.getMessage()
        with pytest.raises(InfrastructureError, match=re.escape(command)):
            synchronise(config, ledger)
        assert older == self.revision(config) != newest
        alembic.command.upgrade(_get_alembic_config(config.uri), "head")  # what that command does
        MlflowMirror(config, ledger, read_evidence).sync()
        assert len(runs_by_key(config)[1]) == 2 + 12

    def test_a_newer_database(self, config, ledger):
        with contextlib.closing(sqlite3.connect(sqlite_path(config.uri))) as database, database:
            database.execute("update alembic_version set version_num = 'f00000000000'")
        with pytest.raises(InfrastructureError, match=r"is of a newer MLflow than 3.*: install that one"):
            synchronise(config, ledger)


def test_while_trials_run_a_sync_writes_a_part_and_the_next_one_goes_on(config, ledger, monkeypatch):
    """However many have ended since the last one: a long sync would ask for a pause longer than any."""
    gathered = []

    def gather(ledger, trials):
        gathered.append(len(trials))
        return read_evidence(ledger)

    for name, value in {"_TRIALS_CPU_S": 0.0, "_PAUSE_S": 0.01, "_CPU_SHARE": 1e9}.items():
        monkeypatch.setattr(f"unfreeze.tracking.mirror.{name}", value)
    with MlflowMirror(config, ledger, gather) as mirror:
        deadline = time.monotonic() + 60
        while max(gathered, default=0) < 12 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(runs_by_key(config)[1]) == 2 + 12
        assert mirror._end_status is None
    assert gathered[:3] == [1, 2, 3]


class TestServerDown:
    def test_never_raises_warns_once_and_catches_up_later(self, config, ledger, evidence, dead_uri, caplog):
        began = time.monotonic()
        with (
            caplog.at_level(logging.WARNING),
            MlflowMirror(TrackingConfig(uri=dead_uri), ledger, read_evidence) as mirror,
        ):
            for _ in range(3):
                mirror.notify()
                time.sleep(0.1)
            mirror.notify()
        assert time.monotonic() - began < 15
        (record,) = caplog.records
        assert "does not answer" in record.message
        assert "run the same command again" in record.message
        with MlflowMirror(config, ledger, read_evidence):
            pass
        _, runs = runs_by_key(config)
        assert len(runs) == 2 + 12

    def test_back_after_a_failure(self, config, ledger, monkeypatch, caplog):
        calls = []

        def flaky(uri):
            calls.append(uri)
            return "MLflow is down" if len(calls) < 3 else None

        monkeypatch.setattr("unfreeze.tracking.mirror.check_reachable", flaky)
        monkeypatch.setattr("unfreeze.tracking.mirror._PAUSE_S", 0.01)
        with MlflowMirror(config, ledger, read_evidence):
            deadline = time.monotonic() + 60
            while len(calls) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
        _, runs = runs_by_key(config)
        assert len(runs) == 2 + 12
        assert len(caplog.records) == 1

    def test_a_sync_that_hangs_is_left(self, config, ledger, monkeypatch, caplog):
        release = threading.Event()
        monkeypatch.setattr(MlflowMirror, "sync", lambda self: release.wait(30))
        mirror = MlflowMirror(config, ledger, read_evidence).__enter__()
        began = time.monotonic()
        mirror.close(timeout_s=0.2)
        assert time.monotonic() - began < 5
        assert "was not done after 0.2 s" in caplog.text
        release.set()

    def test_sync_itself_says_so(self, ledger, dead_uri):
        with pytest.raises(ConnectionError, match="does not answer"):
            MlflowMirror(TrackingConfig(uri=dead_uri), ledger, read_evidence).sync()


class TestServer:
    @pytest.fixture
    def answering(self, request: pytest.FixtureRequest) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, headers, body = request.param
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield f"http://user:secret@127.0.0.1:{server.server_port}/"
            server.shutdown()
            thread.join()

    @pytest.mark.parametrize(
        ("answering", "said"),
        [
            ((200, {}, b"OK"), None),
            ((401, {}, b""), None),
            ((404, {}, b"<html>"), None),  # a gateway that lets MLflow's own paths through
            ((503, {}, b""), "answers 503 Service Unavailable"),
            ((200, {}, b"\n<!doctype html><form>"), "answers with a page that is not MLflow's: a login"),
            ((301, {"Location": "https://m.example/health"}, b""), "redirects to https://m.example: give that as"),
            ((302, {"Location": "https://a:b@sso.example/in"}, b""), "redirects to https://…@sso.example/in: give"),
        ],
        indirect=["answering"],
    )
    def test_probe(self, answering, said):
        problem = check_reachable(answering)
        if said is None:
            assert problem is None
        else:
            assert said in problem
            assert "secret" not in problem

    @pytest.mark.parametrize(
        ("answering", "said"),
        [((403, {}, b""), "answers 403 Forbidden"), ((502, {}, b""), "answers 502 Bad Gateway")],
        indirect=["answering"],
    )
    def test_a_proxy_is_named(self, answering, said, monkeypatch):
        monkeypatch.setenv("http_proxy", answering)
        monkeypatch.setenv("no_proxy", "")
        problem = check_reachable("http://mlflow.example:5000")
        assert said in problem
        assert (
            f"through the proxy http://…@{answering.partition('@')[2]} (HTTP_PROXY; NO_PROXY=mlflow.example" in problem
        )
        monkeypatch.setenv("no_proxy", "mlflow.example")
        assert "proxy" not in check_reachable("http://mlflow.example:5000")

    @pytest.mark.parametrize("answering", [(200, {}, b"2.22.0")], indirect=True)
    def test_one_older_than_the_client(self, answering, ledger):
        command = rf"version 2\.22\.0, .*`pip install mlflow=={version('mlflow')}` and `mlflow db upgrade DATABASE`"
        with pytest.raises(InfrastructureError, match=command):
            synchronise(TrackingConfig(uri=answering), ledger)

    def test_what_it_does_not_allow(self):
        refused = MlflowException("API request to endpoint /x failed with error code 403 != 200. Response body: ''")
        assert "ask whoever runs it for the permission" in explain(refused, "http://mlflow:5000")

    def test_probe_of_a_closed_port_and_of_a_database(self, dead_uri):
        assert "does not answer" in (check_reachable(dead_uri) or "")
        assert "does not answer" in (check_reachable("http://127.0.0.1:port") or "")
        assert check_reachable("sqlite:///mlflow.db") is None

    def test_sqlite_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert sqlite_path("sqlite:///mlflow.db") == tmp_path / "mlflow.db"
        assert sqlite_path(f"sqlite:///{tmp_path}/x.db") == tmp_path / "x.db"
        assert sqlite_path("http://x") is None

    @pytest.mark.parametrize(
        ("uri", "page"),
        [
            ("https://ada:secret@mlflow.example/", "https://mlflow.example"),
            ("http://mlflow:5000", "http://mlflow:5000"),
            ("sqlite:////tmp/mlflow.db", "http://127.0.0.1:5000"),
            ("postgresql://ada:secret@db/mlflow", "http://127.0.0.1:5000"),
        ],
    )
    def test_page_in_a_browser(self, uri, page):
        assert page_of(uri) == page

    def test_experiment_is_opened_once(self, config):
        client = connect(config.uri)
        assert open_experiment(client, config.uri, "x") == open_experiment(client, config.uri, "x")
