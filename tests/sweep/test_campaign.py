"""Sweeps one after another, some of which fail; and the command that runs the paper's."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Processes

from unfreeze.config import Config, SweepConfig
from unfreeze.errors import DataError, SweepInterrupted
from unfreeze.sweep import campaign
from unfreeze.sweep.campaign import run_campaign

Run = Callable[..., subprocess.CompletedProcess[str]]

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


def configs(*names: str) -> dict[str, Config]:
    return {name: Config(sweep=SweepConfig(name=f"paper-{name}")) for name in names}


def run_with(outcomes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`run_sweep` answers with or raises what ``outcomes`` says; returns the sweeps begun, in order."""
    begun: list[str] = []

    def run_sweep(config: Config) -> Any:
        begun.append(config.sweep.name)
        outcome = outcomes[config.sweep.name.removeprefix("paper-")]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(campaign, "run_sweep", run_sweep)
    return begun


def test_what_fails_is_reported_and_the_rest_still_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {"pet": DataError("no such folder: '/pet'"), "cifar10": "evidence", "flowers102": RuntimeError("a bug")}
    begun = run_with(outcomes, monkeypatch)
    evidence, errors = run_campaign(configs(*outcomes))
    assert begun == ["paper-pet", "paper-cifar10", "paper-flowers102"]
    assert evidence == {"cifar10": "evidence"}
    assert errors == {"pet": "no such folder: '/pet'", "flowers102": "RuntimeError: a bug"}
    said = capsys.readouterr().err
    assert "1/3: pet, sweep paper-pet\npet failed: no such folder: '/pet'" in said
    assert said.count("Traceback") == 1  # of the bug alone


@pytest.mark.parametrize("stop", [SweepInterrupted(signal.SIGTERM), KeyboardInterrupt()])
def test_an_interrupt_ends_it_all(stop: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = run_with({"pet": stop, "cifar10": "evidence"}, monkeypatch)
    with pytest.raises(type(stop)):
        run_campaign(configs("pet", "cifar10"))
    assert begun == ["paper-pet"]


@pytest.fixture
def run_paper(processes: Processes, tmp_path: Path) -> Run:
    return lambda *options: processes.run([sys.executable, SWEEPS / "paper.py", *options], cwd=tmp_path, quiet_s=120)


def test_the_dry_run_of_all_eleven_sets(run_paper: Run, tmp_path: Path) -> None:
    """924 runs; of the tiny model here, because ViT-B takes seconds to build."""
    done = run_paper("dry_run=true", "model=tiny", "model.name=unfreeze_tiny")
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "│"]
    assert rows[-1][:5] == ["total", "924", "", "", "5,118 M"]
    # 5 CIFAR-10-C, Cifar10 and Cifar100 of 10,000 steps, DomainNet of 20,000, Flowers102 of 5,000, Pet of 4,000
    assert 84 * 512 * (7 * 10_000 + 2 * 20_000 + 5_000 + 4_000) == 5_117_952_000
    assert "paper-pet: about 2,944 images for training, 736 for validation, 3,669 for the test" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("paper.sets=[pet,flowers]",), "paper.sets.1: input should be 'cifar10'"),
        (("paper.sets=[]",), "paper.sets"),
        (("experiment=demo",), "experiment=paper alone, but got experiment=demo"),
        (("search.select_on=tset",), "search.select_on"),
    ],
)
def test_a_wrong_command_starts_nothing(
    arguments: tuple[str, ...], message: str, run_paper: Run, tmp_path: Path
) -> None:
    done = run_paper(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
