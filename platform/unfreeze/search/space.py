"""The search space: booleans that switch parts of the model on, times a learning rate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from unfreeze.components.selection import Selection, check_lora, parse_selection
from unfreeze.config import SearchConfig
from unfreeze.cost.model import CostModel
from unfreeze.errors import BudgetError, SelectionError
from unfreeze.records import COMPONENTS, ModelFacts

LEARNING_RATE, SELECTION = "learning_rate", "selection"
_THIRDS = ("early", "middle", "late")
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Switches (name → the (block, component) pairs it turns on), a learning-rate range and the budget."""

    switches: dict[str, frozenset[tuple[int, str]]]
    learning_rate_low: float
    learning_rate_high: float
    extend_rates: bool  # whether the model may go beyond, see `search.extend_rates`
    max_trainable_share: float  # of the model's parameters, head included
    max_flops_share: float  # of training `all`; 1: off
    max_memory: float | None  # bytes of one worker at its peak; None: off
    cost: CostModel
    listed: tuple[Selection, ...] = ()  # with search=listed: what may be tried, and nothing else

    @property
    def model(self) -> ModelFacts:
        return self.cost.model

    @property
    def max_trainable(self) -> int:
        """Parameters, head included."""
        return int(self.max_trainable_share * self.model.num_parameters)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        rate = FloatDistribution(self.learning_rate_low, self.learning_rate_high, log=True)
        if self.listed:
            return {SELECTION: CategoricalDistribution([str(own) for own in self.listed]), LEARNING_RATE: rate}
        booleans: dict[str, BaseDistribution] = {name: CategoricalDistribution([False, True]) for name in self.switches}
        return booleans | {LEARNING_RATE: rate}

    def selection(self, params: Mapping[str, Any]) -> Selection:
        """The selection that sampled parameters stand for."""
        if self.listed:
            return parse_selection(params[SELECTION], num_blocks=self.model.num_blocks)
        members = [pairs for name, pairs in self.switches.items() if params[name]]
        return Selection(self.model.num_blocks, frozenset().union(*members))

    def params(self, selection: Selection, learning_rate: float) -> dict[str, Any]:
        """Sampled parameters that stand for ``selection``: a switch is on where all it turns on is trained whole."""
        if self.listed:
            return {SELECTION: str(selection), LEARNING_RATE: learning_rate}
        switches: dict[str, Any] = {name: pairs <= selection.members for name, pairs in self.switches.items()}
        return switches | {LEARNING_RATE: learning_rate}

    def allows(self, selection: Selection) -> bool:
        """Whether the selection is of the space: it trains some component, is listed where there is a list, and fits
        the budget."""
        return bool(selection.members) and (not self.listed or selection in self.listed) and self.fits(selection)

    def fits(self, selection: Selection) -> bool:
        return not self.excesses(selection)

    def excesses(self, selection: Selection) -> list[str]:
        """The limits that a selection passes, each by name and with what it would take."""
        found = []
        trained = self.cost.num_trained(selection)
        if trained > self.max_trainable:
            found.append(
                f"search.max_trainable_share={self.max_trainable_share}: it trains "
                f"{trained / self.model.num_parameters:.2%} of the parameters of {self.model.name} (head included)"
            )
        if self.max_flops_share < 1 and (share := self.cost.flops_share(selection)) > self.max_flops_share:
            found.append(
                f"search.max_flops_share={self.max_flops_share}: it computes {share:.2%} of what training all computes"
            )
        if self.max_memory is not None and (peak := self.cost.memory(selection).peak) > self.max_memory:
            found.append(
                f"search.max_memory_gib={self.max_memory / _GIB:g}: a worker would take {peak / _GIB:.4g} GiB "
                f"(finetune.micro_batch_size and finetune.eval_batch_size decide most of it)"
            )
        return found


def make_space(config: SearchConfig, cost: CostModel) -> SearchSpace:
    """The configured space over a model's blocks, within the budget.

    Raises:
        BudgetError: no selection of the space fits; names the smallest and each limit that it passes.
        ModelError: a limit needs the model's cost, which its facts are too old for.
        SelectionError: a baseline cannot be read, or asks LoRA of what it cannot do; a listed selection cannot be read,
            comes twice, or is no set of components.
    """
    model = cost.model
    for text in config.baselines:
        check_lora(parse_selection(text, num_blocks=model.num_blocks), width=model.width)
    listed = _listed(config.selections, model.num_blocks) if config.space == "listed" else ()
    space = SearchSpace(
        switches=_distinctions(listed) if listed else _switches(config.space, model.num_blocks),
        listed=listed,
        learning_rate_low=config.learning_rate_low,
        learning_rate_high=config.learning_rate_high,
        extend_rates=config.extend_rates,
        max_trainable_share=config.max_trainable_share,
        max_flops_share=config.max_flops_share,
        max_memory=None if config.max_memory_gib is None else config.max_memory_gib * _GIB,
        cost=cost,
    )
    if config.objective == "pareto":
        cost.flops_share(Selection(model.num_blocks, frozenset()))  # too old facts are refused before the first trial
    alone = listed or [Selection(model.num_blocks, pairs) for pairs in space.switches.values()]
    if not any(space.allows(selection) for selection in alone):
        # Whatever else is switched on trains, computes and keeps more; so the smallest stands for all.
        smallest = min(alone, key=lambda selection: (len(space.excesses(selection)), cost.num_trained(selection)))
        raise BudgetError(
            f"no selection of search.space={config.space} fits; the smallest, {smallest}, passes "
            f"{' and '.join(space.excesses(smallest))}; raise the limit"
        )
    return space


def _listed(texts: list[str], num_blocks: int) -> tuple[Selection, ...]:
    found: dict[Selection, str] = {}
    for text in texts:
        selection = parse_selection(text, num_blocks=num_blocks)
        if selection.embed or selection.lora or not selection.members:
            raise SelectionError(
                f"search=listed searches sets of components trained whole, but search.selections has {text!r}; compare "
                f"it as one of search.baselines, or list it for search=grid"
            )
        if selection in found:
            raise SelectionError(
                f"search.selections has {found[selection]!r} and {text!r}, which are the same in a model of "
                f"{num_blocks} blocks; leave one out"
            )
        found[selection] = text
    return tuple(found)


def _distinctions(listed: tuple[Selection, ...]) -> dict[str, frozenset[tuple[int, str]]]:
    """The fewest switches that make every listed selection: what always comes together is one."""
    together: dict[tuple[bool, ...], set[tuple[int, str]]] = {}
    for pair in sorted(frozenset().union(*(own.members for own in listed))):
        together.setdefault(tuple(pair in own.members for own in listed), set()).add(pair)
    parts = [Selection(listed[0].num_blocks, frozenset(pairs)) for pairs in together.values()]
    return {str(part): part.members for part in parts}


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
