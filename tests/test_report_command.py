"""sweeps/report.py over several sweeps: what it prints, and what it refuses."""

import dataclasses
from pathlib import Path

import pytest
import report as command
from finished_sweep import DATA, MODEL, make_plasticity, make_settling_trials

from unfreeze.config import Config, ReportConfig
from unfreeze.errors import ConfigError, StorageError
from unfreeze.records import to_dict
from unfreeze.storage.ledger import Ledger


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """Three sweeps, birds and cats of their own images; copy is birds under another name."""
    for name, digest, worth in (("birds", "1", 0.02), ("cats", "2", 0.03), ("copy", "1", 0.02)):
        ledger = Ledger(str(tmp_path), name)
        ledger.claim(Config())
        data = dataclasses.replace(DATA, digest=digest)
        ledger.write_json("facts.json", {"model": to_dict(MODEL), "data": to_dict(data)})
        ledger.write_json("plasticity.json", to_dict(make_plasticity()))
        for trial in make_settling_trials(worth):
            ledger.write_trial(trial)
    return str(tmp_path)


def told(storage: str, *names: str) -> Config:
    return Config(storage=storage, report=ReportConfig(sweeps=list(names)))


def test_two_sweeps_together(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(told(storage, "birds", "cats"))
    text = capsys.readouterr().out
    assert [text.count(f"│ {name} ") for name in ("birds", "cats")] == [1, 1]
    assert "predicts accuracy over these 2 data sets" in " ".join(text.split())
    assert "Mean rank, 1 the best: ln1 1.00, mha 2.00" in text
    assert max(map(len, text.splitlines())) <= 100


def test_as_csv(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = told(storage, "birds", "cats")
    config.report.format = "csv"
    command.main(config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sweep,trial,selection,learning_rate,seed,val_accuracy,parameters,trains:ln1,")
    assert len(lines) == 1 + 2 * len(make_settling_trials(0.0))


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (("birds", "birds"), ConfigError, "report.sweeps names birds twice"),
        (("birds", "cats", "copy"), ConfigError, "birds and copy are sweeps of the same images"),
        (("birds", "dogs"), StorageError, "there is no sweep in"),
    ],
)
def test_refused(storage: str, names: tuple[str, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        command.main(told(storage, *names))


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("sweep=a,b", "report.sweeps=[a,b]"),
        ("sweep=a", "sweep.name=a"),
        ("sweep.name=a", "sweep.name=a"),
        ("format=csv", "report.format=csv"),
        ("storage=x,y", "storage=x,y"),
    ],
)
def test_short_forms(short: str, long: str) -> None:
    assert command.spelled_out(short) == long
