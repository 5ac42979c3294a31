"""The planner with fake trials: no processes, no clock, every order of completion."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unfreeze.components.selection import parse_selection
from unfreeze.records import TrialRecord, TrialSpec, TrialState
from unfreeze.search.planner import Planner

UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]  # a busy machine is slow, not wrong
MakePlanner = Callable[..., Planner]
FakeTrial = Callable[[TrialSpec], TrialRecord]


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def sweep(
    planner: Planner,
    fake_trial: FakeTrial,
    *,
    slots: int = 4,
    order: random.Random | None = None,
    final: dict[int, TrialRecord] | None = None,
) -> dict[int, TrialRecord]:
    """Run a sweep to its end: ``slots`` trials at once, the next to end chosen by ``order`` (default: the oldest).

    ``final``: records of a sweep that was cut before; they are not run again.
    """
    final = dict(final or {})
    planned: dict[int, TrialSpec] = {}
    running: list[TrialSpec] = []
    complete = False
    while True:
        while not complete and len(running) < slots and planner.is_ready(len(planned), final):
            spec = planner.plan(len(planned), final, planned)
            if spec is None:
                complete = True
                break
            assert spec.index == len(planned)
            planned[spec.index] = spec
            if spec.index in final:
                assert final[spec.index].spec == spec, "a resumed sweep planned another trial than it had run"
            else:
                running.append(spec)
        if not running:
            assert complete, "the planner waits for trials that nobody runs"
            return final
        spec = running.pop(order.randrange(len(running)) if order else 0)
        final[spec.index] = fake_trial(spec)


def specs(records: dict[int, TrialRecord]) -> list[TrialSpec]:
    return [records[index].spec for index in sorted(records)]


@pytest.fixture(scope="module")
def reference(make_planner: MakePlanner, fake_trial: FakeTrial) -> dict[int, TrialRecord]:
    """The sweep, one trial after another."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return sweep(make_planner(), fake_trial, slots=1)


def test_the_fake_sweep_is_worth_its_name(reference: dict[int, TrialRecord]) -> None:
    """Otherwise the properties below say little."""
    assert {record.state for record in reference.values()} >= {TrialState.FINISHED, TrialState.STOPPED}
    assert {record.spec.origin for record in reference.values()} == {"prior", "baseline", "search", "confirm"}
    assert len(reference) == 24 + 2 * 2


