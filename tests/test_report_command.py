"""sweeps/report.py over several sweeps: what it prints, and what it refuses."""

import dataclasses
import io
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import report as command
from finished_sweep import DATA, MODEL, make_evidence, make_plasticity, make_settling_trials, make_trial

from unfreeze.config import Config, FinetuneConfig, ReportConfig, SearchConfig
from unfreeze.errors import ConfigError, StorageError
from unfreeze.records import ModelFacts, PlasticityTable, TrialRecord, TrialState, to_dict
from unfreeze.storage.ledger import Ledger


def write_sweep(
    storage: str,
    name: str,
    digest: str,
    trials: Sequence[TrialRecord],
    plasticity: PlasticityTable,
    *,
    model: ModelFacts = MODEL,
    config: Config | None = None,
) -> None:
    """``digest``: of its images."""
    ledger = Ledger(storage, name)
    ledger.claim(config or Config())
    data = dataclasses.replace(DATA, digest=digest)
    ledger.write_json("facts.json", {"model": to_dict(model), "data": to_dict(data)})
    ledger.write_json("plasticity.json", to_dict(plasticity))
    for trial in trials:
        ledger.write_trial(trial)


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """Three sweeps, birds and cats of their own images; copy is birds under another name."""
    for name, digest, worth in (("birds", "1", 0.02), ("cats", "2", 0.03), ("copy", "1", 0.02)):
        write_sweep(str(tmp_path), name, digest, make_settling_trials(worth), make_plasticity())
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
    options = {field.name for field in dataclasses.fields(SearchConfig)}
    assert {"learn_from"} <= set(re.findall(r"search\.(\w+)", text)) <= options
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


# --- what gives no number ---------------------------------------------------------------------------------------------


def with_accuracies(accuracy: Callable[[int], float | None]) -> list[TrialRecord]:
    """Trials of a clear effect; ``accuracy``: of a trial's reports instead, None: as they are."""
    trials = []
    for trial in make_settling_trials(0.03):
        value = accuracy(trial.spec.index)
        reports = tuple(r if value is None else dataclasses.replace(r, val_accuracy=value) for r in trial.reports)
        trials.append(dataclasses.replace(trial, reports=reports))
    return trials


def in_state(state: TrialState) -> list[TrialRecord]:
    return [dataclasses.replace(trial, state=state) for trial in make_settling_trials(0.03)]


def scored(value: float, *, one: bool = False) -> PlasticityTable:
    """A pre-pass that found ``value`` everywhere, or of ``one`` component of a block alone."""
    table = make_plasticity()
    rows = [
        row if one and (row.block, row.component) != (1, "mha") else dataclasses.replace(row, mean=value)
        for row in table.rows
    ]
    return dataclasses.replace(table, rows=tuple(rows))


CLEAR = make_settling_trials(0.03)
NO_NUMBER: dict[str, tuple[list[TrialRecord], PlasticityTable, str]] = {
    "no trial": ([], make_plasticity(), "0 finished trials of components are too few, it takes 8"),
    "one": (CLEAR[:1], make_plasticity(), "1 finished trial of components is too few, it takes 8"),
    "two": (CLEAR[:2], make_plasticity(), "2 finished trials of components are too few, it takes 8"),
    "constant accuracy": (
        with_accuracies(lambda _: 0.75),
        make_plasticity(),
        "every trial has the same accuracy, 75.00%",
    ),
    "NaN": (with_accuracies(lambda i: None if i else math.nan), make_plasticity(), "an accuracy is not finite"),
    "NaN everywhere": (with_accuracies(lambda _: math.nan), make_plasticity(), "an accuracy is not finite"),
    "infinite": (with_accuracies(lambda i: None if i else math.inf), make_plasticity(), "an accuracy is not finite"),
    "one run each": (
        CLEAR[::2],
        make_plasticity(),
        "every selection was run once, which cannot tell an effect from a run’s luck",
    ),
    **{
        state.value: (in_state(state), make_plasticity(), "0 finished trials of components are too few, it takes 8")
        for state in (TrialState.STOPPED, TrialState.FAILED, TrialState.DIVERGED, TrialState.RUNNING)
    },
    "baselines alone": (
        [make_trial(i, ("all", "none")[i % 2], 0.5 + i / 40) for i in range(12)],
        make_plasticity(),
        "0 finished trials of components are too few",
    ),
    "constant score": (CLEAR, scored(1.0), "the score is the same everywhere"),
    "score NaN": (CLEAR, scored(math.nan), "the score is not finite or not measured everywhere"),
    "score NaN once": (CLEAR, scored(math.nan, one=True), "the score is not finite or not measured everywhere"),
    "score infinite": (CLEAR, scored(math.inf), "the score is not finite or not measured everywhere"),
    "no plasticity": (CLEAR, dataclasses.replace(make_plasticity(), rows=()), "plasticity was not measured"),
}


@pytest.mark.parametrize("case", NO_NUMBER)
def test_no_number_and_the_reason(case: str, storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In every format, alone and beside a sweep that has one; never a claim."""
    trials, plasticity, reason = NO_NUMBER[case]
    write_sweep(storage, "dogs", "4", trials, plasticity)
    forms: tuple[Any, ...] = ("text", "md", "json", "csv")
    told_alone = {}
    for form in forms:
        config = Config(storage=storage, report=ReportConfig(format=form))
        config.sweep.name = "dogs"
        command.main(config)
        told_alone[form] = " ".join(capsys.readouterr().out.split())
    for form in ("text", "md", "json"):
        assert reason in told_alone[form]
        assert "Undecided: " in told_alone[form]
    page = (Path(storage) / "dogs" / "report.html").read_text()
    assert reason in page
    for text in (*told_alone.values(), page):
        assert "Supported: " not in text
        assert "Contradicted: " not in text
    command.main(told(storage, "birds", "dogs"))
    together = " ".join(capsys.readouterr().out.split())
    assert "Not pooled: dogs: " in together
    assert "Undecided: of these sweeps only birds can be pooled, and it takes two." in together


APART: dict[str, tuple[ModelFacts, Config, str]] = {
    "model": (dataclasses.replace(MODEL, name="vit_x", digest="f" * 64), Config(), "another model, vit_x (ffffffff)"),
    "protocol": (
        MODEL,
        Config(finetune=FinetuneConfig(batch_size=7)),
        "another protocol (finetune.batch_size: stored 64, now 7)",
    ),
    "metric": (
        MODEL,
        Config(search=SearchConfig(select_on="test")),
        "another metric (it chose on test, the first on val)",
    ),
}


@pytest.mark.parametrize("kind", APART)
def test_of_another_model_protocol_or_metric(kind: str, storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They stand apart, and the two others are pooled without them."""
    model, config, reason = APART[kind]
    write_sweep(storage, "dogs", "4", make_settling_trials(-0.03), make_plasticity(), model=model, config=config)
    command.main(told(storage, "birds", "cats", "dogs"))
    text = " ".join(capsys.readouterr().out.split())
    assert f"Not pooled: dogs: {reason}." in text
    assert "predicts accuracy over these 2 data sets" in text
