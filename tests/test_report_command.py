"""sweeps/report.py over several sweeps: what it prints, and what it refuses."""

import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import report as command
from finished_sweep import DATA, MODEL, make_evidence, make_plasticity, make_settling_trials

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
    assert [text.count(f"│ {name} ") for name in ("birds", "cats")] == [2, 2]  # their slopes, and each left out
    assert "predicts accuracy over these 2 data sets" in " ".join(text.split())
    assert "Mean rank, 1 the best: ln1 1.00, mha 2.00" in text
    assert max(map(len, text.splitlines())) <= 100
    page = (Path(storage) / "sweeps.html").read_text()
    assert '<div class="chart" id="worth_by_set"' in page
    assert "predicts accuracy over these 2 data sets" in page
    assert "Mean rank, 1 the best: ln1 1.00, mha 2.00" in page
    assert '"average set"' in page


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
        (("birds", "dogs"), StorageError, "there is no sweep in .*; the sweeps there are birds, cats, copy"),
        (("birds", "bird"), StorageError, "did you mean birds?"),
    ],
)
def test_refused(storage: str, names: tuple[str, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        command.main(told(storage, *names))


@pytest.mark.parametrize(("form", "starts"), [("json", '{\n "birds": {'), ("md", "# birds: unfreeze ")])
def test_in_other_formats(storage: str, form: Any, starts: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(storage=storage, report=ReportConfig(format=form))
    config.sweep.name = "birds"
    command.main(config)
    assert capsys.readouterr().out.startswith(starts)


def test_what_is_binary_does_not_go_to_a_terminal(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO()))
    config = told(storage, "birds", "cats")
    config.report.format = "parquet"
    command.main(config)
    assert sys.stdout.buffer.getvalue().startswith(b"PAR1")  # type: ignore[attr-defined]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(StorageError, match="add > FILE"):
        command.main(config)


def test_a_running_sweeps_page_is_written_until_it_has_ended(
    storage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, pages = Ledger(storage, "birds"), []

    def sleep(seconds: float) -> None:
        pages.append((seconds, ledger.read_bytes("report.html")))
        if len(pages) == 2:
            ledger.write_json("final.json", to_dict(make_evidence().final))

    monkeypatch.setattr(command.time, "sleep", sleep)
    config = Config(storage=storage, report=ReportConfig(every_s=5))
    config.sweep.name = "birds"
    command.main(config)
    assert [seconds for seconds, _ in pages] == [5, 5]
    assert all(b'id="pause"' in page for _, page in pages)
    assert b'id="pause"' not in ledger.read_bytes("report.html")
    assert capsys.readouterr().err.count("once more in 5 s") == 2


def test_a_ledger_of_another_version_is_named(storage: str) -> None:
    ledger = Ledger(storage, "birds")
    facts = ledger.read_json("facts.json")
    ledger.write_json("facts.json", {**facts, "model": {"name": "vit", "layers": 12}})
    with pytest.raises(StorageError, match=r"written by another version of unfreeze .*layers"):
        command.main(told(storage, "birds", "cats"))


def test_a_sweep_in_its_pre_pass_is_said_to_be(storage: str) -> None:
    Ledger(storage, "owls").write_json("lease/00001.json", {})
    with pytest.raises(StorageError, match=r"no finished pre-pass in .*owls"):
        command.main(told(storage, "birds", "owls"))


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("sweep=a,b", "report.sweeps=[a,b]"),
        ("sweep=a", "sweep.name=a"),
        ("sweep.name=a", "sweep.name=a"),
        ("format=csv", "report.format=csv"),
        ("every_s=5", "report.every_s=5"),
        ("sync=true", "report.sync=true"),
        ("storage=x,y", "storage=x,y"),
    ],
)
def test_short_forms(short: str, long: str) -> None:
    assert command.spelled_out(short) == long
