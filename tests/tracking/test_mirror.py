"""The mirror against a real MLflow on SQLite: the tree, writing twice, crashes, and a server that is not there."""

import dataclasses
import html
import logging
import math
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from unfreeze.config import Config, TrackingConfig
from unfreeze.errors import SweepInterrupted
from unfreeze.records import ScoreWorth, TrialState, Worth, to_dict
from unfreeze.report.figures import render_all
from unfreeze.report.page import html_report, terminal_report
from unfreeze.storage.ledger import Ledger
from unfreeze.tracking.mirror import MlflowMirror
from unfreeze.tracking.runs import RunTree
from unfreeze.tracking.server import check_reachable, connect, open_experiment, sqlite_path


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database nobody has written to: creating one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def config(tmp_path: Path, fresh_database: Path) -> TrackingConfig:
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    return TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tests")


@pytest.fixture
def dead_uri() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def runs_by_key(config: TrackingConfig):
    """Every run of the experiment by `unfreeze.run`; a second one of a key fails."""
    client = connect(config.uri)
    runs = client.search_runs([client.get_experiment_by_name(config.experiment).experiment_id], max_results=1000)
    keys = [run.data.tags["unfreeze.run"] for run in runs]
    assert len(keys) == len(set(keys))
    return client, dict(zip(keys, runs, strict=True))


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


