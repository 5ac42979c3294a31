from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from unfreeze.config import SearchConfig
from unfreeze.errors import SelectionError
from unfreeze.records import ModelFacts, TrialRecord, TrialSpec, trial_spec_from_dict
from unfreeze.search.grid import GridPlanner
from unfreeze.search.searcher import PlannedSearch
from unfreeze.storage.ledger import Ledger

SCORES = {"ln1": 0.2, "mha": 3.0, "ln2": 0.5, "fc1": 2.0, "fc2": 1.0}
PAPER = ["all", "embed", "ln1", "mha", "ln2", "fc1", "fc2"]
RATES = [1e-3, 3e-3, 1e-2, 3e-2]
SEEDS = [0, 42, 3407]


def make_grid(model: ModelFacts, *, train_head: bool = True, **settings: Any) -> GridPlanner:
    grid = {"space": "grid", "selections": PAPER, "learning_rates": RATES, "seeds": SEEDS}
    return GridPlanner(SearchConfig(**{**grid, **settings}), model, scores=SCORES, train_head=train_head)


def specs_of(planner: GridPlanner) -> list[TrialSpec]:
    found = [planner.plan(index, {}, {}) for index in range(planner.max_trials)]
    return [spec for spec in found if spec is not None]


def test_every_combination_once_and_no_more(model: ModelFacts) -> None:
    planner = make_grid(model)
    specs = specs_of(planner)
    assert planner.max_trials == 84 == len(specs)
    assert {(s.selection, s.learning_rate, s.seed) for s in specs} == set(product(PAPER, RATES, SEEDS))
    assert [spec.index for spec in specs] == list(range(84))
    assert planner.plan(84, {}, {}) is None
    assert all(spec.stop_below == () for spec in specs)


def test_seeds_are_outermost_and_components_in_prior_order(model: ModelFacts) -> None:
    specs = specs_of(make_grid(model))
    assert [spec.seed for spec in specs] == [0] * 28 + [42] * 28 + [3407] * 28
    order = [spec.selection for spec in specs[:28:4]]
    assert order == ["mha", "fc1", "fc2", "ln2", "ln1", "all", "embed"]
    assert [spec.learning_rate for spec in specs[:4]] == RATES
    assert {spec.selection: spec.origin for spec in specs} == {
        name: "baseline" if name in ("all", "embed") else "prior" for name in PAPER
    }


def test_no_trial_waits_for_an_outcome_but_only_so_many_run(
    model: ModelFacts, fake_trial: Callable[[TrialSpec], TrialRecord]
) -> None:
    planner = make_grid(model, concurrency=3)
    record = fake_trial(specs_of(planner)[0])
    assert [planner.is_ready(index, {}) for index in range(5)] == [True, True, True, False, False]
    assert planner.is_ready(3, {2: record})  # whichever ends first makes room
    assert not planner.is_ready(4, {2: record})
    assert planner.is_ready(83, dict.fromkeys(range(83), record))


@pytest.mark.parametrize(
    ("selections", "message"),
    [
        (["mha", "attention"], "unknown component 'attention'"),
        (["mha", "fc1@6"], "blocks 6-6 in selection 'fc1@6'"),
        (["mha", "mha@0-5"], "'mha' and 'mha@0-5', which are the same in a model of 6 blocks"),
    ],
)
def test_a_wrong_selection_is_named(model: ModelFacts, selections: list[str], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        make_grid(model, selections=selections)


def test_a_selection_that_trains_nothing_is_named(model: ModelFacts) -> None:
    with pytest.raises(SelectionError, match=r"'none' with finetune\.train_head=false"):
        make_grid(model, selections=["mha", "none"], train_head=False)
    assert make_grid(model, selections=["mha", "none"]).max_trials == 24


def test_the_searcher_runs_the_grid_and_resumes_it(
    tmp_path: Path, model: ModelFacts, fake_trial: Callable[[TrialSpec], TrialRecord]
) -> None:
    """Cut after 20 trials with two of them still running: those and the rest are run, nothing twice."""
    ledger = Ledger(str(tmp_path), "grid")
    planned = specs_of(make_grid(model))
    for spec in planned[:20]:
        if spec.index not in (17, 19):
            ledger.write_trial(fake_trial(spec))
    search = PlannedSearch(make_grid(model, concurrency=4), ledger)
    assert not search.is_complete
    running: list[tuple[str, TrialSpec]] = []
    ran: list[TrialSpec] = []
    while True:
        answer: Any = search.suggest(f"tune-{len(ran)}")
        if isinstance(answer, dict):
            ran.append(trial_spec_from_dict(answer["trial"]))
            running.append((f"tune-{len(ran) - 1}", ran[-1]))
            assert len(running) <= 4
        elif running:
            tune_id, spec = running.pop()  # the youngest first: order does not matter
            ledger.write_trial(fake_trial(spec))
            search.on_trial_complete(tune_id, {"state": "finished"})
        else:
            assert answer == Searcher.FINISHED
            break
    assert [spec.index for spec in ran] == [17, 19, *range(20, 84)]
    assert [record.spec for record in ledger.trials()] == planned
    assert search.is_complete


def test_lora_is_a_selection_like_any_other_and_checked_before_anything_starts(model: ModelFacts) -> None:
    adaptable = replace(model, width=64, lora_sizes={f"{block}.mha": 512 for block in range(model.num_blocks)})

    def plan(*selections: str) -> list[str]:
        config = SearchConfig(space="grid", selections=list(selections), learning_rates=[0.01], seeds=[0])
        planner = GridPlanner(config, adaptable, scores=SCORES, train_head=True)
        specs = [planner.plan(index, {}, {}) for index in range(planner.max_trials)]
        return [spec.selection for spec in specs if spec is not None]

    assert plan("mha:lora(8)", "mha") == ["mha", "mha:lora(8)"]
    with pytest.raises(SelectionError, match="rank 999"):
        plan("mha:lora(999)")
