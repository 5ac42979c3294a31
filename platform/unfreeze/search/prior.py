"""From the pre-pass to what a search believes beforehand: a score of every (block, component)."""

from collections.abc import Mapping
from statistics import fmean

from unfreeze.records import COMPONENTS, PlasticityTable


def prior_scores(score: str, table: PlasticityTable, *, num_blocks: int) -> dict[tuple[int, str], float]:
    """(block, component) → score.

    A mode's name: plasticity; a rival's (`plasticity.scores`): what it measured; ``reversed``: minus the reference
    plasticity, the adversary that a search must survive; ``uniform``: no opinion.
    """
    if score == "uniform":
        return {(block, name): 0.0 for block in range(num_blocks) for name in COMPONENTS}
    sign = -1.0 if score == "reversed" else 1.0
    measured = table.by_group["reference" if score == "reversed" else score]
    return {(block, name): sign * measured[f"{block}.{name}"] for block in range(num_blocks) for name in COMPONENTS}


def component_means(scores: Mapping[tuple[int, str], float]) -> dict[str, float]:
    """Component → mean over blocks."""
    return {name: fmean(value for (_, own), value in scores.items() if own == name) for name in COMPONENTS}
