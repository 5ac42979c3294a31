"""The optimizer and its schedule."""

import math

import torch
from torch import nn

from unfreeze.config import FinetuneConfig


def make_optimizer(parameters: list[nn.Parameter], config: FinetuneConfig, learning_rate: float) -> torch.optim.Optimizer:
    """Optimizer state exists for the trained parameters alone."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)


def learning_rate_at(step: int, *, total_steps: int, peak: float, warmup_share: float) -> float:
    """Learning rate of optimizer step ``step`` (from 0): linear warm-up to ``peak``, then half a cosine to 0.

    A pure function of the step, so that a resumed trial needs no scheduler state.
    """
    warmup_steps = round(warmup_share * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def report_steps(total_steps: int, num_reports: int) -> list[int]:
    """Numbers of finished steps after which to validate: evenly spaced, the last step always."""
    count = min(num_reports, total_steps)
    return [round(total_steps * (k + 1) / count) for k in range(count)]
