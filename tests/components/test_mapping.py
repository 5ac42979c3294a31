from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn

from unfreeze.components.mapping import (
    block_modules,
    check_supported,
    count_parameters,
    group_parameters,
)
from unfreeze.components.selection import count_trainable, parse_selection
from unfreeze.errors import ModelError
from unfreeze.records import COMPONENTS

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: timm.create_model("vit_tiny_patch16_224"),
    "distilled": lambda: timm.create_model("deit_tiny_distilled_patch16_224"),
    "deit3": lambda: timm.create_model("deit3_small_patch16_224"),
    "dinov2_reg4": lambda: timm.create_model("vit_small_patch14_reg4_dinov2"),
    "clip_norm_pre": lambda: timm.create_model("vit_base_patch32_clip_224"),
    "siglip_attn_pool": lambda: timm.create_model("vit_base_patch16_siglip_224"),
    "swiglu_packed": lambda: VisionTransformer(**SMALL, mlp_layer=SwiGLUPacked, init_values=1e-5, reg_tokens=4),
    "gap_without_class_token": lambda: VisionTransformer(**SMALL, class_token=False, global_pool="avg", fc_norm=True),
    "qk_norm": lambda: VisionTransformer(**SMALL, qk_norm=True),
    "no_bias_no_pos": lambda: VisionTransformer(**SMALL, qkv_bias=False, pos_embed="none"),
    "no_classifier": lambda: VisionTransformer(**{**SMALL, "num_classes": 0}),
    "eva02": lambda: timm.create_model("eva02_tiny_patch14_224"),
    "eva_fused_qkv": lambda: Eva(**SMALL, qkv_fused=True, init_values=0.1),
    "eva_separate_qkv": lambda: Eva(**SMALL, qkv_fused=False, swiglu_mlp=True, scale_mlp=True),
    "beit": lambda: Beit(**SMALL, init_values=0.1, use_rel_pos_bias=True),
    "beit_shared_bias": lambda: Beit(**SMALL, init_values=None, use_shared_rel_pos_bias=True, use_abs_pos_emb=True),
}


@cache
def build(name: str) -> nn.Module:
    with torch.device("meta"):  # no memory, no initialisation
        return MODELS[name]()


@pytest.mark.parametrize("name", MODELS)
def test_each_parameter_belongs_to_exactly_one_group(name: str) -> None:
    model = build(name)
    groups = group_parameters(model)
    counted = Counter(parameter for names in groups.values() for parameter in names)
    assert counted == Counter(parameter for parameter, _ in model.named_parameters())
    expected = {f"{block}.{component}" for block in range(len(model.blocks)) for component in COMPONENTS}  # type: ignore[arg-type]
    assert groups.keys() - {"embed", "head"} == expected
    assert all(groups.values())


@pytest.mark.parametrize("name", MODELS)
def test_the_modules_of_a_component_hold_its_parameters(name: str) -> None:
    model = build(name)
    groups = group_parameters(model)
    parameters = dict(model.named_parameters())
    blocks = list(block_modules(model))
    assert len(blocks) == len(model.blocks)  # type: ignore[arg-type]
    for index, block in enumerate(blocks):
        for component in COMPONENTS:
            found = getattr(block, component)
            modules = found if isinstance(found, tuple) else (found,)
            inside = {id(parameter) for module in modules for parameter in module.parameters()}
            assert inside
            assert inside <= {id(parameters[parameter]) for parameter in groups[f"{index}.{component}"]}


