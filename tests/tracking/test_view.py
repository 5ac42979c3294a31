"""What MLflow shows of a sweep, read back from a real MLflow on SQLite."""

import dataclasses
import html
import json
import math
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import mlflow
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from mlflow_runs import runs_by_key

from unfreeze.records import COMPONENTS, ScoreWorth, TrialState, Worth, to_dict
from unfreeze.report.answer import recommendation_rows
from unfreeze.report.links import run_link
from unfreeze.report.page import html_report, terminal_report
from unfreeze.sweep.gather import read_evidence
from unfreeze.tracking.mirror import MlflowMirror
from unfreeze.tracking.runs import RunTree
from unfreeze.tracking.settling import METRICS


class TestTree:
    def test_runs_and_what_they_hold(self, config, ledger, evidence):
        MlflowMirror(config, ledger, read_evidence).sync()
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
        model = dataclasses.replace(evidence.model, num_tokens=65, width=64)
        ledger.write_json("facts.json", {"model": to_dict(model), "data": to_dict(evidence.data)})
        MlflowMirror(config, ledger, read_evidence).sync()
        client, runs = runs_by_key(config)
        trial, run = evidence.trials[7], runs["trial-00007"]
        history = client.get_metric_history(run.info.run_id, "val_accuracy")
        assert [(m.step, m.timestamp, m.value) for m in history] == [
            (report.images_seen, report.timestamp_ms, report.val_accuracy) for report in trial.reports
        ]
        busy = client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")  # MLflow's own name
        assert [(m.step, m.value) for m in busy] == [(1000, 81.0), (2000, 82.0), (3000, 83.0)]
        assert run.data.metrics["best_val_accuracy"] == trial.best_val_accuracy
        assert run.data.metrics["trainable_parameters"] == trial.trainable_parameters
        assert run.data.params["selection"] == "mha+fc1"
        assert run.data.params["learning_rate"] == "0.01"
        assert run.data.tags["unfreeze.checkpoint"] == trial.checkpoint
        assert not [
            name for name in {**run.data.tags, **run.data.params} if name.startswith(("environment", "finetune"))
        ]
        assert run.info.run_name == "mha+fc1 · 0.01 · s0"
        assert {name: run.data.params[f"train.{name}"] for name in COMPONENTS} == {
            "ln1": "0", "mha": "1", "ln2": "0", "fc1": "1", "fc2": "0",
        }  # fmt: skip
        assert runs["trial-00011"].data.params["train.mha"] == "0.5"  # mha@0-1 of four blocks
        share = trial.trainable_parameters / evidence.model.num_parameters
        assert run.data.metrics["trainable_share"] == pytest.approx(share)
        assert 0.3 < run.data.metrics["flops_share"] < runs["trial-00005"].data.metrics["flops_share"] == 1
        assert run.info.start_time == trial.reports[0].timestamp_ms - 2000
        assert run.info.end_time == trial.reports[-1].timestamp_ms
        assert runs["trial-00011"].data.tags["unfreeze.error"] == "RuntimeError: out of <memory>"

    def test_the_report_leads_to_it(self, config, ledger):
        MlflowMirror(config, ledger, read_evidence).sync()
        client, runs = runs_by_key(config)
        place = read_evidence(ledger).mlflow
        link = urlsplit(run_link(place, "trial-00007"))
        assert link.netloc == "127.0.0.1:5000"  # of `make ui`, for a database
        path, _, query = link.fragment.partition("?")
        experiment_id = client.get_experiment_by_name(config.experiment).experiment_id
        assert path == f"/experiments/{experiment_id}/runs"
        (found,) = client.search_runs([experiment_id], parse_qs(query)["searchFilter"][0])
        assert found.info.run_id == runs["trial-00007"].info.run_id

    def test_block_plasticity_has_the_block_as_its_step(self, config, ledger, model):
        MlflowMirror(config, ledger, read_evidence).sync()
        client, runs = runs_by_key(config)
        history = client.get_metric_history(runs["pre-pass"].info.run_id, "plasticity_by_block/in_situ/fc1")
        assert [metric.step for metric in history] == list(range(model.num_blocks))

    def test_evidence_and_artifacts_beside_the_database(self, config, ledger, evidence, tmp_path, monkeypatch):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        mirror = MlflowMirror(config, ledger, read_evidence)
        mirror.log_figures({"best_so_far.svg": b"<svg/>"})
        mirror.sync()
        _, runs = runs_by_key(config)
        metrics, tags = runs["sweep"].data.metrics, runs["sweep"].data.tags
        found = next(c for c in evidence.correlations if (c.mode, c.name) == ("reference", "selections"))
        assert metrics["correlation/selections"] == pytest.approx(found.spearman)
        assert metrics["correlation/n"] == found.n
        assert tags["recommendation.selection"] == "mha+fc1"
        assert tags["recommendation.chosen_on"] == "learning rate chosen on validation accuracy"
        folder = next((tmp_path / "mlartifacts").glob(f"{runs['sweep'].info.run_id}/artifacts"))
        files = {
            "config.json",
            "environment.json",
            "correlations.json",
            "worth.json",
            "report.html",
            "figures",
        }
        assert {path.name for path in folder.iterdir()} == files
        assert {path.name for path in (folder / "figures").iterdir()} == {"best_so_far.svg", "settling.png"}
        assert list(elsewhere.iterdir()) == []

    def test_the_verdict_is_the_same_word_for_word_everywhere(self, config, ledger, evidence):
        number = Worth(mean=0.012, low=-math.inf, high=0.026, positive=0.94, p=0.058, bayes_factor=2.1)
        worths = (ScoreWorth(score="reference", num_trials=32, worth=number), *evidence.worths[1:])
        evidence = dataclasses.replace(evidence, worths=worths)
        MlflowMirror(config, ledger, lambda *_: evidence).sync()
        run = runs_by_key(config)[1]["sweep"]
        sentence = run.data.tags["verdict"]
        assert sentence.startswith("Undecided: whether plasticity (reference) predicts accuracy")
        for report in (terminal_report(evidence), html.unescape(html_report(evidence))):
            assert sentence in " ".join(report.split())
        described = run.data.tags["mlflow.note.content"].replace("\\", "")
        assert sentence in described
        for what, value in recommendation_rows(evidence):
            assert f"| {what} | {value} |" in described

    def test_a_choice_on_test_accuracy_is_labelled(self, config, ledger, evidence):
        chosen = dataclasses.replace(evidence.recommendation, test_accuracy=0.955, test_accuracy_sd=0.01)
        final = dataclasses.replace(evidence.final, select_on="test")
        ledger.write_json("final.json", to_dict(final))
        evidence = dataclasses.replace(evidence, recommendation=chosen, final=final)
        MlflowMirror(config, ledger, lambda *_: evidence).sync()
        _, runs = runs_by_key(config)
        label = "learning rate chosen on test accuracy, as the paper's code does; optimistic"
        assert runs["sweep"].data.tags["recommendation.chosen_on"] == label
        assert runs["sweep"].data.metrics["recommendation/test_accuracy"] == 0.955

    def test_what_the_experiment_and_the_sweep_say_of_themselves(self, config, ledger):
        source = {
            "name": "sweeps/vit_components.py",
            "command": "python sweeps/vit_components.py sweep.name=demo",
            "user": "ada",
            "commit": "f" * 40,
            "ray_job": "01000000",
        }
        versions = {"torch": "2.14", "ray": "2.60", "numpy": "2"}
        ledger.write_json("environment.json", {"python": "3.11", "versions": versions, "source": source})
        MlflowMirror(config, ledger, read_evidence).sync()
        client, runs = runs_by_key(config)
        about = client.get_experiment_by_name(config.experiment).tags
        assert about["mlflow.experimentKind"] == "custom_model_development"
        assert "arxiv.org/abs/2602.06883" in about["mlflow.note.content"]
        tags = runs["sweep"].data.tags
        assert tags["mlflow.source.name"] == "sweeps/vit_components.py"
        assert tags["mlflow.source.type"] == "LOCAL"
        assert tags["mlflow.source.git.commit"] == "f" * 40
        assert tags["mlflow.user"] == "ada"
        assert tags["ray.job_id"] == "01000000"
        assert source["command"] in tags["mlflow.note.content"]
        environment = {name for run in runs.values() for name in run.data.tags if name.startswith("environment.")}
        assert environment == {"environment.python", "environment.torch", "environment.ray"}

    def test_data_sets_each_with_its_context(self, config, ledger, evidence):
        for _ in range(2):
            MlflowMirror(config, ledger, read_evidence).sync()
        client, runs = runs_by_key(config)
        inputs = client.get_run(runs["sweep"].info.run_id).inputs.dataset_inputs
        found = {each.tags[0].value: each.dataset for each in inputs}
        assert {context: json.loads(each.profile)["num_rows"] for context, each in found.items()} == {
            "source": 500, "train": 1000, "validation": 200, "test": 300,
        }  # fmt: skip
        assert found["train"].digest == evidence.data.digest[:36]
        (feature,) = json.loads(json.loads(found["train"].schema)["mlflow_tensorspec"]["features"])
        assert feature["tensor-spec"] == {"dtype": "uint8", "shape": [-1, -1, -1, 3]}
        assert mlflow.data.get_source(found["train"]).to_dict() == {"tags": {"unfreeze.data": "digits"}}

    def test_the_tables_have_the_report_s_digits(self, config, ledger):
        mirror = MlflowMirror(config, ledger, read_evidence)
        mirror.sync()
        _, runs = runs_by_key(config)
        listed = json.loads(runs["sweep"].data.tags["mlflow.loggedArtifacts"])
        report = " ".join(terminal_report(read_evidence(ledger)).split())
        for each in listed:
            folder = mlflow.artifacts.download_artifacts(
                f"runs:/{runs['sweep'].info.run_id}/{each['path']}", tracking_uri=config.uri
            )
            table = pd.read_json(folder, orient="split")
            assert len(table) > 0
            for cell in table.iloc[:, :2].to_numpy().ravel():
                assert str(cell).split(":")[0] in report

    def test_many_reports_are_batched(self, config, ledger, build_trial):
        ledger.write_trial(build_trial(20, "fc2", 0.9, num_reports=600))  # 2,402 metrics
        MlflowMirror(config, ledger, read_evidence).sync()
        client, runs = runs_by_key(config)
        assert len(client.get_metric_history(runs["trial-00020"].info.run_id, "train_loss")) == 600

    def test_a_diverged_trial_with_nan(self, config, ledger, build_trial):
        trial = build_trial(21, "fc2", 0.1, state=TrialState.DIVERGED)
        last = dataclasses.replace(trial.reports[-1], train_loss=float("nan"), val_loss=float("inf"))
        ledger.write_trial(dataclasses.replace(trial, reports=(*trial.reports[:-1], last)))
        for _ in range(2):
            MlflowMirror(config, ledger, read_evidence).sync()
        client, runs = runs_by_key(config)
        assert len(client.get_metric_history(runs["trial-00021"].info.run_id, "train_loss")) == 3


