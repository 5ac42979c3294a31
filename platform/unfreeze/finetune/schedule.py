"""When a trial validates and how fast it learns: plain arithmetic, shared by the loop and the search."""

import math

from unfreeze.config import FinetuneConfig
from unfreeze.errors import ConfigError


def num_steps_of(config: FinetuneConfig, num_images: int) -> int:
    """Optimizer steps of a trial on ``num_images`` training images.

    Raises:
        ConfigError: the warm-up alone takes that many, so the peak rate would never be reached.
    """
    num_steps = total_steps(num_images, epochs=config.epochs, batch_size=config.batch_size, steps=config.steps)
    if config.warmup_steps and config.warmup_steps >= num_steps:
        raise ConfigError(
            f"finetune.warmup_steps must be below the steps of a trial, but got {config.warmup_steps} and {num_steps} "
            f"(finetune.epochs={config.epochs:g} on {num_images:,} images); lower it, or set finetune.steps"
        )
    return num_steps


def rate_at(step: int, config: FinetuneConfig, *, num_steps: int, peak: float) -> float:
    """Learning rate of optimizer step ``step`` (from 0) of ``num_steps``, as configured."""
    return learning_rate_at(
        step,
        num_steps=num_steps,
        peak=peak,
        warmup_share=config.warmup_share,
        warmup_steps=config.warmup_steps,
        warmup_from_zero=config.warmup_from_zero,
    )


def total_steps(num_images: int, *, epochs: float, batch_size: int, steps: int | None = None) -> int:
    """``steps`` where given, else those of ``epochs`` passes over ``num_images``; at least one."""
    return steps or max(1, round(epochs * num_images / batch_size))


def report_steps(num_steps: int, num_reports: int) -> list[int]:
    """Numbers of finished steps after which to validate: evenly spaced, the last step always."""
    count = min(num_reports, num_steps)
    return [round(num_steps * (k + 1) / count) for k in range(count)]


def learning_rate_at(
    step: int,
    *,
    num_steps: int,
    peak: float,
    warmup_share: float,
    warmup_steps: int | None = None,
    warmup_from_zero: bool = False,
) -> float:
    """Learning rate of optimizer step ``step`` (from 0): linear warm-up to ``peak``, then half a cosine to 0.

    ``warmup_steps`` None: ``warmup_share`` of all. The warm-up starts at its first fraction of the peak, or at 0, where
    the first step trains nothing but fills the momentum. A pure function of the step, so that a resumed trial needs no
    scheduler state.
    """
    warmup = round(warmup_share * num_steps) if warmup_steps is None else warmup_steps
    if step < warmup:
        return peak * (step if warmup_from_zero else step + 1) / warmup
    progress = (step - warmup) / max(num_steps - warmup, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
