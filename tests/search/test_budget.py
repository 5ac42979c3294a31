from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unfreeze.evidence.recommend import recommend
from unfreeze.records import TrialRecord, TrialSpec, TrialState
from unfreeze.search.budget import losers
from unfreeze.search.searcher import PlannedSearch
from unfreeze.storage.ledger import Ledger

MakeRecord = Callable[..., TrialRecord]


@pytest.fixture
def records(make_record: MakeRecord) -> list[TrialRecord]:
    made = [
        make_record(0, "mha", [0.8]),
        make_record(1, "fc1", [0.7]),
        make_record(2, "ln1", [0.6]),
        make_record(3, "ln2", [0.9], state=TrialState.STOPPED),
        make_record(4, "fc2", [0.5], state=TrialState.DIVERGED),
        make_record(5, "all", [0.65], learning_rate=0.02),
        make_record(6, "mha", [0.1], seed=1, origin="confirm"),
    ]
    return [replace(r, checkpoint=f"checkpoints/{r.spec.trial_id}/best", checkpoint_bytes=100) for r in made]


@pytest.mark.parametrize(
    ("max_bytes", "expected"),
    [
        (700, []),
        (600, [4]),  # diverged
        (500, [4, 3]),  # stopped, however good
        (450, [4, 3, 2]),  # then the worst that finished
        (300, [4, 3, 2, 5]),
        (0, [4, 3, 2, 5, 1]),  # the best selection and its confirmation stay
    ],
)
def test_who_goes_and_in_which_order(max_bytes: int, expected: list[int], records: list[TrialRecord]) -> None:
    assert [r.spec.index for r in losers(records, max_bytes=max_bytes, keep_top=1)] == expected


def test_the_best_selections_stay_for_their_confirmation(records: list[TrialRecord]) -> None:
    gone = {r.spec.index for r in losers(records, max_bytes=0, keep_top=3)}
    assert gone == {2, 3, 4}


def test_what_is_recommended_never_goes(records: list[TrialRecord]) -> None:
    chosen = recommend(records)
    assert chosen is not None
    gone = {r.spec.trial_id for r in losers(records, max_bytes=0, keep_top=0)}
    assert not gone & set(chosen.trial_ids)


def test_what_is_gone_already_does_not_count(records: list[TrialRecord]) -> None:
    records[4] = replace(records[4], checkpoint=None)
    assert losers(records, max_bytes=600, keep_top=1) == []


def test_the_search_deletes_them_and_says_so_in_the_record(
    tmp_path: Path, make_planner: Callable[..., Any], fake_trial: Callable[[TrialSpec], TrialRecord]
) -> None:
    ledger = Ledger(str(tmp_path), "sweep")
    search = PlannedSearch(make_planner(concurrency=1), ledger, max_checkpoint_bytes=450, keep_top=2)
    number = 0
    while isinstance(suggestion := search.suggest(str(number)), dict):
        index = suggestion["trial"]["index"]
        spec = search._planned[index]
        record = replace(fake_trial(spec), checkpoint=f"checkpoints/{spec.trial_id}/best", checkpoint_bytes=100)
        ledger.write_bytes(f"checkpoints/{spec.trial_id}/best", b"x")
        ledger.write_trial(record)
        search.on_trial_complete(str(number), {"state": str(record.state)})
        number += 1
        kept = [r for r in ledger.trials() if r.checkpoint is not None]
        confirmed = sum(r.spec.origin == "confirm" for r in kept)
        assert sum(r.checkpoint_bytes for r in kept) <= 450 + 100 * (confirmed + 1)
    there = {key.split("/")[2] for key in ledger.storage.keys("sweep/checkpoints/")}
    assert there == {r.spec.trial_id for r in kept}
    chosen = recommend(ledger.trials())
    assert chosen is not None
    assert chosen.trial_ids[0] in there
    assert len(there) < number
    again = PlannedSearch(make_planner(concurrency=1), ledger, max_checkpoint_bytes=450, keep_top=2)
    assert again.is_complete
