"""Early-stopping cutoffs, as the worker applies them: the trial brings them along (see `search.stopping`)."""

from collections.abc import Sequence

from unfreeze.records import TrialReport


def best_until(reports: Sequence[TrialReport], images_seen: int) -> float | None:
    """Best validation accuracy up to a rung; None for a trial that did not get there."""
    if not reports or reports[-1].images_seen < images_seen:
        return None
    return max((report.val_accuracy for report in reports if report.images_seen <= images_seen), default=None)


def misses_cutoff(reports: Sequence[TrialReport], stop_below: Sequence[tuple[int, float]]) -> bool:
    """Whether the last report stands on a rung whose cutoff the trial's best accuracy misses."""
    for images, cutoff in stop_below:
        if reports[-1].images_seen == images:
            best = best_until(reports, images)
            return best is not None and best < cutoff
    return False
