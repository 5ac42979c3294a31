"""The finetuning loop, as a generator: it hands out a report, and goes on only if asked for the next.

So whoever drives it (a warm slot, a script, a test) decides about checkpoints and early stopping by plain control flow.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from unfreeze.config import FinetuneConfig
from unfreeze.data.sets.catalog import Dataset
from unfreeze.finetune.checkpoint import Checkpoint
from unfreeze.finetune.parallel import ALONE, Worker, sum_over_workers
from unfreeze.finetune.prefix import PrefixCache
from unfreeze.finetune.schedule import report_steps
from unfreeze.finetune.training import Training
from unfreeze.finetune.usage import Meter
from unfreeze.finetune.warm import WarmModel
from unfreeze.records import TrialReport, TrialSpec


class Diverged(ArithmeticError):
    """The training or validation loss became NaN or infinite; the reports so far stand."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What the loop hands out after each validation."""

    reports: tuple[TrialReport, ...]
    is_best: bool  # the last report is the best so far
    is_last: bool
    checkpoint: Checkpoint  # views of live tensors: write it before asking for the next


def finetune(
    warm: WarmModel,
    data: Dataset,
    trial: TrialSpec,
    config: FinetuneConfig,
    *,
    augment: str,
    num_views: int = 0,
    prefixes: PrefixCache | None = None,
    resume: Checkpoint | None = None,
    worker: Worker = ALONE,
) -> Iterator[Progress]:
    """Train one selection; yields after each of ``config.num_reports`` validations.

    Interrupted after any report and resumed from its checkpoint, the numbers are those of an uninterrupted run on the
    same kind of device: batches, augmentation and dropout are functions of (seed, step), not of a stream consumed so
    far. ``augment``, ``num_views``: as in `DataConfig`. ``prefixes``: where activations below the lowest trained block
    are kept; None: they are computed anew each time.

    Raises:
        ConfigError: ``prefixes`` with a new view each time.
        Diverged: the loss became NaN or infinite.
        DeviceMemoryError: a step does not fit, however small its micro-batches.
    """
    training = Training(
        warm,
        data,
        trial,
        config,
        augment=augment,
        num_views=num_views,
        prefixes=prefixes,
        resume=resume,
        worker=worker,
    )
    reports, first_step = (resume.reports, resume.step) if resume is not None else ((), 0)
    best = max((report.val_accuracy for report in reports), default=-math.inf)
    seconds_before = reports[-1].seconds if reports else 0.0
    started, meter = time.perf_counter(), Meter()
    validate_after = report_steps(training.num_steps, config.num_reports)
    loss_sum, loss_count = torch.zeros((), device=warm.device), 0
    with contextlib.closing(training.batches(first_step)) as batches:
        for step, (inputs, labels) in enumerate(batches, first_step):
            if step == first_step or step in validate_after:
                training.enter(step)
            loss_sum += training.step(step, inputs, labels)
            loss_count += len(labels)
            if step + 1 not in validate_after:
                continue

            train_loss = mean_loss(loss_sum, loss_count, worker)
            loss_sum, loss_count = torch.zeros((), device=warm.device), 0
            validation = training.validate()
            if not (math.isfinite(train_loss) and math.isfinite(validation.loss)):
                raise Diverged(
                    f"loss became {train_loss} (training) and {validation.loss} (validation) after step {step + 1}"
                )
            report = TrialReport(
                images_seen=(step + 1) * config.batch_size,
                train_loss=train_loss,
                val_loss=validation.loss,
                val_accuracy=validation.accuracy,
                seconds=seconds_before + time.perf_counter() - started,
                timestamp_ms=time.time_ns() // 1_000_000,
                usage=meter.read(),
            )
            reports = (*reports, report)
            is_best, best = report.val_accuracy > best, max(best, report.val_accuracy)
            yield Progress(
                reports=reports,
                is_best=is_best,
                is_last=step + 1 == training.num_steps,
                checkpoint=training.checkpoint(step + 1, reports),
            )


def mean_loss(loss_sum: torch.Tensor, count: int, worker: Worker) -> float:
    """Mean over the images of all workers, from this worker's sum and count."""
    totals = torch.stack([loss_sum.double(), torch.tensor(count, dtype=torch.float64, device=loss_sum.device)])
    sum_over_workers(totals, worker.world_size)
    return (totals[0] / totals[1]).item()
