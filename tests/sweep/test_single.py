"""One trial without Ray: its price on the embedded model and digits, and the command that prints it."""

import re
import sys
from pathlib import Path

import pytest
from processes import Processes

from unfreeze.errors import ConfigError, TrialError
from unfreeze.load import load_config
from unfreeze.report.cost import prediction_line, terminal_cost
from unfreeze.sweep.single import open_trial

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = {"max_train_images": 40, "max_val_images": 20}


def test_the_price_of_a_trial(tmp_path: Path) -> None:
    raw = {
        "data": {**SETTINGS, "cache_dir": str(tmp_path)},
        "finetune": {"epochs": 2.0, "batch_size": 8, "num_reports": 2},
        "trial": {"selection": "mha@4-5"},
    }
    cost = open_trial(load_config(raw)).cost()
    assert (cost.selection, cost.num_steps, cost.images) == ("mha@4-5", 10, 80)
    assert cost.num_trained == 2 * 16_640 + 2 * 64 + 650  # two blocks' attention, final norm, classifier of ten digits
    assert 0.3 < cost.flops_share < 0.6
    assert cost.total_s > 10 * cost.step_s > 0  # the validations come on top
    printed = terminal_cost(cost)
    for expected in ("mha@4-5", "34,058 (", "10, 80 images", f"({cost.flops_share:.1%} of training all)", "GiB"):
        assert expected in printed


def test_a_sharded_single_trial_is_refused(tmp_path: Path) -> None:
    raw = {"data": {**SETTINGS, "cache_dir": str(tmp_path)}, "finetune": {"shard": True}}
    with pytest.raises(ConfigError, match=r"finetune\.shard"):
        open_trial(load_config(raw))


def test_divergence_is_one_line(tmp_path: Path) -> None:
    raw = {
        "data": {**SETTINGS, "cache_dir": str(tmp_path)},
        "finetune": {"epochs": 2.0, "batch_size": 8, "clip_norm": 0.0, "warmup_share": 0.0},
        "trial": {"learning_rate": 1e12},
    }
    with pytest.raises(
        TrialError, match=r"the trial diverged, its loss became .* lower trial\.learning_rate than 1e\+12"
    ):
        list(open_trial(load_config(raw)).run())


def test_predicted_against_measured(tmp_path: Path) -> None:
    raw = {"data": {**SETTINGS, "cache_dir": str(tmp_path)}, "finetune": {"epochs": 1.0, "batch_size": 8}}
    cost = open_trial(load_config(raw)).cost()
    line = prediction_line(cost, cost.total_s / 1.25)
    assert line.endswith("the prediction is off by +25%")


def test_the_command_prices_and_writes_nothing(processes: Processes, tmp_path: Path) -> None:
    arguments = [f"data.cache_dir={tmp_path}/cache", f"storage={tmp_path}/runs", "data.max_train_images=40"]
    command = [sys.executable, "sweeps/finetune.py", "dry_run=true", "trial.selection=fc1", *arguments]
    done = processes.run(command, cwd=REPOSITORY, quiet_s=120)
    assert done.returncode == 0, done.stderr
    assert "Predicted; nothing was trained" in done.stdout
    assert re.search(r"train\s+│ fc1", done.stdout)
    assert "val accuracy" not in done.stdout
    assert not (tmp_path / "runs").exists()
