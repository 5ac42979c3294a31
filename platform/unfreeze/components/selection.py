"""The selection grammar: what is trained, as text.

    selection  = "none" | "all" | term { "+" term }
    term       = component [ "@" block [ "-" block ] ] [ ":lora(" rank ")" ]
    component  = "ln1" | "mha" | "ln2" | "fc1" | "fc2" | "embed"

``mha`` is every block's attention; ``mha@6-11+fc2@0-3`` that of blocks 6 to 11 and the second linear layer of 0 to 3.
``mha:lora(8)`` leaves the attention's weights as they are and trains a rank-8 update of its linear layers
(``mha``, ``fc1`` and ``fc2`` have some). ``all`` is everything, ``embed`` too; ``none`` is a linear probe. The head is
trained besides, unless told otherwise.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from types import MappingProxyType

from unfreeze.errors import SelectionError
from unfreeze.records import COMPONENTS

ADAPTABLE = ("mha", "fc1", "fc2")  # components with linear layers, which LoRA adapts
_TERM = re.compile(r"(?P<component>[a-z0-9]+)(?:@(?P<first>\d+)(?:-(?P<last>\d+))?)?(?::lora\((?P<rank>\d+)\))?")


@dataclass(frozen=True, slots=True)
class Selection:
    """What is trained in a model of ``num_blocks`` blocks: whole (block, component) pairs, ``embed``, LoRA updates.

    Equality is equality of what is trained: ``mha@0-11`` equals ``mha`` where there are 12 blocks.

    Raises:
        SelectionError: a (block, component) is trained both whole and through LoRA, or at two ranks.
    """

    num_blocks: int
    members: frozenset[tuple[int, str]]  # trained whole
    embed: bool = False
    lora: frozenset[tuple[int, str, int]] = frozenset()  # (block, component, rank); each pair once, none a member

    def __post_init__(self) -> None:
        taken = dict.fromkeys(self.members, "whole")
        for block, name, rank in sorted(self.lora):
            way = f"by lora({rank})"
            if (block, name) in taken:
                raise SelectionError(
                    f"{name} of block {block} would be trained {taken[block, name]} and {way}; choose one of them"
                )
            taken[block, name] = way

    def __str__(self) -> str:
        """The canonical text: components in block order, ``@`` only where not every block is meant."""
        if not self.members and not self.embed and not self.lora:
            return "none"
        if self.embed and len(self.members) == self.num_blocks * len(COMPONENTS):
            return "all"
        terms = ["embed"] if self.embed else []
        for component in COMPONENTS:
            terms += self._terms(component, [block for block, name in self.members if name == component])
            ranks = sorted({rank for _, name, rank in self.lora if name == component})
            for rank in ranks:
                blocks = [block for block, name, own in self.lora if (name, own) == (component, rank)]
                terms += self._terms(component, blocks, suffix=f":lora({rank})")
        return "+".join(terms)

    def _terms(self, component: str, blocks: list[int], suffix: str = "") -> list[str]:
        if len(blocks) == self.num_blocks:
            return [component + suffix]
        return [f"{component}@{_range_text(run)}{suffix}" for run in _runs(sorted(blocks))]

    @property
    def components(self) -> tuple[str, ...]:
        """The components with at least one block trained whole, in block order."""
        present = {name for _, name in self.members}
        return tuple(name for name in COMPONENTS if name in present)

    @property
    def groups(self) -> frozenset[str]:
        """The parameter groups trained whole, named as `components.mapping.group_of` does: ``3.mha``, ``embed``."""
        return frozenset(f"{block}.{name}" for block, name in self.members) | ({"embed"} if self.embed else frozenset())

    @property
    def ranks(self) -> dict[str, int]:
        """The parameter groups that LoRA adapts → rank."""
        return {f"{block}.{name}": rank for block, name, rank in sorted(self.lora)}

    @property
    def touched(self) -> frozenset[tuple[int, str]]:
        """The (block, component) pairs that take gradients at all, whole or through LoRA: how deep backward goes."""
        return self.members | {(block, name) for block, name, _ in self.lora}


@lru_cache(maxsize=4096)  # a search reads every earlier trial's for each suggestion
def parse_selection(text: str, *, num_blocks: int) -> Selection:
    """Read a selection for a model of ``num_blocks`` blocks.

    Raises:
        SelectionError: unknown component, block out of range, no rank or one where there is nothing to adapt, empty or
            malformed text; lists what exists. Or the same component of a block is trained in two ways.
    """
    exists = (
        f"components are {', '.join(COMPONENTS)}, embed; blocks 0 to {num_blocks - 1}; or 'all', 'none'; "
        f"{', '.join(ADAPTABLE)} also as {ADAPTABLE[0]}:lora(8), of rank 1 or more"
    )
    if text == "none":
        return Selection(num_blocks, frozenset())
    everything = frozenset((block, name) for block in range(num_blocks) for name in COMPONENTS)
    if text == "all":
        return Selection(num_blocks, everything, embed=True)
    members: set[tuple[int, str]] = set()
    lora: set[tuple[int, str, int]] = set()
    embed = False
    for term in text.split("+"):
        match = _TERM.fullmatch(term.strip())
        if match is None:
            raise SelectionError(f"cannot read {term!r} in selection {text!r}: {exists}")
        component, first, last, rank = match["component"], match["first"], match["last"], match["rank"]
        if component == "embed" and first is None and rank is None:
            embed = True
            continue
        if component not in COMPONENTS:
            raise SelectionError(f"unknown component {component!r} in selection {text!r}: {exists}")
        start = 0 if first is None else int(first)
        stop = num_blocks - 1 if first is None else start if last is None else int(last)
        if start > stop or stop >= num_blocks:
            raise SelectionError(f"blocks {start}-{stop} in selection {text!r} do not exist: {exists}")
        blocks = range(start, stop + 1)
        if rank is None:
            members |= {(block, component) for block in blocks}
        elif component in ADAPTABLE and int(rank) > 0:
            lora |= {(block, component, int(rank)) for block in blocks}
        else:
            raise SelectionError(f"{term.strip()!r} in selection {text!r} has nothing to adapt: {exists}")
    return Selection(num_blocks, frozenset(members), embed, frozenset(lora))


def select_components(names: Iterable[str], *, num_blocks: int) -> Selection:
    """Every block of the named components."""
    return Selection(num_blocks, frozenset((block, name) for name in names for block in range(num_blocks)))


def check_lora(selection: Selection, *, width: int) -> None:
    """Refuse LoRA terms that no trial could run in a model of ``width``; needs no model, so it can come first.

    Raises:
        SelectionError: peft is not installed, or a rank exceeds the width.
    """
    if not selection.lora:
        return
    if find_spec("peft") is None:
        raise SelectionError(f"selection {str(selection)!r} needs peft: pip install 'unfreeze[lora]'")
    rank = max(selection.ranks.values())
    if rank > width:
        raise SelectionError(
            f"selection {str(selection)!r}: rank {rank} exceeds the model's width; choose 1 to {width}"
        )


def count_trainable(
    selection: Selection,
    parameters: Mapping[str, int],
    *,
    train_head: bool,
    lora_sizes: Mapping[str, int] = MappingProxyType({}),
) -> int:
    """How many parameters a selection trains, given its groups' sizes.

    Args:
        parameters: group → parameters (`mapping.count_parameters`).
        lora_sizes: group → parameters of a rank-1 update (`mapping.lora_sizes`); for selections with LoRA terms.

    Raises:
        SelectionError: LoRA is asked for where ``lora_sizes`` has nothing to adapt.
    """
    alien = [group for group in selection.ranks if group not in lora_sizes]
    if alien:
        raise SelectionError(
            f"selection {str(selection)!r}: the model has no linear layers that LoRA can adapt in {', '.join(alien)}"
        )
    groups = selection.groups | ({"head"} if train_head else frozenset())
    adapters = sum(rank * lora_sizes[group] for group, rank in selection.ranks.items())
    return sum(parameters.get(group, 0) for group in groups) + adapters


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
