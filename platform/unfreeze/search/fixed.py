"""Trials that every search has, whatever comes out: each component alone, and the baselines."""

from collections.abc import Mapping

from unfreeze.components.selection import Selection, parse_selection, select_components
from unfreeze.config import SearchConfig
from unfreeze.records import COMPONENTS
from unfreeze.search.space import SearchSpace


def fixed_trials(
    config: SearchConfig, space: SearchSpace, scores: Mapping[str, float]
) -> list[tuple[Selection, float | None, str]]:
    """(selection, learning rate, origin): single components from the highest score to the lowest, then the baselines,
    all of them at one start learning rate before any at the next; None: at one that is chosen when it is the trial's
    turn.

    They are never stopped early: they are the evidence on plasticity, and what every recommendation is held against.
    """
    num_blocks = space.model.num_blocks
    rates: list[float | None] = [*config.start_learning_rates]
    if not rates:
        rates = [None] if searches_by_model(config) else [*_spread(config)]
    order = sorted(COMPONENTS, key=lambda name: (-scores[name], COMPONENTS.index(name)))
    whole = [select_components([name], num_blocks=num_blocks) for name in order]
    singles = [(own, "prior") for own in whole if config.components_alone and space.allows(own)]
    texts = [parse_selection(text, num_blocks=num_blocks) for text in config.baselines]
    baselines = [(own, "baseline") for own in texts if space.fits(own)]
    return [(selection, rate, origin) for rate in rates for selection, origin in [*singles, *baselines]]


def place_of_fixed(config: SearchConfig, count: int) -> int:
    """The first one's index, of ``count``.

    The model proposes half of the search before them, and two rounds of what is in flight: a trial is worth most while
    nothing is known, components are tried alone where the best rate is known better, and what comes first of all is
    planned blind. Optuna's samplers begin with random points; these stand in for them.
    """
    if not searches_by_model(config):
        return 0
    return min(max(config.num_trials // 2, 2 * config.concurrency), config.num_trials - count)


def searches_by_model(config: SearchConfig) -> bool:
    """Whether it is the model that proposes; a grid and another sampler do without."""
    return config.space != "grid" and config.sampler == "model"


def _spread(config: SearchConfig) -> list[float]:
    """The middles of the range's three thirds on a log scale, the middle one first.

    Components differ in the rate that suits them: at a single one, their order would be the rate's doing. The model
    of the evidence needs no such design: it knows of a best rate that moves with the selection, and asks where a run
    tells most of it.
    """
    low, high = config.learning_rate_low, config.learning_rate_high
    middles = [low * (high / low) ** (position / 6) for position in (3, 1, 5)]
    return list(dict.fromkeys(middles))  # a single rate is tried once
