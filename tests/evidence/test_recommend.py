import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from unfreeze.evidence.recommend import best_configurations, choose_rates, recommend
from unfreeze.records import Contender, TestResult, TrialRecord, TrialState

MakeRecord = Callable[..., TrialRecord]


def test_nothing_finished_nothing_recommended(make_record: MakeRecord) -> None:
    states = (TrialState.STOPPED, TrialState.DIVERGED, TrialState.FAILED, TrialState.RUNNING)
    records = [make_record(k, "mha", [0.9], state=state) for k, state in enumerate(states)]
    assert recommend(records) is None
    assert recommend([]) is None
    assert best_configurations(records, limit=3) == []


def test_an_accuracy_that_is_no_number_is_nothing(make_record: MakeRecord) -> None:
    records = [make_record(0, "mha", [float("nan")]), make_record(1, "fc1", [0.5])]
    answer = recommend(records)
    assert answer is not None
    assert answer.selection == "fc1"
    assert recommend(records[:1]) is None


def test_the_best_checkpoint_counts_not_the_last_report(make_record: MakeRecord) -> None:
    records = [make_record(0, "mha", [0.2, 0.9, 0.1]), make_record(1, "fc1", [0.2, 0.5, 0.8])]
    answer = recommend(records)
    assert answer is not None
    assert (answer.selection, answer.val_accuracy, answer.val_accuracy_sd, answer.num_seeds) == ("mha", 0.9, None, 1)


def test_one_lucky_run_does_not_outrank_a_confirmed_mean(make_record: MakeRecord) -> None:
    confirmed = [0.80, 0.82, 0.78]
    records = [make_record(0, "fc2", [0.95])]
    records += [make_record(k + 1, "mha", [value], seed=k) for k, value in enumerate(confirmed)]
    records += [make_record(k + 4, "fc1", [0.79], seed=k) for k in range(3)]
    answer = recommend(records)
    assert answer is not None
    assert answer.selection == "mha"
    assert answer.val_accuracy == pytest.approx(statistics.fmean(confirmed))
    assert answer.val_accuracy_sd == pytest.approx(statistics.stdev(confirmed))
    assert answer.num_seeds == 3
    assert answer.trial_ids == ("trial-00002", "trial-00001", "trial-00003")  # best first: its checkpoint is exported


@pytest.mark.parametrize("contenders", [(), ("mha", "fc1")])
def test_a_failed_confirmation_run_does_not_drop_the_winner(
    contenders: tuple[str, ...], make_record: MakeRecord
) -> None:
    """Out of memory, or a slot that it took down: nothing that speaks against the configuration."""
    records = [make_record(seed, "mha", [0.9], seed=seed) for seed in range(2)]
    records += [make_record(2, "mha", [], seed=2, state=TrialState.FAILED)]
    records += [make_record(3 + seed, "fc1", [0.8], seed=seed) for seed in range(3)]
    expected = [contender(name, 0.9 if name == "mha" else 0.8) for name in contenders]
    found = recommend(records, contenders=expected)
    assert found is not None
    assert (found.selection, found.num_seeds, len(found.trial_ids)) == ("mha", 2, 2)


@pytest.mark.parametrize("contenders", [(), ("mha", "fc1")])
def test_where_one_run_is_left_expectation_may_choose_it_and_luck_may_not(
    contenders: tuple[str, ...], make_record: MakeRecord
) -> None:
    records = [make_record(0, "mha", [0.9]), make_record(1, "mha", [], seed=1, state=TrialState.FAILED)]
    records += [make_record(2 + seed, "fc1", [0.8], seed=seed) for seed in range(2)]
    expected = [contender(name, 0.9 if name == "mha" else 0.8) for name in contenders]
    found = recommend(records, contenders=expected)
    assert found is not None
    assert found.selection == ("mha" if contenders else "fc1")


def test_each_learning_rate_is_a_configuration_of_its_own(make_record: MakeRecord) -> None:
    records = [
        make_record(0, "mha", [0.7], learning_rate=0.01),
        make_record(1, "mha", [0.9], learning_rate=0.1),
    ]
    answer = recommend(records)
    assert answer is not None
    assert (answer.learning_rate, answer.num_seeds, answer.trial_ids) == (0.1, 1, ("trial-00001",))


