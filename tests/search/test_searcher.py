"""The searcher driven by hand, as Ray Tune drives it, with a real ledger and no Ray."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from unfreeze.errors import InfrastructureError, StorageError
from unfreeze.records import TrialRecord, TrialSpec, TrialState, trial_spec_from_dict
from unfreeze.search.planner import Planner
from unfreeze.search.searcher import PlannedSearch
from unfreeze.slots.outcome import Deadly, Interrupted, Lost, Settled
from unfreeze.storage.ledger import Ledger

FakeTrial = Callable[[TrialSpec], TrialRecord]
MakePlanner = Callable[..., Planner]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path), "study")


def suggested(search: PlannedSearch, tune_id: str) -> TrialSpec:
    answer = search.suggest(tune_id)
    assert isinstance(answer, dict), f"expected a trial, but got {answer!r}"
    return trial_spec_from_dict(answer["trial"])


def end(search: PlannedSearch, ledger: Ledger, tune_id: str, record: TrialRecord) -> None:
    """What a slot and then Tune do at a trial's end."""
    ledger.write_trial(record)
    search.on_trial_complete(tune_id, {"outcome": Settled(), "best_val_accuracy": record.best_val_accuracy or 0.0})


def drive(search: PlannedSearch, ledger: Ledger, fake_trial: FakeTrial, *, slots: int = 4) -> list[TrialSpec]:
    """To the end; returns the trials that were really run."""
    running: list[tuple[str, TrialSpec]] = []
    ran: list[TrialSpec] = []
    while True:
        answer: Any = None
        while len(running) < slots:
            answer = search.suggest(f"tune-{len(ran)}")
            if not isinstance(answer, dict):
                break
            spec = trial_spec_from_dict(answer["trial"])
            running.append((f"tune-{len(ran)}", spec))
            ran.append(spec)
        if not running:
            assert answer == Searcher.FINISHED
            return ran
        tune_id, spec = running.pop(0)
        end(search, ledger, tune_id, fake_trial(spec))


