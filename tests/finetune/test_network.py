from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from unfreeze.components.freeze import unfreeze_only
from unfreeze.components.selection import parse_selection
from unfreeze.components.structure import is_divisible, reads_first_token
from unfreeze.finetune.depth import DropPaths
from unfreeze.finetune.network import (
    Network,
    embed,
    has_randomness,
    lowest_trained_block,
)

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {}),
    ("vit_tiny_patch16_224", {"init_values": 0.1, "qk_norm": True, "reg_tokens": 2}),
    ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "qkv_bias": False}),
    ("vit_tiny_patch16_224", {"global_pool": "map", "pre_norm": True}),
    ("vit_tiny_patch16_224", {"scale_attn_norm": True, "scale_mlp_norm": True}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("beit_base_patch16_224", {}),
    ("eva02_tiny_patch14_224", {}),
]


def make(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    module = timm.create_model(name, **{**SMALL, **kwargs})
    for parameter in module.parameters():  # timm's start leaves much at 0 or 1
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def gradients(module: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    logits.square().sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    # Of the largest gradient: some are zero but for rounding, such as that of a bias which softmax cannot see.
    atol = 1e-5 * max(float(value.abs().max()) for value in left.values())
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=2e-4, atol=atol, msg=name)


@pytest.mark.parametrize(("name", "kwargs"), VARIANTS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_logits_and_gradients_are_those_of_the_whole_model(
    name: str, kwargs: dict[str, Any], checkpointing: bool, fused: bool
) -> None:
    module = make(name, **kwargs).train()
    for layer in module.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = fused
    network = Network(module, activation_checkpointing=checkpointing)
    logits = network(images())
    module.set_grad_checkpointing(False)
    expected = module(images())
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    module.set_grad_checkpointing(checkpointing)
    ours = gradients(module, network(images()))
    module.set_grad_checkpointing(False)
    assert_close(ours, gradients(module, module(images())))


def test_only_timm_s_own_vision_transformer_is_divided() -> None:
    assert [is_divisible(make(name, **kwargs)) for name, kwargs in VARIANTS] == [True] * 6 + [False] * 3


def test_the_last_block_computes_its_mlp_for_the_class_token_alone() -> None:
    module = make("vit_tiny_patch16_224")
    seen: list[int] = []
    for block in module.blocks:
        block.mlp.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].shape[1]))
    Network(module)(images())
    assert seen == [17, 17, 1]
    assert reads_first_token(module)
    assert not reads_first_token(make("vit_tiny_patch16_224", global_pool="avg"))


@pytest.mark.parametrize("start", [1, 2, 3])
def test_from_a_block_s_tokens_on_it_is_the_same_model(start: int) -> None:
    module = make("vit_tiny_patch16_224")
    whole = Network(module)
    with torch.no_grad():
        tokens = whole.run_blocks(embed(module, images()), 0, start)
        torch.testing.assert_close(Network(module, start=start)(tokens), module(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [("all", 0), ("embed", 0), ("mha", 0), ("mha@1", 1), ("fc2@2+ln1@1", 1), ("ln2@2", 2), ("none", 3)],
)
def test_the_lowest_block_with_a_trained_parameter(selection: str, expected: int) -> None:
    module = make("vit_tiny_patch16_224")
    names = unfreeze_only(module, parse_selection(selection, num_blocks=3), train_head=True)
    assert lowest_trained_block(names, 3) == expected


@pytest.mark.parametrize(
    "kwargs", [{"proj_drop_rate": 0.1}, {"attn_drop_rate": 0.1}, {"drop_path_rate": 0.1}, {"patch_drop_rate": 0.5}]
)
def test_dropout_of_any_kind_is_noticed(kwargs: dict[str, float]) -> None:
    assert has_randomness(make("vit_tiny_patch16_224", **kwargs))
    assert not has_randomness(make("vit_tiny_patch16_224"))


def test_stochastic_depth_that_is_drawn_beforehand_is_none() -> None:
    module = make("vit_tiny_patch16_224", drop_path_rate=0.1)
    DropPaths(module)
    assert not has_randomness(module)


def test_checkpointing_keeps_a_fraction_of_the_activations() -> None:
    module = make("vit_tiny_patch16_224").train()

    def kept(network: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(images())
        return sum(sizes.values())

    assert kept(Network(module, activation_checkpointing=True)) < 0.5 * kept(Network(module))


REAL = Path(__file__).resolve().parents[2].parent / "shared" / "real"


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real weights beside the project")
def test_a_real_model_classifies_as_before() -> None:
    weights = str(REAL / "weights" / "deit_tiny_patch16_224.safetensors")
    module = timm.create_model("deit_tiny_patch16_224", checkpoint_path=weights).eval()
    inputs = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(Network(module)(inputs), module(inputs), rtol=1e-4, atol=1e-4)
