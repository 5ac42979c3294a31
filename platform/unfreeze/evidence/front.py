"""Accuracy against cost: the selections that no cheaper one matches, with what their training costs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from unfreeze.components.selection import parse_selection
from unfreeze.config import FinetuneConfig
from unfreeze.cost.model import CostModel
from unfreeze.evidence.recommend import choose_rates
from unfreeze.records import ModelFacts, TrialRecord

T = TypeVar("T")


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
    # Of points equal in accuracy and FLOPs the one that trains the smaller share stays.
    points.sort(key=lambda point: point.trained_share)
    return tuple(undominated(points, lambda point: (point.flops_share, point.val_accuracy)))


def undominated(points: Iterable[T], place: Callable[[T], tuple[float, float]]) -> list[T]:
    """The points that no other of at most their cost matches in value, cheapest first; of equals the first stays.

    ``place``: a point's (cost, value).
    """
    kept: list[T] = []
    for point in sorted(points, key=lambda point: (place(point)[0], -place(point)[1])):
        if not kept or place(point)[1] > place(kept[-1])[1]:
            kept.append(point)
    return kept
