"""The choice at the end: by mean validation accuracy over seeds, never by one lucky run and never by test data.

The one exception has a name: ``search.select_on=test`` chooses as the paper's code does, and says so wherever it shows.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from unfreeze.records import Contender, Recommendation, TestResult, TrialRecord, TrialState


class HasRates(Protocol):
    """A selection at the learning rate chosen for it."""

    @property
    def num_rates(self) -> int:
        """Learning rates at which it has finished."""


_ENOUGH_SEEDS = 2  # of a configuration whose expectation is taken for more than one run's luck
CHOSEN_ON_TEST = "learning rate chosen on test accuracy, as the paper's code does; optimistic"


def best_configurations(records: Iterable[TrialRecord], *, limit: int) -> list[TrialRecord]:
    """The best finished trial of each selection, from the best selection on; ties go to fewer trained parameters."""
    best: dict[str, TrialRecord] = {}
    for record in sorted(_finished(records), key=_merit, reverse=True):
        best.setdefault(record.spec.selection, record)
    return list(best.values())[:limit]


def recommend(
    records: Iterable[TrialRecord],
    *,
    tests: Mapping[str, TestResult] | None = None,
    contenders: Sequence[Contender] = (),
) -> Recommendation | None:
    """The (selection, learning rate) to take; None when nothing finished.

    By the model's expectation where there are ``contenders``, which has the luck of single runs taken out: of those
    run on two seeds or more, as soon as there are any. Otherwise by mean accuracy, of those run on the most seeds: a
    configuration seen once cannot outrank one confirmed with three, its number is the luckiest of many. A run that
    failed counts as run: a broken confirmation must not drop the winner. ``tests``: as for `choose_rates`.
    """
    records = list(records)
    choices = choose_rates(records, tests=tests, contenders=contenders)
    counted = _count_seeds(records, alone=bool(contenders))
    seeds = [counted[choice.selection, choice.learning_rate] for choice in choices]
    most_seeds = max(seeds, default=0)
    enough = min(most_seeds, _ENOUGH_SEEDS) if contenders else most_seeds
    return next((choice for choice, number in zip(choices, seeds, strict=True) if number >= enough), None)


def choose_rates(
    records: Iterable[TrialRecord],
    *,
    tests: Mapping[str, TestResult] | None = None,
    contenders: Sequence[Contender] = (),
) -> list[Recommendation]:
    """Each selection at its best learning rate, best selection first; what is compared is as `recommend` says.

    Accuracy is that of validation, or, once ``tests`` (trial → its result on the test images, `search.select_on` test
    alone) has every finished trial, of test.
    """
    records = list(records)
    finished = _finished(records)
    if tests is not None and not all(record.spec.trial_id in tests for record in finished):
        tests = None
    expected = {(c.selection, c.learning_rate): c.expected for c in contenders}

    def rank(choice: Recommendation) -> tuple[float, float, int]:
        accuracy, parameters = _rank(choice)
        return expected.get((choice.selection, choice.learning_rate), accuracy), accuracy, parameters

    groups: dict[str, dict[float, dict[int, TrialRecord]]] = {}
    for record in finished:  # by seed: the same run twice is no second opinion
        rates = groups.setdefault(record.spec.selection, {})
        rates.setdefault(record.spec.learning_rate, {})[record.spec.seed] = record
    choices, seeds = [], _count_seeds(records, alone=bool(contenders))
    for selection, rates in groups.items():
        enough = max(seeds[selection, rate] for rate in rates)
        if contenders:
            enough = min(enough, _ENOUGH_SEEDS)
        candidates = [list(group.values()) for rate, group in rates.items() if seeds[selection, rate] >= enough]
        best = max((_describe(group, tests) for group in candidates), key=rank)
        choices.append(replace(best, num_rates=len(rates)))
    return sorted(choices, key=rank, reverse=True)


def rates_text(choices: Iterable[HasRates]) -> str:
    """At which learning rates selections are compared: `at its own best of 2 to 4 learning rates`."""
    counts = {choice.num_rates for choice in choices}
    if counts <= {1}:
        return "at the one learning rate it was tried at"
    number = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(*counts)
    return f"at its own best of {number} learning rates"


def _describe(group: Sequence[TrialRecord], tests: Mapping[str, TestResult] | None) -> Recommendation:
    """What the runs of one selection at one learning rate come to."""
    # Whose checkpoint is gone (sweep.checkpoint_gib) counts, but cannot be exported.
    ordered = sorted(group, key=lambda record: (record.checkpoint is not None, _merit(record)), reverse=True)
    val_accuracy, val_accuracy_sd = _mean_and_sd(
        [record.best_val_accuracy for record in ordered if record.best_val_accuracy is not None]
    )
    test_accuracy, test_accuracy_sd = None, None
    if tests is not None:
        test_accuracy, test_accuracy_sd = _mean_and_sd([tests[record.spec.trial_id].accuracy for record in ordered])
    return Recommendation(
        selection=ordered[0].spec.selection,
        learning_rate=ordered[0].spec.learning_rate,
        val_accuracy=val_accuracy,
        val_accuracy_sd=val_accuracy_sd,
        num_seeds=len(ordered),
        trainable_parameters=ordered[0].trainable_parameters,
        trial_ids=tuple(record.spec.trial_id for record in ordered),
        test_accuracy=test_accuracy,
        test_accuracy_sd=test_accuracy_sd,
    )


def _rank(choice: Recommendation) -> tuple[float, int]:
    accuracy = choice.val_accuracy if choice.test_accuracy is None else choice.test_accuracy
    return accuracy, -choice.trainable_parameters


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    return statistics.fmean(values), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _finished(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if record.state is TrialState.FINISHED and _has_accuracy(record)]


def _has_accuracy(record: TrialRecord) -> bool:
    return record.best_val_accuracy is not None and math.isfinite(record.best_val_accuracy)


def _count_seeds(records: Iterable[TrialRecord], *, alone: bool) -> dict[tuple[str, float], int]:
    """Seeds that each configuration was confirmed with: a run that failed says nothing against it and counts with those
    that finished, of which there must be two unless one ``alone`` will do."""
    finished: dict[tuple[str, float], set[int]] = {}
    failed: dict[tuple[str, float], set[int]] = {}
    for record in records:
        place = (record.spec.selection, record.spec.learning_rate)
        if record.state is TrialState.FAILED:
            failed.setdefault(place, set()).add(record.spec.seed)
        elif record.state is TrialState.FINISHED and record.reports:
            finished.setdefault(place, set()).add(record.spec.seed)
    return {
        place: len(seeds | failed.get(place, set())) if alone or len(seeds) >= _ENOUGH_SEEDS else len(seeds)
        for place, seeds in finished.items()
    }


def _merit(record: TrialRecord) -> tuple[float, int, int]:
    assert record.best_val_accuracy is not None
    return record.best_val_accuracy, -record.trainable_parameters, -record.spec.index