class TestTree:
    def test_runs_and_what_they_hold(self, config, ledger, evidence):
        MlflowMirror(config, ledger).sync()
        _, runs = runs_by_key(config)
        final = [trial for trial in evidence.trials if trial.state.is_final]
        assert set(runs) == {"sweep", "pre-pass", *(trial.spec.trial_id for trial in final)}
        sweep = runs["sweep"]
        assert sweep.info.status == "FINISHED"
        assert sweep.data.tags["unfreeze.storage"] == ledger.url("")
        assert sweep.data.params["search.num_trials"] == "32"
        assert sweep.data.metrics["plasticity/reference/mha"] == pytest.approx(3.95, abs=0.01)
        assert sweep.data.metrics["test_accuracy"] == pytest.approx(0.96)
        assert {run.data.tags["mlflow.parentRunId"] for key, run in runs.items() if key != "sweep"} == {
            sweep.info.run_id
        }
        states = {trial.spec.trial_id: trial.state for trial in final}
        expected = {"finished": "FINISHED", "stopped": "KILLED", "diverged": "FAILED", "failed": "FAILED"}
        assert {key: runs[key].info.status for key in states} == {key: expected[s] for key, s in states.items()}

    def test_a_trial_run(self, config, ledger, evidence):
        MlflowMirror(config, ledger).sync()
        client, runs = runs_by_key(config)
        trial, run = evidence.trials[7], runs["trial-00007"]
        history = client.get_metric_history(run.info.run_id, "val_accuracy")
        assert [(m.step, m.timestamp, m.value) for m in history] == [
            (report.images_seen, report.timestamp_ms, report.val_accuracy) for report in trial.reports
        ]
        assert run.data.metrics["best_val_accuracy"] == trial.best_val_accuracy
        assert run.data.metrics["trainable_parameters"] == trial.trainable_parameters
        assert run.data.params["selection"] == "mha+fc1"
        assert run.data.params["learning_rate"] == "0.01"
        assert run.data.tags["unfreeze.checkpoint"] == trial.checkpoint
        assert run.data.tags["environment.versions.torch"] == "2.14"
        assert run.info.start_time == trial.reports[0].timestamp_ms - 2000
        assert run.info.end_time == trial.reports[-1].timestamp_ms
        assert runs["trial-00011"].data.tags["unfreeze.error"] == "RuntimeError: out of <memory>"

    def test_block_plasticity_has_the_block_as_its_step(self, config, ledger, model):
        MlflowMirror(config, ledger).sync()
        client, runs = runs_by_key(config)
        history = client.get_metric_history(runs["pre-pass"].info.run_id, "plasticity_by_block/in_situ/fc1")
        assert [metric.step for metric in history] == list(range(model.num_blocks))

    def test_evidence_and_artifacts_beside_the_database(self, config, ledger, evidence, tmp_path, monkeypatch):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        mirror = MlflowMirror(config, ledger)
        mirror.log_evidence(evidence, render_all(evidence))
        mirror.sync()
        _, runs = runs_by_key(config)
        metrics, tags = runs["sweep"].data.metrics, runs["sweep"].data.tags
        found = evidence.correlations[0]
        assert metrics["correlation/reference/components/spearman"] == pytest.approx(found.spearman)
        assert metrics["correlation/reference/components/kendall_p"] == pytest.approx(found.kendall_p)
        assert metrics["correlation/reference/components/n"] == 5
        assert tags["recommendation.selection"] == "mha+fc1"
        assert tags["recommendation.chosen_on"] == "learning rate chosen on validation accuracy"
        folder = next((tmp_path / "mlartifacts").glob(f"{runs['sweep'].info.run_id}/artifacts"))
        assert {path.name for path in folder.iterdir()} == {"config.json", "figures", "report.html", "model"}
        assert len(list((folder / "figures").glob("*.svg"))) == len(render_all(evidence))
        assert list(elsewhere.iterdir()) == []

    def test_the_verdict_is_the_same_word_for_word_everywhere(self, config, ledger, evidence):
        number = Worth(mean=0.012, low=-math.inf, high=0.026, positive=0.94, p=0.058, bayes_factor=2.1)
        worths = (ScoreWorth(score="reference", num_trials=32, worth=number), *evidence.worths[1:])
        evidence = dataclasses.replace(evidence, worths=worths)
        mirror = MlflowMirror(config, ledger)
        mirror.log_evidence(evidence, {})
        mirror.sync()
        run = runs_by_key(config)[1]["sweep"]
        sentence = run.data.tags["verdict"]
        assert sentence.startswith("Undecided: whether plasticity (reference) predicts accuracy")
        for report in (terminal_report(evidence), html.unescape(html_report(evidence))):
            assert sentence in " ".join(report.split())
        assert run.data.metrics["worth/reference/positive"] == 0.94
        assert "worth/reference/low" not in run.data.metrics  # no end on that side
        assert "worth/in_situ/mean" not in run.data.metrics  # no number

    def test_a_choice_on_test_accuracy_is_labelled(self, config, ledger, evidence):
        chosen = dataclasses.replace(evidence.recommendation, test_accuracy=0.955, test_accuracy_sd=0.01)
        final = dataclasses.replace(evidence.final, select_on="test")
        ledger.write_json("final.json", to_dict(final))
        mirror = MlflowMirror(config, ledger)
        mirror.log_evidence(dataclasses.replace(evidence, recommendation=chosen, final=final), {})
        mirror.sync()
        client, runs = runs_by_key(config)
        label = "learning rate chosen on test accuracy, as the paper's code does; optimistic"
        assert runs["sweep"].data.tags["recommendation.chosen_on"] == label
        assert runs["sweep"].data.metrics["recommendation/test_accuracy"] == 0.955
        (version,) = client.search_model_versions("name='unfreeze-demo'")
        assert version.tags["unfreeze.select_on"] == "test"

    def test_many_reports_are_batched(self, config, ledger, build_trial):
        ledger.write_trial(build_trial(20, "fc2", 0.9, num_reports=600))  # 2,402 metrics
        MlflowMirror(config, ledger).sync()
        client, runs = runs_by_key(config)
        assert len(client.get_metric_history(runs["trial-00020"].info.run_id, "train_loss")) == 600

    def test_a_diverged_trial_with_nan(self, config, ledger, build_trial):
        trial = build_trial(21, "fc2", 0.1, state=TrialState.DIVERGED)
        last = dataclasses.replace(trial.reports[-1], train_loss=float("nan"), val_loss=float("inf"))
        ledger.write_trial(dataclasses.replace(trial, reports=(*trial.reports[:-1], last)))
        for _ in range(2):
            MlflowMirror(config, ledger).sync()
        client, runs = runs_by_key(config)
        assert len(client.get_metric_history(runs["trial-00021"].info.run_id, "train_loss")) == 3