@pytest.mark.parametrize(
    ("name", "parameter", "group"),
    [
        ("plain", "blocks.10.norm1.bias", "10.ln1"),
        ("plain", "blocks.1.attn.proj.weight", "1.mha"),
        ("plain", "blocks.11.norm2.weight", "11.ln2"),
        ("plain", "blocks.0.mlp.fc1.bias", "0.fc1"),
        ("plain", "blocks.0.mlp.fc2.bias", "0.fc2"),
        ("plain", "cls_token", "embed"),
        ("plain", "pos_embed", "embed"),
        ("plain", "patch_embed.proj.bias", "embed"),
        ("plain", "norm.weight", "head"),
        ("plain", "head.weight", "head"),
        ("distilled", "dist_token", "embed"),
        ("distilled", "head_dist.bias", "head"),
        ("deit3", "blocks.3.ls1.gamma", "3.mha"),
        ("deit3", "blocks.3.ls2.gamma", "3.fc2"),
        ("dinov2_reg4", "reg_token", "embed"),
        ("clip_norm_pre", "norm_pre.weight", "embed"),
        ("siglip_attn_pool", "attn_pool.latent", "head"),
        ("siglip_attn_pool", "attn_pool.mlp.fc1.weight", "head"),
        ("gap_without_class_token", "fc_norm.weight", "head"),
        ("qk_norm", "blocks.1.attn.q_norm.weight", "1.mha"),
        ("eva02", "blocks.2.attn.qkv.weight", "2.mha"),
        ("eva_separate_qkv", "blocks.1.mlp.fc1_g.weight", "1.fc1"),
        ("eva_separate_qkv", "blocks.1.mlp.fc1_x.weight", "1.fc1"),
        ("eva_fused_qkv", "blocks.0.attn.qkv.weight", "0.mha"),
        ("eva_fused_qkv", "blocks.0.gamma_1", "0.mha"),
        ("eva_fused_qkv", "blocks.0.gamma_2", "0.fc2"),
        ("eva_separate_qkv", "blocks.1.attn.k_proj.weight", "1.mha"),
        ("eva_separate_qkv", "blocks.1.mlp.norm.weight", "1.fc2"),
        ("beit", "blocks.0.attn.relative_position_bias_table", "0.mha"),
        ("beit", "blocks.0.attn.q_bias", "0.mha"),
        ("beit", "blocks.1.gamma_2", "1.fc2"),
        ("beit_shared_bias", "rel_pos_bias.relative_position_bias_table", "embed"),
    ],
)
def test_where_a_parameter_belongs(name: str, parameter: str, group: str) -> None:
    assert parameter in group_parameters(build(name))[group]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "no single stack of transformer blocks"),
        (lambda: timm.create_model("convnext_atto"), "no single stack of transformer blocks"),
        (lambda: timm.create_model("resnet18"), "no single stack of transformer blocks"),
        (lambda: timm.create_model("mixer_s32_224"), "MixerBlock"),
        (lambda: timm.create_model("cait_xxs24_224"), "LayerScaleBlock"),
        (lambda: timm.create_model("xcit_nano_12_p16_224"), "XCABlock"),
        (lambda: timm.create_model("vit_relpos_small_patch16_224"), "RelPosBlock"),
        (lambda: VisionTransformer(**SMALL, block_fn=ParallelScalingBlock), "in parallel from one norm"),
        (lambda: VisionTransformer(**SMALL, block_fn=DiffParallelScalingBlock), "in parallel from one norm"),
        (lambda: VisionTransformer(**SMALL, block_fn=ParallelThingsBlock), "several attentions and MLPs in parallel"),
        (lambda: VisionTransformer(**SMALL, block_fn=ResPostBlock), "post-norm"),
        (lambda: Eva(**SMALL, use_post_norm=True), "post-norm"),
        (lambda: VisionTransformer(**{**SMALL, "depth": 0}), "no single stack of transformer blocks"),
        (lambda: nn.Linear(2, 2), "no single stack of transformer blocks"),
    ],
)
def test_other_architectures_are_refused_with_the_reason(make: Callable[[], nn.Module], reason: str) -> None:
    with torch.device("meta"):
        model = make()
    for act in (group_parameters, count_parameters):
        with pytest.raises(ModelError, match=reason) as caught:
            act(model)
        assert type(model).__name__ in str(caught.value)
        assert "supported are" in str(caught.value)


@pytest.mark.parametrize("place", ["", "blocks.1", "blocks.1.mlp", "patch_embed_extra"])
def test_an_unknown_parameter_is_named(place: str) -> None:
    model = VisionTransformer(**SMALL)
    model.patch_embed_extra = nn.Module()  # shares its beginning with a known name
    model.get_submodule(place).register_parameter("adapter", nn.Parameter(torch.zeros(2)))
    with pytest.raises(ModelError, match=rf"no known component: {f'{place}.adapter'.lstrip('.')}$"):
        group_parameters(model)


def test_all_unknown_parameters_are_named() -> None:
    model = VisionTransformer(**SMALL)
    model.register_parameter("one", nn.Parameter(torch.zeros(1)))
    model.blocks[0].register_parameter("two", nn.Parameter(torch.zeros(1)))
    with pytest.raises(ModelError, match=r"one, blocks\.0\.two"):
        group_parameters(model)


def test_a_component_without_parameters_is_named() -> None:
    model = VisionTransformer(**SMALL)
    model.blocks[1].norm2 = nn.LayerNorm(32, elementwise_affine=False)
    with pytest.raises(ModelError, match=r"no parameters for 1\.ln2"):
        group_parameters(model)


def test_counts_are_those_of_the_paper_for_vit_base() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=10)
    counts = count_parameters(model)
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert counts["5.ln1"] == counts["5.ln2"] == 1536
    assert counts["5.mha"] == 2_362_368
    assert counts["5.fc1"] == 768 * 3072 + 3072
    assert counts["5.fc2"] == 768 * 3072 + 768
    assert counts["head"] == 1536 + 7690


def test_trainable_counts() -> None:
    counts = count_parameters(VisionTransformer(**SMALL))
    everything = parse_selection("all", num_blocks=2)
    assert count_trainable(everything, counts, train_head=True) == sum(counts.values())
    assert count_trainable(everything, counts, train_head=False) == sum(counts.values()) - counts["head"]
    some = parse_selection("mha@1+fc2", num_blocks=2)
    assert count_trainable(some, counts, train_head=False) == counts["1.mha"] + counts["0.fc2"] + counts["1.fc2"]
    assert count_trainable(parse_selection("none", num_blocks=2), counts, train_head=True) == counts["head"]


def test_a_model_without_patches_of_one_size_is_refused() -> None:
    with pytest.raises(ModelError, match="NaFlexVit does not cut images of one size into patches; supported are"):
        check_supported(timm.create_model("naflexvit_base_patch16_gap", depth=1, embed_dim=64, num_heads=1))
