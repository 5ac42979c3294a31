"""What the model proposes over a space's switches: points and selections, budgets, failures, repetitions."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unfreeze.components.selection import parse_selection
from unfreeze.config import FinetuneConfig, SearchConfig
from unfreeze.cost.model import CostModel
from unfreeze.evidence.model import Posterior
from unfreeze.records import COMPONENTS, ModelFacts, TrialRecord, TrialSpec, TrialState
from unfreeze.search.proposals import ModelSampler
from unfreeze.search.space import make_space

MakeRecord = Callable[..., TrialRecord]
NUM_BLOCKS = 6


@pytest.fixture
def make_sampler(model: ModelFacts) -> Callable[..., ModelSampler]:
    def make(*, scores: dict[str, float] | None = None, **settings: Any) -> ModelSampler:
        space = make_space(SearchConfig(**settings), CostModel(model, FinetuneConfig()))
        by_name = scores or dict.fromkeys(COMPONENTS, 0.0)
        return ModelSampler(space, {(b, c): by_name[c] for b in range(NUM_BLOCKS) for c in COMPONENTS}, seed=0)

    return make


def after(records: list[TrialRecord]) -> tuple[list[TrialSpec], dict[int, TrialRecord]]:
    return [record.spec for record in records], {record.spec.index: record for record in records}


def selection(text: str) -> Any:
    return parse_selection(text, num_blocks=NUM_BLOCKS)


def test_what_did_well_is_tried_further(make_sampler: Callable[..., ModelSampler], make_record: MakeRecord) -> None:
    """Everything with mha is good, at high rates: so is what is proposed."""
    texts = ["mha", "fc1", "mha+fc1", "ln1", "mha+ln2", "fc2", "ln2", "mha+fc2"]
    records = [
        make_record(i, text, [0.9 if "mha" in text else 0.6], learning_rate=0.05 + i / 1000)
        for i, text in enumerate(texts)
    ] + [make_record(8 + i, text, [0.4], learning_rate=0.002) for i, text in enumerate(texts[:4])]
    proposed, rate = make_sampler().propose(*after(records))
    assert "mha" in proposed.components
    assert rate > 0.02


@pytest.mark.parametrize("space", ["components", "depth", "blocks"])
def test_a_budget_holds_for_what_is_proposed(
    space: str, make_sampler: Callable[..., ModelSampler], make_record: MakeRecord, model: ModelFacts
) -> None:
    sampler = make_sampler(space=space, max_trainable_share=0.2)
    records = [make_record(0, "ln1", [0.7]), make_record(1, "mha@0", [0.9]), make_record(2, "all", [0.95])]
    for index in range(3):
        proposed, rate = sampler.propose(*after(records))
        assert CostModel(model, FinetuneConfig()).num_trained(proposed) <= 0.2 * model.num_parameters
        records.append(make_record(3 + index, str(proposed), [0.8 + index / 100], learning_rate=rate))


def test_one_candidate_is_proposed_again_and_again(
    make_sampler: Callable[..., ModelSampler], make_record: MakeRecord, model: ModelFacts
) -> None:
    """128 parameters of each block's LN1 and the head fit; ln2 is as large, so one rate and two selections are left."""
    share = (6 * 128 + 778 + 1) / model.num_parameters
    sampler = make_sampler(max_trainable_share=share, learning_rate_low=0.01, learning_rate_high=0.01)
    planned, known = after([make_record(i, "ln1", [0.5 + i / 100]) for i in range(5)])
    proposed, rate = sampler.propose(planned, known)
    assert (str(proposed) in ("ln1", "ln2"), rate) == (True, 0.01)


def test_running_and_failed_trials_are_not_proposed_at_once_again(
    make_sampler: Callable[..., ModelSampler], make_record: MakeRecord
) -> None:
    sampler = make_sampler()
    records = [make_record(0, "mha", [0.8]), make_record(1, "fc1", [0.7])]
    planned, known = after(records)
    first = sampler.propose(planned, known)
    running = TrialSpec(index=2, selection=str(first[0]), learning_rate=first[1], seed=0, origin="search")
    second = sampler.propose([*planned, running], known)
    failed = {**known, 2: TrialRecord(spec=running, state=TrialState.FAILED, error="out of memory")}
    assert second != first
    assert sampler.propose([*planned, running], failed) == second


