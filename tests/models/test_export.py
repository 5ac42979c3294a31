"""The exported folder: what its config.json says, and what is done with it."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from configuring import SWEEPS
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import unfreeze
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.grey import White
from unfreeze.errors import DataError, ModelError
from unfreeze.library import load
from unfreeze.load import load_config
from unfreeze.models.export import crop_pct, write_export

CLASSES = ("cat", "dog, big", "x=y")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taken") / "away" / "export"
    folder.mkdir(parents=True)
    module = timm.create_model("unfreeze_tiny", pretrained=True, num_classes=3, img_size=48)
    torch.nn.init.normal_(module.head.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type, union-attr]
    spec = InputSpec(48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    reading = {"upright": True, "white": White(integer=1023)}
    write_export(folder, module, spec, classes=CLASSES, stored=64, crop_share=0.75, layer_norm_eps=1e-12, **reading)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name, size in (("b.png", (70, 50)), ("a b.JPG", (20, 90)), ("sub/c.png", (48, 48))):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_config_says_how_images_become_input(export: Path) -> None:
    said = json.loads((export / "config.json").read_text())
    assert said["architecture"] == "unfreeze_tiny"
    assert said["label_names"] == list(CLASSES)
    assert said["layer_norm_eps"] == 1e-12
    assert said["num_classes"] == 3
    model = timm.create_model(f"local-dir:{export}", pretrained=True)
    assert timm.data.resolve_model_data_config(model) == {
        "input_size": (3, 48, 48),
        "interpolation": "bilinear",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "crop_pct": 0.75,
        "crop_mode": "center",
    }


def test_files_are_read_as_the_set_was(export: Path, tmp_path: Path) -> None:
    """Grey of 10 bits of which this file uses the lower half, and a photograph that lies on its side."""
    grey = np.random.default_rng(1).integers(0, 512, (60, 60), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    Image.fromarray(np.rint(grey * (255 / 1023)).astype(np.uint8)).save(tmp_path / "flat.png")
    lying = Image.fromarray(np.random.default_rng(2).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "lying.png", exif=exif)
    lying.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    found = {Path(each.path).stem: each.probabilities for each in load(export).predict(tmp_path)}
    assert found["deep"] == pytest.approx(found["flat"])
    assert found["lying"] == pytest.approx(found["upright"])
    assert found["deep"] != pytest.approx(found["lying"])


@given(st.integers(8, 1024), st.floats(0.05, 1))
def test_timm_resizes_to_the_squares_that_were_stored(image_size: int, crop_share: float) -> None:
    stored = round(image_size / crop_share)
    assert math.floor(image_size / crop_pct(image_size, stored, crop_share)) == stored
    assert crop_pct(image_size, image_size, crop_share=1.0) == 1.0
    assert crop_pct(224, 256, 0.875) == 0.875


def test_predictions_are_those_of_timm(export: Path, images: Path) -> None:
    found = load(export).predict(images)
    assert [Path(each.path).name for each in found] == ["a b.JPG", "b.png", "c.png"]
    model = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    for each in found:
        with torch.inference_mode():
            row = model(transform(Image.open(each.path).convert("RGB"))[None]).softmax(1)[0]
        assert list(each.probabilities) == list(CLASSES)
        assert torch.allclose(torch.tensor(list(each.probabilities.values())), row, atol=1e-6)
        assert each.label == CLASSES[int(row.argmax())]
        assert each.probability == max(each.probabilities.values())
    assert [each.path for each in load(export).predict([images / "b.png"])] == [str(images / "b.png")]


def test_load_is_the_function_whatever_was_imported() -> None:
    assert load_config  # of unfreeze/load.py
    assert unfreeze.load is load  # type: ignore[comparison-overlap]


def test_what_cannot_be_predicted_is_named(export: Path, images: Path, tmp_path: Path) -> None:
    model = load(export)
    with pytest.raises(DataError, match=r"notes\.txt, .*nowhere\.png; 2 in all"):
        model.predict([images / "notes.txt", images / "b.png", tmp_path / "nowhere.png"])
    with pytest.raises(DataError, match="no images"):
        model.predict(tmp_path)
    (tmp_path / "cut.png").write_bytes((images / "b.png").read_bytes()[:4000])
    with pytest.raises(DataError, match=r"cut\.png cannot be read"):
        model.predict(tmp_path)


def test_a_folder_that_is_no_export_is_refused(export: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"did you mean .*away/export\?"):
        load(export.parent)
    with pytest.raises(ModelError, match=r"holds no exported model.*give the folder export/ of a sweep"):
        load(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((export / name).read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tmp_path)


def predict(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SWEEPS / "predict.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command(export: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    done = predict(f"model={export}", f"out={out}", str(images))
    assert (done.returncode, done.stdout) == (0, f"3 images: {out}\n"), done.stderr
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, each in zip(rows, load(export).predict(images), strict=True):
        assert (row["image"], row["class"]) == (each.path, each.label)
        assert float(row["probability"]) == pytest.approx(each.probability)
        assert [float(row[name]) for name in CLASSES] == pytest.approx(list(each.probabilities.values()))


def test_the_command_says_what_is_lacking(images: Path) -> None:
    done = predict(str(images))
    assert done.returncode == 2
    assert done.stderr.startswith("error: which model? model=FOLDER is lacking")
    assert len(done.stderr.splitlines()) == 1