@settings(max_examples=15, deadline=None, suppress_health_check=UNCHECKED)
@given(seed=st.integers(0, 2**32), slots=st.integers(1, 6))
def test_the_order_of_completion_changes_nothing(
    seed: int, slots: int, reference: dict[int, TrialRecord], make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    records = sweep(make_planner(), fake_trial, slots=slots, order=random.Random(seed))
    assert specs(records) == specs(reference)


@settings(max_examples=15, deadline=None, suppress_health_check=UNCHECKED)
@given(seed=st.integers(0, 2**32), cut=st.integers(0, 28))
def test_the_crash_point_changes_nothing(
    seed: int, cut: int, reference: dict[int, TrialRecord], make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    """All before ``cut`` is final, of the trials in flight then some are; another process goes on."""
    order = random.Random(seed)
    kept = {i: r for i, r in reference.items() if i < cut or (i < cut + 3 and order.random() < 0.5)}
    if cut < 24:
        kept = {i: r for i, r in kept.items() if i < 24}  # no confirmation before the search is over
    records = sweep(make_planner(), fake_trial, slots=3, order=order, final=kept)
    assert specs(records) == specs(reference)


def test_another_seed_is_another_sweep(
    reference: dict[int, TrialRecord], make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    other = specs(sweep(make_planner(seed=1), fake_trial))
    assert fixed(other) == fixed(specs(reference)) != []
    assert searched(other) != searched(specs(reference))


# --- the fixed trials: components alone, baselines --------------------------------------------------------------------


def fixed(trials: list[TrialSpec]) -> list[str]:
    return [spec.selection for spec in trials if spec.origin in ("prior", "baseline")]


def searched(trials: list[TrialSpec]) -> list[tuple[str, float]]:
    return [(spec.selection, spec.learning_rate) for spec in trials if spec.origin == "search"]


def test_the_model_proposes_half_of_the_search_before_every_component_alone(
    make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    records = specs(sweep(make_planner(), fake_trial))
    assert [spec.origin for spec in records[:24]] == (
        ["search"] * 12 + ["prior"] * 5 + ["baseline"] * 2 + ["search"] * 5
    )
    assert [spec.selection for spec in records[12:19]] == ["mha", "fc1", "fc2", "ln2", "ln1", "all", "none"]
    assert all(1e-3 <= spec.learning_rate <= 1e-1 for spec in records)


@pytest.mark.parametrize(("concurrency", "first"), [(1, 16), (4, 16), (10, 20), (16, 25)])
def test_and_two_rounds_of_what_is_in_flight(
    concurrency: int, first: int, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    """With room for all of them before the end."""
    records = specs(sweep(make_planner(num_trials=32, concurrency=concurrency), fake_trial))
    assert next(spec.index for spec in records if spec.origin == "prior") == first


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_without_the_model_each_stands_at_three_rates_of_the_range(
    sampler: str, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    records = specs(sweep(make_planner(sampler=sampler, num_trials=22), fake_trial))
    assert [spec.selection for spec in records[:21]] == ["mha", "fc1", "fc2", "ln2", "ln1", "all", "none"] * 3
    rates = [10**-2, 10**-2.6666667, 10**-1.3333333]  # the middle of 10⁻³ to 10⁻¹ and of the thirds beside it
    assert [spec.learning_rate for spec in records[:21:7]] == pytest.approx(rates)
    assert records[21].origin == "search"
    narrow = make_planner(sampler=sampler, learning_rate_low=0.1, num_trials=8)
    assert specs(sweep(narrow, fake_trial))[7].origin == "search"  # one rate is tried once


def test_without_them_the_sampler_begins_after_the_baselines(make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    records = specs(sweep(make_planner(components_alone=False, sampler="tpe"), fake_trial))
    assert [spec.origin for spec in records[:8]] == ["baseline"] * 6 + ["search"] * 2


@pytest.mark.parametrize("sampler", ["model", "tpe", "gp", "random"])
@pytest.mark.parametrize("space", ["components", "blocks"])
def test_every_sampler_is_deterministic_and_keeps_the_range(
    sampler: str, space: str, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    one, other = (
        specs(sweep(make_planner(sampler=sampler, space=space, num_trials=12), fake_trial, slots=slots))
        for slots in (1, 3)
    )
    assert one == other
    assert all(1e-3 <= spec.learning_rate <= 1e-1 for spec in one)
    assert len({(spec.selection, spec.learning_rate, spec.seed) for spec in one}) == len(one)


def test_a_reversed_score_reverses_them(make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    scores = {"ln1": 0.2, "mha": 3.0, "ln2": 0.5, "fc1": 2.0, "fc2": 1.0}
    negated = {name: -value for name, value in scores.items()}
    forward = fixed(specs(sweep(make_planner(scores=scores), fake_trial)))
    backward = fixed(specs(sweep(make_planner(scores=negated), fake_trial)))
    assert forward == ["mha", "fc1", "fc2", "ln2", "ln1", "all", "none"]
    assert backward == ["ln1", "ln2", "fc2", "fc1", "mha", "all", "none"]


def test_equal_scores_keep_the_order_of_the_block(make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    planner = make_planner(scores=dict.fromkeys(("fc2", "fc1", "ln2", "mha", "ln1"), 0.0))
    assert fixed(specs(sweep(planner, fake_trial)))[:5] == ["ln1", "mha", "ln2", "fc1", "fc2"]


def test_each_of_them_at_each_start_learning_rate(make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    records = specs(sweep(make_planner(start_learning_rates=[0.003, 0.03], num_trials=15), fake_trial))
    assert [spec.origin for spec in records[:2]] == ["search", "prior"]  # room for all of them, not the middle
    assert [(s.selection, s.learning_rate) for s in records[1:5]] == [
        ("mha", 0.003),
        ("fc1", 0.003),
        ("fc2", 0.003),
        ("ln2", 0.003),
    ]
    assert (records[8].selection, records[8].learning_rate) == ("mha", 0.03)
    assert records[14].origin == "baseline"


def test_a_short_sweep_has_the_first_of_them(make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    records = specs(sweep(make_planner(num_trials=3, confirm_top=0), fake_trial))
    assert [spec.selection for spec in records] == ["mha", "fc1", "fc2"]


# --- what is within bounds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["components", "depth", "blocks"])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
def test_every_trial_keeps_the_budget_and_the_range(
    space: str, share: float, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    planner = make_planner(space=space, max_trainable_share=share, num_trials=11)
    records = specs(sweep(planner, fake_trial))
    assert len(records) >= 11
    for spec in records:
        selection = parse_selection(spec.selection, num_blocks=6)
        assert planner.space.cost.num_trained(selection) <= planner.space.max_trainable
        assert 1e-3 <= spec.learning_rate <= 1e-1
        assert spec.selection != "none" or spec.origin in ("baseline", "confirm")
        assert spec.origin in ("baseline", "confirm") or selection == planner.space.selection(
            planner.space.params(selection, spec.learning_rate)
        ), "outside the space"
    assert [spec.selection for spec in records if spec.origin == "baseline"] == ["none"]


@pytest.mark.parametrize("sampler", ["model", "tpe", "gp", "random"])
def test_of_a_list_nothing_else_is_tried(sampler: str, make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    listed = ["mha", "mha@3-5+fc1", "fc1+fc2", "ln1+ln2"]
    planner = make_planner(space="listed", selections=listed, sampler=sampler, num_trials=9, baselines=["none"])
    records = specs(sweep(planner, fake_trial))
    assert {spec.selection for spec in records if spec.origin == "search"} <= set(listed)
    assert fixed(records)[:2] == ["mha", "none"]
    assert {spec.selection for spec in records} <= {*listed, "none"}


def test_no_fixed_trials_at_all(make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    """A budget below every whole component, no baselines: the sampler starts from nothing."""
    planner = make_planner(space="blocks", max_trainable_share=0.004, baselines=[], num_trials=6)
    records = specs(sweep(planner, fake_trial))
    assert all(spec.origin == "search" for spec in records[:6])


def test_one_learning_rate_alone(make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    planner = make_planner(learning_rate_low=0.003, learning_rate_high=0.003)
    assert {spec.learning_rate for spec in specs(sweep(planner, fake_trial))} == {0.003}


def test_one_learning_rate_alone_in_a_tight_budget(make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    """So tight that the sampler misses it and a selection is drawn uniformly."""
    planner = make_planner(
        space="blocks", max_trainable_share=0.003, learning_rate_low=0.003, learning_rate_high=0.003, num_trials=5
    )
    assert {spec.learning_rate for spec in specs(sweep(planner, fake_trial))} == {0.003}


# --- confirmation and early stopping ----------------------------------------------------------------------------------


def test_the_best_selections_are_run_again_on_new_seeds(make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    records = sweep(make_planner(sampler="tpe"), fake_trial)
    search = [records[index] for index in range(24)]
    finished = sorted(
        (record for record in search if record.state is TrialState.FINISHED),
        key=lambda record: -(record.best_val_accuracy or 0),
    )
    best: list[TrialSpec] = []
    for record in finished:
        if record.spec.selection not in [spec.selection for spec in best]:
            best.append(record.spec)
    confirmed = [records[index].spec for index in range(24, 28)]
    assert [(s.selection, s.learning_rate) for s in confirmed] == [
        (spec.selection, spec.learning_rate) for spec in best[:2] for _ in range(2)
    ]
    assert {spec.origin for spec in confirmed} == {"confirm"}
    assert [spec.seed for spec in confirmed] == [1, 2, 1, 2]


def test_with_the_model_the_leader_has_two_seeds_in_the_end(reference: dict[int, TrialRecord]) -> None:
    confirmed = [reference[index].spec for index in range(24, 28)]
    assert {spec.origin for spec in confirmed} == {"confirm"}
    assert len({spec.selection for spec in confirmed}) <= 2
    runs = [(spec.selection, spec.learning_rate, spec.seed) for spec in specs(reference)]
    assert len(set(runs)) == len(runs)
    first = confirmed[0]
    assert sum(run[:2] == (first.selection, first.learning_rate) for run in runs) >= 2


def test_the_search_ends_when_the_choice_is_settled(make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    """Whatever the slots: the same trials, fewer than were allowed, and the confirmation after them."""
    settings = {"num_trials": 30, "settle": 5.0, "early_stopping": False}
    records = sweep(make_planner(**settings), fake_trial, slots=1)
    origins = [spec.origin for spec in specs(records)]
    assert 7 <= origins.index("confirm") < 30
    assert origins[origins.index("confirm") :] == ["confirm"] * 4
    other = sweep(make_planner(**settings), fake_trial, slots=4, order=random.Random(3))
    assert specs(other) == specs(records)
    cut = {index: record for index, record in records.items() if index < 5}
    assert specs(sweep(make_planner(**settings), fake_trial, slots=3, final=cut)) == specs(records)


@pytest.mark.parametrize("settings", [{"confirm_top": 0}, {"confirm_seeds": 0}])
def test_confirmation_can_be_off(settings: dict[str, int], make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    assert len(sweep(make_planner(**settings), fake_trial)) == 24


def test_confirmation_waits_for_the_whole_search(reference: dict[int, TrialRecord], make_planner: MakePlanner) -> None:
    planner = make_planner()
    search = {index: reference[index] for index in range(24)}
    assert planner.is_ready(24, search)
    for missing in range(24):
        assert not planner.is_ready(24, {i: r for i, r in search.items() if i != missing})


def test_fewer_finished_selections_fewer_confirmations(make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    def only_mha_finishes(spec: TrialSpec) -> TrialRecord:
        record = fake_trial(spec)
        if spec.selection == "mha":
            return record
        return TrialRecord(spec=spec, state=TrialState.DIVERGED, error="loss became nan")

    records = specs(sweep(make_planner(num_trials=7, sampler="tpe"), only_mha_finishes))
    assert [spec.selection for spec in records[7:]] == ["mha", "mha"]


def test_only_sampled_trials_may_be_stopped_early(
    reference: dict[int, TrialRecord], make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    for record in reference.values():
        knows_some = record.spec.index > 12  # eight that finished, with four in flight
        assert bool(record.spec.stop_below) == (record.spec.origin == "search" and knows_some)
        assert [images for images, _ in record.spec.stop_below] in ([], [200], [200, 600])
    without = sweep(make_planner(early_stopping=False), fake_trial)
    assert not any(record.spec.stop_below for record in without.values())


def test_cutoffs_come_from_trials_that_were_over(
    reference: dict[int, TrialRecord], make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    """Trial 10 with concurrency 4 knows trials 0 to 6; whatever 7 to 9 do, it is the same."""
    planner = make_planner()
    planned = {index: reference[index].spec for index in range(10)}
    known = {index: reference[index] for index in range(7)}
    expected = planner.plan(10, known, planned)
    later = {i: TrialRecord(spec=planned[i], state=TrialState.DIVERGED, error="nan") for i in range(7, 10)}
    assert planner.plan(10, known | later, planned) == expected == reference[10].spec


@pytest.mark.parametrize("concurrency", [1, 4, 7])
def test_a_trial_waits_for_what_it_may_know_and_no_more(
    concurrency: int, reference: dict[int, TrialRecord], make_planner: MakePlanner
) -> None:
    planner = make_planner(concurrency=concurrency)
    for index in range(24):
        needed = max(0, index - concurrency + 1)
        assert planner.is_ready(index, {i: reference[i] for i in range(needed)})
        if needed:
            assert not planner.is_ready(index, {i: reference[i] for i in range(needed - 1)})


@pytest.mark.parametrize("state", [TrialState.FAILED, TrialState.DIVERGED])
@pytest.mark.parametrize("settle", [None, 1.0])
def test_a_sweep_where_everything_fails_ends(
    state: TrialState, settle: float | None, make_planner: MakePlanner
) -> None:
    """Nothing is settled by it, and nothing confirmed."""
    records = sweep(
        make_planner(settle=settle), lambda spec: TrialRecord(spec=spec, state=state, error="RuntimeError: broken")
    )
    assert len(records) == 24


def test_one_trial_alone(make_planner: MakePlanner, fake_trial: FakeTrial) -> None:
    records = specs(sweep(make_planner(num_trials=1, confirm_top=0), fake_trial))
    assert [(spec.selection, spec.origin) for spec in records] == [("mha", "prior")]
    searched = specs(sweep(make_planner(num_trials=1, components_alone=False, baselines=[], confirm_top=0), fake_trial))
    assert [spec.origin for spec in searched] == ["search"]


@pytest.mark.parametrize("sampler", ["model", "tpe", "gp", "random"])
def test_more_in_flight_than_there_are_candidates(
    sampler: str, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    """One configuration, eight at a time: it is run again and again, each time on another seed."""
    planner = make_planner(
        space="listed",
        selections=["mha+fc1"],
        baselines=[],
        learning_rate_low=0.01,
        learning_rate_high=0.01,
        concurrency=8,
        num_trials=12,
        sampler=sampler,
    )
    records = specs(sweep(planner, fake_trial, slots=8))
    assert {(spec.selection, spec.learning_rate) for spec in records} == {("mha+fc1", 0.01)}
    assert [spec.seed for spec in records] == list(range(len(records)))
    assert len(records) >= 12


# --- accuracy against cost --------------------------------------------------------------------------------------------


@settings(max_examples=3, deadline=None, suppress_health_check=UNCHECKED)
@given(seed=st.integers(0, 2**32), slots=st.integers(1, 6))
@pytest.mark.parametrize("sampler", ["model", "tpe"])
def test_two_objectives_are_as_deterministic_as_one(
    sampler: str, seed: int, slots: int, make_planner: MakePlanner, fake_trial: FakeTrial
) -> None:
    pareto = {"objective": "pareto", "space": "depth", "sampler": sampler}
    expected = sweep(make_planner(**pareto), fake_trial, slots=1)
    order = random.Random(seed)
    kept = {i: record for i, record in expected.items() if i < 9}
    assert specs(sweep(make_planner(**pareto), fake_trial, slots=slots, order=order)) == specs(expected)
    assert specs(sweep(make_planner(**pareto), fake_trial, slots=slots, order=order, final=kept)) == specs(expected)


@pytest.mark.parametrize("sampler", ["model", "tpe"])
def test_the_second_objective_draws_to_cheap_selections(
    sampler: str, make_planner: MakePlanner, make_record: Any
) -> None:
    """Where everything is as accurate, what is tried costs less than with accuracy alone."""

    def mean_share(objective: str) -> float:
        plain = {"space": "depth", "num_trials": 40, "concurrency": 1, "early_stopping": False}
        planner = make_planner(objective=objective, sampler=sampler, **plain)

        def equal(spec: TrialSpec) -> TrialRecord:
            record = make_record(spec.index, spec.selection, [0.8])
            return replace(record, spec=spec)

        tried = [spec.selection for spec in specs(sweep(planner, equal, slots=1)) if spec.origin == "search"]
        shares = [planner.space.cost.flops_share(parse_selection(text, num_blocks=6)) for text in tried]
        return sum(shares) / len(shares)

    assert mean_share("pareto") < mean_share("accuracy") - 0.02


def test_a_cheap_trial_is_stopped_by_those_that_cost_no_more(make_planner: MakePlanner, make_record: Any) -> None:
    """Everything else reaches 0.9; with two objectives, what costs less is not held against it."""
    costly = ["all", "mha+fc1", "mha+fc2", "fc1+fc2", "mha+fc1+fc2", "ln1+mha+ln2+fc1+fc2", "mha+ln2+fc1+fc2"]
    records = {}
    for index, text in enumerate(["mha", "fc1", "fc2", "ln2", "ln1", *costly, "none"]):
        records[index] = make_record(index, text, [0.3 if text == "none" else 0.9] * 10)
    known = dict(records)
    planned = {index: record.spec for index, record in records.items()}
    planner = make_planner(objective="pareto", concurrency=1, sampler="tpe", baselines=[], start_learning_rates=[0.01])
    spec = planner.plan(len(records), known, planned)
    assert spec is not None
    share = planner.space.cost.flops_share
    budget = share(parse_selection(spec.selection, num_blocks=6))
    cheaper = [r for r in records.values() if share(parse_selection(r.spec.selection, num_blocks=6)) <= budget]
    assert len(cheaper) < 8  # too few to judge by
    assert not spec.stop_below
    alone = make_planner(concurrency=1, sampler="tpe", start_learning_rates=[0.01]).plan(len(records), known, planned)
    assert alone is not None
    assert alone.stop_below


def test_a_configuration_that_the_search_repeated_is_confirmed_on_further_seeds(
    make_planner: MakePlanner, make_record: Callable[..., TrialRecord]
) -> None:
    """Run on seeds 0 and 1 already, it gets 2 and 3; the other, run once, 1 and 2."""
    planner = make_planner(num_trials=3, sampler="tpe")
    records = [make_record(0, "mha", [0.9]), make_record(1, "mha", [0.9], seed=1), make_record(2, "fc1", [0.8])]
    final = {record.spec.index: record for record in records}
    planned = {index: record.spec for index, record in final.items()}
    for index in range(3, 7):
        spec = planner.plan(index, final, planned)
        assert spec is not None
        planned[index] = spec
    assert [(planned[index].selection, planned[index].seed) for index in range(3, 7)] == [
        ("mha", 2),
        ("mha", 3),
        ("fc1", 1),
        ("fc1", 2),
    ]
