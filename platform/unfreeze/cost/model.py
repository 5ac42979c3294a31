"""What a trial will cost before anything runs: FLOPs, peak memory and, once calibrated, seconds.

Arithmetic on the model's parameter counts alone: no torch, no device, so that a driver without a GPU can ask. It is
of what runs here, the last block's work on the class token alone among it: 3 to 10 % less than a plain pass of the
model takes. It is exact to about 1 % for timm's plain ViT and DeiT blocks (equal width, MLP with one hidden layer,
fused attention); layer scale, gated MLPs and attention-pooling heads are counted as if they were those. What is not
known here: whether `finetune.compile` saves memory and what `finetune.shard` spreads over workers (both are left out,
so memory is then over-estimated), and how many images an activation cache holds (all of them, is the assumption).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from unfreeze.components.selection import Selection, count_trainable, parse_selection
from unfreeze.config import Config, FinetuneConfig
from unfreeze.errors import ModelError
from unfreeze.finetune.schedule import num_steps_of, report_steps
from unfreeze.records import COMPONENTS, ModelFacts

_FLOAT32 = 4  # bytes; of weights, gradients, optimizer state and the residual stream, whatever the autocast
_HEAD_WIDTH = 64  # of attention, as nearly every ViT has it; decides 1/64 of a token's row
_NORM_FLOPS = 7  # per element: mean 1, variance 2, normalise 2, scale and shift 2
_LAYERS = {"ln1": ("ln1",), "mha": ("qkv", "attention", "proj"), "ln2": ("ln2",), "fc1": ("fc1",), "fc2": ("fc2",)}
_MODEL_COPIES = 2  # the model and the base weights that the next trial starts from (`finetune.warm`)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlopCount:
    """FLOPs of training on one image; a multiply-add is two. Elementwise work beside the norms is not counted."""

    forward: float
    input_gradients: float  # carry the gradient down to the lowest trained component, no further
    weight_gradients: float  # of trained tensors
    recomputed: float  # the forward pass again, under activation checkpointing

    @property
    def total(self) -> float:
        return self.forward + self.input_gradients + self.weight_gradients + self.recomputed


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryCost:
    """Bytes of one worker. The parts do not peak together: `peak` says which of them do."""

    weights: int  # the base weights that the next trial starts from included
    optimizer: int  # state of the trained tensors
    average: int  # moving average of the trained tensors (`finetune.ema_decay`)
    gradients: int  # of the trained tensors
    images: int  # one optimizer step's, as the model's input
    kept: int  # activations kept for the backward pass of one micro-batch
    transients: int  # besides them, at the start of the backward pass
    forward: int  # of a forward pass that keeps nothing
    evaluation: int  # images and forward pass of a validation batch
    accumulates: bool  # gradients are there already when the second micro-batch's activations are

    @property
    def peak(self) -> int:
        resident = self.weights + self.optimizer + self.average
        backward = self.kept + self.transients + (self.gradients if self.accumulates else 0)
        return resident + max(self.images + max(backward, self.forward, self.gradients), self.evaluation)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of an optimizer step of one worker: what any step costs, and the machine's rate."""

    overhead_s: float
    flops_per_s: float

    def seconds(self, flops: float) -> float:
        return self.overhead_s + flops / self.flops_per_s


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialCost:
    """What one trial will take."""

    selection: str
    num_trained: int  # parameters, head included
    trained_share: float  # of the model's
    num_steps: int
    images: int  # seen in training, over all workers
    flops_per_step: float  # of one worker
    flops_share: float  # of training `all`
    memory: MemoryCost
    step_s: float
    total_s: float  # training and validation; reading and augmenting images is not in it


