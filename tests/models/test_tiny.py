import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from scripts import load_script

from unfreeze.data.sets.embedded import GLYPH_CLASSES, render_glyphs
from unfreeze.models.tiny import tiny_weights_path


@pytest.fixture(scope="module")
def script() -> Any:
    """The script that made the weights, as a module."""
    return load_script("pretrain_tiny")


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads(tiny_weights_path().with_suffix(".json").read_text(encoding="utf-8"))


def test_weights_are_those_of_the_recorded_run(record: dict[str, Any]) -> None:
    content = tiny_weights_path().read_bytes()
    assert hashlib.sha256(content).hexdigest() == record["weights_sha256"]
    assert len(content) == record["weights_size_bytes"] <= 3_000_000


def test_record_holds_every_setting_of_the_shipped_recipe(script: Any, record: dict[str, Any]) -> None:
    assert record["recipe"] == {field.name: field.default for field in fields(script.Recipe)}
    assert record["classes"] == "".join(GLYPH_CLASSES)


def test_weights_load_strictly_and_recognise_fresh_glyphs(script: Any, record: dict[str, Any]) -> None:
    model = timm.create_model("unfreeze_tiny", num_classes=len(GLYPH_CLASSES), checkpoint_path=tiny_weights_path())
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert num_parameters == record["num_parameters"]
    assert 200_000 <= num_parameters <= 800_000

    images, labels, _ = render_glyphs(500, image_size=32, seed=987)
    expected = record["held_out_accuracy"]
    standard_error = (expected * (1 - expected) / len(labels)) ** 0.5
    assert abs(script.accuracy(model, images, labels) - expected) <= 3 * standard_error


def test_pretrained_gives_the_shipped_weights_and_a_new_classifier() -> None:
    shipped = load_file(tiny_weights_path())
    same = timm.create_model("unfreeze_tiny", pretrained=True).state_dict()
    assert same.keys() == shipped.keys()
    assert all(torch.equal(tensor, shipped[name].float()) for name, tensor in same.items())

    digits = timm.create_model("unfreeze_tiny", pretrained=True, num_classes=10)
    assert digits.head.weight.shape == (10, 64)
    for name, tensor in digits.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, shipped[name].float())


def test_input_settings_are_in_the_pretrained_cfg() -> None:
    model = timm.create_model("unfreeze_tiny", num_classes=10)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 32, 32)
    images, _, _ = render_glyphs(960, image_size=32, seed=5)
    scaled = images / 255
    assert config["mean"] == pytest.approx([scaled.mean()] * 3, abs=0.01)
    assert config["std"] == pytest.approx([scaled.std()] * 3, abs=0.01)


def test_another_image_size_resamples_the_positions() -> None:
    model = timm.create_model("unfreeze_tiny", pretrained=True, num_classes=10, img_size=48)
    assert model.pos_embed.shape == (1, 1 + 36, 64)
    assert model(torch.zeros(2, 3, 48, 48)).shape == (2, 10)


def test_pretraining_is_reproducible(script: Any, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        recipe = script.Recipe(num_train_images=192, num_held_out_images=38, epochs=2)
        first, second = (script.pretrain(recipe, tmp_path / name) for name in ("a", "b"))
    finally:
        torch.set_num_threads(threads)
    assert first["weights_sha256"] == second["weights_sha256"]
    assert first["classes"] == "".join(GLYPH_CLASSES)
