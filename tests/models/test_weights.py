"""Weights as people have them: other names, wrapped, in shards; and what is no weights at all."""

import json
import re
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from unfreeze.config import ModelConfig
from unfreeze.errors import ModelError
from unfreeze.models.build import BaseModel, build_model, input_size
from unfreeze.models.weightfile import note

SMALL: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
VIT, DISTILLED = "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"


def build(folder: Path, weights: Path | str, name: str = VIT, **settings: Any) -> BaseModel:
    kwargs = {**SMALL, **settings.pop("kwargs", {})}
    config = ModelConfig(name=name, weights=str(weights), kwargs=kwargs, image_size=32, **settings)
    return build_model(config, num_classes=5, cache_dir=folder)


def tensors_of(name: str = VIT, **kwargs: Any) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return timm.create_model(name, num_classes=7, img_size=32, **{**SMALL, **kwargs}).state_dict()


def saved(folder: Path, content: Any, name: str = "w.pth") -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.endswith(".safetensors"):
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def assert_loaded(base: BaseModel, tensors: dict[str, Tensor]) -> None:
    for name, value in base.module.state_dict().items():
        assert name in base.classifier or torch.equal(value, tensors[name]), name


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def as_transformers_has_it(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ViT of timm's under Hugging Face's names, with what their models hold besides."""
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    found = {"pooler.dense.weight": torch.zeros(32, 32), "pooler.dense.bias": torch.zeros(32)}
    for name, value in tensors.items():
        if "qkv" in name:
            for part, own in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[name.replace("attn.qkv", f"attention.attention.{part}")] = own.clone()
            continue
        for ours, theirs in names.items():
            name = re.sub(rf"(^|\.){re.escape(ours)}(\.|$)", rf"\1{theirs}\2", name)
        found[re.sub(r"^norm\.", "layernorm.", name)] = value
    return {re.sub(r"^blocks\.", "encoder.layer.", name): value for name, value in found.items() if "head" not in name}


@pytest.mark.parametrize(
    "prefix", ["backbone.", "model.", "module.", "teacher.", "student.", "visual.trunk.", "module.backbone."]
)
def test_a_common_prefix_is_stripped_and_said(tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    note.cache_clear()
    tensors = tensors_of()
    others = {} if prefix in ("module.", "visual.trunk.") else {"projection.weight": torch.zeros(3, 3)}
    assert_loaded(build(tmp_path, saved(tmp_path, prefixed(tensors, prefix) | others)), tensors)
    assert f"the prefix {prefix!r} is stripped from {len(tensors)} names" in caplog.text
    assert ("left out projection.weight, which lack it" in caplog.text) == bool(others)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": w, "args": Namespace(lr=0.1)},
        lambda w: {"student": {}, "teacher": prefixed(w, "backbone.")},
        lambda w: {"student": prefixed({n: v + 1 for n, v in w.items()}, "module.backbone."), "teacher": w},
        lambda w: prefixed(w, "teacher.") | prefixed({n: v + 1 for n, v in w.items()}, "student."),
        lambda w: {"model": {n: v + 1 for n, v in w.items()}, "model_ema": w},
        lambda w: {"epoch": 3, "optimizer": {"state": {0: w}, "param_groups": []}, "model_state_dict": w},
        lambda w: {"run": {"net": {"params": w}}},
        lambda w: w | {"decoder_embed.weight": w["norm.weight"], "decoder_blocks.0.norm1.weight": w["norm.weight"]},
    ],
)
def test_wrapped_weights_are_found(tmp_path: Path, wrap: Any) -> None:
    tensors = tensors_of()
    assert_loaded(build(tmp_path, saved(tmp_path, wrap(tensors))), tensors)


def test_several_models_are_not_chosen_between(tmp_path: Path) -> None:
    both = prefixed(tensors_of(), "first.") | prefixed(tensors_of(), "second.")
    with pytest.raises(ModelError, match=r"w\.pth holds 64 tensors.*several models lie in it, as first\., second\."):
        build(tmp_path, saved(tmp_path, both))


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_names_of_transformers_are_known(tmp_path: Path, prefix: str) -> None:
    tensors = tensors_of()
    file = prefixed(as_transformers_has_it(tensors), prefix) | {"classifier.weight": torch.zeros(2, 32)}
    file.pop("classifier.weight") if not prefix else None
    assert_loaded(build(tmp_path, saved(tmp_path, file, "model.safetensors")), tensors)


def test_torchvisions_names_are_known(tmp_path: Path) -> None:
    """Its own model says the same of an image as ours with its weights."""
    torch.manual_seed(4)
    theirs = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 128, num_classes=5).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    base = build(tmp_path, saved(tmp_path, theirs.state_dict()))
    base.module.load_state_dict({f"head.{n}": v for n, v in theirs.heads.head.state_dict().items()}, strict=False)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(base.module(images), theirs(images), atol=1e-4)


def test_shards_are_put_together(tmp_path: Path) -> None:
    tensors = tensors_of()
    halves = {f"model-0000{i}-of-2.safetensors": dict(list(tensors.items())[i::2]) for i in (0, 1)}
    for name, half in halves.items():
        saved(tmp_path, half, name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {n: f for f, half in halves.items() for n in half}}))
    assert_loaded(build(tmp_path, index), tensors)
    (tmp_path / "model-00001-of-2.safetensors").unlink()
    with pytest.raises(ModelError, match="model-00001-of-2"):
        build(tmp_path, index)


def test_layer_scale_by_either_name(tmp_path: Path) -> None:
    tensors = tensors_of("deit3_small_patch16_224")
    official = {re.sub(r"ls([12])\.gamma", r"gamma_\1", name): value for name, value in tensors.items()}
    assert official.keys() != tensors.keys()
    assert_loaded(build(tmp_path, saved(tmp_path, official), name="deit3_small_patch16_224"), tensors)


@pytest.mark.parametrize(("name", "content"), [("x.bin", "safetensors"), ("x.safetensors", "pth")])
def test_the_ending_does_not_matter(tmp_path: Path, name: str, content: str) -> None:
    tensors = tensors_of()
    written = saved(tmp_path, tensors, f"w.{content}")
    assert_loaded(build(tmp_path, written.rename(tmp_path / name)), tensors)


def archive_of(folder: Path, name: str, content: bytes = b"") -> bytes:
    with zipfile.ZipFile(folder / "archive", "w") as archive:
        archive.writestr(name, content)
    return (folder / "archive").read_bytes()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b'{"architectures": ["ViTModel"]}', "a JSON file with architectures, not weights"),
        (b'{"weight_map"', "text that looks like JSON"),
        (b"\x1f\x8b\x08\x00" + b"0" * 600, "a compressed archive"),
        (b"no weights", r"neither a safetensors file nor a PyTorch checkpoint: it begins with b'no weights'"),
        ((1000).to_bytes(8, "little") + b'{"a": 1', "ends within its header"),
        ("npz", "holds 1 tensor, a; these do not fit VisionTransformer: missing cls_token"),
        ("zip", "a ZIP archive of weights.bin"),
        ("cut", "cut short or damaged"),
        (b"PK\x03\x04" + b"0" * 600, "a PyTorch checkpoint or another ZIP archive that is cut short"),
        (b"GGUF\x03\x00\x00\x00" + b"0" * 600, "a file of GGUF, which is quantized"),
        (b"\x89HDF\r\n\x1a\n" + b"0" * 600, "a file of HDF5, as Keras has it"),
        (b'{"weight_map": {}}', "an index that names no shard"),
        (b'{"weight_map": {"a": "one.bin"}}', "an index of 1 shards, of which one.bin fails: no such weights file"),
        ("pickle", "objects"),
        ("none", r"w\.pth holds no tensors: there is epoch"),
        ("list", r"w\.pth holds a list"),
    ],
)
def test_what_is_no_weights_is_recognised(tmp_path: Path, content: bytes | str, says: str) -> None:
    if content == "npz":
        np.savez(tmp_path / "w.npz", a=np.zeros(3))
        content = (tmp_path / "w.npz").read_bytes()
    elif content == "zip":
        content = archive_of(tmp_path, "weights.bin", b"1")
    elif content == "cut":
        path = saved(tmp_path, tensors_of(), "w.safetensors")
        content = path.read_bytes()[:-100]
    made: Any = {"pickle": {"model": tensors_of(), "when": Path()}, "none": {"epoch": 3}, "list": [1]}
    with pytest.raises(ModelError, match=says) as caught:
        build(tmp_path, saved(tmp_path, made.get(content, content)))
    assert str(caught.value).startswith(str(tmp_path / "w.pth"))
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: {n: v.to("meta") for n, v in w.items()}, "tensors without values"),
        (lambda w: {**w, "norm.weight": w["norm.weight"].to_sparse()}, "tensors that are sparse.*1 of 32, norm.weight"),
        (lambda w: {n: (100 * v).to(torch.int8) for n, v in w.items()}, "tensors of integers"),
        (lambda w: {n: v.to(torch.int8) if n == "norm.weight" else v for n, v in w.items()}, "integers.*norm.weight"),
        (lambda w: {**w, "dist_token": w["cls_token"]}, "a distilled ViT of 2 blocks.*choose a _distilled_ model.name"),
        (lambda w: {**w, "pos_embed": w["pos_embed"][:, 1:]}, r"pos_embed is \(1, 16, 32\), the model's \(1, 17, 32\)"),
        (lambda w: {**w, "norm.weight": w["norm.weight"] + 0j}, "complex numbers.*1 of 32, norm.weight"),
        (lambda w: {"teacher_net": w, "student_net": w}, "several dictionaries of tensors, teacher_net, student_net"),
        (
            lambda w: {f"layers.{i}.{n}": v for i in "01" for n, v in w.items()},
            r"holds 64 tensors, such as layers\.0\.",
        ),
        (lambda w: {"text.a": torch.zeros(1), "b": torch.zeros(1)}, r"holds 2 tensors, text\.a, b; these do not fit"),
    ],
)
def test_a_refusal_begins_with_what_the_file_holds(tmp_path: Path, change: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        build(tmp_path, saved(tmp_path, change(tensors_of())))
    assert str(caught.value).startswith(f"{tmp_path / 'w.pth'} holds ")


def test_a_plain_file_does_not_fill_a_distilled_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="without a distillation token, and VisionTransformerDistilled has one"):
        build(tmp_path, saved(tmp_path, tensors_of()), name=DISTILLED)


def test_patches_are_resampled_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path, tensors_of(patch_size=16))
    with pytest.raises(ModelError, match=r"patches of 16 px, but the model's patches are 8 px.*resample_patches=true"):
        build(tmp_path, path)
    assert build(tmp_path, path, resample_patches=True).module.patch_embed.proj.weight.shape == (32, 3, 8, 8)  # type: ignore[union-attr]


def test_a_folder_is_answered_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(ModelError, match=r"is a folder with config\.json; give the file"):
        build(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kwargs": {"in_chans": 1}}, "in_chans.*cannot take an RGB image of 32 px"),
        ({"kwargs": {"global_pool": ""}}, r"global_pool.*gives \(1, 17, 5\) for an image and 5 classes"),
        ({"kwargs": {"patch_size": 12}}, r"image_size=32 is no multiple of the patch .* 12 px.*choose 24 or 36"),
    ],
)
def test_a_model_that_cannot_classify_an_image_is_refused(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        build(tmp_path, "random", **settings)
    assert "\n" not in str(caught.value)


def test_a_model_of_a_folder_needs_no_image_size(tmp_path: Path) -> None:
    module = timm.create_model(VIT, num_classes=3, img_size=48, **SMALL)
    timm.models.save_for_hf(module, str(tmp_path / "hub"), safe_serialization=True)
    config = ModelConfig(name=f"local-dir:{tmp_path / 'hub'}")
    assert input_size(config) == 48
    assert_loaded(build_model(config, num_classes=5, cache_dir=tmp_path), module.state_dict())
    with pytest.raises(ModelError, match="Config file not found") as caught:
        input_size(ModelConfig(name=f"local-dir:{tmp_path}/nowhere"))
    assert "timm knows no model" not in str(caught.value)


HIDDEN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "config", "name", "kwargs"),
    [
        ("ViT", {}, VIT, {"mlp_ratio": 2}),
        ("DeiT", {}, DISTILLED, {"mlp_ratio": 2}),
        ("Dinov2", {}, "vit_small_patch14_dinov2", {}),
        ("Dinov2", {"use_swiglu_ffn": True}, "vit_giant_patch14_dinov2", {"mlp_ratio": 5.5}),
        ("Dinov2WithRegisters", {}, "vit_small_patch14_reg4_dinov2", {}),
        ("Beit", {"use_relative_position_bias": True, "use_mean_pooling": False}, "beit_base_patch16_224", {}),
    ],
)
def test_models_of_transformers_compute_the_same_here(
    tmp_path: Path, kind: str, config: dict[str, Any], name: str, kwargs: dict[str, Any]
) -> None:
    import transformers

    torch.manual_seed(0)
    settings = {**HIDDEN, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6, **config}
    theirs = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    if kind == "Beit":
        kwargs = {"mlp_ratio": 2}
    ours = build(tmp_path, tmp_path / "model.safetensors", name=name, kwargs=kwargs).module
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
        found = ours.forward_features(images)  # type: ignore[operator]
        if kind == "Beit":  # timm's norm comes after the average over tokens
            found = torch.nn.functional.layer_norm(found, (32,), ours.fc_norm.weight, ours.fc_norm.bias, 1e-6)  # type: ignore[union-attr]
    assert torch.allclose(found, expected, atol=1e-4), (found - expected).abs().max()


# --- other frameworks and families ------------------------------------------------------------------------------------


def as_jax_has_it(prefix: str = "", *, mlp: str = "MlpBlock_3", second: str = "LayerNorm_2") -> dict[str, np.ndarray]:
    """Random arrays under the names and in the shapes of Google's archives: 2 blocks, 2 heads of 16."""
    rng = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {"cls": (1, 1, 32), "embedding/kernel": (8, 8, 3, 32), "embedding/bias": (32,)}
    position = "pos_embedding" if prefix.startswith("params/") else "Transformer/posembed_input/pos_embedding"
    shapes |= {position: (1, 17, 32), "Transformer/encoder_norm/scale": (32,), "Transformer/encoder_norm/bias": (32,)}
    attention = "MultiHeadDotProductAttention_1" if mlp == "MlpBlock_3" else "MultiHeadDotProductAttention_0"
    for block in range(2):
        own = f"Transformer/encoderblock_{block}"
        for norm in ("LayerNorm_0", second):
            shapes |= {f"{own}/{norm}/scale": (32,), f"{own}/{norm}/bias": (32,)}
        for part in ("query", "key", "value"):
            shapes |= {f"{own}/{attention}/{part}/kernel": (32, 2, 16), f"{own}/{attention}/{part}/bias": (2, 16)}
        shapes |= {f"{own}/{attention}/out/kernel": (2, 16, 32), f"{own}/{attention}/out/bias": (32,)}
        shapes |= {f"{own}/{mlp}/Dense_0/kernel": (32, 128), f"{own}/{mlp}/Dense_0/bias": (128,)}
        shapes |= {f"{own}/{mlp}/Dense_1/kernel": (128, 32), f"{own}/{mlp}/Dense_1/bias": (32,)}
    shapes |= {"head/kernel": (32, 7), "head/bias": (7,)}
    return {f"{prefix}{name}": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "arrays",
    [
        as_jax_has_it() | {"pre_logits/kernel": np.zeros((32, 32), np.float32)},  # google/vit…-in21k
        as_jax_has_it("opt/target/"),
        as_jax_has_it("params/", mlp="MlpBlock_0", second="LayerNorm_1"),  # big_vision
    ],
    ids=["in21k", "training state", "big_vision"],
)
def test_googles_archives_are_read_as_timm_reads_them(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "vit.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    reference = timm.create_model(VIT, num_classes=7, img_size=32, **SMALL)
    reference.load_pretrained(str(path))
    assert_loaded(build(tmp_path, path), reference.state_dict())


def test_an_archive_in_bfloat16_and_one_of_another_model(tmp_path: Path) -> None:
    arrays = as_jax_has_it()
    halves = {name: torch.from_numpy(array).bfloat16() for name, array in arrays.items()}
    raw = {name: value.view(torch.int16).numpy().view("V2") for name, value in halves.items()}
    np.savez(tmp_path / "half.npz", **raw)  # type: ignore[arg-type]
    np.savez(tmp_path / "whole.npz", **{name: value.float().numpy() for name, value in halves.items()})  # type: ignore[arg-type]
    assert_loaded(build(tmp_path, tmp_path / "half.npz"), build(tmp_path, tmp_path / "whole.npz").module.state_dict())
    np.savez(tmp_path / "hybrid.npz", **arrays, **{"conv_root/kernel": np.zeros((7, 7, 3, 64))})  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"holds 41 tensors, .*conv_root/kernel is no part of a Vision Transformer"):
        build(tmp_path, tmp_path / "hybrid.npz")


def dinov3_as_transformers_has_it(tensors: dict[str, Tensor], *, bias: float) -> dict[str, Tensor]:
    """A DINOv3 of timm's under Hugging Face's names, with its mask token and the biases of query and value."""
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings",
        "cls_token": "embeddings.cls_token",
        "reg_token": "embeddings.register_tokens",
        "attn.proj": "attention.o_proj",
        "attn.q_bias": "attention.q_proj.bias",
        "attn.v_bias": "attention.v_proj.bias",
        "gamma_1": "layer_scale1.lambda1",
        "gamma_2": "layer_scale2.lambda1",
        "mlp.fc1_g": "mlp.gate_proj",
        "mlp.fc1_x": "mlp.up_proj",
        "mlp.fc1": "mlp.up_proj",
        "mlp.fc2": "mlp.down_proj",
    }
    found = {"embeddings.mask_token": torch.zeros(1, 1, 32)}
    for name, value in tensors.items():
        if name.endswith("qkv.weight"):
            for part, own in zip("qkv", value.chunk(3), strict=True):
                found[name.replace("attn.qkv", f"attention.{part}_proj")] = own.clone()
            for part in "qv":
                found.setdefault(
                    name.replace("attn.qkv.weight", f"attention.{part}_proj.bias"), torch.full((32,), bias)
                )
            continue
        for ours, theirs in names.items():
            name = re.sub(rf"(^|\.){re.escape(ours)}(\.|$)", rf"\1{theirs}\2", name)
        found[name] = value
    return {re.sub(r"^blocks\.", "layer.", name): value for name, value in found.items() if "head" not in name}


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3_qkvb"])
def test_dinov3_as_hugging_face_has_it(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = tensors_of(name)
    tensors |= {key: torch.randn_like(value) for key, value in tensors.items() if value.ndim < 2}
    path = saved(tmp_path, dinov3_as_transformers_has_it(tensors, bias=0.0), "model.safetensors")
    assert_loaded(build(tmp_path, path, name), tensors)
    assert not capsys.readouterr().out
    if not name.endswith("qkvb"):
        path = saved(tmp_path, dinov3_as_transformers_has_it(tensors, bias=0.5), "biased.safetensors")
        with pytest.raises(ModelError, match=r"query and value are not 0; choose the model\.name with _qkvb"):
            build(tmp_path, path, name)
