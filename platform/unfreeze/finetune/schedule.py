"""When a trial validates and how fast it learns: plain arithmetic, shared by the loop and the search."""

import math


def total_steps(num_images: int, *, epochs: float, batch_size: int) -> int:
    """Optimizer steps of ``epochs`` passes over ``num_images``; at least one."""
    return max(1, round(epochs * num_images / batch_size))


def report_steps(num_steps: int, num_reports: int) -> list[int]:
    """Numbers of finished steps after which to validate: evenly spaced, the last step always."""
    count = min(num_reports, num_steps)
    return [round(num_steps * (k + 1) / count) for k in range(count)]


def learning_rate_at(step: int, *, num_steps: int, peak: float, warmup_share: float) -> float:
    """Learning rate of optimizer step ``step`` (from 0): linear warm-up to ``peak``, then half a cosine to 0.

    A pure function of the step, so that a resumed trial needs no scheduler state.
    """
    warmup_steps = round(warmup_share * num_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
