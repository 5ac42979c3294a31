"""Which checkpoints a sweep can do without, when together they are larger than it may keep."""

from collections import Counter
from collections.abc import Sequence

from unfreeze.evidence.recommend import best_configurations, recommend
from unfreeze.records import TrialRecord, TrialState


def losers(records: Sequence[TrialRecord], *, max_bytes: int, keep_top: int) -> list[TrialRecord]:
    """The trials whose best checkpoint is to go, so that the rest fit into ``max_bytes``; fewer where not enough can.

    First those that did not finish, which nobody will recommend, then the finished ones, the worst first. Never one
    that the recommendation may need: the ``keep_top`` best selections (which are run again), configurations that were
    run more than once, and what is recommended now.

    Args:
        records: final ones.
    """
    held = [record for record in records if record.checkpoint is not None]
    excess = sum(record.checkpoint_bytes for record in held) - max_bytes
    if excess <= 0:
        return []
    needed = {record.spec.index for record in best_configurations(records, limit=max(keep_top, 1))}
    seeds = Counter((record.spec.selection, record.spec.learning_rate) for record in records)
    needed |= {r.spec.index for r in records if seeds[r.spec.selection, r.spec.learning_rate] > 1}
    chosen = recommend(records)
    recommended = set(chosen.trial_ids) if chosen is not None else set()
    found = []
    for record in sorted(held, key=_worth):
        is_loser = record.state is not TrialState.FINISHED
        if excess > 0 and (is_loser or (record.spec.index not in needed and record.spec.trial_id not in recommended)):
            found.append(record)
            excess -= record.checkpoint_bytes
    return found


def _worth(record: TrialRecord) -> tuple[bool, float, int]:
    return record.state is TrialState.FINISHED, record.best_val_accuracy or 0.0, record.spec.index
