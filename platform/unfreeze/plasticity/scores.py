"""Rival scores from the literature, one number per (block, component), to hold plasticity against.

All say "unfreeze the largest first". Gradients are those at the pretrained weights under a fresh classifier, as
finetuning sees them at its first step, but in evaluation mode (no dropout) and without augmentation.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfreeze.components.mapping import BlockModules, block_modules, count_parameters, group_parameters
from unfreeze.data.pixels.batches import eval_batches
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.part import Part
from unfreeze.data.sets.splits import stratified_subset
from unfreeze.errors import ModelError
from unfreeze.models.build import init_classifier
from unfreeze.records import COMPONENTS
from unfreeze.seeding import derive_seed

_TOP_SHARE = 0.01  # of the blocks' parameters count as sensitive; SPT sweeps budgets up to 1 million of ViT-B's 86


@dataclass(frozen=True, slots=True)
class Score:
    """One row of `SCORES`."""

    summary: str
    source: str
    cost: str
    compute: Callable[["Probe"], dict[str, float]]  # → group ("3.mha") → value


def rival_scores(
    names: Sequence[str],
    module: nn.Module,
    spec: InputSpec,
    images: Part,
    *,
    classifier: tuple[str, ...],
    num_images: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Score name → group ("3.mha") → value, for every (block, component); embedding and head have none.

    ``images`` are labelled training images, of which a stratified subset of ``num_images`` is looked at (more where
    there are more classes than that, one of each). The subset, the classifier and Fisher's labels are the same for the
    same ``seed``. ``classifier``: parameter names. ``module`` is on ``device`` already, and left as it was found, also
    after an error.

    Raises:
        ModelError: a value is NaN or infinite; names the score and the group.
        DataError: a class without images.
    """
    num_images = max(num_images, len(set(images.labels.tolist())))
    chosen = stratified_subset(images.labels, num_images, seed=seed, purpose="plasticity.score_images", balanced=True)
    subset = Part(images.array, images.indices[chosen])
    with _prepared(module, classifier, seed=seed):
        probe = Probe(module, spec, subset, batch_size=batch_size, seed=seed, device=device)
        scores = {name: SCORES[name].compute(probe) for name in names}
    for name, values in scores.items():
        _check_finite(name, values)
    return scores


