"""The front of accuracy against cost, as rows of a table."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from unfreeze.config import FinetuneConfig
from unfreeze.evidence.front import cost_front
from unfreeze.records import Evidence
from unfreeze.report.choices import mean_and_sd

FRONT_HEADINGS = ("selection", "val. accuracy", "training FLOPs of all’s", "trainable share", "seeds")


def front_rows(evidence: Evidence) -> list[tuple[str, ...]]:
    """The front under the stored configuration, as cells of `FRONT_HEADINGS`."""
    front = cost_front(evidence.trials, evidence.model, stored_finetune(evidence.config["finetune"]))
    return [
        (
            point.selection,
            mean_and_sd(point.val_accuracy, point.val_accuracy_sd),
            f"{point.flops_share:.1%}",
            f"{point.trained_share:.2%}",
            str(point.num_seeds),
        )
        for point in front
    ]


def stored_finetune(stored: Mapping[str, Any]) -> FinetuneConfig:
    """Another version's configuration may lack options, which are then off, or hold some that are gone."""
    known = {field.name for field in fields(FinetuneConfig)}
    return FinetuneConfig(**{key: value for key, value in stored.items() if key in known})
