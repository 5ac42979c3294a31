"""The optimizer: state for the trained parameters alone, a learning rate of its own for each group of them."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from unfreeze.components.mapping import group_of
from unfreeze.config import FinetuneConfig


def make_optimizer(
    trained: Mapping[str, Tensor], config: FinetuneConfig, *, num_blocks: int
) -> tuple[torch.optim.Optimizer, list[str]]:
    """The optimizer, and the parameters' names in its order.

    Each of its groups has a ``scale``: the loop sets ``lr`` to the scheduled rate times it.
    """
    by_scale: dict[float, list[str]] = {}
    for name in trained:
        by_scale.setdefault(rate_scale(name, config, num_blocks=num_blocks), []).append(name)
    groups = [
        {"params": [trained[name] for name in names], "scale": scale}
        for scale, names in sorted(by_scale.items(), reverse=True)
    ]
    order = [name for _, names in sorted(by_scale.items(), reverse=True) for name in names]
    # One kernel for all tensors of a group, on the CPU too; torch 2.15 has none for SGD on sharded tensors.
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=config.weight_decay, fused=True), order
    decay, momentum = config.weight_decay, config.momentum
    sharded = any(isinstance(value, DTensor) for value in trained.values())
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, weight_decay=decay, fused=not sharded), order


def rate_scale(name: str, config: FinetuneConfig, *, num_blocks: int) -> float:
    """What a parameter's learning rate is, as a multiple of the trial's.

    Layer-wise decay as BEiT has it (arXiv 2106.08254): 1 for the head, ``layer_decay`` for the last block, its square
    for the one below, …; times the component's own factor.
    """
    group = group_of(name)
    assert group is not None, name
    block, _, component = group.rpartition(".")
    depth = num_blocks + 1 if group == "head" else int(block) + 1 if block else 0
    return config.layer_decay ** (num_blocks + 1 - depth) * config.component_rates.get(component, 1.0)  # type: ignore[call-overload]