class Probe:
    """A model whose blocks alone take gradients, and the images to take its scores on; passes are shared."""

    def __init__(
        self, module: nn.Module, spec: InputSpec, images: Part, *, batch_size: int, seed: int, device: torch.device
    ) -> None:
        self.module, self.images, self.seed = module, images, seed
        self._spec, self._batch_size, self._device = spec, batch_size, device
        names = group_parameters(module)
        parameters = dict(module.named_parameters())
        # Group → its tensors, by block and component: the order of everything that comes out.
        self.tensors = {
            f"{block}.{component}": [parameters[name] for name in names[f"{block}.{component}"]]
            for block in range(len(module.blocks))  # type: ignore[arg-type]
            for component in COMPONENTS
        }

    def batches(self, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 (B, 3, H, W) and labels int64 (B,), each image once, in the order of the subset."""
        return eval_batches(self.images, self._spec, batch_size=batch_size or self._batch_size, device=self._device)

    def gradients(self, loss: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Group → gradients of its tensors. They are handed out, not left in `.grad`."""
        flat = iter(torch.autograd.grad(loss, [tensor for group in self.tensors.values() for tensor in group]))
        return {name: tuple(next(flat) for _ in group) for name, group in self.tensors.items()}

    @cached_property
    def accumulated(self) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
        """Of one pass: gradients of the mean cross-entropy over all images, and Σ over batches of (batch gradient)²."""
        mean = {name: [torch.zeros_like(tensor) for tensor in group] for name, group in self.tensors.items()}
        squares = {name: [torch.zeros_like(tensor) for tensor in group] for name, group in self.tensors.items()}
        for images, labels in self.batches():
            loss = F.cross_entropy(self.module(images).float(), labels)
            for name, group in self.gradients(loss).items():
                for gradient, total, square in zip(group, mean[name], squares[name], strict=True):
                    total.add_(gradient, alpha=len(labels) / len(self.images))
                    square.addcmul_(gradient, gradient)
        # Here, since ranking parameters would put NaN first and lose sight of it.
        _check_finite("the squared gradient", {n: sum(s.sum().item() for s in g) for n, g in squares.items()})
        return mean, squares

    @cached_property
    def given_squares(self) -> dict[str, list[Tensor]]:
        """Σ over images of (∂ log p(its label) / ∂θ)²."""
        return self._squares_by_image(lambda log_p, label: int(label))

    @cached_property
    def drawn_squares(self) -> dict[str, list[Tensor]]:
        """The same of one label per image that is drawn from the model's own prediction, on the CPU so that every
        device draws the same."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "fisher labels"))

        def draw(log_p: Tensor, _: Tensor) -> int:
            p = log_p.detach().exp().double().cpu()
            # As `torch.multinomial` draws one, which would stop at NaN before the group can be named.
            return int((p / torch.empty_like(p).exponential_(generator=generator)).argmax())

        return self._squares_by_image(draw)

    def _squares_by_image(self, choose: Callable[[Tensor, Tensor], int]) -> dict[str, list[Tensor]]:
        """One image at a time: the square of a batch's gradient is another number."""
        squares = {name: [torch.zeros_like(tensor) for tensor in group] for name, group in self.tensors.items()}
        for image, label in self.batches(1):
            log_p = F.log_softmax(self.module(image).float(), dim=1)[0]
            for name, group in self.gradients(log_p[choose(log_p, label[0])]).items():
                for gradient, square in zip(group, squares[name], strict=True):
                    square.addcmul_(gradient, gradient)
        _check_finite("the squared gradient", {n: sum(s.sum().item() for s in g) for n, g in squares.items()})
        return squares


@contextlib.contextmanager
def _prepared(module: nn.Module, classifier: tuple[str, ...], *, seed: int) -> Iterator[None]:
    """A fresh classifier, evaluation mode, gradients for the blocks alone; all put back at the end."""
    parameters = dict(module.named_parameters())
    in_blocks = {name for group, names in group_parameters(module).items() if "." in group for name in names}
    values = {name: parameters[name].detach().clone() for name in classifier}
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    modes = {child: child.training for child in module.modules()}
    try:
        module.eval()
        init_classifier(module, classifier, seed=seed)
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in in_blocks)
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode
        for name, flag in flags.items():
            parameters[name].requires_grad_(flag)
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].copy_(value)


def _check_finite(what: str, values: dict[str, float]) -> None:
    broken = [f"{group} ({value})" for group, value in values.items() if not math.isfinite(value)]
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise ModelError(f"{what} is not finite in {', '.join(broken[:5])}{more}; check the weights and the images")


def _gradient_norm(probe: Probe) -> dict[str, float]:
    """Mean over the group's tensors of ‖g‖₂ / ‖θ‖₂, g of the mean loss over all images.

    Lee et al. use the ratio tensor by tensor (on its learning rate), so the mean over tensors is ours; their code
    averages the ratios of five batches, which noise makes larger, and leaves batch norms out. A tensor of norm 0, such
    as a fresh bias, has no ratio and is left out. The ratio of the group's whole ‖g‖ and ‖θ‖ is another number.
    """
    mean, _ = probe.accumulated
    values = {}
    for name, tensors in probe.tensors.items():
        weights = torch.stack([tensor.detach().norm() for tensor in tensors])
        ratios = torch.stack([gradient.norm() for gradient in mean[name]]) / weights
        values[name] = ratios[weights != 0].mean().item()
    return values


