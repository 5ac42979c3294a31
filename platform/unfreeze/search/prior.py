"""From the pre-pass to what a search believes beforehand: a score of every (block, component)."""

from collections.abc import Mapping
from statistics import fmean

from unfreeze.errors import ModelError
from unfreeze.records import COMPONENTS, PlasticityTable


def prior_scores(score: str, table: PlasticityTable, *, num_blocks: int) -> dict[tuple[int, str], float]:
    """(block, component) → score.

    A mode's name: plasticity; a rival's (`plasticity.scores`): what it measured; ``reversed``: minus the reference
    plasticity, the adversary that a search must survive; ``uniform``: no opinion.

    Raises:
        ModelError: the table is of a model with fewer blocks.
    """
    members = [(block, name) for block in range(num_blocks) for name in COMPONENTS]
    if score == "uniform":
        return dict.fromkeys(members, 0.0)
    sign = -1.0 if score == "reversed" else 1.0
    measured = table.by_group[_measured_as(score)]
    missing = [f"{block}.{name}" for block, name in members if f"{block}.{name}" not in measured]
    if missing:
        raise ModelError(
            f"the plasticity table has no {missing[0]}, which this model of {num_blocks} blocks has: it is of another "
            f"model; measure this one's"
        )
    return {(block, name): sign * measured[f"{block}.{name}"] for block, name in members}


def is_known(score: str, table: PlasticityTable) -> bool:
    """Whether the pre-pass measured what `prior_scores` makes this score of."""
    return score == "uniform" or _measured_as(score) in table.by_group


def _measured_as(score: str) -> str:
    return "reference" if score == "reversed" else score


def component_means(scores: Mapping[tuple[int, str], float]) -> dict[str, float]:
    """Component → mean over blocks."""
    return {name: fmean(value for (_, own), value in scores.items() if own == name) for name in COMPONENTS}