def test_ties_go_to_fewer_trained_parameters(make_record: MakeRecord) -> None:
    records = [make_record(0, "mha", [0.8], parameters=5000), make_record(1, "ln1", [0.8], parameters=50)]
    answer = recommend(records)
    assert answer is not None
    assert (answer.selection, answer.trainable_parameters) == ("ln1", 50)
    assert [record.spec.selection for record in best_configurations(records, limit=2)] == ["ln1", "mha"]


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_the_order_of_the_records_does_not_matter(order: slice, make_record: MakeRecord) -> None:
    records: Sequence[TrialRecord] = [
        make_record(k, name, [0.7 + 0.01 * (k % 3)], parameters=k)
        for k, name in enumerate(["ln1", "mha", "fc1", "fc2"])
    ]
    answer = recommend(records[order])
    assert answer is not None
    assert answer.selection == "fc1"


def test_the_same_seed_twice_is_one_seed(make_record: MakeRecord) -> None:
    """search.baselines=[all, none, mha] runs the single `mha` a second time, with the same seed: no evidence more."""
    records = [
        make_record(0, "mha", [0.6], origin="prior"),
        make_record(1, "fc1", [0.9], origin="prior"),
        make_record(2, "mha", [0.6], origin="baseline"),
    ]
    answer = recommend(records)
    assert answer is not None
    assert (answer.selection, answer.num_seeds) == ("fc1", 1)


def test_best_configurations_are_distinct_selections_each_at_its_best_rate(make_record: MakeRecord) -> None:
    records = [
        make_record(0, "mha", [0.7], learning_rate=0.01),
        make_record(1, "mha", [0.9], learning_rate=0.03),
        make_record(2, "fc1", [0.8], learning_rate=0.01),
        make_record(3, "fc2", [0.85], state=TrialState.STOPPED),
        make_record(4, "ln1", [0.1]),
    ]
    found = best_configurations(records, limit=2)
    assert [(record.spec.selection, record.spec.learning_rate) for record in found] == [("mha", 0.03), ("fc1", 0.01)]
    assert len(best_configurations(records, limit=10)) == 3
    assert best_configurations(records, limit=0) == []


# --- each selection at its best rate, and the choice on test data -----------------------------------------------------


def grid_records(make_record: MakeRecord) -> list[TrialRecord]:
    """Two selections × two rates × two seeds; validation and test disagree on the rate of mha, and on what is best."""
    val = {("mha", 0.01): (0.90, 0.92), ("mha", 0.1): (0.80, 0.84), ("fc1", 0.01): (0.7, 0.7), ("fc1", 0.1): (0.6, 0.8)}
    runs = [(name, rate, seed, value) for (name, rate), values in val.items() for seed, value in enumerate(values)]
    return [
        make_record(index, name, [value], learning_rate=rate, seed=seed)
        for index, (name, rate, seed, value) in enumerate(runs)
    ]


TESTS = {
    f"trial-{index:05d}": TestResult(correct=correct, num_test=100)
    for index, correct in enumerate([70, 72, 75, 79, 95, 97, 10, 20])
}


def test_each_selection_at_its_own_best_rate(make_record: MakeRecord) -> None:
    choices = choose_rates(grid_records(make_record))
    assert [(c.selection, c.learning_rate, c.num_seeds, c.select_on) for c in choices] == [
        ("mha", 0.01, 2, "val"),
        ("fc1", 0.01, 2, "val"),  # the same mean as at 0.1, which came later
    ]
    assert choices[0].val_accuracy == pytest.approx(0.91)
    assert choices[0].val_accuracy_sd == pytest.approx(statistics.stdev([0.90, 0.92]))
    assert choices[0].test_accuracy is None
    assert recommend(grid_records(make_record)) == choices[0]


