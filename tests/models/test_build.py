from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unfreeze.config import ModelConfig
from unfreeze.errors import ModelError
from unfreeze.models.build import BaseModel, build_model, init_classifier, input_size, parameter_dict, weights_digest
from unfreeze.models.tiny import tiny_weights_path

DEIT_TINY = Path(__file__).resolve().parents[2].parent / "shared/real/weights/deit_tiny_patch16_224.safetensors"
SMALL_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def build(folder: Path, *, num_classes: int = 5, **settings: Any) -> BaseModel:
    return build_model(ModelConfig(**settings), num_classes=num_classes, cache_dir=folder)


@pytest.fixture
def shipped() -> dict[str, Tensor]:
    return {name: value.float() for name, value in load_file(tiny_weights_path()).items()}


def saved(folder: Path, state: dict[str, Any], name: str = "weights.safetensors") -> str:
    if name.endswith(".safetensors"):
        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    return str(folder / name)


def test_the_embedded_model_comes_with_its_weights(tmp_path: Path, shipped: dict[str, Tensor]) -> None:
    base = build(tmp_path, num_classes=10)
    state = base.module.state_dict()
    assert base.classifier == ("head.weight", "head.bias")
    assert base.module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert not base.module.training
    for name, value in shipped.items():
        if name not in base.classifier:
            assert torch.equal(state[name], value)
    assert (base.spec.image_size, base.spec.mean, base.spec.std) == (32, (0.22,) * 3, (0.33,) * 3)


def test_facts_describe_the_model(tmp_path: Path) -> None:
    base = build(tmp_path, num_classes=10)
    assert base.facts.name == "unfreeze_tiny"
    assert base.facts.num_blocks == 6
    assert base.facts.image_size == 32
    assert base.facts.num_parameters == sum(parameter.numel() for parameter in base.module.parameters())
    again = timm.create_model(base.facts.name, **base.facts.create_kwargs)
    again.load_state_dict(base.module.state_dict(), strict=True)


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build(tmp_path, weights="random")
    assert torch.equal(torch.rand(3), expected)


def test_random_weights_are_the_same_each_time(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = build(tmp_path, weights="random")
    torch.manual_seed(2)
    again = build(tmp_path, weights="random")
    other = again.module.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in first.module.state_dict().items())
    assert first.facts.digest == again.facts.digest != build(tmp_path).facts.digest


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_weights_come_from_a_file(tmp_path: Path, shipped: dict[str, Tensor], name: str) -> None:
    shipped["blocks.0.norm1.bias"] = torch.full((64,), 0.5)
    base = build(tmp_path, weights=saved(tmp_path, shipped, name))
    assert (base.module.blocks[0].norm1.bias == 0.5).all()  # type: ignore[index,union-attr]
    assert base.facts.digest != build(tmp_path).facts.digest


def test_a_training_checkpoint_is_unwrapped(tmp_path: Path, shipped: dict[str, Tensor]) -> None:
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in shipped.items()}}
    assert build(tmp_path, weights=saved(tmp_path, wrapped, "w.pth")).facts.digest == build(tmp_path).facts.digest


def test_a_file_without_classifier_serves(tmp_path: Path, shipped: dict[str, Tensor]) -> None:
    body = {name: value for name, value in shipped.items() if not name.startswith("head.")}
    assert build(tmp_path, weights=saved(tmp_path, body)).facts.digest == build(tmp_path).facts.digest


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"blocks.2.mlp.fc1.bias": None}, "missing blocks.2.mlp.fc1.bias"),
        ({"norm.weight": None, "cls_token": None}, "missing cls_token; missing norm.weight"),
        ({"blocks.6.norm1.bias": torch.zeros(64)}, "unexpected blocks.6.norm1.bias"),
        ({"header.weight": torch.zeros(1)}, "unexpected header.weight"),
        ({"norm.bias": torch.zeros(63)}, "norm.bias is (63,), the model's (64,)"),
        ({"pos_embed": torch.zeros(1, 19, 64)}, "19"),
        ({"pos_embed": torch.zeros(1, 17, 63)}, "pos_embed is (1, 17, 63), the model's (1, 17, 64)"),
        ({"patch_embed.proj.weight": torch.zeros(64, 1, 8, 8)}, "patch_embed.proj.weight is (64, 1, 8, 8)"),
        ({"norm.bias": torch.full((64,), float("nan"))}, "NaN or infinity in norm.bias"),
        ({"blocks.1.attn.qkv.weight": torch.full((192, 64), float("inf"))}, "NaN or infinity in blocks.1.attn.qkv"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, shipped: dict[str, Tensor], change: dict[str, Tensor | None], says: str
) -> None:
    state = {name: value for name, value in {**shipped, **change}.items() if value is not None}
    with pytest.raises(ModelError) as caught:
        build(tmp_path, weights=saved(tmp_path, state))
    assert says in str(caught.value)