def _sensitivity(probe: Probe) -> dict[str, float]:
    """Share of the most sensitive parameters of all blocks that lie in the group, as SPT's code has it.

    s_n = Σ over batches of g_n², the loss a gradient step on parameter n alone takes away, to first order and up to
    the learning rate. As in the code g is the batch's mean gradient, so values depend on ``batch_size`` and on how many
    batches there are (8 there). Its paper squares image by image: `sensitivity_per_image`.
    """
    return _top_shares(probe, probe.accumulated[1])


def _sensitivity_per_image(probe: Probe) -> dict[str, float]:
    """The same from s_n = Σ over images of g_n², as SPT's paper has it, with the downstream labels.

    This is also FISH's global top share in its other label mode, the empirical Fisher's.
    """
    return _top_shares(probe, probe.given_squares)


def _fisher_share(probe: Probe) -> dict[str, float]:
    """Share of the parameters of all blocks with the largest diagonal Fisher information that lie in the group.

    How FISH's own mask is chosen: globally, by single parameters; what share of them is kept is ours (`_TOP_SHARE`;
    FISH sweeps it). Labels are drawn as for `fisher`.
    """
    return _top_shares(probe, probe.drawn_squares)


def _top_shares(probe: Probe, squares: dict[str, list[Tensor]]) -> dict[str, float]:
    """The values sum to 1. What counts is the *number* of a group's parameters among the top ones: large groups have
    more of them."""
    everything = torch.cat([square.flatten() for group in squares.values() for square in group])
    top = everything.topk(math.ceil(_TOP_SHARE * len(everything)), sorted=False).indices
    ends = torch.tensor(list(_parameters(probe).values()), device=top.device).cumsum(0)
    counts = torch.bincount(torch.bucketize(top, ends, right=True), minlength=len(ends))
    return dict(zip(squares, (counts.double() / len(top)).tolist(), strict=True))


@torch.no_grad()
def _forward_only(probe: Probe) -> dict[str, float]:
    """Mean over the group's weights of |w_ij|·|a_j|, |a_j| the mean magnitude of input j over tokens and images.

    FPS ranks single weights by the product; the mean over a group is ours, and so is what counts as a weight: those of
    the linear layers (all of MHA's), and the gains of LN1 and LN2, whose input is the normalised token and whose few
    large products often lead the order. Biases, LayerScale, and norms within MHA and MLP are left out.
    """
    totals = dict.fromkeys(probe.tensors, 0.0)
    counts = dict.fromkeys(probe.tensors, 0)
    seen: list[tuple[str, nn.Module, _Magnitude]] = []
    with contextlib.ExitStack() as hooks:
        for block, parts in enumerate(block_modules(probe.module)):
            for component, layer, watched in _weighted_layers(parts):
                magnitudes = _Magnitude()
                seen.append((f"{block}.{component}", layer, magnitudes))
                hooks.callback(magnitudes.watch(layer, watched).remove)
        for images, _ in probe.batches():
            probe.module(images)
    for group, layer, magnitudes in seen:
        products = magnitudes.mean
        if isinstance(layer, nn.Linear):
            products = layer.weight.abs().sum(0) * products  # Σ over outputs i of |w_ij|·|a_j|
        totals[group] += products.sum().item()
        counts[group] += layer.weight.numel()  # type: ignore[operator]
    return {group: total / counts[group] for group, total in totals.items()}


class _Magnitude:
    """Running mean magnitude per feature, over tokens and images, of what a layer's weights multiply."""

    def __init__(self) -> None:
        self._total, self._count = torch.zeros(()), 0

    @property
    def mean(self) -> Tensor:
        """Float64 (features,). NaN if nothing was seen."""
        return self._total / self._count

    def watch(self, layer: nn.Module, watched: nn.Module) -> torch.utils.hooks.RemovableHandle:
        if isinstance(layer, nn.Linear):
            return watched.register_forward_pre_hook(lambda _, inputs: self._add(inputs[0]))
        # A norm's output less its shift is γ ⊙ x̂: the product itself, whichever kind of norm it is.
        shift = getattr(layer, "bias", None)
        return watched.register_forward_hook(lambda _, __, out: self._add(out if shift is None else out - shift))

    def _add(self, tokens: Tensor) -> None:
        rows = tokens.flatten(0, -2)
        self._total = self._total.to(rows.device) + rows.abs().sum(0).double()
        self._count += len(rows)


