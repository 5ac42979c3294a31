"""What is tried before the sampler's own proposals: every component alone, and the baselines."""

from collections.abc import Mapping

from unfreeze.components.selection import Selection, parse_selection, select_components
from unfreeze.config import SearchConfig
from unfreeze.records import COMPONENTS
from unfreeze.search.space import SearchSpace


def first_points(
    config: SearchConfig, space: SearchSpace, scores: Mapping[str, float]
) -> list[tuple[Selection, float | None, str]]:
    """(selection, learning rate, origin): single components from the highest score to the lowest, then the baselines,
    at each start learning rate; None: at one that is chosen when it is the trial's turn.

    They are never stopped early: they are the evidence on plasticity, and what every recommendation is held against.
    """
    num_blocks = space.model.num_blocks
    rates: list[float | None] = [*config.start_learning_rates] or [None]
    order = sorted(COMPONENTS, key=lambda name: (-scores[name], COMPONENTS.index(name)))
    whole = [select_components([name], num_blocks=num_blocks) for name in order]
    singles = [(own, "prior") for own in whole if config.first == "components" and space.allows(own)]
    texts = [parse_selection(text, num_blocks=num_blocks) for text in config.baselines]
    baselines = [(own, "baseline") for own in texts if space.fits(own)]
    return [(selection, rate, origin) for selection, origin in [*singles, *baselines] for rate in rates]
