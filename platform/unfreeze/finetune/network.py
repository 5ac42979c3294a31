"""The model as a trial runs it: from the lowest trained block up, and in the last block only what the head reads.

Where autograd already spares a frozen tensor its gradient, this spares what autograd cannot know: blocks whose output
is at hand from a cache, all tokens of the last block but the one that is classified, and activations that are cheaper
to compute again than to keep.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unfreeze.components.mapping import group_of
from unfreeze.components.structure import is_divisible, is_plain, reads_first_token
from unfreeze.finetune.depth import ImageDropPath


class Network(nn.Module):
    """A timm model as ``inputs → logits``, its own parameters and nothing besides.

    Args:
        start: inputs are images where it is 0, otherwise the tokens (B, N, width) that enter block ``start``; the
            number of blocks itself means what enters the head. Above 0 only for a model that `is_divisible`.
        activation_checkpointing: blocks keep their input alone and run again in the backward pass.
    """

    def __init__(self, module: nn.Module, *, start: int = 0, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.module = module
        self.start = start
        self.activation_checkpointing = activation_checkpointing
        self.divisible = is_divisible(module)
        self._is_random = has_randomness(module)
        assert self.divisible or start == 0
        if not self.divisible:
            module.set_grad_checkpointing(activation_checkpointing)  # type: ignore[operator]

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.divisible:
            return self.module(inputs)
        model = self.module
        tokens = inputs if self.start else embed(model, inputs)
        tokens = self.run_blocks(tokens, self.start, len(model.blocks))  # type: ignore[arg-type]
        return model.forward_head(model.norm(tokens))  # type: ignore[operator]

    def run_blocks(self, tokens: Tensor, first: int, end: int) -> Tensor:
        """Through blocks ``first`` … ``end - 1``: tokens (B, N, width) → the same, or (B, 1, width) after the last."""
        blocks = list(self.module.blocks)  # type: ignore[arg-type]
        for block in blocks[first:end]:
            last = block is blocks[-1] and reads_first_token(self.module)
            # Where a whole block runs again, there is nothing within it to spare.
            rerun = None if self.activation_checkpointing else self._rerun
            run = partial(_run_plain, block, first_only=last, rerun=rerun) if is_plain(block) else block
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens = self._rerun(run, tokens)
            else:
                tokens = run(tokens)
        return tokens

    def _rerun(self, run: Callable[..., Any], *inputs: Tensor) -> Any:
        """Run once more in the backward pass, so that its inputs alone are kept until then."""
        return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=self._is_random)


def embed(model: nn.Module, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) → the tokens that enter block 0, of a model that `is_divisible`."""
    tokens = model.patch_drop(model._pos_embed(model.patch_embed(images)))  # type: ignore[operator]
    return model.norm_pre(tokens)  # type: ignore[operator]


def has_randomness(model: nn.Module) -> bool:
    """Whether a forward pass in training draws random numbers: dropout of any kind but the stochastic depth that
    `depth` draws beforehand."""
    layers = [layer for layer in model.modules() if not isinstance(layer, ImageDropPath)]
    rates = (getattr(layer, name, 0) for layer in layers for name in ("p", "drop_prob", "prob"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def lowest_trained_block(names: list[str], num_blocks: int) -> int:
    """The first block that trained parameters reach down to: 0 for the embedding's, ``num_blocks`` for the head's."""
    groups = [group_of(name) or "embed" for name in names]
    reached = [0 if group == "embed" else int(group.split(".")[0]) for group in groups if group != "head"]
    return min(reached, default=num_blocks)


def _run_plain(block: Block, tokens: Tensor, *, first_only: bool, rerun: Callable[..., Any] | None) -> Tensor:
    """`Block.forward`: tokens (B, N, width) → the same, or, of the first token alone, (B, 1, width).

    For the first alone keys and values still come from all tokens, but the output projection and both layers of the MLP
    are spared: nine of a block's twelve parts, forward and backward.

    The stream between attention and MLP is the input of FC1's norm. Where FC1 is frozen it would be kept for that
    norm's backward pass alone, a tenth of what such a block keeps; so it is computed again from what is kept anyway,
    at the price of the output projection, a thirtieth of a step.
    """
    mixed = _attend(block.attn, block.norm1(tokens), first_only=first_only)
    tokens = tokens[:, :1] if first_only else tokens
    middle = partial(_middle, block)
    if rerun is not None and torch.is_grad_enabled() and mixed.requires_grad and not _takes_gradients(block.mlp.fc1):
        middle = partial(rerun, middle)
    tokens, normed = middle(tokens, mixed)
    return tokens + block.drop_path2(block.ls2(block.mlp(normed)))


def _middle(block: Block, tokens: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """The stream after attention, and what enters the MLP."""
    attn = block.attn
    tokens = tokens + block.drop_path1(block.ls1(attn.proj_drop(attn.proj(mixed))))
    return tokens, block.norm2(tokens)


def _attend(attn: Attention, tokens: Tensor, *, first_only: bool) -> Tensor:
    """`Attention.forward` up to its output projection, for all queries or the first: (B, N or 1, width)."""
    batch, count, _ = tokens.shape
    qkv = attn.qkv(tokens).view(batch, count, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    queries = slice(0, 1) if first_only else slice(None)
    query, key = attn.q_norm(query[:, :, queries]), attn.k_norm(key)
    if attn.fused_attn:
        dropout = attn.attn_drop.p if attn.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    else:
        mixed = attn.attn_drop((query * attn.scale @ key.mT).softmax(dim=-1)) @ value
    mixed = attn.norm(mixed.transpose(1, 2).reshape(batch, -1, attn.attn_dim))
    return mixed if attn.gate is None else mixed * attn.gate(tokens[:, queries]).sigmoid()


def _takes_gradients(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def make_autocast(precision: str, device: torch.device) -> torch.autocast:
    """bfloat16 matmuls where asked for, or (``auto``) where the GPU has them; float32 otherwise."""
    wanted = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)
