"""Early stopping, decided before a trial starts, and what is made of trials that were stopped.

A trial ends at a rung where even two standard deviations of luck would not bring it to the best end so far. Its cutoffs
depend only on trials that were over when it was planned. So they travel with it: the worker stops at the very report
that misses one, no message is awaited, and the same sweep stops the same trials however its slots were timed, killed or
resumed. (Ray's scheduler keeps its rungs in memory and loses them on restore: ray#30838.)
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from unfreeze.evidence.ends import Gain, gain_to_end
from unfreeze.records import TrialRecord, TrialState
from unfreeze.slots.cutoff import best_until


def rungs(milestones: Sequence[int], *, grace_reports: int, reduction_factor: float) -> list[int]:
    """The images_seen at which trials are judged: the report after ``grace_reports``, then each factor further.

    ``milestones``: images_seen at each report, ascending. The last report is no rung: there is nothing left to save.
    """
    chosen, position = [], float(grace_reports)
    while round(position) < len(milestones):
        chosen.append(milestones[round(position) - 1])
        position *= reduction_factor
    return list(dict.fromkeys(chosen))


def cutoffs(
    peers: Sequence[TrialRecord], rung_images: Sequence[int], *, learning_rate: float
) -> tuple[tuple[int, float], ...]:
    """(images_seen, accuracy) per rung: a trial at ``learning_rate`` whose best accuracy lies below ends there."""
    finished = [record for record in peers if _counts(record)]
    leading = max((record.best_val_accuracy or 0.0 for record in finished), default=0.0)
    found = []
    for images in rung_images:
        gain = _gain(finished, images, learning_rate)
        if gain is not None:
            found.append((images, gain.needed(leading)))
    return tuple(found)


def observed_values(known: Mapping[int, TrialRecord]) -> dict[int, float]:
    """What a sampler is told of final trials, by index: best accuracies, 0 of what diverged or is no number.

    Of what was stopped it is the accuracy that is expected at its end, by the finished ones; those that failed are left
    out.
    """
    finished = [record for record in known.values() if _counts(record)]
    values = {index: _observed(record, finished) for index, record in known.items()}
    return {index: value for index, value in values.items() if value is not None}


def _observed(record: TrialRecord, finished: Sequence[TrialRecord]) -> float | None:
    if record.state is TrialState.FAILED:
        return None
    accuracy = record.best_val_accuracy
    if record.state is TrialState.DIVERGED or (accuracy is not None and not math.isfinite(accuracy)):
        return 0.0
    if record.state is not TrialState.STOPPED or accuracy is None:
        return accuracy
    gain = _gain(finished, record.reports[-1].images_seen, record.spec.learning_rate)
    return accuracy if gain is None else gain.end(accuracy)


def _counts(record: TrialRecord) -> bool:
    """Whether the whole of its curve is known."""
    return record.state is TrialState.FINISHED and math.isfinite(record.best_val_accuracy or math.nan)


def _gain(finished: Sequence[TrialRecord], images: int, learning_rate: float) -> Gain | None:
    reached = [best_until(record.reports, images) for record in finished]
    rows = [
        (accuracy, record.best_val_accuracy, math.log10(record.spec.learning_rate))
        for record, accuracy in zip(finished, reached, strict=True)
        if accuracy is not None
    ]
    columns = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return gain_to_end(*columns, log_rate=math.log10(learning_rate))
