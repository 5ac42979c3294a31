from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from unfreeze.config import FinetuneConfig
from unfreeze.finetune.optim import make_optimizer, rate_scale
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import parameter_dict


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("head.weight", 1.0),
        ("norm.bias", 0.5),
        ("fc_norm.bias", 1.0),
        ("blocks.2.mlp.fc1.weight", 0.5),
        ("blocks.0.norm1.weight", 0.125),
        ("pos_embed", 0.0625),
    ],
)
def test_layer_decay_halves_from_block_to_block(name: str, expected: float) -> None:
    assert rate_scale(name, FinetuneConfig(layer_decay=0.5), num_blocks=3) == pytest.approx(expected)


def test_a_component_s_own_factor_comes_on_top() -> None:
    config = FinetuneConfig(layer_decay=0.5, component_rates={"mha": 3.0, "head": 10.0, "embed": 0.0})
    scales = [
        rate_scale(name, config, num_blocks=2)
        for name in ("blocks.1.attn.qkv.weight", "blocks.1.mlp.fc2.bias", "head.bias", "cls_token")
    ]
    assert scales == pytest.approx([1.5, 0.5, 10.0, 0.0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_names_are_in_the_optimizer_s_order(optimizer: Any, make_warm: Callable[..., WarmModel]) -> None:
    warm = make_warm()
    _, names = warm.prepare("all", seed=0, train_head=True)
    trained = parameter_dict(warm.module, names)
    made, order = make_optimizer(trained, FinetuneConfig(optimizer=optimizer, layer_decay=0.7), num_blocks=2)
    held = [parameter for group in made.param_groups for parameter in group["params"]]
    assert [id(parameter) for parameter in held] == [id(trained[name]) for name in order]
    assert sorted(order) == sorted(names)
    assert [group["scale"] for group in made.param_groups] == pytest.approx([1.0, 0.7, 0.49, 0.343])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_rates_and_decay_are_those_of_timm(name: str) -> None:
    small = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 3}
    module = timm.create_model(name, **small)
    trained = dict(module.named_parameters())
    config = FinetuneConfig(layer_decay=0.75, weight_decay=0.1)
    made, order = make_optimizer(trained, config, num_blocks=3)
    ours = dict(
        zip(order, [(g["scale"], g["weight_decay"]) for g in made.param_groups for _ in g["params"]], strict=True)
    )
    exempt = module.no_weight_decay()  # type: ignore[operator]
    names = {id(parameter): name for name, parameter in trained.items()}
    theirs = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(module, 0.1, no_weight_decay_list=exempt, layer_decay=0.75)
        for parameter in group["params"]
    }
    assert {name: pytest.approx(value) for name, value in theirs.items()} == ours


def test_norms_and_biases_decay_where_that_is_asked_for() -> None:
    trained = {"norm.weight": nn.Parameter(torch.ones(3)), "head.weight": nn.Parameter(torch.ones(3, 3))}
    for decay_norms, expected in ((False, {0.1, 0.0}), (True, {0.1})):
        config = FinetuneConfig(weight_decay=0.1, decay_norms=decay_norms)
        made, _ = make_optimizer(trained, config, num_blocks=1)
        assert {group["weight_decay"] for group in made.param_groups} == expected
