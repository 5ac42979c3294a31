"""What one trial trains with: network, optimizer, batches, average, ready for one step after another."""

import contextlib
from collections.abc import Generator, Iterator

import torch
from torch import Tensor, nn

from unfreeze.config import FinetuneConfig
from unfreeze.data.pixels.batches import TrainBatches, eval_batches
from unfreeze.data.pixels.prefetch import Batch
from unfreeze.data.sets.catalog import Dataset
from unfreeze.errors import ConfigError, DeviceMemoryError
from unfreeze.finetune.checkpoint import Checkpoint, optimizer_tensors, restore
from unfreeze.finetune.evaluate import Evaluation, evaluate_batches
from unfreeze.finetune.gradients import batch_gradients
from unfreeze.finetune.memory import MicroBatch, is_out_of_memory
from unfreeze.finetune.network import lowest_trained_block, make_autocast
from unfreeze.finetune.optim import make_optimizer
from unfreeze.finetune.parallel import Worker, make_network
from unfreeze.finetune.prefix import PrefixCache
from unfreeze.finetune.recipe import MovingAverage, mix, mix_seed
from unfreeze.finetune.schedule import num_steps_of, rate_at
from unfreeze.finetune.shard import gather, in_step, is_sharded
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import parameter_dict
from unfreeze.records import TrialReport, TrialSpec
from unfreeze.seeding import derive_seed


class Training:
    """A trial on a warm model, from its base weights or from ``resume``; arguments as for `finetune`."""

    def __init__(
        self,
        warm: WarmModel,
        data: Dataset,
        trial: TrialSpec,
        config: FinetuneConfig,
        *,
        augment: str,
        num_views: int,
        prefixes: PrefixCache | None,
        resume: Checkpoint | None,
        worker: Worker,
    ) -> None:
        self.num_steps = num_steps_of(config, len(data.train))
        self._warm, self._data, self._trial, self._config, self._worker = warm, data, trial, config, worker
        num_blocks = warm.base.facts.num_blocks
        _, names = warm.prepare(
            trial.selection, seed=trial.seed, train_head=config.train_head, lora_alpha=config.lora_alpha
        )
        self._trained = parameter_dict(warm.module, names)
        self._optimizer, self._names = make_optimizer(self._trained, config, num_blocks=num_blocks)
        self._average = MovingAverage(self._trained, config.ema_decay) if config.ema_decay else None
        if resume is not None:
            restore(resume, warm.module, self._optimizer, self._names)
            if self._average is not None:
                self._average.load(resume.ema)
        self._autocast = make_autocast(config.precision, warm.device)
        self._batches = TrainBatches(
            part=data.train,
            spec=warm.base.spec,
            batch_size=config.batch_size,
            seed=trial.seed,
            augment=augment,
            num_views=num_views,
            device=warm.device,
            rank=worker.rank,
            world_size=worker.world_size,
        )
        self._lowest = lowest_trained_block(self._names, num_blocks)
        self._prefix = None
        if prefixes is not None and augment != "none" and not num_views:
            raise ConfigError(
                f"activations are kept of images that come back: augment='none' or num_views above 0, but got "
                f"{augment!r} and num_views=0"
            )
        if prefixes is not None:
            self._prefix = prefixes.open(
                warm.module, data, self._batches, start=self._lowest, facts=warm.base.facts, autocast=self._autocast
            )
        start = self._prefix.start if self._prefix else 0
        self._network = make_network(warm.module, config, start=start, worker=worker)
        size = config.micro_batch_size or config.batch_size // worker.world_size
        self._micro = MicroBatch(
            warm.fitting.get(trial.selection, size), batch_size=config.batch_size, world_size=worker.world_size
        )

    def batches(self, first_step: int) -> Generator[Batch]:
        """This worker's share of each batch from ``first_step`` on; to be closed: it may hold threads and processes.

        Raises:
            DeviceMemoryError: the device has no room for the next batch, however small the pieces it trains in.
        """
        source = self._batches if self._prefix is None else self._prefix
        step = first_step
        while step < self.num_steps:
            try:
                with contextlib.closing(source.iterate(step, self.num_steps)) as made:
                    for batch in made:
                        yield batch
                        step += 1
                return
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failure = error.with_traceback(None)  # whose frames would keep what was made alive
            self._micro.halve(failure)  # it is made beside a step, whose activations take the room
            self._warm.fitting[self._trial.selection] = self._micro.size

    def enter(self, step: int) -> None:
        """Training mode, and dropout's numbers as they are at ``step`` whatever was drawn before.

        They are this worker's; those of stochastic depth are each image's.
        """
        self._network.train()
        torch.manual_seed(derive_seed(self._trial.seed, "dropout", step, self._worker.rank))

    def step(self, step: int, inputs: Tensor, labels: Tensor) -> Tensor:
        """One optimizer step; returns the sum of this worker's losses, on the device.

        Raises:
            DeviceMemoryError: it does not fit, however small its micro-batches.
        """
        config = self._config
        rate = rate_at(step, config, num_steps=self.num_steps, peak=self._trial.learning_rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self._warm.paths.draw(
            seed=self._trial.seed,
            step=step,
            batch_size=config.batch_size,
            mine=self._batches.mine,
            lowest=self._lowest,
            device=self._warm.device,
        )
        inputs, targets = mix(inputs, labels, config, seed=mix_seed(self._trial.seed, step))
        tried = self._micro.size
        losses = batch_gradients(
            self._network,
            inputs,
            targets,
            micro=self._micro,
            begin=self._warm.paths.choose,
            smoothing=config.label_smoothing,
            autocast=self._autocast,
        )
        if self._micro.size < tried:
            self._warm.fitting[self._trial.selection] = self._micro.size
        if config.clip_norm > 0:
            nn.utils.clip_grad_norm_(self._trained.values(), config.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(step)
        return losses

    def validate(self) -> Evaluation:
        """Accuracy and loss on the validation images, each counted once over all workers of the trial.

        Raises:
            DeviceMemoryError: a batch does not fit.
        """
        size, device, worker = self._config.eval_batch_size, self._warm.device, self._worker
        source = eval_batches if self._prefix is None else self._prefix.val_batches
        spec, val = self._batches.spec, self._data.val
        inputs: Iterator[Batch] = source(
            val, spec, batch_size=size, device=device, rank=worker.rank, world_size=worker.world_size
        )
        if is_sharded(self._network):
            inputs = in_step(inputs, num_images=len(val), batch_size=size, image_size=spec.image_size, device=device)
        try:
            with self._average.in_place() if self._average is not None else contextlib.nullcontext():
                return evaluate_batches(
                    self._network, inputs, autocast=self._autocast, device=device, world_size=worker.world_size
                )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceMemoryError(
                f"out of memory in validation with finetune.eval_batch_size={size} images per worker; set a smaller one"
            ) from error

    def checkpoint(self, step: int, reports: tuple[TrialReport, ...]) -> Checkpoint:
        """Where the trial stands after ``step`` steps: views of live tensors."""
        return Checkpoint(
            spec=self._trial,
            base_digest=self._warm.base.facts.digest,
            step=step,
            reports=reports,
            parameters=gather(parameter_dict(self._warm.module, self._warm.changed)),
            optimizer=gather(optimizer_tensors(self._optimizer, self._names)),
            ema=self._average.values if self._average is not None else {},
        )
