"""The choice at the end: by mean validation accuracy over seeds, never by one lucky run and never by test data."""

import statistics
from collections.abc import Iterable, Sequence

from unfreeze.records import Recommendation, TrialRecord, TrialState


def best_configurations(records: Iterable[TrialRecord], *, limit: int) -> list[TrialRecord]:
    """The best finished trial of each selection, from the best selection on; ties go to fewer trained parameters."""
    best: dict[str, TrialRecord] = {}
    for record in sorted(_finished(records), key=_merit, reverse=True):
        best.setdefault(record.spec.selection, record)
    return list(best.values())[:limit]


def recommend(records: Iterable[TrialRecord]) -> Recommendation | None:
    """The (selection, learning rate) with the best mean validation accuracy among those run on the most seeds.

    A configuration seen with one seed cannot outrank one confirmed with three: its number is the luckiest of many.
    None when nothing finished.
    """
    groups: dict[tuple[str, float], dict[int, TrialRecord]] = {}
    for record in _finished(records):  # by seed: the same run twice is no second opinion
        groups.setdefault((record.spec.selection, record.spec.learning_rate), {})[record.spec.seed] = record
    if not groups:
        return None
    most_seeds = max(len(group) for group in groups.values())
    confirmed = [list(group.values()) for group in groups.values() if len(group) == most_seeds]
    winner = max(confirmed, key=lambda group: (statistics.fmean(_accuracies(group)), -group[0].trainable_parameters))
    accuracies = _accuracies(winner)
    ordered = sorted(winner, key=_merit, reverse=True)
    return Recommendation(
        selection=winner[0].spec.selection,
        learning_rate=winner[0].spec.learning_rate,
        val_accuracy=statistics.fmean(accuracies),
        val_accuracy_sd=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        num_seeds=len(winner),
        trainable_parameters=winner[0].trainable_parameters,
        trial_ids=tuple(record.spec.trial_id for record in ordered),
    )


def _finished(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if record.state is TrialState.FINISHED and record.reports]


def _accuracies(records: Sequence[TrialRecord]) -> list[float]:
    return [record.best_val_accuracy for record in records if record.best_val_accuracy is not None]


def _merit(record: TrialRecord) -> tuple[float, int, int]:
    assert record.best_val_accuracy is not None
    return record.best_val_accuracy, -record.trainable_parameters, -record.spec.index
