import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from unfreeze.components.freeze import unfreeze_only
from unfreeze.components.mapping import count_parameters, group_parameters
from unfreeze.components.selection import count_trainable, parse_selection
from unfreeze.errors import SelectionError


@pytest.fixture
def model() -> VisionTransformer:
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=4)


def trained(model: VisionTransformer) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("train_head", [True, False])
@pytest.mark.parametrize("text", ["all", "mha", "mha@1-2+fc2@0", "embed", "embed+ln1@1", "ln1+mha+ln2+fc1+fc2"])
def test_exactly_the_selection_takes_gradients(model: VisionTransformer, text: str, train_head: bool) -> None:
    selection = parse_selection(text, num_blocks=3)
    names = unfreeze_only(model, selection, train_head=train_head)
    groups = group_parameters(model)
    wanted = {name for group in selection.groups for name in groups[group]}
    assert set(names) == wanted | (set(groups["head"]) if train_head else set())
    assert names == trained(model)
    numel = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert numel == count_trainable(selection, count_parameters(model), train_head=train_head)


def test_only_the_selection_gets_gradients(model: VisionTransformer) -> None:
    names = unfreeze_only(model, parse_selection("mha@1", num_blocks=3), train_head=True)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == names
    assert "blocks.1.attn.qkv.weight" in names


def test_none_is_a_linear_probe(model: VisionTransformer) -> None:
    names = unfreeze_only(model, parse_selection("none", num_blocks=3), train_head=True)
    assert names == trained(model) == ["norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_a_change_of_selection_leaves_no_stale_gradients(model: VisionTransformer) -> None:
    unfreeze_only(model, parse_selection("all", num_blocks=3), train_head=True)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    names = unfreeze_only(model, parse_selection("fc1@2", num_blocks=3), train_head=False)
    assert names == trained(model) == ["blocks.2.mlp.fc1.weight", "blocks.2.mlp.fc1.bias"]
    kept = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert set(kept) <= set(names)


def test_training_nothing_is_refused_and_changes_nothing(model: VisionTransformer) -> None:
    unfreeze_only(model, parse_selection("mha", num_blocks=3), train_head=True)
    before = trained(model)
    with pytest.raises(SelectionError, match=r"'none' with finetune\.train_head=false trains nothing"):
        unfreeze_only(model, parse_selection("none", num_blocks=3), train_head=False)
    assert trained(model) == before


@pytest.mark.parametrize("num_blocks", [2, 12])
def test_a_selection_for_another_depth_is_refused(model: VisionTransformer, num_blocks: int) -> None:
    with pytest.raises(SelectionError, match=f"{num_blocks} blocks, the model has 3"):
        unfreeze_only(model, parse_selection("mha", num_blocks=num_blocks), train_head=True)
