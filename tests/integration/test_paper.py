"""The paper's command as a user runs it, on the tiny model and digits: one set fails, the other chooses on test."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Processes

from unfreeze.config import Config
from unfreeze.records import TrialState
from unfreeze.storage.ledger import Ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
OPTIONS = (
    "paper.sets=[cifar10,pet]",
    "storage=runs",
    "model.name=unfreeze_tiny",
    "model.layer_norm_eps=null",
    "data.name=digits",
    "data.path=null",
    "data.source_path=null",
    "data.loading=auto",
    "data.augment=none",
    "data.max_train_images=100",
    "data.max_val_images=50",
    "plasticity.num_pairs=32",
    "plasticity.batch_size=16",
    "finetune.steps=20",
    "finetune.warmup_steps=2",
    "finetune.batch_size=16",
    "finetune.micro_batch_size=8",
    "finetune.num_reports=2",
    "search.selections=[mha,none]",
    "search.learning_rates=[0.03,0.3]",
    "search.seeds=[3]",
    "search.concurrency=2",
    "cluster.num_slots=1",
    "tracking.uri=null",
)


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_paper(tmp_path: Path, processes: Processes, environment: Callable[..., dict[str, str]], head: Any) -> Run:
    """The command on the session's head, with further options; it takes a minute on a quiet machine."""

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, ROOT / "sweeps/paper.py", *OPTIONS, *options]
        return processes.run(command, cwd=tmp_path, quiet_s=300, env=environment(tmp_path, head))

    return run


def times(folder: Path, pattern: str) -> dict[Path, int]:
    """But for leases, of which every start writes one."""
    found = (path for path in (folder / "runs/paper-pet").glob(pattern) if path.parent.name != "lease")
    return {path: path.stat().st_mtime_ns for path in found}


def test_one_set_fails_and_the_other_s_grid_is_run_then_chosen_from_on_test(run_paper: Run, tmp_path: Path) -> None:
    """Cifar10's name is taken by another configuration; Pet's four trials run once, and are chosen from twice."""
    Ledger(str(tmp_path / "runs"), "paper-cifar10").claim(Config())
    first = run_paper()
    assert first.returncode == 2, first.stderr
    assert "1 of 2 sets failed" in first.stderr
    assert "cifar10: sweep 'paper-cifar10'" in first.stderr
    assert "was started with another configuration" in first.stderr
    assert "Traceback" not in first.stderr

    ledger = Ledger(str(tmp_path / "runs"), "paper-pet")
    trials = ledger.trials()
    assert {(t.spec.selection, t.spec.learning_rate, t.spec.seed, t.state) for t in trials} == {
        (name, rate, 3, TrialState.FINISHED) for name in ("mha", "none") for rate in (0.03, 0.3)
    }
    assert [trial.spec.selection for trial in trials] == ["mha", "mha", "none", "none"]
    assert [[report.images_seen for report in trial.reports] for trial in trials] == [[160, 320]] * 4
    assert ledger.tests() == {}
    final = ledger.read_json("final.json")
    best = max(trials, key=lambda trial: (trial.best_val_accuracy, -trial.trainable_parameters))
    assert (final["trial_id"], final["select_on"]) == (best.spec.trial_id, "val")
    assert "pet: validation accuracy, learning rate chosen on validation accuracy." in first.stdout

    before = times(tmp_path, "trials/*.json")
    published = run_paper("search.select_on=test")
    assert published.returncode == 2
    assert before == times(tmp_path, "trials/*.json")
    tests, final = ledger.tests(), ledger.read_json("final.json")
    assert sorted(tests) == [trial.spec.trial_id for trial in trials]
    most = max(tests.values(), key=lambda result: result.correct)
    assert (final["test_correct"], final["num_test"], final["select_on"]) == (most.correct, most.num_test, "test")
    assert "pet: test accuracy, learning rate chosen on test accuracy, as the paper's code does;" in published.stdout
    page = ledger.read_bytes("report.html").decode().replace("&#39;", "'")
    assert "Test images were opened for every trial: learning rate chosen on test accuracy" in page

    before = times(tmp_path, "**/*.json")
    again = run_paper("search.select_on=test")  # nothing is left to do
    assert again.stdout == published.stdout
    assert before == times(tmp_path, "**/*.json")
    assert json.loads((tmp_path / "runs/paper-cifar10/config.json").read_text())["search"]["space"] == "components"