def test_all_and_none_are_points_and_other_baselines_are_not(
    make_sampler: Callable[..., ModelSampler], make_record: MakeRecord
) -> None:
    sampler = make_sampler()
    records = [make_record(i, text, [0.6 + i / 10]) for i, text in enumerate(("none", "mha", "all", "mha@0-1"))]
    assert {"none", "mha", "all"} <= {name for name, _ in sampler.finalists(records, limit=40)}
    assert "mha@0-1" not in {name for name, _ in sampler.finalists(records, limit=40)}
    assert sampler.propose_rate(selection("mha@0-1"), [], {}) == pytest.approx(0.01)  # the middle, for want of better


def test_a_lucky_run_is_shrunk(make_sampler: Callable[..., ModelSampler], make_record: MakeRecord) -> None:
    """Nine agree that it is about 0.7 here; the tenth says 0.9, once."""
    texts = ["mha", "fc1", "fc2", "ln1", "ln2", "mha+fc1", "mha+fc2", "fc1+fc2", "mha+ln1"]
    records = [make_record(i, text, [0.7 + 0.004 * (i % 3)]) for i, text in enumerate(texts)]
    lucky = make_record(9, "mha+fc1", [0.9], seed=1)
    found = {own.selection: own.expected for own in make_sampler().contenders([*records, lucky])}
    assert 0.7 < found["mha+fc1"] < 0.85


def test_finalists_are_a_selection_each_and_may_never_have_run(
    make_sampler: Callable[..., ModelSampler], make_record: MakeRecord
) -> None:
    """Good at 0.005 and at 0.02, bad at the ends: the best rate lies between."""
    accuracies = {0.001: 0.5, 0.005: 0.8, 0.02: 0.8, 0.1: 0.5}
    records = [
        make_record(4 * i + j, text, [value + (0.05 if text == "mha" else 0)], learning_rate=rate)
        for i, text in enumerate(("mha", "fc1", "ln1"))
        for j, (rate, value) in enumerate(accuracies.items())
    ]
    finalists = make_sampler().finalists(records, limit=3)
    assert len({name for name, _ in finalists}) == 3
    assert any(0.005 < rate < 0.02 for _, rate in finalists)
    assert make_sampler().finalists([], limit=3) == []


def test_replicates_go_to_the_leader_and_then_where_they_settle_the_choice(
    make_sampler: Callable[..., ModelSampler], make_record: MakeRecord
) -> None:
    """Two that are alike and one that is hopeless: the third is never run again."""
    finalists = [("mha", 0.01), ("fc1", 0.01), ("ln1", 0.01)]
    accuracies = (0.8, 0.79, 0.4)
    records = [make_record(i, name, [accuracies[i]]) for i, (name, _) in enumerate(finalists)]
    sampler = make_sampler()
    first = sampler.propose_replicate(finalists, *after(records))
    assert first == finalists[0]
    chosen = []
    for seed in range(1, 7):
        name, rate = sampler.propose_replicate(finalists, *after(records))
        chosen.append(name)
        records.append(make_record(len(records), name, [0.8], learning_rate=rate, seed=seed))
    assert set(chosen) == {"mha", "fc1"}


def test_the_range_grows_where_its_end_does_best_and_may_be_held(
    make_sampler: Callable[..., ModelSampler], make_record: MakeRecord
) -> None:
    records = [
        make_record(i, text, [0.5 + 0.4 * j / 3], learning_rate=rate)
        for j, rate in enumerate((0.001, 0.01, 0.03, 0.095))
        for i, text in enumerate(("mha", "fc1", "mha+fc1"), start=3 * j)
    ]
    grown = [rate for _, rate in make_sampler().finalists(records, limit=31)]
    held = [rate for _, rate in make_sampler(extend_rates=False).finalists(records, limit=31)]
    assert 0.1 < max(grown) <= 0.095 * 10**0.5 * 1.001
    assert max(held) <= 0.1


def test_a_choice_that_gives_nothing_away_has_no_loss(
    make_sampler: Callable[..., ModelSampler], make_record: MakeRecord
) -> None:
    few = [make_record(0, "mha", [0.7]), make_record(1, "fc1", [0.7])]
    many = [
        make_record(10 * i + seed, text, [0.9 if text == "mha" else 0.5], seed=seed)
        for i, text in enumerate(("mha", "fc1", "ln1", "mha+fc1", "ln2", "fc2"))
        for seed in range(3)
    ]
    held = {"learning_rate_low": 0.01, "learning_rate_high": 0.01}
    assert make_sampler(**held).loss(many) < make_sampler(**held).loss(few)
    assert make_sampler(**held).loss([]) == float("inf")


