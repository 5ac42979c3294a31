"""The study that optuna-dashboard shows, in a real database."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from unfreeze.load import load_config
from unfreeze.records import COMPONENTS, ModelFacts, TrialRecord, TrialState
from unfreeze.search.mirror import StudyMirror
from unfreeze.storage.ledger import Ledger

MakeRecord = Callable[..., TrialRecord]


def mirror_of(tmp_path: Path, model: ModelFacts, url: str | None = None, **search: Any) -> tuple[StudyMirror, Ledger]:
    config = load_config({"storage": str(tmp_path), "search": {"mirror": url, **search}})
    ledger = Ledger(config.storage, config.sweep.name)
    return StudyMirror(config, ledger, model), ledger


def study_of(url: str) -> optuna.Study:
    return optuna.load_study(study_name="sweep", storage=url)


def test_final_trials_are_added_once_as_what_they_came_to(
    tmp_path: Path, model: ModelFacts, make_record: MakeRecord
) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    mirror, ledger = mirror_of(tmp_path, model, url)
    for record in (
        make_record(0, "mha", [0.5, 0.8, 0.7]),
        make_record(1, "all", [0.4], learning_rate=0.25),  # beyond the range: it grew
        make_record(2, "ln1", [0.3], state=TrialState.STOPPED),
        make_record(3, "fc1", [], state=TrialState.DIVERGED),
        make_record(4, "fc2", [0.2], state=TrialState.RUNNING),
    ):
        ledger.write_trial(record)
    for _ in range(2):
        with mirror:
            mirror.notify()
        mirror, _ = mirror_of(tmp_path, model, url)
    trials = study_of(url).trials
    assert [trial.user_attrs["unfreeze.trial"] for trial in trials] == [f"trial-0000{i}" for i in range(4)]
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL"]
    assert trials[0].value == 0.8
    assert trials[0].params == {**dict.fromkeys(COMPONENTS, False), "mha": True, "learning_rate": 0.01}
    assert list(trials[0].intermediate_values.values()) == [0.5, 0.8, 0.7]
    assert all(trials[1].params[name] for name in COMPONENTS)
    assert trials[1].params["learning_rate"] == 0.25


def test_without_a_url_nothing_happens(tmp_path: Path, model: ModelFacts) -> None:
    mirror, _ = mirror_of(tmp_path, model)
    with mirror:
        mirror.notify()
    assert not list(tmp_path.iterdir())


def test_a_database_out_of_reach_is_one_warning(
    tmp_path: Path, model: ModelFacts, make_record: MakeRecord, caplog: pytest.LogCaptureFixture
) -> None:
    mirror, ledger = mirror_of(tmp_path, model, f"sqlite:///{tmp_path / 'no' / 'folder' / 'optuna.db'}")
    ledger.write_trial(make_record(0, "mha", [0.5]))
    with caplog.at_level(logging.WARNING), mirror:
        mirror.notify()
    assert [record.getMessage() for record in caplog.records if "search.mirror" in record.getMessage()]
    assert len([record for record in caplog.records if "search.mirror" in record.getMessage()]) == 1
