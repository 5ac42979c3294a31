"""Google's own Vision Transformers: names and shapes of their .npz archives, as timm has them.

Flax keeps a layer's matrix as (in, out), a convolution as (H, W, in, out), attention by head; big_vision's archives
have the prefix ``params/`` (``params/img/`` of an image tower), training states ``opt/target/``.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from unfreeze.errors import ModelError

ANCHOR = "Transformer/encoderblock_0/LayerNorm_0/scale"

_KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_LAYERS = {
    "LayerNorm_0": "norm1",
    "LayerNorm_1": "norm2",  # of big_vision, which counts each kind by itself
    "LayerNorm_2": "norm2",
    "Dense_0": "mlp.fc1",
    "Dense_1": "mlp.fc2",
}
_WHOLE = {
    "cls": "cls_token",
    "pos_embedding": "pos_embed",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}
_LAYER = re.compile(r"Transformer/encoderblock_(\d+)/(?:MlpBlock_\d+/)?(\w+)/(kernel|scale|bias)")
_ATTENTION = re.compile(
    r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_\d+/(query|key|value|out)/(kernel|bias)"
)


def from_jax(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By timm's names and in its shapes; the layer before the head that in21k's files have is left out, as by timm.

    Raises:
        ModelError: a tensor that none of these models has.
    """
    found: dict[str, Tensor] = {}
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}  # (block, weight or bias) → query, key, value
    for name, value in tensors.items():
        if (match := _ATTENTION.fullmatch(name)) is not None:
            block, part, kind = match.groups()
            if part != "out":
                parts.setdefault((block, _KINDS[kind]), {})[part] = (
                    value.flatten(-2).mT if kind == "kernel" else value.flatten()
                )
            else:
                found[f"blocks.{block}.attn.proj.{_KINDS[kind]}"] = (
                    value.flatten(0, -2).mT if kind == "kernel" else value
                )
        elif (match := _LAYER.fullmatch(name)) is not None and match[2] in _LAYERS:
            found[f"blocks.{match[1]}.{_LAYERS[match[2]]}.{_KINDS[match[3]]}"] = (
                value.mT if match[3] == "kernel" else value
            )
        elif name in _WHOLE:
            found[_WHOLE[name]] = (
                value.permute(3, 2, 0, 1) if value.ndim == 4 else value.mT if name == "head/kernel" else value
            )
        elif not name.startswith("pre_logits/"):
            raise ModelError(f"{name} is no part of a Vision Transformer as Google publishes them")
    for (block, kind), own in parts.items():
        found[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat([own[part] for part in ("query", "key", "value")])
    return {name: value.contiguous() for name, value in found.items()}
