"""Plasticity of one component for a batch of pairs (arXiv 2602.06883, average rate of change).

All functions take token matrices (B, tokens, width) and give one number per pair: float (B,).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfreeze.components.mapping import BlockModules


def pair_norm(difference: Tensor) -> Tensor:
    """Frobenius norm of each token matrix: (B, tokens, width) → float64 (B,)."""
    return difference.flatten(1).norm(dim=1, dtype=torch.float32).double()


def rate_of_change(out_x: Tensor, out_y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """‖f(x) − f(y)‖_F / ‖x − y‖_F per pair; NaN where x = y, for the estimator to skip and count."""
    distance = pair_norm(in_x - in_y)
    return pair_norm(out_x - out_y) / torch.where(distance > 0, distance, torch.nan)


def reference_changes(modules: BlockModules, x: Tensor, y: Tensor, attention_kwargs: dict) -> dict[str, Tensor]:
    """‖f(x) − f(y)‖_F of every component of one block, fed with the embedding outputs x and y as the paper's code does.

    A linear component's f(x) − f(y) is W(x − y): one product instead of two, the bias cancels. FC2 takes x zero-padded
    to its wider input, which is its first columns applied to x.
    """
    difference = x - y
    width = x.shape[-1]
    fc1 = [pair_norm(F.linear(difference, _weight(layer))) for layer in modules.fc1]
    return {
        "ln1": pair_norm(modules.ln1(x) - modules.ln1(y)),
        "mha": pair_norm(modules.mha(x, **attention_kwargs) - modules.mha(y, **attention_kwargs)),
        "ln2": pair_norm(modules.ln2(x) - modules.ln2(y)),
        "fc1": torch.stack(fc1).square().sum(0).sqrt(),
        "fc2": pair_norm(F.linear(difference, _weight(modules.fc2)[:, :width])),
    }


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Linear), f"FC1 and FC2 are linear layers, but got {type(layer).__name__}"
    return layer.weight
