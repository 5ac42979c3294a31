"""timm parameter → component: each parameter of the model belongs to exactly one group, or we stop with the names.

A group is ``"<block>.<component>"`` (``"3.mha"``), ``"embed"`` or ``"head"``. Matching is by whole dotted prefixes,
never by substring.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from timm.layers import Attention, AttentionRope, DiffAttention, GluMlp, Mlp, SwiGLU
from timm.models import beit, eva, vision_transformer
from torch import nn

from unfreeze.errors import ModelError
from unfreeze.records import COMPONENTS

# Pre-norm blocks with the five parts one after the other. Anything else is refused rather than guessed at.
_PRE_NORM_BLOCKS = (vision_transformer.Block, eva.EvaBlock, beit.Block)
_REASONS = {
    "ResPostBlock": "its blocks normalise after attention and MLP (post-norm), the five components are pre-norm",
    "EvaBlockPostNorm": "its blocks normalise after attention and MLP (post-norm), the five components are pre-norm",
    "ParallelScalingBlock": "its blocks run attention and MLP in parallel from one norm, so there is no LN2",
    "DiffParallelScalingBlock": "its blocks run attention and MLP in parallel from one norm, so there is no LN2",
    "ParallelThingsBlock": "its blocks hold several attentions and MLPs in parallel",
}

# Prefix within a block → component. LayerScale scales a sub-layer's output, so it goes with the projection before it:
# `ls1`/`gamma_1` with attention, `ls2`/`gamma_2` with FC2. SwiGLU's two input projections are both FC1; the norm some
# MLPs have between their layers feeds FC2.
_IN_BLOCK = (
    ("norm1", "ln1"),
    ("attn", "mha"),
    ("ls1", "mha"),
    ("gamma_1", "mha"),
    ("norm2", "ln2"),
    ("mlp.fc1", "fc1"),
    ("mlp.fc1_g", "fc1"),
    ("mlp.fc1_x", "fc1"),
    ("mlp.norm", "fc2"),
    ("mlp.fc2", "fc2"),
    ("ls2", "fc2"),
    ("gamma_2", "fc2"),
)
# Linear layers within a block that LoRA adapts. An attention's output gate, which few models have, is not among them.
_ADAPTED = {
    "mha": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj"),
    "fc1": ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x"),
    "fc2": ("mlp.fc2",),
}
# Modules known to call their linear layers. An adapter wraps the call: where only the layer's weight is read, as BEiT's
# and EVA's attention does to add a bias without its key part, an adapter would be ignored and nothing would say so.
_CALLS_ITS_LAYERS = (Attention, AttentionRope, DiffAttention, Mlp, GluMlp, SwiGLU)
_READS_QKV_WEIGHT = (beit.Attention, eva.EvaAttention)
_OUTSIDE = (
    ("patch_embed", "embed"),
    ("cls_token", "embed"),
    ("dist_token", "embed"),
    ("reg_token", "embed"),
    ("mask_token", "embed"),
    ("pos_embed", "embed"),
    ("norm_pre", "embed"),
    ("rope", "embed"),
    ("rel_pos_bias", "embed"),
    ("norm", "head"),
    ("fc_norm", "head"),
    ("attn_pool", "head"),
    ("head", "head"),
    ("head_dist", "head"),
)


@dataclass(frozen=True, slots=True)
class BlockModules:
    """The five components of one block as modules; `fc1` is two for SwiGLU."""

    ln1: nn.Module
    mha: nn.Module
    ln2: nn.Module
    fc1: tuple[nn.Module, ...]
    fc2: nn.Module


def check_supported(model: nn.Module) -> None:
    """Refuse a model whose blocks do not have the five components one after the other.

    Raises:
        ModelError: with the reason and what is supported.
    """
    supported = "supported are timm's pre-norm Vision Transformers: ViT, DeiT, EVA, BEiT and their kin"
    name = type(model).__name__
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not blocks:
        raise ModelError(f"{name} has no single stack of transformer blocks; {supported}")
    for index, block in enumerate(blocks):
        kind = type(block).__name__
        if not isinstance(block, _PRE_NORM_BLOCKS):
            reason = _REASONS.get(
                kind, f"its block {index} is a {kind}, whose components are not known to be LN1, MHA, LN2, FC1, FC2"
            )
            raise ModelError(f"{name} is not supported: {reason}; {supported}")
        has_fc1 = hasattr(block.mlp, "fc1") or hasattr(block.mlp, "fc1_g")
        if not has_fc1 or not hasattr(block.mlp, "fc2"):
            raise ModelError(
                f"{name} is not supported: the MLP of its block {index}, a {type(block.mlp).__name__}, has no FC1 "
                f"and FC2; {supported}"
            )
    if not hasattr(model, "patch_embed"):
        raise ModelError(f"{name} does not cut images of one size into patches; {supported}")


def group_of(parameter_name: str) -> str | None:
    """The group a timm parameter name belongs to, or None when no rule knows it."""
    if parameter_name.startswith("blocks."):
        _, block, rest = parameter_name.split(".", 2)
        component = _match(rest, _IN_BLOCK)
        return None if component is None else f"{block}.{component}"
    return _match(parameter_name, _OUTSIDE)


def group_parameters(model: nn.Module) -> dict[str, list[str]]:
    """Group → its parameter names, every parameter of the model in exactly one group.

    Raises:
        ModelError: the model is unsupported, or names the parameters no rule knows.
    """
    check_supported(model)
    groups: dict[str, list[str]] = {}
    unknown = []
    for name, _ in model.named_parameters():
        group = group_of(name)
        if group is None:
            unknown.append(name)
        else:
            groups.setdefault(group, []).append(name)
    if unknown:
        raise ModelError(
            f"{type(model).__name__} has parameters that belong to no known component: {', '.join(unknown)}"
        )
    missing = [f"{b}.{c}" for b in range(len(model.blocks)) for c in COMPONENTS if f"{b}.{c}" not in groups]  # type: ignore[arg-type]
    if missing:
        raise ModelError(
            f"{type(model).__name__} has no parameters for {', '.join(missing)}; nothing there can be trained"
        )
    return groups


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Group → number of parameters."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return {group: sum(sizes[name] for name in names) for group, names in group_parameters(model).items()}


def adaptable_linears(model: nn.Module) -> dict[str, list[str]]:
    """Group → names of the linear layers that LoRA adapts there; a group without any is absent. No adapters yet."""
    found: dict[str, list[str]] = {}
    for index, block in enumerate(model.blocks):  # type: ignore[arg-type]
        for component, layers in _ADAPTED.items():
            names = [name for name in layers if isinstance(_inside(block, name), nn.Linear)]
            if names and _calls_its_layers(block.attn if component == "mha" else block.mlp):
                found[f"{index}.{component}"] = [f"blocks.{index}.{name}" for name in names]
    return found


def lora_sizes(model: nn.Module) -> dict[str, int]:
    """Group → parameters of a rank-1 update of its linear layers, inputs + outputs of each; see `adaptable_linears`."""
    return {
        group: sum(sum(model.get_submodule(name).weight.shape) for name in names)  # type: ignore[misc, arg-type]
        for group, names in adaptable_linears(model).items()
    }


def is_adapter(parameter_name: str) -> bool:
    """Whether a parameter is part of a LoRA update: ``blocks.0.attn.qkv.lora_A.default.weight``."""
    return not {"lora_A", "lora_B"}.isdisjoint(parameter_name.split("."))


def block_modules(model: nn.Module) -> Iterator[BlockModules]:
    """The components of each block, in depth order. The model must be supported."""
    for block in model.blocks:  # type: ignore[union-attr]
        mlp = block.mlp
        fc1 = (mlp.fc1,) if hasattr(mlp, "fc1") else (mlp.fc1_g, mlp.fc1_x)
        yield BlockModules(ln1=block.norm1, mha=block.attn, ln2=block.norm2, fc1=fc1, fc2=mlp.fc2)


def _calls_its_layers(module: nn.Module) -> bool:
    if isinstance(module, _READS_QKV_WEIGHT):
        return module.q_bias is None or module.qkv_bias_separate
    return isinstance(module, _CALLS_ITS_LAYERS)


def _inside(block: nn.Module, path: str) -> nn.Module | None:
    parent, _, name = path.partition(".")
    return getattr(getattr(block, parent), name, None)


def _match(name: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    for prefix, target in rules:
        if name == prefix or name.startswith(f"{prefix}."):
            return target
    return None
