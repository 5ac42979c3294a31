"""The search space: booleans that switch parts of the model on, times a learning rate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from unfreeze.components.selection import Selection, check_lora, count_trainable, parse_selection
from unfreeze.config import SearchConfig
from unfreeze.errors import BudgetError
from unfreeze.records import COMPONENTS, ModelFacts

LEARNING_RATE = "learning_rate"
_THIRDS = ("early", "middle", "late")


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Switches (name → the (block, component) pairs it turns on), a learning-rate range and a parameter budget."""

    switches: dict[str, frozenset[tuple[int, str]]]
    learning_rate_low: float
    learning_rate_high: float
    max_trainable: int  # parameters, head included
    model: ModelFacts
    train_head: bool

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        booleans: dict[str, BaseDistribution] = {name: CategoricalDistribution([False, True]) for name in self.switches}
        rate = FloatDistribution(self.learning_rate_low, self.learning_rate_high, log=True)
        return booleans | {LEARNING_RATE: rate}

    def selection(self, params: Mapping[str, Any]) -> Selection:
        """The selection that sampled parameters stand for."""
        members = [pairs for name, pairs in self.switches.items() if params[name]]
        return Selection(self.model.num_blocks, frozenset().union(*members))

    def params(self, selection: Selection, learning_rate: float) -> dict[str, Any]:
        """Sampled parameters that stand for ``selection``: a switch is on where all it turns on is trained whole."""
        switches: dict[str, Any] = {name: pairs <= selection.members for name, pairs in self.switches.items()}
        return switches | {LEARNING_RATE: learning_rate}

    def num_trainable(self, selection: Selection) -> int:
        return count_trainable(
            selection, self.model.parameters, train_head=self.train_head, lora_sizes=self.model.lora_sizes
        )

    def allows(self, selection: Selection) -> bool:
        """Whether the selection trains some component and fits the budget."""
        return bool(selection.members) and self.fits(selection)

    def fits(self, selection: Selection) -> bool:
        return self.num_trainable(selection) <= self.max_trainable


def make_space(config: SearchConfig, model: ModelFacts, *, train_head: bool) -> SearchSpace:
    """The configured space over a model's blocks.

    Raises:
        BudgetError: no selection of the space fits ``search.max_trainable_share``; names the smallest.
        SelectionError: a baseline cannot be read, or asks LoRA of what it cannot do.
    """
    for text in config.baselines:
        check_lora(parse_selection(text, num_blocks=model.num_blocks), width=model.width)
    space = SearchSpace(
        switches=_switches(config.space, model.num_blocks),
        learning_rate_low=config.learning_rate_low,
        learning_rate_high=config.learning_rate_high,
        max_trainable=int(config.max_trainable_share * model.num_parameters),
        model=model,
        train_head=train_head,
    )
    smallest = min((Selection(model.num_blocks, pairs) for pairs in space.switches.values()), key=space.num_trainable)
    if not space.allows(smallest):
        needed = space.num_trainable(smallest) / model.num_parameters
        raise BudgetError(
            f"no selection of search.space={config.space} fits search.max_trainable_share="
            f"{config.max_trainable_share}: the smallest, {smallest}, trains {needed:.2%} of the parameters of "
            f"{model.name} (head included); raise the share"
        )
    return space


def _switches(space: str, num_blocks: int) -> dict[str, frozenset[tuple[int, str]]]:
    if space == "components":
        return {name: frozenset((block, name) for block in range(num_blocks)) for name in COMPONENTS}
    if space == "blocks":
        return {f"{name}@{block}": frozenset([(block, name)]) for name in COMPONENTS for block in range(num_blocks)}
    thirds = {
        third: range(num_blocks * index // 3, num_blocks * (index + 1) // 3) for index, third in enumerate(_THIRDS)
    }
    return {
        f"{name}@{third}": frozenset((block, name) for block in blocks)
        for name in COMPONENTS
        for third, blocks in thirds.items()
        if blocks
    }
