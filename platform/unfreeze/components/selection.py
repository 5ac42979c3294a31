"""The selection grammar: what is trained, as text.

    selection  = "none" | "all" | term { "+" term }
    term       = component [ "@" block [ "-" block ] ]
    component  = "ln1" | "mha" | "ln2" | "fc1" | "fc2" | "embed"

``mha`` is every block's attention; ``mha@6-11+fc2@0-3`` that of blocks 6 to 11 and the second linear layer of 0 to 3.
``all`` is everything, ``embed`` too; ``none`` is a linear probe. The head is trained besides, unless told otherwise.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from unfreeze.errors import SelectionError
from unfreeze.records import COMPONENTS

_TERM = re.compile(r"(?P<component>[a-z0-9]+)(?:@(?P<first>\d+)(?:-(?P<last>\d+))?)?")


@dataclass(frozen=True, slots=True)
class Selection:
    """A set of (block, component), and whether ``embed`` is trained, in a model of ``num_blocks`` blocks.

    Equality is equality of what is trained: ``mha@0-11`` equals ``mha`` where there are 12 blocks.
    """

    num_blocks: int
    members: frozenset[tuple[int, str]]
    embed: bool = False

    def __str__(self) -> str:
        """The canonical text: components in block order, ``@`` only where not every block is meant."""
        if not self.members and not self.embed:
            return "none"
        if self.embed and len(self.members) == self.num_blocks * len(COMPONENTS):
            return "all"
        terms = ["embed"] if self.embed else []
        for component in COMPONENTS:
            blocks = sorted(block for block, name in self.members if name == component)
            if len(blocks) == self.num_blocks:
                terms.append(component)
            else:
                terms += [f"{component}@{_range_text(run)}" for run in _runs(blocks)]
        return "+".join(terms)

    @property
    def components(self) -> tuple[str, ...]:
        """The components with at least one trained block, in block order."""
        present = {name for _, name in self.members}
        return tuple(name for name in COMPONENTS if name in present)

    @property
    def groups(self) -> frozenset[str]:
        """The parameter groups trained, named as `components.mapping.group_of` names them: ``3.mha``, ``embed``."""
        return frozenset(f"{block}.{name}" for block, name in self.members) | ({"embed"} if self.embed else frozenset())


def parse_selection(text: str, *, num_blocks: int) -> Selection:
    """Read a selection for a model of ``num_blocks`` blocks.

    Raises:
        SelectionError: unknown component, block out of range, empty or malformed text; lists what exists.
    """
    exists = f"components are {', '.join(COMPONENTS)}, embed; blocks 0 to {num_blocks - 1}; or 'all', 'none'"
    if text == "none":
        return Selection(num_blocks, frozenset())
    everything = frozenset((block, name) for block in range(num_blocks) for name in COMPONENTS)
    if text == "all":
        return Selection(num_blocks, everything, embed=True)
    members: set[tuple[int, str]] = set()
    embed = False
    for term in text.split("+"):
        match = _TERM.fullmatch(term.strip())
        if match is None:
            raise SelectionError(f"cannot read {term!r} in selection {text!r}: {exists}")
        component, first, last = match["component"], match["first"], match["last"]
        if component == "embed" and first is None:
            embed = True
            continue
        if component not in COMPONENTS:
            raise SelectionError(f"unknown component {component!r} in selection {text!r}: {exists}")
        start = 0 if first is None else int(first)
        stop = num_blocks - 1 if first is None else start if last is None else int(last)
        if start > stop or stop >= num_blocks:
            raise SelectionError(f"blocks {start}-{stop} in selection {text!r} do not exist: {exists}")
        members |= {(block, component) for block in range(start, stop + 1)}
    return Selection(num_blocks, frozenset(members), embed)


def select_components(names: Iterable[str], *, num_blocks: int) -> Selection:
    """Every block of the named components."""
    return Selection(num_blocks, frozenset((block, name) for name in names for block in range(num_blocks)))


def count_trainable(selection: Selection, parameters: Mapping[str, int], *, train_head: bool) -> int:
    """How many parameters a selection trains, given its group's sizes (`mapping.count_parameters`)."""
    groups = selection.groups | ({"head"} if train_head else frozenset())
    return sum(parameters.get(group, 0) for group in groups)


def _runs(blocks: list[int]) -> list[tuple[int, int]]:
    """Sorted block numbers as maximal consecutive (first, last) runs."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and block == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs


def _range_text(run: tuple[int, int]) -> str:
    return str(run[0]) if run[0] == run[1] else f"{run[0]}-{run[1]}"