@dataclass(frozen=True, slots=True)
class CostModel:
    """Costs of a model's selections under one finetuning configuration.

    Raises (whatever asks for a cost):
        ModelError: the facts were recorded without the number and width of tokens.
    """

    model: ModelFacts
    config: FinetuneConfig
    activation_bytes: int = _FLOAT32  # of an element inside a block: see `activation_bytes`
    num_workers: int = 1  # data-parallel workers that share a batch

    def num_trained(self, selection: Selection) -> int:
        """Trained parameters, head included where it is trained."""
        sizes = self.model.lora_sizes
        return count_trainable(selection, self.model.parameters, train_head=self.config.train_head, lora_sizes=sizes)

    def flops(self, selection: Selection) -> FlopCount:
        """FLOPs of training on one image."""
        tokens, width = self._tokens()
        lowest = _lowest_block(selection)
        forward = input_gradients = weight_gradients = recomputed = 0.0
        patches = 2.0 * tokens * self._patch_weights()
        classifier = 2.0 * self._classifier_weights()
        if not self._is_cached(lowest, block=-1):
            forward += patches
        if selection.embed:
            weight_gradients += patches
        for block in range(self.model.num_blocks):
            parts = self._products(block)
            block_forward = sum(parts.values())
            if not self._is_cached(lowest, block=block):
                forward += block_forward
            if block < lowest:
                continue
            flow = _gradient_flow(selection, block)
            if self.config.activation_checkpointing:
                # torch stops as soon as it has what it saved, which is before FC2's product.
                recomputed += block_forward - parts["fc2"]
            elif self._spares_middle(selection, block):
                recomputed += parts["proj"] + parts["ln2"]
            for name, layers in _LAYERS.items():
                below, above = flow[name]
                for layer in layers:
                    # Fused kernels keep no attention weights: five products, half of them the forward's two and a half.
                    share = 2.5 if layer == "attention" else 1.0
                    input_gradients += share * parts[layer] * (below if layer in ("qkv", "fc1", "fc2") else above)
                    if (block, name) in selection.members and layer not in ("ln1", "ln2", "attention"):
                        weight_gradients += parts[layer]
            adapted = sum(
                2.0 * self._rows(b) * r * self.model.lora_sizes[f"{b}.{n}"] for b, n, r in selection.lora if b == block
            )
            forward += adapted
            input_gradients += adapted
            weight_gradients += adapted
        norm = float(_NORM_FLOPS * self._rows(self.model.num_blocks - 1) * width)
        forward += norm + classifier
        input_gradients += norm + classifier
        weight_gradients += classifier if self.config.train_head else 0.0
        return FlopCount(
            forward=forward,
            input_gradients=input_gradients,
            weight_gradients=weight_gradients,
            recomputed=recomputed,
        )

    def _products(self, block: int) -> dict[str, float]:
        """FLOPs of a block's forward pass on one image, layer by layer."""
        tokens, width = self._tokens()
        rows = self._rows(block)
        mha, fc1, fc2 = (2.0 * self._linear_weights(block, name) for name in ("mha", "fc1", "fc2"))
        return {
            "ln1": float(_NORM_FLOPS * tokens * width),
            "qkv": 0.75 * mha * tokens,
            "attention": 4.0 * rows * tokens * width,  # queries with keys, weights with values
            "proj": 0.25 * mha * rows,
            "ln2": float(_NORM_FLOPS * rows * width),
            "fc1": fc1 * rows,
            "fc2": fc2 * rows,
        }

    def _rows(self, block: int) -> int:
        """Tokens of an image that leave a block: all, or of the last block the one that is classified."""
        last = block == self.model.num_blocks - 1
        return 1 if last and self.model.first_token else self._tokens()[0]

    def _spares_middle(self, selection: Selection, block: int) -> bool:
        """Whether the stream between attention and MLP is computed again instead of kept, see `finetune.network`."""
        takes = _gradient_flow(selection, block)["mha"][1] and (block, "fc1") not in selection.touched
        return self.model.plain and takes and not self.config.activation_checkpointing

    def flops_per_step(self, selection: Selection) -> float:
        """FLOPs of one worker's share of an optimizer step."""
        return self.flops(selection).total * self.images_per_worker

    def flops_share(self, selection: Selection) -> float:
        """Training FLOPs of a selection / those of `all`."""
        return self.flops(selection).total / self.flops(parse_selection("all", num_blocks=self.model.num_blocks)).total

    def validation_flops(self, num_images: int, selection: Selection | None = None) -> float:
        """FLOPs of one validation, one worker's share; of ``selection``'s where it reads cached activations."""
        if selection is not None:
            return self.flops(selection).forward * num_images / self.num_workers
        nothing = parse_selection("none", num_blocks=self.model.num_blocks)
        return CostModel(self.model, FinetuneConfig()).flops(nothing).forward * num_images / self.num_workers

    def trial(self, selection: Selection, time: StepTime, *, num_train: int, num_val: int) -> TrialCost:
        """The cost of a trial on ``num_train`` images, validated on ``num_val``."""
        num_steps = num_steps_of(self.config, num_train)
        num_reports = len(report_steps(num_steps, self.config.num_reports))
        step_s = time.seconds(self.flops_per_step(selection))
        return TrialCost(
            selection=str(selection),
            num_trained=self.num_trained(selection),
            trained_share=self.num_trained(selection) / self.model.num_parameters,
            num_steps=num_steps,
            images=num_steps * self.config.batch_size,
            flops_per_step=self.flops_per_step(selection),
            flops_share=self.flops_share(selection),
            memory=self.memory(selection),
            step_s=step_s,
            total_s=num_steps * step_s + num_reports * self.validation_flops(num_val, selection) / time.flops_per_s,
        )

    def memory(self, selection: Selection) -> MemoryCost:
        """Peak memory of one worker, training and validation."""
        config = self.config
        micro = config.micro_batch_size or self.images_per_worker
        trained = _FLOAT32 * self.num_trained(selection)
        state = 2 if config.optimizer == "adamw" else 1 if config.momentum else 0
        kept = self._kept(selection, micro)
        buckets = trained if self.num_workers > 1 else 0  # what DistributedDataParallel sends is a copy
        return MemoryCost(
            weights=_MODEL_COPIES * _FLOAT32 * self.model.num_parameters,
            optimizer=state * trained,
            average=trained if config.ema_decay else 0,
            gradients=trained + buckets,
            images=self._image_bytes * self.images_per_worker,
            kept=kept,
            transients=self._backward_transients(selection, micro),
            forward=self._forward_transients(micro),
            evaluation=self._image_bytes * config.eval_batch_size + self._forward_transients(config.eval_batch_size),
            accumulates=micro < self.images_per_worker,
        )

    @property
    def images_per_worker(self) -> int:
        """Of one optimizer step."""
        return self.config.batch_size // self.num_workers

    def _kept(self, selection: Selection, images: int) -> int:
        """Bytes of activations that autograd keeps for the backward pass of ``images`` images."""
        lowest, num_blocks = _lowest_block(selection), self.model.num_blocks
        residual, inside = self._row_bytes(images)
        tokens, _ = self._tokens()
        left = self._rows(num_blocks - 1)
        statistics = 2 * _FLOAT32 * images * left
        blocks = [self._kept_in_block(selection, block, images) for block in range(max(lowest, 0), num_blocks)]
        kept = sum(blocks)
        if self.config.activation_checkpointing and blocks:
            kept = residual * len(blocks) + max(blocks)
        at_head = residual * left // tokens
        head = at_head + statistics  # the final norm's input
        if inside == residual:
            head += at_head if self.config.train_head else 0  # its output, which the class token is a view of
        else:  # autocast's copies: of that token and the classifier, of the images and the patch embedding
            head += inside // tokens + self.activation_bytes * self._classifier_weights()
            if selection.embed:
                head += self._image_bytes // 2 * images + self.activation_bytes * self._patch_weights()
        return kept + head

    def _kept_in_block(self, selection: Selection, block: int, images: int) -> int:
        tokens, width = self._tokens()
        rows = images * self._rows(block)  # that leave the block, of the rows that enter it
        per_row, per_token = _FLOAT32 * rows, _FLOAT32 * images * tokens
        inside, inside_rows = self.activation_bytes * images * tokens * width, self.activation_bytes * rows * width
        casts = 2 if self.activation_bytes < _FLOAT32 else 0
        hidden_in, hidden_out = self._hidden(block)
        flow = _gradient_flow(selection, block)
        kept = 0.0
        for name, (below, above) in flow.items():
            trained = (block, name) in selection.touched
            weights = self._linear_weights(block, name) if name not in ("ln1", "ln2") else 0
            if name == "ln1":
                kept += (per_token * width + 2 * per_token) * above  # input, mean, inverse deviation
            elif name == "mha":
                # Queries, keys and values (one tensor), the output and the logarithms of the softmax's sums; a linear
                # layer keeps its input only where its weight is trained, and autocast's copy of the weight where the
                # input takes a gradient.
                kept += (3 * inside + inside_rows + per_row * width / _HEAD_WIDTH) * above + inside * trained
                kept += casts * weights * (3 * below + (above and not self._spares_middle(selection, block))) / 4
            elif name == "ln2":
                if self._spares_middle(selection, block):  # the block's input, unless LN1 keeps it
                    kept += per_token * width * (not flow["ln1"][1])
                else:
                    kept += (per_row * width + 2 * per_row) * above
            elif name == "fc1":
                kept += inside_rows * hidden_in * above + inside_rows * trained  # GELU's input
                kept += casts * weights * below
            else:
                kept += inside_rows * hidden_out * trained + casts * weights * below
        return int(kept)

    def _backward_transients(self, selection: Selection, images: int) -> int:
        """Gradients around a GELU, where most is still kept: the last block's that all tokens pass."""
        residual, inside = self._row_bytes(images)
        block = max(self.model.num_blocks - 1 - self.model.first_token, 0)
        if not _gradient_flow(selection, block)["fc1"][1]:
            return residual
        hidden, _ = self._hidden(block)
        # GELU's output, if FC2 kept it, is gone before its input's gradient is there.
        return int(residual + inside * hidden * (1 if (block, "fc2") in selection.members else 2))

    def _forward_transients(self, images: int) -> int:
        """In an MLP: the block's input, the attention's sum, LN2's output, GELU's input and output."""
        residual, inside = self._row_bytes(images)
        return int(3 * residual + 2 * max(self._hidden(b)[0] for b in range(self.model.num_blocks)) * inside)

    def _row_bytes(self, images: int) -> tuple[int, int]:
        """Bytes of one (images, tokens, width) tensor: in the residual stream, and inside a block."""
        tokens, width = self._tokens()
        elements = images * tokens * width
        return _FLOAT32 * elements, self.activation_bytes * elements

    def _tokens(self) -> tuple[int, int]:
        if not self.model.num_tokens or not self.model.width:
            raise ModelError(
                f"the recorded facts of {self.model.name} lack the number and width of its tokens, which its cost is "
                f"computed from: they are from an older version; start a sweep of another name, with another "
                f"data.cache_dir or an emptied one"
            )
        return self.model.num_tokens, self.model.width

    def _linear_weights(self, block: int, name: str) -> int:
        """Entries of a component's matrices: its parameters without the biases."""
        count, width = self.model.parameters[f"{block}.{name}"], self._tokens()[1]
        if name == "fc2":
            return (count // width - 1) * width  # hidden × width and one bias
        return count // (width + 1) * width  # rows of width inputs and a bias

    def _hidden(self, block: int) -> tuple[float, float]:
        """FC1's outputs and FC2's inputs, in widths."""
        width = self._tokens()[1]
        return tuple(self._linear_weights(block, name) / width**2 for name in ("fc1", "fc2"))  # type: ignore[return-value]

    def _patch_weights(self) -> int:
        """The patch embedding's matrix: ``embed`` without positions, class token and bias."""
        tokens, width = self._tokens()
        return max(self.model.parameters["embed"] - (tokens + 2) * width, 0)

    def _classifier_weights(self) -> int:
        """The head without the final norm's two vectors."""
        return max(self.model.parameters["head"] - 2 * self._tokens()[1], 0)

    @property
    def _image_bytes(self) -> int:
        """Of an image as the model's input."""
        return _FLOAT32 * 3 * self.model.image_size**2

    def _is_cached(self, lowest: int, *, block: int) -> bool:
        """Whether the activations leaving ``block`` (−1: the embedding) are read from the cache of frozen prefixes."""
        return self.config.prefix_cache_gib > 0 and block < lowest


def cost_model(config: Config, model: ModelFacts) -> CostModel:
    """The cost model of a configuration's trials; ``precision: auto`` trusts a GPU to have bfloat16."""
    return CostModel(
        model,
        config.finetune,
        activation_bytes=activation_bytes(config.finetune.precision, has_gpu=config.cluster.gpus > 0),
        num_workers=config.cluster.workers_per_trial,
    )


def activation_bytes(precision: str, *, has_gpu: bool) -> int:
    """Bytes of an activation inside a block under ``finetune.precision``."""
    return 2 if precision == "bfloat16" or (precision == "auto" and has_gpu) else _FLOAT32


def fit_step_time(points: Sequence[tuple[float, float]]) -> StepTime:
    """From measured (FLOPs, seconds): least squares of seconds = overhead + FLOPs / rate, relative errors counted.

    Where all FLOPs are equal, or the line would start below zero or fall, it goes through the origin.
    """
    assert points
    assert all(flops > 0 and seconds > 0 for flops, seconds in points)
    weights = [seconds**-2 for _, seconds in points]
    mean_x, mean_y = (sum(w * p[i] for w, p in zip(weights, points, strict=True)) / sum(weights) for i in (0, 1))
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    if spread > 1e-12 * mean_x**2 * sum(weights):
        slope = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True)) / spread
        if slope > 0 and mean_y >= slope * mean_x:
            return StepTime(mean_y - slope * mean_x, 1 / slope)
    through_origin = sum(w * x * y for w, (x, y) in zip(weights, points, strict=True)) / sum(
        w * x * x for w, (x, _) in zip(weights, points, strict=True)
    )
    return StepTime(0.0, 1 / through_origin)


def _lowest_block(selection: Selection) -> int:
    """The lowest block the gradient reaches: −1 goes down to the embedding, the number of blocks is the head alone."""
    if selection.embed:
        return -1
    return min((block for block, _ in selection.touched), default=selection.num_blocks)


def _gradient_flow(selection: Selection, block: int) -> dict[str, tuple[bool, bool]]:
    """Component → whether its input takes a gradient, and whether its output does."""
    below = block > _lowest_block(selection)
    flow = {}
    for name in COMPONENTS:
        above = below or (block, name) in selection.touched
        flow[name] = (below, above)
        below = above
    return flow