class TestTwice:
    def test_the_same_mirror_and_another_process(self, config, ledger, evidence):
        mirror = MlflowMirror(config, ledger)
        mirror.log_evidence(evidence, {"best_so_far": "<svg/>"})
        mirror.sync()
        before = snapshot(config)
        mirror.sync()
        again = MlflowMirror(config, ledger)
        again.log_evidence(evidence, {"best_so_far": "<svg/>"})
        again.sync()
        assert snapshot(config) == before

    def test_what_a_resumed_sweep_may_change(self, config, ledger):
        MlflowMirror(config, ledger).sync()
        changed = Config()
        changed.cluster.num_slots, changed.tracking.experiment, changed.trial.selection = 3, "other", "mha"
        changed.probe.pool, changed.paper.root, changed.search.select_on = "mean", "/data", "test"
        changed.finetune.micro_batch_size, changed.data.num_workers = 8, 7
        ledger.claim(changed)
        ledger.write_json("environment.json", {"python": "3.12"})
        MlflowMirror(config, ledger).sync()
        _, runs = runs_by_key(config)
        assert runs["sweep"].data.tags["environment.python"] == "3.12"
        assert runs["sweep"].data.tags["finetune.micro_batch_size"] == "8"
        for key in ("sweep", "trial-00003"):
            assert "finetune.micro_batch_size" in runs[key].data.tags
            assert "finetune.micro_batch_size" not in runs[key].data.params
            assert "finetune.batch_size" in runs[key].data.params

    def test_one_model_version_per_digest(self, config, ledger, evidence):
        for _ in range(2):
            MlflowMirror(config, ledger).sync()
        client = connect(config.uri)
        (version,) = client.search_model_versions("name='unfreeze-demo'")
        assert version.tags["unfreeze.sha256"] == evidence.final.export_sha256
        assert version.description.startswith("timm.create_model('local-dir:")
        other = dataclasses.replace(evidence.final, export_sha256="d" * 64)
        ledger.write_json("final.json", to_dict(other))
        ledger.write_bytes(other.export, b"other weights")
        MlflowMirror(config, ledger).sync()
        versions = {v.tags["unfreeze.sha256"]: v for v in client.search_model_versions("name='unfreeze-demo'")}
        assert set(versions) == {"c" * 64, "d" * 64}
        from mlflow.artifacts import download_artifacts

        for digest, content in (("c" * 64, b"weights"), ("d" * 64, b"other weights")):
            found = download_artifacts(versions[digest].source, tracking_uri=config.uri)
            assert (Path(found) / "model.safetensors").read_bytes() == content
            assert (Path(found) / "config.json").is_file()

    def test_killed_between_create_and_log(self, config, ledger, monkeypatch):
        monkeypatch.setattr(RunTree, "write", _killed_at("trial-00003", RunTree.write))
        with pytest.raises(KeyboardInterrupt):
            MlflowMirror(config, ledger).sync()
        _, runs = runs_by_key(config)
        assert runs["trial-00003"].info.status == "RUNNING"
        assert runs["trial-00003"].data.metrics == {}
        assert "trial-00004" not in runs
        monkeypatch.undo()
        MlflowMirror(config, ledger).sync()
        _, after = runs_by_key(config)
        assert after["trial-00003"].info.run_id == runs["trial-00003"].info.run_id
        assert after["trial-00003"].info.status == "FINISHED"
        assert after["trial-00003"].data.metrics["best_val_accuracy"] == pytest.approx(0.88)
        assert "trial-00004" in after

    def test_a_failed_trial_taken_up_again(self, config, ledger, build_trial):
        mirror = MlflowMirror(config, ledger)
        mirror.sync()
        ledger.write_trial(dataclasses.replace(build_trial(11, "mha@0-1", 0.5), attempts=2))
        mirror.sync()
        _, runs = runs_by_key(config)
        assert runs["trial-00011"].info.status == "FINISHED"
        assert runs["trial-00011"].data.tags["unfreeze.attempts"] == "2"

    def test_equal_names_stay_apart(self, config, ledger, tmp_path):
        MlflowMirror(config, ledger).sync()
        elsewhere = Ledger(str(tmp_path / "other"), "demo")
        elsewhere.claim(Config())
        MlflowMirror(config, elsewhere).sync()
        shutil.rmtree(tmp_path / "other/demo")  # started over
        elsewhere.claim(Config(storage="x"))
        MlflowMirror(config, elsewhere).sync()
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
        with MlflowMirror(config, ledger) as mirror:
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
        with pytest.raises(type(error)), MlflowMirror(config, ledger):
            raise error
        _, runs = runs_by_key(config)
        assert runs["sweep"].info.status == status
        with MlflowMirror(config, ledger):
            pass
        _, runs = runs_by_key(config)
        assert runs["sweep"].info.status == "FINISHED"

    def test_off(self, ledger, evidence):
        with MlflowMirror(TrackingConfig(uri=None), ledger) as mirror:
            mirror.notify()
            mirror.log_evidence(evidence, {})
            mirror.sync()
        assert ledger.read_json("mlflow.json") is None

    def test_before_the_name_is_claimed(self, config, tmp_path):
        MlflowMirror(config, Ledger(str(tmp_path / "empty"), "demo")).sync()
        assert not (tmp_path / "empty").exists()


