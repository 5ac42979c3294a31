"""Early stopping by successive halving (ASHA, arXiv 1810.05934), decided before a trial starts.

A trial's cutoffs depend only on trials that were over when it was planned. So they travel with it: the worker stops at
the very report that misses its rung, no message is awaited, and the same sweep stops the same trials however its slots
were timed, killed or resumed. (Ray's scheduler keeps its rungs in memory and loses them on restore: ray#30838.)
"""

from collections.abc import Iterable, Sequence

import numpy as np

from unfreeze.records import TrialRecord
from unfreeze.slots.cutoff import best_until

# Fewer peers than this on a rung say nothing about its upper third.
_MIN_PEERS = 3


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
    peers: Iterable[TrialRecord], rung_images: Sequence[int], *, reduction_factor: float
) -> tuple[tuple[int, float], ...]:
    """(images_seen, accuracy) per rung: whose best accuracy lies below is not in the upper 1/factor of its peers."""
    found = []
    records = list(peers)
    for images in rung_images:
        values = [v for v in (best_until(record.reports, images) for record in records) if v is not None]
        if len(values) >= _MIN_PEERS:
            found.append((images, float(np.quantile(values, 1 - 1 / reduction_factor))))
    return tuple(found)