class TestSettling:
    """The coefficients after every finished trial, against a few independent lines."""

    def test_one_point_for_each_finished_trial(self, config, ledger, evidence):
        MlflowMirror(config, ledger, read_evidence).sync()
        client, runs = runs_by_key(config)
        run_id = runs["sweep"].info.run_id
        found = {name: client.get_metric_history(run_id, name) for name in METRICS}
        finished = sorted(
            (json.loads(path.read_text()) for path in Path(ledger.url("trials")).iterdir()),
            key=lambda trial: trial["reports"][-1]["timestamp_ms"] if trial["reports"] else 0,
        )
        finished = [trial for trial in finished if trial["state"] == "finished"]
        assert len(METRICS) == 10
        for history in found.values():
            assert [metric.step for metric in history] == list(range(1, len(finished) + 1))
        plasticity = {
            (row.block, row.component): row.mean
            for row in evidence.plasticity.rows
            if row.mode == "reference" and row.block is not None
        }
        for count, metric in enumerate(found["correlation/selections"], start=1):
            best: dict[str, list[float]] = {}
            for trial in finished[:count]:
                accuracy = max(report["val_accuracy"] for report in trial["reports"])
                if trial["spec"]["selection"] not in ("all", "none"):
                    best.setdefault(trial["spec"]["selection"], []).append(accuracy)
            means = [np.mean([v for (_, name), v in plasticity.items() if name in text.split("+")]) for text in best]
            if len(best) < 3:
                assert math.isnan(metric.value)
            else:
                expected = scipy.stats.spearmanr(means, [np.mean(values) for values in best.values()]).statistic
                assert metric.value == pytest.approx(expected)

    def test_written_as_the_trials_finish_and_not_again(self, config, ledger, build_trial, monkeypatch):
        written = []
        write = RunTree.write_settled
        monkeypatch.setattr(
            RunTree, "write_settled", lambda self, count, rows: (written.append(count), write(self, count, rows))
        )
        mirror = MlflowMirror(config, ledger, read_evidence)
        mirror.sync()
        mirror.sync()
        ledger.write_trial(build_trial(20, "ln2", 0.9))
        mirror.sync()
        MlflowMirror(config, ledger, read_evidence).sync()
        assert written == [9, 10]