def _weighted_layers(parts: BlockModules) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """(component, layer with a weight, module whose input or output shows what the weight multiplies)."""
    yield "ln1", parts.ln1, parts.ln1
    yield "ln2", parts.ln2, parts.ln2
    for name, layer in parts.mha.named_modules():
        if isinstance(layer, nn.Linear):
            # EVA and BEiT multiply by qkv.weight without calling qkv; it takes the attention's own input.
            yield "mha", layer, parts.mha if name == "qkv" else layer
    for layer in parts.fc1:
        yield "fc1", layer, layer
    yield "fc2", parts.fc2, parts.fc2


def _fisher(probe: Probe) -> dict[str, float]:
    """Mean over the group's parameters of the diagonal Fisher information E_x E_{y ~ p(y|x)} (∂ log p(y|x) / ∂θ_n)².

    The information is FISH's, its mean over a group ours: FISH keeps the parameters that have most of all
    (`fisher_share`), which orders components otherwise, since small groups have the large means. One label is drawn per
    image from the model's own prediction; the downstream labels are not used (with them it would be the empirical
    Fisher, which is not the Fisher information: Kunstner et al., arXiv 1905.12558).
    """
    sums = {name: sum(square.double().sum().item() for square in group) for name, group in probe.drawn_squares.items()}
    return {name: sums[name] / (len(probe.images) * size) for name, size in _parameters(probe).items()}


def _parameters(probe: Probe) -> dict[str, float]:
    sizes = count_parameters(probe.module)
    return {name: sizes[name] for name in probe.tensors}


# Costs are passes over `plasticity.score_images` images; gradient_norm and sensitivity share theirs.
SCORES: dict[str, Score] = {
    "gradient_norm": Score(
        summary="norm of the gradient relative to that of the weights, mean over tensors",
        source="Auto-RGN: Lee et al., Surgical Fine-Tuning, arXiv 2210.11466",
        cost="one forward and backward pass in batches",
        compute=_gradient_norm,
    ),
    "sensitivity": Score(
        summary="share of the 1 % most sensitive parameters, by squared gradient, that lie in the component",
        source="SPT: He et al., Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning, arXiv 2303.08566",
        cost="one forward and backward pass in batches, and one selection among all parameters",
        compute=_sensitivity,
    ),
    "sensitivity_per_image": Score(
        summary="the same by squared gradients of single images, as the paper and not the code of SPT has it",
        source="SPT (arXiv 2303.08566, its text); FISH Mask (arXiv 2111.09839) with the downstream labels",
        cost="one forward and backward pass, image by image",
        compute=_sensitivity_per_image,
    ),
    "forward_only": Score(
        summary="weight magnitude times input activation, mean over weights",
        source="FPS: Yang et al., Feedforward-based Parameter Selection, arXiv 2510.27359v1",
        cost="one forward pass in batches",
        compute=_forward_only,
    ),
    "fisher": Score(
        summary="diagonal Fisher information, mean over parameters",
        source="FISH Mask: Sung et al., Training Neural Networks with Fixed Sparse Masks, arXiv 2111.09839",
        cost="one forward and backward pass, image by image",
        compute=_fisher,
    ),
    "fisher_share": Score(
        summary="share of the 1 % parameters of the largest Fisher information that lie in the component",
        source="FISH Mask: Sung et al., arXiv 2111.09839",
        cost="one forward and backward pass, image by image; shared with fisher",
        compute=_fisher_share,
    ),
    "parameters": Score(
        summary="number of parameters",
        source="none: what a score must beat that size alone gives",
        cost="none",
        compute=_parameters,
    ),
}
