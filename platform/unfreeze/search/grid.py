"""The grid: every selection at every learning rate with every seed, and nothing else.

Trial i is the i-th of seeds × selections × learning rates, seeds outermost: cut at any time, the grid is a full picture
of its first seeds. Nothing is sampled, stopped early or confirmed, and no trial waits for another's outcome.
"""

from collections.abc import Mapping
from itertools import product

from unfreeze.components.selection import check_lora, count_trainable, parse_selection
from unfreeze.config import SearchConfig
from unfreeze.errors import SelectionError
from unfreeze.records import COMPONENTS, ModelFacts, TrialRecord, TrialSpec


class GridPlanner:
    """Plans a grid's trials one by one; for `PlannedSearch` it is what `Planner` is.

    Args:
        scores: component → prior score; single components come first, from the highest to the lowest.

    Raises:
        SelectionError: a selection cannot be read, names what the model does not have, trains nothing or comes twice.
    """

    def __init__(
        self, config: SearchConfig, model: ModelFacts, *, scores: Mapping[str, float], train_head: bool
    ) -> None:
        selections = _canonical(config.selections, model, train_head=train_head)
        self._concurrency = config.concurrency
        self._points = list(product(config.seeds, _prior_first(selections, scores), config.learning_rates))

    @property
    def max_trials(self) -> int:
        return len(self._points)

    def is_ready(self, index: int, final: Mapping[int, TrialRecord]) -> bool:
        """Whether trial ``index`` may start: any time, with no more than ``search.concurrency`` in flight."""
        return sum(earlier not in final for earlier in range(index)) < self._concurrency

    def plan(self, index: int, final: Mapping[int, TrialRecord], planned: Mapping[int, TrialSpec]) -> TrialSpec | None:
        """Trial ``index``, or None beyond the grid; what came out before does not matter."""
        if index >= len(self._points):
            return None
        seed, selection, learning_rate = self._points[index]
        origin = "prior" if selection in COMPONENTS else "baseline"
        return TrialSpec(index=index, selection=selection, learning_rate=learning_rate, seed=seed, origin=origin)


def _canonical(texts: list[str], model: ModelFacts, *, train_head: bool) -> list[str]:
    """The selections in canonical form, each once and each training something."""
    written: dict[str, str] = {}
    for text in texts:
        selection = parse_selection(text, num_blocks=model.num_blocks)
        check_lora(selection, width=model.width)
        sizes = model.lora_sizes
        if not count_trainable(selection, model.parameters, train_head=train_head, lora_sizes=sizes):
            raise SelectionError(f"selection {text!r} with finetune.train_head=false trains nothing")
        if str(selection) in written:
            raise SelectionError(
                f"search.selections has {written[str(selection)]!r} and {text!r}, which are the same in a model of "
                f"{model.num_blocks} blocks; leave one out"
            )
        written[str(selection)] = text
    return list(written)


def _prior_first(selections: list[str], scores: Mapping[str, float]) -> list[str]:
    """Single components from the highest score to the lowest, then the others as they were listed."""
    singles = [name for name in COMPONENTS if name in selections]
    return sorted(singles, key=lambda name: -scores[name]) + [text for text in selections if text not in COMPONENTS]
