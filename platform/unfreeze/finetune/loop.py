"""The finetuning loop, as a generator: it hands out a report, and goes on only if asked for the next.

So whoever drives it (a warm slot, a script, a test) decides about checkpoints and early stopping by plain control flow.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unfreeze.config import FinetuneConfig
from unfreeze.data.pixels.batches import TrainBatches, eval_batches
from unfreeze.data.pixels.part import Part
from unfreeze.data.pixels.prefetch import Batch
from unfreeze.data.sets.catalog import Dataset
from unfreeze.errors import DeviceMemoryError
from unfreeze.finetune.checkpoint import Checkpoint, optimizer_tensors, restore
from unfreeze.finetune.evaluate import Evaluation, evaluate_batches, sum_over_workers
from unfreeze.finetune.memory import MicroBatch, is_out_of_memory
from unfreeze.finetune.network import Network, lowest_trained_block
from unfreeze.finetune.optim import make_optimizer
from unfreeze.finetune.prefix import Prefix, PrefixCache
from unfreeze.finetune.recipe import MovingAverage, Targets, mix, mix_seed
from unfreeze.finetune.schedule import num_steps_of, rate_at, report_steps
from unfreeze.finetune.shard import gather, in_step, is_sharded, sync_gradients
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import parameter_dict
from unfreeze.records import TrialReport, TrialSpec
from unfreeze.seeding import derive_seed


class Diverged(ArithmeticError):
    """The training or validation loss became NaN or infinite; the reports so far stand."""


@dataclass(frozen=True, slots=True)
class Worker:
    """This process's place among the data-parallel workers of a trial."""

    rank: int = 0
    world_size: int = 1


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
    worker: Worker = Worker(),
) -> Iterator[Progress]:
    """Train one selection; yields after each of ``config.num_reports`` validations.

    Interrupted after any report and resumed from its checkpoint, the numbers are those of an uninterrupted run on the
    same kind of device: batches, augmentation and dropout are functions of (seed, step), not of a stream consumed so
    far. ``augment``, ``num_views``: as in `DataConfig`. ``prefixes``: where activations below the lowest trained block
    are kept; None: they are computed anew each time.

    Raises:
        Diverged: the loss became NaN or infinite.
        DeviceMemoryError: a step does not fit, however small its micro-batches.
    """
    device, module, num_blocks = warm.device, warm.module, warm.base.facts.num_blocks
    _, names = warm.prepare(
        trial.selection, seed=trial.seed, train_head=config.train_head, lora_alpha=config.lora_alpha
    )
    trained = parameter_dict(module, names)
    optimizer, names = make_optimizer(trained, config, num_blocks=num_blocks)
    average = MovingAverage(trained, config.ema_decay) if config.ema_decay else None
    reports: tuple[TrialReport, ...] = ()
    first_step = 0
    if resume is not None:
        restore(resume, module, optimizer, names)
        reports, first_step = resume.reports, resume.step
        if average is not None:
            average.load(resume.ema)

    autocast = make_autocast(config.precision, device)
    batches = TrainBatches(
        part=data.train,
        spec=warm.base.spec,
        batch_size=config.batch_size,
        seed=trial.seed,
        augment=augment,
        num_views=num_views,
        device=device,
        rank=worker.rank,
        world_size=worker.world_size,
    )
    start = lowest_trained_block(names, num_blocks)
    prefix = None
    if prefixes is not None:
        prefix = prefixes.open(module, data, batches, start=start, facts=warm.base.facts, autocast=autocast)
    network = make_network(module, config, start=prefix.start if prefix else 0, worker=worker)
    num_steps = num_steps_of(config, len(data.train))
    validate_after = report_steps(num_steps, config.num_reports)
    size = config.micro_batch_size or config.batch_size // worker.world_size
    size = warm.fitting.get(trial.selection, size)
    micro = MicroBatch(size, batch_size=config.batch_size, world_size=worker.world_size)
    best = max((report.val_accuracy for report in reports), default=-math.inf)
    seconds_before = reports[-1].seconds if reports else 0.0
    started = time.perf_counter()
    loss_sum, loss_count = torch.zeros((), device=device), 0
    steps_left = batches.iterate(first_step, num_steps) if prefix is None else prefix.iterate(first_step, num_steps)

    with contextlib.closing(steps_left) as batch_of:  # a pipeline may hold threads and processes
        for step, (inputs, labels) in enumerate(batch_of, first_step):
            if step == first_step or step in validate_after:
                network.train()
                torch.manual_seed(derive_seed(trial.seed, "dropout", step, worker.rank))
            rate = rate_at(step, config, num_steps=num_steps, peak=trial.learning_rate)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            inputs, targets = mix(inputs, labels, config, seed=mix_seed(trial.seed, step))
            while not (losses := _try_gradients(network, inputs, targets, config, micro=micro, autocast=autocast)):
                optimizer.zero_grad(set_to_none=True)
                warm.fitting[trial.selection] = micro.size
            loss_sum += losses[0]
            loss_count += len(labels)
            if config.clip_norm > 0:
                nn.utils.clip_grad_norm_(trained.values(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average is not None:
                average.update(step)
            if step + 1 not in validate_after:
                continue

            totals = torch.stack([loss_sum.double(), torch.tensor(loss_count, dtype=torch.float64, device=device)])
            sum_over_workers(totals, worker.world_size)
            train_loss = (totals[0] / totals[1]).item()
            with average.in_place() if average is not None else contextlib.nullcontext():
                validation = _validate(network, data.val, prefix, batches, config, autocast=autocast)
            if not (math.isfinite(train_loss) and math.isfinite(validation.loss)):
                raise Diverged(
                    f"loss became {train_loss} (training) and {validation.loss} (validation) after step {step + 1}"
                )
            loss_sum, loss_count = torch.zeros((), device=device), 0
            report = TrialReport(
                images_seen=(step + 1) * config.batch_size,
                train_loss=train_loss,
                val_loss=validation.loss,
                val_accuracy=validation.accuracy,
                seconds=seconds_before + time.perf_counter() - started,
                timestamp_ms=time.time_ns() // 1_000_000,
            )
            reports = (*reports, report)
            is_best = report.val_accuracy > best
            best = max(best, report.val_accuracy)
            yield Progress(
                reports=reports,
                is_best=is_best,
                is_last=step + 1 == num_steps,
                checkpoint=Checkpoint(
                    spec=trial,
                    base_digest=warm.base.facts.digest,
                    step=step + 1,
                    reports=reports,
                    parameters=gather(parameter_dict(module, warm.changed)),
                    optimizer=gather(optimizer_tensors(optimizer, names)),
                    ema=average.values if average is not None else {},
                ),
            )


def make_network(module: nn.Module, config: FinetuneConfig, *, start: int, worker: Worker) -> nn.Module:
    """The model as it is run: from block ``start``, compiled and spread over workers where asked for."""
    if is_sharded(module):
        module.set_grad_checkpointing(config.activation_checkpointing)  # type: ignore[operator]
        return module
    network: nn.Module = Network(module, start=start, activation_checkpointing=config.activation_checkpointing)
    if config.compile:
        # What was compiled for another selection is of no use and counts against dynamo's limit of variants.
        torch.compiler.reset()
        network = torch.compile(network)  # type: ignore[assignment]
    if worker.world_size > 1:
        network = DistributedDataParallel(network)
    return network


def make_autocast(precision: str, device: torch.device) -> torch.autocast:
    """bfloat16 matmuls where asked for, or (``auto``) where the GPU has them; float32 otherwise."""
    wanted = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


def _try_gradients(
    network: nn.Module,
    inputs: torch.Tensor,
    targets: Targets,
    config: FinetuneConfig,
    *,
    micro: MicroBatch,
    autocast: torch.autocast,
) -> tuple[torch.Tensor] | None:
    """`_accumulate_gradients`; None where the device had no memory for it, and ``micro`` is smaller now."""
    try:
        return (_accumulate_gradients(network, inputs, targets, config, micro=micro.size, autocast=autocast),)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        failure = error.with_traceback(None)  # whose frames would keep the activations alive
    micro.halve(failure)
    return None


def _accumulate_gradients(
    network: nn.Module,
    inputs: torch.Tensor,
    targets: Targets,
    config: FinetuneConfig,
    *,
    micro: int,
    autocast: torch.autocast,
) -> torch.Tensor:
    """Gradients of the batch's mean loss, ``micro`` images at a time; returns the sum of the losses, on the device.

    Workers average their gradients once, in the last micro-batch.
    """
    total = torch.zeros((), device=inputs.device)
    for start in range(0, len(inputs), micro):
        part = slice(start, start + micro)
        is_last = start + micro >= len(inputs)
        if isinstance(network, DistributedDataParallel):
            network.require_backward_grad_sync = is_last
        elif is_sharded(network):
            sync_gradients(network, now=is_last)
        with autocast:
            logits = network(inputs[part])
        losses = targets.loss_sum(logits, part, smoothing=config.label_smoothing)
        (losses / len(inputs)).backward()
        total += losses.detach()
    return total


def _validate(
    network: nn.Module,
    val: Part,
    prefix: Prefix | None,
    batches: TrainBatches,
    config: FinetuneConfig,
    *,
    autocast: torch.autocast,
) -> Evaluation:
    """Accuracy and loss on the validation images, each counted once over all workers of the trial."""
    device, rank, world_size, size = batches.device, batches.rank, batches.world_size, config.eval_batch_size
    source = eval_batches if prefix is None else prefix.val_batches
    inputs: Iterator[Batch] = source(
        val, batches.spec, batch_size=size, device=device, rank=rank, world_size=world_size
    )
    if is_sharded(network):
        inputs = in_step(
            inputs, num_images=len(val), batch_size=size, image_size=batches.spec.image_size, device=device
        )
    try:
        return evaluate_batches(network, inputs, autocast=autocast, device=device, world_size=world_size)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"out of memory in validation with finetune.eval_batch_size={size} images per worker; set a smaller one"
        ) from error
