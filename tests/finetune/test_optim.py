from collections.abc import Callable
from typing import Any

import pytest

from unfreeze.config import FinetuneConfig
from unfreeze.finetune.optim import make_optimizer, rate_scale
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import parameter_dict


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("head.weight", 1.0),
        ("norm.bias", 1.0),
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
