"""What a timm model is made of, as far as finetuning takes it apart."""

from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn


def is_divisible(model: nn.Module) -> bool:
    """Whether embedding, blocks and head are known to be all there is: timm's VisionTransformer, not a kin of it."""
    return (
        isinstance(model, VisionTransformer)
        and type(model).forward_features is VisionTransformer.forward_features
        and type(model).forward is VisionTransformer.forward
        and type(model).forward_head is VisionTransformer.forward_head
    )


def is_plain(block: nn.Module) -> bool:
    """Whether a block is LN1, attention, LN2, FC1, FC2 and nothing else: exact types, a subclass may do more."""
    return type(block) is Block and type(block.attn) is Attention and type(block.mlp) is Mlp


def reads_first_token(model: nn.Module) -> bool:
    """Whether the classifier gets the class token and nothing of the others."""
    return model.global_pool == "token" and model.attn_pool is None