def test_the_published_choice_is_made_on_test_accuracy_and_says_so(make_record: MakeRecord) -> None:
    choices = choose_rates(grid_records(make_record), tests=TESTS)
    assert [(c.selection, c.learning_rate, c.select_on) for c in choices] == [
        ("fc1", 0.01, "test"),
        ("mha", 0.1, "test"),
    ]
    assert [c.test_accuracy for c in choices] == pytest.approx([0.96, 0.77])
    assert [c.test_accuracy_sd for c in choices] == pytest.approx(
        [statistics.stdev([0.95, 0.97]), statistics.stdev([0.75, 0.79])]
    )
    assert choices[1].val_accuracy == pytest.approx(0.82)
    assert recommend(grid_records(make_record), tests=TESTS) == choices[0]


def test_test_results_choose_only_once_they_are_all_there(make_record: MakeRecord) -> None:
    some = {trial_id: result for trial_id, result in TESTS.items() if trial_id != "trial-00003"}
    assert choose_rates(grid_records(make_record), tests=some) == choose_rates(grid_records(make_record))
    assert choose_rates([], tests=TESTS) == []


def test_a_rate_that_lost_a_seed_is_not_compared(make_record: MakeRecord) -> None:
    """It diverged at one seed: the mean over the others would be flattered."""
    records = grid_records(make_record)
    records[1] = make_record(1, "mha", [0.9], learning_rate=0.01, seed=1, state=TrialState.DIVERGED)
    choice = next(c for c in choose_rates(records) if c.selection == "mha")
    assert (choice.learning_rate, choice.num_seeds) == (0.1, 2)


# --- by the model of the evidence -------------------------------------------------------------------------------------


def contender(selection: str, expected: float, *, learning_rate: float = 0.01) -> Contender:
    return Contender(
        selection=selection,
        learning_rate=learning_rate,
        expected=expected,
        low=expected - 0.01,
        high=expected + 0.01,
        near_best=0.5,
        loss=0.0,
    )


def test_the_expected_best_is_taken_and_not_the_luckiest_mean(make_record: MakeRecord) -> None:
    records = [make_record(seed, "mha", [0.80], seed=seed) for seed in range(3)]
    records += [make_record(3 + seed, "fc1", [0.81], seed=seed) for seed in range(2)]
    found = recommend(records, contenders=[contender("mha", 0.80), contender("fc1", 0.79)])
    assert found is not None
    assert (found.selection, found.num_seeds) == ("mha", 3)
    found = recommend(records, contenders=[contender("mha", 0.79), contender("fc1", 0.80)])
    assert found is not None
    assert (found.selection, found.num_seeds) == ("fc1", 2)  # two seeds will do, although another was run on three


def test_what_was_run_once_waits_for_a_second_seed(make_record: MakeRecord) -> None:
    records = [make_record(0, "mha", [0.9]), make_record(1, "fc1", [0.8]), make_record(2, "fc1", [0.8], seed=1)]
    expected = [contender("mha", 0.88), contender("fc1", 0.8)]
    found = recommend(records, contenders=expected)
    assert found is not None
    assert found.selection == "fc1"
    found = recommend(records[:2], contenders=expected)  # nothing was run twice yet
    assert found is not None
    assert found.selection == "mha"


def test_a_selections_rate_is_chosen_by_expectation_too(make_record: MakeRecord) -> None:
    records = [make_record(0, "mha", [0.9], learning_rate=0.1), make_record(1, "mha", [0.8], learning_rate=0.01)]
    expected = [contender("mha", 0.7, learning_rate=0.1), contender("mha", 0.8)]
    assert [choice.learning_rate for choice in choose_rates(records, contenders=expected)] == [0.01]
    assert [choice.learning_rate for choice in choose_rates(records)] == [0.1]


def test_of_the_runs_one_whose_checkpoint_is_kept_is_exported(make_record: MakeRecord) -> None:
    kept = replace(make_record(0, "mha", [0.8]), checkpoint="checkpoints/trial-00000/best.safetensors")
    found = recommend([kept, make_record(1, "mha", [0.9], seed=1)])
    assert found is not None
    assert found.trial_ids == ("trial-00000", "trial-00001")