class TestArtifactsOutOfReach:
    """A server with `--no-serve-artifacts` hands out a place that is its own, not the client's."""

    @pytest.fixture(autouse=True)
    def experiment(self, config):
        connect(config.uri).create_experiment(config.experiment, artifact_location="file:///proc/mlruns")

    def test_the_rest_is_there_and_one_warning(self, config, ledger, evidence, caplog):
        with MlflowMirror(config, ledger) as mirror:
            mirror.log_evidence(evidence, {"best_so_far": "<svg/>"})
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
        MlflowMirror(config, ledger).sync()
        seen = []
        monkeypatch.setattr(RunTree, "upload", lambda self, key, path, content: seen.append((key, path)))
        MlflowMirror(config, ledger).sync()
        assert {("sweep", "config.json"), ("pre-pass", "plasticity.json"), ("sweep", "report.html")} <= set(seen)


def test_a_deleted_experiment_is_named_with_its_ways_out(config, ledger, caplog):
    client = connect(config.uri)
    experiment_id = client.create_experiment(config.experiment)
    client.delete_experiment(experiment_id)
    with MlflowMirror(config, ledger):
        pass
    (record,) = caplog.records
    said = record.getMessage()
    assert "experiment 'tests'" in said
    assert f"`mlflow experiments restore --experiment-id {experiment_id}`" in said
    assert "tracking.experiment=…" in said
    assert "run the same command" not in said
    client.restore_experiment(experiment_id)
    MlflowMirror(config, ledger).sync()
    assert len(runs_by_key(config)[1]) == 2 + 12


class TestServerDown:
    def test_never_raises_warns_once_and_catches_up_later(self, config, ledger, evidence, dead_uri, caplog):
        began = time.monotonic()
        with caplog.at_level(logging.WARNING), MlflowMirror(TrackingConfig(uri=dead_uri), ledger) as mirror:
            for _ in range(3):
                mirror.notify()
                time.sleep(0.1)
            mirror.log_evidence(evidence, {})
        assert time.monotonic() - began < 15
        (record,) = caplog.records
        assert "does not answer" in record.message
        assert "run the same command again" in record.message
        with MlflowMirror(config, ledger):
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
        with MlflowMirror(config, ledger):
            deadline = time.monotonic() + 60
            while len(calls) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
        _, runs = runs_by_key(config)
        assert len(runs) == 2 + 12
        assert len(caplog.records) == 1

    def test_a_sync_that_hangs_is_left(self, config, ledger, monkeypatch, caplog):
        release = threading.Event()
        monkeypatch.setattr(MlflowMirror, "sync", lambda self: release.wait(30))
        mirror = MlflowMirror(config, ledger).__enter__()
        began = time.monotonic()
        mirror.close(timeout_s=0.2)
        assert time.monotonic() - began < 5
        assert "was not done after 0.2 s" in caplog.text
        release.set()

    def test_sync_itself_says_so(self, ledger, dead_uri):
        with pytest.raises(ConnectionError, match="does not answer"):
            MlflowMirror(TrackingConfig(uri=dead_uri), ledger).sync()


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

    def test_probe_of_a_closed_port_and_of_a_database(self, dead_uri):
        assert "does not answer" in (check_reachable(dead_uri) or "")
        assert "does not answer" in (check_reachable("http://127.0.0.1:port") or "")
        assert check_reachable("sqlite:///mlflow.db") is None

    def test_sqlite_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert sqlite_path("sqlite:///mlflow.db") == tmp_path / "mlflow.db"
        assert sqlite_path(f"sqlite:///{tmp_path}/x.db") == tmp_path / "x.db"
        assert sqlite_path("http://x") is None

    def test_experiment_is_opened_once(self, config):
        client = connect(config.uri)
        assert open_experiment(client, config.uri, "x") == open_experiment(client, config.uri, "x")
