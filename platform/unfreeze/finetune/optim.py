"""The optimizer."""

import torch
from torch import Tensor

from unfreeze.config import FinetuneConfig


def make_optimizer(parameters: list[Tensor], config: FinetuneConfig, learning_rate: float) -> torch.optim.Optimizer:
    """Optimizer state exists for the trained parameters alone."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)