@pytest.mark.parametrize("state", [TrialState.FAILED, TrialState.DIVERGED])
def test_when_every_trial_came_to_nothing_the_search_goes_on(
    state: TrialState, make_sampler: Callable[..., ModelSampler], make_record: MakeRecord
) -> None:
    records = [make_record(i, text, [], state=state) for i, text in enumerate(COMPONENTS)]
    proposed, rate = make_sampler().propose(*after(records))
    assert proposed.members
    assert 1e-3 <= rate <= 1e-1


def test_a_fit_that_breaks_down_draws_at_random_and_says_so(
    make_sampler: Callable[..., ModelSampler], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: Any) -> None:
        raise np.linalg.LinAlgError("Matrix is not positive definite")

    monkeypatch.setattr(Posterior, "__init__", breaks)
    sampler = make_sampler()
    assert sampler.propose([], {}) == sampler.propose([], {})
    assert "drawn at random" in caplog.text
    assert sampler.propose_rate(selection("mha"), [], {}) == pytest.approx(0.01)
    assert "takes the middle rate" in caplog.text
    run = TrialSpec(index=0, selection="mha", learning_rate=0.01, seed=0, origin="search")
    assert sampler.propose_replicate([("mha", 0.01), ("fc1", 0.01)], [run], {}) == ("fc1", 0.01)
    assert "goes to the least run" in caplog.text


# --- how sure a choice is ---------------------------------------------------------------------------------------------


def test_a_clear_winner_is_settled_and_costs_nothing(
    make_sampler: Callable[..., ModelSampler], make_record: MakeRecord
) -> None:
    texts = ["mha", "fc1", "fc2", "ln1", "ln2", "mha+fc1", "fc1+fc2", "mha+ln1", "ln1+ln2", "mha+fc2"]
    records = [
        make_record(10 * i + seed, text, [0.92 if text == "mha" else 0.6 + 0.002 * seed], seed=seed)
        for i, text in enumerate(texts)
        for seed in range(4)
    ]
    best, *others = make_sampler(learning_rate_low=0.01, learning_rate_high=0.01).contenders(records)
    assert (best.selection, best.near_best > 0.8, best.loss < 0.01) == ("mha", True, True)
    assert best.low < best.expected < best.high
    assert all(other.near_best < 0.05 and other.loss > 0.1 for other in others)
    assert [c.expected for c in others] == sorted((c.expected for c in others), reverse=True)


def test_two_alike_leave_it_undecided(make_sampler: Callable[..., ModelSampler], make_record: MakeRecord) -> None:
    records = [make_record(0, "mha", [0.8]), make_record(1, "fc1", [0.8]), make_record(2, "ln1", [0.6])]
    first, second, _ = make_sampler().contenders(records)
    assert {first.selection, second.selection} == {"mha", "fc1"}
    assert first.near_best < 0.9
    assert first.loss > 0.005


def test_only_what_finished_contends(make_sampler: Callable[..., ModelSampler], make_record: MakeRecord) -> None:
    records = [make_record(0, "mha", [0.8], state=TrialState.STOPPED), make_record(1, "fc1", [0.7])]
    assert [c.selection for c in make_sampler().contenders(records)] == ["fc1"]
    assert make_sampler().contenders(records[:1]) == ()
    assert make_sampler().contenders([]) == ()


def test_another_process_has_the_same_bits() -> None:
    """The order of a set of (block, component) depends on the process; what is resumed must not."""
    code = """
import random
from unfreeze.config import FinetuneConfig, SearchConfig
from unfreeze.cost.model import CostModel
from unfreeze.records import COMPONENTS, ModelFacts
from unfreeze.search.proposals import ModelSampler
from unfreeze.search.space import make_space
groups = [(block, name) for block in range(12) for name in COMPONENTS]
facts = ModelFacts(
    name="m", digest="d", num_blocks=12, parameters={f"{b}.{c}": 10 + b for b, c in groups} | {"embed": 9, "head": 9},
    image_size=32, create_kwargs={},
)
rng = random.Random(0)
scores = {group: rng.uniform(0, 3) for group in groups}
sampler = ModelSampler(make_space(SearchConfig(), CostModel(facts, FinetuneConfig())), scores, seed=0)
print([value.hex() for value in sampler._terms.score.tolist()])
"""
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3", "4")
    }
    assert len(said) == 1
