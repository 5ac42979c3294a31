"""Names of tensors: what other code calls the parts of a Vision Transformer, as timm calls them.

A layout is told by a tensor that each has, the norm or the MLP of the first block; what stands before it in the name is
the prefix that all others share.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from unfreeze.errors import ModelError
from unfreeze.models.jax import ANCHOR, from_jax
from unfreeze.models.weightfile import note

_AVERAGED = ("teacher", "ema", "model_ema")  # which of several models in one file is meant

# Hugging Face's ViT, DeiT, DINOv2 (with registers) and BEiT → timm's names; whole names, {} the block's number.
_RENAMED = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.distillation_token", "dist_token"),
    # As Meta's own files have them: by both timm knows that the class token's position is still apart from it.
    ("embeddings.register_tokens", "register_tokens"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.{}.attention.output.dense", "blocks.{}.attn.proj"),
    (
        "encoder.layer.{}.attention.attention.relative_position_bias.relative_position_bias_table",
        "blocks.{}.attn.relative_position_bias_table",
    ),
    ("encoder.layer.{}.intermediate.dense", "blocks.{}.mlp.fc1"),
    ("encoder.layer.{}.output.dense", "blocks.{}.mlp.fc2"),
    ("encoder.layer.{}.mlp.fc1", "blocks.{}.mlp.fc1"),
    ("encoder.layer.{}.mlp.fc2", "blocks.{}.mlp.fc2"),
    ("encoder.layer.{}.mlp.weights_in", "blocks.{}.mlp.fc1"),
    ("encoder.layer.{}.mlp.weights_out", "blocks.{}.mlp.fc2"),
    ("encoder.layer.{}.layernorm_before", "blocks.{}.norm1"),
    ("encoder.layer.{}.layernorm_after", "blocks.{}.norm2"),
    ("encoder.layer.{}.norm1", "blocks.{}.norm1"),
    ("encoder.layer.{}.norm2", "blocks.{}.norm2"),
    ("encoder.layer.{}.layer_scale1.lambda1", "blocks.{}.ls1.gamma"),
    ("encoder.layer.{}.layer_scale2.lambda1", "blocks.{}.ls2.gamma"),
    ("encoder.layer.{}.lambda_1", "blocks.{}.gamma_1"),
    ("encoder.layer.{}.lambda_2", "blocks.{}.gamma_2"),
    ("layernorm", "norm"),
    ("pooler.layernorm", "fc_norm"),
)
# Hugging Face's DINOv3 → Meta's names, as patterns.
_DINOV3 = (
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.register_tokens$", "storage_tokens"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^layer\.(\d+)\.attention\.o_proj\.", r"blocks.\1.attn.proj."),
    (r"^layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^layer\.(\d+)\.", r"blocks.\1."),
)
_PLAIN = ((r"\.mlp\.up_proj\.", ".mlp.fc1."), (r"\.mlp\.down_proj\.", ".mlp.fc2."))
_GATED = ((r"\.mlp\.gate_proj\.", ".mlp.w1."), (r"\.mlp\.up_proj\.", ".mlp.w2."), (r"\.mlp\.down_proj\.", ".mlp.w3."))
# torchvision's → timm's, as patterns.
_TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
)
# Of pretraining, or computed anew: not part of what classifies.
_UNUSED = re.compile(r"(embeddings\.mask_token|pooler\.dense\.|lm_head\.|decoder\.|.*relative_position_index$)")
# LayerScale's parameter, and the norm before the head or, of a model that averages its tokens, after the average.
_LAYER_SCALES = ((r"\bgamma_([12])$", r"ls\1.gamma"), (r"\bls([12])\.gamma$", r"gamma_\1"))
_LAST_NORMS = ((r"^norm\.", "fc_norm."), (r"^fc_norm\.", "norm."))
_QKV = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)")


def to_timm(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The tensors under timm's names, as far as these are known; says what was stripped and left out.

    Raises:
        ModelError: there are several models in the file.
    """
    for anchor, translate in _LAYOUTS:
        prefixes = [name[: match.start(1)] for name in tensors if (match := re.search(rf"(?:^|[./])({anchor})$", name))]
        if any(re.search(r"\d", prefix) for prefix in prefixes):  # stages, as Swin has them
            continue
        if prefixes:
            own = _without_prefix(tensors, _choose(prefixes))
            return _own_synonyms(translate(own, module), module, _LAYER_SCALES)
    return dict(tensors)  # timm knows some more


def _choose(prefixes: list[str]) -> str:
    if "" in prefixes or len(prefixes) == 1:
        return "" if "" in prefixes else prefixes[0]
    averaged = [prefix for prefix in prefixes if set(prefix.split(".")) & set(_AVERAGED)]
    if len(averaged) != 1:
        raise ModelError(f"several models lie in it, as {', '.join(sorted(prefixes))}; keep one in a file of its own")
    return averaged[0]


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if prefix:
        rest = [name for name in tensors if not name.startswith(prefix)]
        besides = f"; left out {_some(rest)}, which lack it" if rest else ""
        note(f"the prefix {prefix!r} is stripped from {len(own)} names{besides}")
    return own


