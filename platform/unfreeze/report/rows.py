"""What the statistics saw, a row per trial: to be checked, or asked something else."""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from unfreeze.components.selection import count_trainable
from unfreeze.evidence.correlate import score_selections
from unfreeze.evidence.worth import weighed_trials
from unfreeze.records import COMPONENTS, Evidence


def seen_rows(evidence: Iterable[Evidence]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns, and of each sweep the finished trials of components: where they lie on each score's axis, and how they
    did.

    ``parameters``: of the selection, head left out. ``trains:ln1`` …: share of that component's blocks. ``chosen``:
    whether the run counts in its selection's accuracy, the mean of those at its own best learning rate
    (`score_selections`), which correlations and comparisons over sets are of. ``reference`` …: mean of the score over
    what is trained, (block, component) by (block, component).
    """
    found = list(evidence)
    scores = list(dict.fromkeys(score for each in found for score in each.plasticity.by_group))
    fixed = ["sweep", "trial", "selection", "learning_rate", "seed", "val_accuracy", "parameters"]
    rows = []
    for each in found:
        by_group, model = each.plasticity.by_group, each.model
        chosen = {trial_id for own in score_selections(each.trials, model) for trial_id in own.trial_ids}
        for trial, selection in weighed_trials(each.trials, model):
            row: dict[str, Any] = {
                "sweep": each.sweep,
                "trial": trial.spec.trial_id,
                "selection": str(selection),
                "learning_rate": trial.spec.learning_rate,
                "seed": trial.spec.seed,
                "val_accuracy": trial.best_val_accuracy,
                "parameters": count_trainable(
                    selection, model.parameters, train_head=False, lora_sizes=model.lora_sizes
                ),
            }
            for name in COMPONENTS:
                blocks = sum(component == name for _, component in selection.members)
                row[f"trains:{name}"] = blocks / model.num_blocks
            row["chosen"] = trial.spec.trial_id in chosen
            for score, groups in by_group.items():
                row[score] = fmean(groups[f"{block}.{name}"] for block, name in sorted(selection.members))
            rows.append(row)
    return [*fixed, *(f"trains:{name}" for name in COMPONENTS), "chosen", *scores], rows
