"""Accuracy against cost: the selections that no cheaper one matches, with what their training costs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from unfreeze.components.selection import parse_selection
from unfreeze.config import FinetuneConfig
from unfreeze.cost.model import CostModel
from unfreeze.evidence.recommend import choose_rates
from unfreeze.records import Evidence, ModelFacts, TrialRecord
from unfreeze.report.choices import mean_and_sd

FRONT_HEADINGS = ("selection", "val. accuracy", "training FLOPs of all’s", "trainable share", "seeds")


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontPoint:
    """A selection at its best learning rate, and its cost."""

    selection: str
    val_accuracy: float  # mean over seeds
    val_accuracy_sd: float | None  # over seeds; None with one seed
    num_seeds: int
    flops_share: float  # training FLOPs / those of `all`
    trained_share: float  # of the model's parameters, head included where it is trained


def cost_front(trials: Iterable[TrialRecord], model: ModelFacts, config: FinetuneConfig) -> tuple[FrontPoint, ...]:
    """The Pareto front of the finished trials, cheapest first; empty where the facts are too old to give FLOPs."""
    if not model.num_tokens or not model.width:
        return ()
    cost = CostModel(model, config)  # a share does not depend on workers or precision
    points = []
    for choice in choose_rates(trials):
        selection = parse_selection(choice.selection, num_blocks=model.num_blocks)
        points.append(
            FrontPoint(
                selection=choice.selection,
                val_accuracy=choice.val_accuracy,
                val_accuracy_sd=choice.val_accuracy_sd,
                num_seeds=choice.num_seeds,
                flops_share=cost.flops_share(selection),
                trained_share=cost.num_trained(selection) / model.num_parameters,
            )
        )
    return undominated(points)


def undominated(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    """The points that no other of at most their FLOPs matches in accuracy, cheapest first.

    Of points equal in both, the one that trains the smaller share stays.
    """
    kept: list[FrontPoint] = []
    for point in sorted(points, key=lambda p: (p.flops_share, -p.val_accuracy, p.trained_share)):
        if not kept or point.val_accuracy > kept[-1].val_accuracy:
            kept.append(point)
    return tuple(kept)


def front_rows(evidence: Evidence) -> list[tuple[str, ...]]:
    """The front under the stored configuration, as cells of `FRONT_HEADINGS`."""
    front = cost_front(evidence.trials, evidence.model, _stored_finetune(evidence.config["finetune"]))
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


def _stored_finetune(stored: Mapping[str, Any]) -> FinetuneConfig:
    """Another version's configuration may lack options, which are then off, or hold some that are gone."""
    known = {field.name for field in fields(FinetuneConfig)}
    return FinetuneConfig(**{key: value for key, value in stored.items() if key in known})
