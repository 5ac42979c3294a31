import statistics
from collections.abc import Callable, Sequence

import pytest

from unfreeze.records import TrialRecord, TrialState
from unfreeze.search.recommend import best_configurations, recommend

MakeRecord = Callable[..., TrialRecord]


def test_nothing_finished_nothing_recommended(make_record: MakeRecord) -> None:
    states = (TrialState.STOPPED, TrialState.DIVERGED, TrialState.FAILED, TrialState.RUNNING)
    records = [make_record(k, "mha", [0.9], state=state) for k, state in enumerate(states)]
    assert recommend(records) is None
    assert recommend([]) is None
    assert best_configurations(records, limit=3) == []


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