def test_a_fresh_classifier_may_replace_a_broken_one(tmp_path: Path, shipped: dict[str, Tensor]) -> None:
    shipped["head.bias"] = torch.full((38,), float("nan"))
    assert build(tmp_path, weights=saved(tmp_path, shipped)).facts.digest == build(tmp_path).facts.digest


def test_weights_of_another_model_are_listed_in_part(tmp_path: Path, shipped: dict[str, Tensor]) -> None:
    path = saved(tmp_path, shipped)
    with pytest.raises(ModelError, match=r"do not fit VisionTransformer: .*; and \d+ more"):
        build(tmp_path, name="vit_tiny_patch16_224", weights=path, kwargs={**SMALL_VIT})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pos_embed_odd.safetensors", {"pos_embed": torch.zeros(17, 64)}),
        ("patch_embed_odd.safetensors", {"patch_embed.proj.weight": torch.zeros(64, 7)}),
    ],
)
def test_weights_that_cannot_be_translated_are_a_model_error(
    tmp_path: Path, shipped: dict[str, Tensor], name: str, change: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=name):
        build(tmp_path, weights=saved(tmp_path, {**shipped, **change}, name))


@pytest.mark.parametrize("content", [b"", b"no weights", b"<html>404</html>" * 100])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"^{tmp_path / name} is (an empty file|neither a safetensors|a web page)"):
        build(tmp_path, weights=str(tmp_path / name))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.pth"):
        build(tmp_path, weights=str(tmp_path / "nowhere.pth"))


def test_an_unknown_model_comes_with_suggestions(tmp_path: Path) -> None:
    for act in (lambda: build(tmp_path, name="deit_tny"), lambda: input_size(ModelConfig(name="deit_tny"))):
        with pytest.raises(ModelError, match=r"timm knows no model 'deit_tny'; did you mean .*deit_tiny"):
            act()


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("unfreze_tiny", "unfreeze_tiny"),
        ("deit_tiny_patch16_244", "deit_tiny_patch16_224"),
        ("vit_bse_patch16_224", "vit_base_patch16_224"),
    ],
)
def test_a_typo_is_recognised(typo: str, meant: str) -> None:
    with pytest.raises(ModelError, match=meant):
        input_size(ModelConfig(name=typo))


def test_an_unknown_tag_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="nonsense"):
        input_size(ModelConfig(name="deit_tiny_patch16_224.nonsense"))


@pytest.mark.parametrize("kwargs", [{"dpeth": 3}, {"num_heads": 3}, {"num_classes": 4}])
def test_wrong_model_arguments_are_a_model_error(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="unfreeze_tiny"):
        build(tmp_path, kwargs=kwargs)


def test_an_unsupported_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="supported are"):
        build(tmp_path, name="resnet18", weights="random")


def test_input_size_is_known_without_building() -> None:
    assert input_size(ModelConfig()) == 32
    assert input_size(ModelConfig(image_size=48)) == 48
    assert input_size(ModelConfig(name="vit_tiny_patch16_384")) == 384
    assert input_size(ModelConfig(name="vit_base_patch16_224.augreg_in21k")) == 224