def _from_transformers(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    rules = dict(_RENAMED)
    found: dict[str, Tensor] = {}
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}  # (block, weight or bias) → query, key, value
    unused = []
    has_registers = "embeddings.register_tokens" in tensors
    for name, value in tensors.items():
        if (match := _QKV.fullmatch(name)) is not None:
            block, part, kind = match.groups()
            parts.setdefault((block, kind), {})[part] = value
        elif _UNUSED.match(name) and not (name.endswith("mask_token") and has_registers):
            unused.append(name)
        else:
            found[_renamed(name, rules)] = value
    for (block, kind), own in parts.items():
        if own.keys() >= {"query", "key", "value"}:
            found[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat([own[part] for part in ("query", "key", "value")])
        else:  # BEiT's keys have no bias
            found |= {f"blocks.{block}.attn.{part[0]}_{kind}": value for part, value in own.items()}
    besides = f"; left out {_some(unused)}" if unused else ""
    note(f"names of Hugging Face's transformers are read as timm's{besides}")
    return _own_synonyms(found, module, _LAST_NORMS)


def _renamed(name: str, rules: Mapping[str, str]) -> str:
    block = re.match(r"encoder\.layer\.(\d+)\.", name)
    number = block[1] if block else ""
    general = re.sub(r"^encoder\.layer\.\d+\.", "encoder.layer.{}.", name)
    stem, ending = general, ""
    if general not in rules:
        stem, _, last = general.rpartition(".")
        ending = f".{last}"
    return rules[stem].format(number) + ending if stem in rules else name


def _own_synonyms(
    tensors: Mapping[str, Tensor], module: nn.Module, synonyms: Sequence[tuple[str, str]]
) -> dict[str, Tensor]:
    """Each tensor under the one of its names that a parameter of this model has."""
    own = {name for name, _ in module.named_parameters()}
    found = {}
    for name, value in tensors.items():
        others = [re.sub(pattern, other, name) for pattern, other in synonyms]
        fitting = [other for other in others if other in own and other not in tensors]
        found[name if name in own or not fitting else fitting[0]] = value
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _from_jax(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    note("names and shapes of Google's JAX models are read as timm's")
    return from_jax(tensors)


def _from_dinov3(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Hugging Face's DINOv3 under the names of Meta's own files, which timm translates.

    Raises:
        ModelError: its biases of query and value are not 0, and the model has none.
    """
    found: dict[str, Tensor] = {}
    gated = "layer.0.mlp.gate_proj.weight" in tensors
    renamed = (*_DINOV3, *(_GATED if gated else _PLAIN))
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if (match := re.fullmatch(r"layer\.(\d+)\.attention\.([qkv])_proj\.(weight|bias)", name)) is not None:
            parts.setdefault((match[1], match[3]), {})[match[2]] = value
        elif not name.startswith("rope_embeddings."):
            for pattern, own in renamed:
                name = re.sub(pattern, own, name)
            found[name] = value
    has_biases = any(name.endswith("attn.q_bias") for name, _ in module.named_parameters())
    for (block, kind), own in parts.items():
        if kind == "bias" and not has_biases:
            if any(bool(value.any()) for value in own.values()):
                raise ModelError("its biases of query and value are not 0; choose the model.name with _qkvb")
            continue
        own = {"k": torch.zeros_like(own["q"]), **own}  # keys have no bias
        found[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat([own[part] for part in "qkv"])
    note("names of Hugging Face's DINOv3 are read as timm's")
    return found


def _from_torchvision(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, value in tensors.items():
        for pattern, own in _TORCHVISION:
            name = re.sub(pattern, own, name)
        found[name] = value
    note("names of torchvision's models are read as timm's")
    return found


def _from_timm(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Or Meta's own files, which have the same names; a masked autoencoder's decoder is left out."""
    unused = [name for name in tensors if name.startswith("decoder_")]
    if unused:
        note(f"left out {_some(unused)}, of the decoder that the model was pretrained with")
    return {name: value for name, value in tensors.items() if name not in unused}


# A tensor that each has, as a pattern → how its names become timm's, or those that timm knows.
_LAYOUTS: tuple[tuple[str, Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor]]], ...] = (
    (r"blocks\.0\.norm1\.weight", _from_timm),
    (r"encoder\.layers\.encoder_layer_0\.ln_1\.weight", _from_torchvision),
    (r"encoder\.layer\.0\.attention\.output\.dense\.weight", _from_transformers),
    (r"layer\.0\.attention\.o_proj\.weight", _from_dinov3),
    (re.escape(ANCHOR), _from_jax),
)