def test_from_the_first_trial_to_finished(ledger: Ledger, make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    search = PlannedSearch(make_planner(), ledger)
    assert search.max_trials == 28
    assert not search.is_complete
    ran = drive(search, ledger, fake_trial)
    assert [spec.index for spec in ran] == list(range(28))
    assert search.is_complete
    assert search.abandoned is None
    assert sorted(search.final) == list(range(28))
    assert [record.spec for record in ledger.trials()] == ran
    assert search.suggest("one-more") == Searcher.FINISHED


def test_none_while_the_predecessors_run(ledger: Ledger, make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    search = PlannedSearch(make_planner(concurrency=2), ledger)
    first, second = suggested(search, "a"), suggested(search, "b")
    assert search.suggest("c") is None
    end(search, ledger, "b", fake_trial(second))
    assert search.suggest("c") is None  # trial 2 may know trial 0, and waits for it
    end(search, ledger, "a", fake_trial(first))
    assert [suggested(search, "c").index, suggested(search, "d").index] == [2, 3]
    assert search.suggest("e") is None


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_the_number_of_slots_changes_no_trial(
    slots: int, tmp_path: Path, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    ledgers = [Ledger(str(tmp_path), name) for name in ("one", "other")]
    runs = [
        drive(PlannedSearch(make_planner(), ledger), ledger, fake_trial, slots=number)
        for ledger, number in zip(ledgers, (4, slots), strict=True)
    ]
    assert runs[0] == runs[1]


def test_a_ledger_with_a_hole_goes_on(tmp_path: Path, make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    """Killed while trial 3 ran and 4 had finished: 3 is taken up again, as it was planned, and 4 is not."""
    whole = Ledger(str(tmp_path), "whole")
    expected = drive(PlannedSearch(make_planner(), whole), whole, fake_trial)
    cut = Ledger(str(tmp_path), "cut")
    for record in whole.trials()[:5]:
        if record.spec.index == 3:
            record = replace(record, state=TrialState.RUNNING, reports=record.reports[:2])
        cut.write_trial(record)
    search = PlannedSearch(make_planner(), cut)
    assert not search.is_complete
    ran = drive(search, cut, fake_trial)
    assert [spec.index for spec in ran] == [3, *range(5, 28)]
    assert ran == [spec for spec in expected if spec.index in (3, *range(5, 28))]
    assert search.is_complete
    assert [record.spec for record in cut.trials()] == expected


def test_nothing_is_run_again_when_all_is_there(
    ledger: Ledger, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    drive(PlannedSearch(make_planner(), ledger), ledger, fake_trial)
    again = PlannedSearch(make_planner(), ledger)
    assert again.suggest("a") == Searcher.FINISHED
    assert again.is_complete


def test_a_complete_ledger_is_complete_before_anything_is_asked(
    ledger: Ledger, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    """`run_trials` asks this first, to start no slots for nothing."""
    drive(PlannedSearch(make_planner(), ledger), ledger, fake_trial)
    assert PlannedSearch(make_planner(), ledger).is_complete


# --- how a trial may end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
def test_a_trial_that_killed_its_workers_failed_and_keeps_what_they_wrote(
    begun: bool, ledger: Ledger, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    search = PlannedSearch(make_planner(), ledger)
    spec = suggested(search, "a")
    open_record = TrialRecord(spec=spec, state=TrialState.RUNNING)
    if begun:
        open_record = replace(fake_trial(spec), state=TrialState.RUNNING, slot="slot-1", attempts=3)
        ledger.write_trial(open_record)
    search.on_trial_complete("a", {"outcome": Deadly("killed its worker three times")})
    record = ledger.trial(spec.trial_id)
    assert record == replace(open_record, state=TrialState.FAILED, error="killed its worker three times")
    assert search.final == {0: record}


@pytest.mark.parametrize("result", [None, {"outcome": Interrupted()}, {"outcome": Settled()}])
def test_a_trial_that_tune_lost_is_not_blamed_and_handed_out_again(
    result: dict[str, Any] | None, ledger: Ledger, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    """Its actor died, Tune let go of it, or its record was read before the final one was to be seen."""
    search = PlannedSearch(make_planner(), ledger)
    first, second = suggested(search, "a"), suggested(search, "b")
    begun = replace(fake_trial(first), state=TrialState.RUNNING)
    ledger.write_trial(begun)
    search.on_trial_complete("a", result, error=result is None)
    assert ledger.trial(first.trial_id) == begun
    assert search.final == {}
    assert suggested(search, "c") == first
    end(search, ledger, "c", fake_trial(first))
    end(search, ledger, "b", fake_trial(second))
    drive(search, ledger, fake_trial)
    assert search.is_complete


@pytest.mark.parametrize("fault", [StorageError("cannot read"), InfrastructureError("another driver has the sweep")])
def test_what_the_store_refuses_ends_the_sweep_and_not_a_trial(
    fault: Exception, ledger: Ledger, make_planner: MakePlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune logs what a searcher raises, goes on, and tells it of the same trial once more."""
    search = PlannedSearch(make_planner(), ledger)
    suggested(search, "a")

    def refuse(_: str) -> None:
        raise fault

    monkeypatch.setattr(ledger, "trial", refuse)
    search.on_trial_complete("a", {"outcome": Settled()})
    search.on_trial_complete("a", None, error=True)
    assert search.abandoned == str(fault)
    assert search.suggest("b") == Searcher.FINISHED
    assert not search.is_complete
    assert ledger.trials() == []


def test_the_last_trial_is_handed_out_again_too(
    ledger: Ledger, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    """Tune does not ask again once it was told FINISHED."""
    search = PlannedSearch(make_planner(num_trials=2, confirm_top=0), ledger)
    first, last = suggested(search, "a"), suggested(search, "b")
    assert search.suggest("c") is None
    end(search, ledger, "a", fake_trial(first))
    assert search.suggest("c") is None
    search.on_trial_complete("b", None, error=True)
    assert suggested(search, "c") == last
    end(search, ledger, "c", fake_trial(last))
    assert search.suggest("d") == Searcher.FINISHED
    assert search.is_complete


def test_a_trial_that_tune_loses_again_and_again_ends_the_sweep_and_stays_open(
    ledger: Ledger, make_planner: MakePlanner
) -> None:
    search = PlannedSearch(make_planner(), ledger)
    for number in range(4):
        assert search.abandoned is None
        assert suggested(search, f"tune-{number}").index == 0
        search.on_trial_complete(f"tune-{number}", None, error=True)
    assert search.abandoned == "Ray Tune lost trial-00000 4 times"
    assert search.suggest("more") == Searcher.FINISHED
    assert not search.is_complete
    assert ledger.trials() == []


def test_the_slots_record_stands_whatever_tune_says(
    ledger: Ledger, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    """The slot wrote its record, then Tune's actor died: the ledger is the truth."""
    search = PlannedSearch(make_planner(), ledger)
    finished = fake_trial(suggested(search, "a"))
    ledger.write_trial(finished)
    search.on_trial_complete("a", None, error=True)
    assert ledger.trial(finished.spec.trial_id) == finished
    assert search.final[0] == finished


def test_without_slots_the_sweep_is_abandoned_and_nothing_recorded(
    ledger: Ledger, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    search = PlannedSearch(make_planner(), ledger)
    spec = suggested(search, "a")
    search.on_trial_complete("a", {"outcome": Lost("no slot is left: the node died")})
    assert search.abandoned == "no slot is left: the node died"
    assert ledger.trial(spec.trial_id) is None
    assert search.suggest("b") == Searcher.FINISHED
    assert not search.is_complete
    assert [s.index for s in drive(PlannedSearch(make_planner(), ledger), ledger, fake_trial)] == list(range(28))


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupted_trial_stays_open(
    begun: bool, ledger: Ledger, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    search = PlannedSearch(make_planner(), ledger)
    spec = suggested(search, "a")
    running = replace(fake_trial(spec), state=TrialState.RUNNING)
    if begun:
        ledger.write_trial(running)
    search.on_trial_complete("a", {"outcome": Interrupted()})
    assert ledger.trial(spec.trial_id) == (running if begun else None)
    assert search.final == {}
    assert not search.is_complete
    assert suggested(PlannedSearch(make_planner(), ledger), "a") == spec


def test_diverged_and_failed_trials_of_the_ledger_do_not_stop_a_resume(
    tmp_path: Path, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    """Optuna's view is filled with trials that have no value, or none above 0."""

    def trouble(spec: TrialSpec) -> TrialRecord:
        if spec.index % 3 == 0:
            return TrialRecord(spec=spec, state=TrialState.FAILED, error="RuntimeError: broken")
        if spec.index % 3 == 1:
            return TrialRecord(spec=spec, state=TrialState.DIVERGED, error="loss became nan")
        return fake_trial(spec)

    whole, cut = (Ledger(str(tmp_path), name) for name in ("whole", "cut"))
    expected = drive(PlannedSearch(make_planner(), whole), whole, trouble)
    for record in whole.trials()[:9]:
        cut.write_trial(record)
    assert drive(PlannedSearch(make_planner(), cut), cut, trouble) == expected[9:]