@pytest.mark.parametrize("image_size", [16, 48, 64])
def test_position_embeddings_are_resampled_for_another_image_size(
    tmp_path: Path, shipped: dict[str, Tensor], image_size: int
) -> None:
    base = build(tmp_path, image_size=image_size)
    position = base.module.state_dict()["pos_embed"]
    assert position.shape == (1, 1 + (image_size // 8) ** 2, 64)
    assert base.spec.image_size == base.facts.image_size == image_size
    assert base.module(torch.zeros(1, 3, image_size, image_size)).shape == (1, 5)
    assert torch.equal(position[:, :1], shipped["pos_embed"][:, :1])
    spread = position[:, 1:].std() / shipped["pos_embed"][:, 1:].std()
    assert 0.3 < float(spread) < 1.2


def test_an_image_size_among_the_model_arguments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.image_size, but got model\.kwargs\.img_size=64"):
        build(tmp_path, kwargs={"img_size": 64})


def test_what_is_no_tensor_in_a_checkpoint_is_left_out(tmp_path: Path, shipped: dict[str, Tensor]) -> None:
    with_epoch = build(tmp_path, weights=saved(tmp_path, {**shipped, "epoch": 3}, "w.pth"))
    assert with_epoch.facts.digest == build(tmp_path).facts.digest


def test_the_fresh_classifier_is_a_function_of_the_seed(tmp_path: Path) -> None:
    heads = []
    for seed in (3, 3, 4):
        base = build(tmp_path, num_classes=50)
        torch.manual_seed(len(heads))
        init_classifier(base.module, base.classifier, seed=seed)
        heads.append(base.module.head)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)
    assert (heads[0].bias == 0).all()
    assert 0.015 < float(heads[0].weight.detach().std()) < 0.025
    assert heads[0].weight.requires_grad


def test_a_fresh_classifier_leaves_the_rest_alone(tmp_path: Path) -> None:
    base = build(tmp_path)
    init_classifier(base.module, base.classifier, seed=0)
    assert weights_digest(base.module, leave_out=base.classifier) == base.facts.digest


def test_two_classifiers_are_both_fresh_and_different(tmp_path: Path) -> None:
    base = build(tmp_path, name="deit_tiny_distilled_patch16_224", weights="random", kwargs={"depth": 1})
    assert set(base.classifier) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    init_classifier(base.module, base.classifier, seed=0)
    parameters = parameter_dict(base.module, list(base.classifier))
    assert list(parameters) == list(base.classifier)
    assert not torch.equal(parameters["head.weight"], parameters["head_dist.weight"])
    assert (parameters["head_dist.bias"] == 0).all()


def test_the_digest_ignores_the_classifier_and_nothing_else(tmp_path: Path) -> None:
    base = build(tmp_path, num_classes=10)
    assert base.facts.digest == build(tmp_path, num_classes=3).facts.digest
    seen = {base.facts.digest}
    for name, parameter in base.module.named_parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        digest = weights_digest(base.module, leave_out=base.classifier)
        assert (digest in seen) == (name in base.classifier)
        seen.add(digest)


def test_the_digest_tells_precision(tmp_path: Path) -> None:
    module = build(tmp_path).module
    before = weights_digest(module)
    assert weights_digest(module.bfloat16()) != before


@pytest.mark.real
@pytest.mark.skipif(not DEIT_TINY.is_file(), reason=f"the real weights are not at {DEIT_TINY}")
def test_real_deit_tiny_loads_strictly(tmp_path: Path) -> None:
    base = build(tmp_path, name="deit_tiny_patch16_224", weights=str(DEIT_TINY), num_classes=12)
    state, file = base.module.state_dict(), load_file(DEIT_TINY)
    assert file.keys() == state.keys()
    assert all(torch.equal(state[name], value) for name, value in file.items() if name not in base.classifier)
    assert base.facts.num_blocks == 12
    assert base.facts.num_parameters == 5_717_416 - 1000 * 193 + 12 * 193
    smaller = build(tmp_path, name="deit_tiny_patch16_224", weights=str(DEIT_TINY), num_classes=12, image_size=96)
    assert smaller.module(torch.zeros(1, 3, 96, 96)).shape == (1, 12)
    assert smaller.facts.digest != base.facts.digest
