"""The optimizer: state for the trained parameters alone, a learning rate of its own for each group of them."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from unfreeze.components.mapping import group_of
from unfreeze.config import FinetuneConfig

_NO_MATRICES = {"pos_embed", "cls_token", "reg_token", "dist_token", "relative_position_bias_table"}


def make_optimizer(
    trained: Mapping[str, Tensor], config: FinetuneConfig, *, num_blocks: int
) -> tuple[torch.optim.Optimizer, list[str]]:
    """The optimizer, and the parameters' names in its order.

    Each of its groups has a ``scale``, which the loop multiplies the scheduled rate by to get ``lr``, and a weight
    decay of its own: 0 for what `is_exempt` where ``finetune.decay_norms`` is false.
    """
    kinds: dict[tuple[float, float], list[str]] = {}
    for name, value in trained.items():
        decay = 0.0 if is_exempt(name, value) and not config.decay_norms else config.weight_decay
        kinds.setdefault((rate_scale(name, config, num_blocks=num_blocks), decay), []).append(name)
    groups = [
        {"params": [trained[name] for name in names], "scale": scale, "weight_decay": decay}
        for (scale, decay), names in sorted(kinds.items(), reverse=True)
    ]
    order = [name for _, names in sorted(kinds.items(), reverse=True) for name in names]
    # One kernel for all tensors of a group, on the CPU too; torch 2.15 has none for SGD on sharded tensors.
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, fused=True), order
    sharded = any(isinstance(value, DTensor) for value in trained.values())
    return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, fused=not sharded), order


def is_exempt(name: str, value: Tensor) -> bool:
    """Whether timm's models take a parameter out of weight decay: norms, biases, scales, tokens and positions."""
    return value.ndim <= 1 or name.rpartition(".")[2] in _NO_MATRICES


def rate_scale(name: str, config: FinetuneConfig, *, num_blocks: int) -> float:
    """What a parameter's learning rate is, as a multiple of the trial's.

    Layer-wise decay as BEiT has it (arXiv 2106.08254), and timm: 1 for the classifier, ``layer_decay`` for the last
    block and the norm after it, its square for the block below, …; times the component's own factor.
    """
    group = group_of(name)
    assert group is not None, name
    block, _, component = group.rpartition(".")
    if name.startswith("norm."):
        depth = num_blocks
    else:
        depth = num_blocks + 1 if group == "head" else int(block) + 1 if block else 0
    return config.layer_decay ** (num_blocks + 1 - depth) * config.component_rates.get(component, 1.0)  # type: ignore[call-overload]
