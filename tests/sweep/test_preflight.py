"""What is known to be wrong before anything starts, all of it in one message."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from configuring import run_entry
from PIL import Image
from safetensors.torch import save_file

from unfreeze.config import Config, ModelConfig
from unfreeze.errors import ConfigError, SweepMismatchError
from unfreeze.load import load_config
from unfreeze.models.check import model_problems
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.preflight import check_inputs, check_sweep

VIT = {"name": "vit_tiny_patch16_224", "weights": "random", "kwargs": {"depth": 2, "embed_dim": 32, "num_heads": 2}}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for place in ("train/a", "train/b", "val/a", "val/b", "source"):
        (tmp_path / "images" / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / place / "1.png")
    return tmp_path / "images"


def configured(folder: Path, **data: Any) -> Config:
    settings = {"name": "folder", "train": f"{folder}/train", "source_path": f"{folder}/source", **data}
    return load_config({"storage": f"{folder}/runs", "model": VIT, "data": settings})


def problems_of(config: Config, *selections: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_inputs(config, selections=[*selections])
    heading, first = str(caught.value).split(", nothing was started: ")
    lines = [line.strip() for line in first.splitlines()]
    assert heading == f"{len(lines)} problems"
    return lines


def test_what_is_sound_passes(tree: Path) -> None:
    check_inputs(configured(tree, val=f"{tree}/val"), selections=["mha@1", "all"])
    check_inputs(load_config({"storage": str(tree / "runs")}), selections=["all"])


def test_everything_is_said_at_once(tree: Path, tmp_path: Path) -> None:
    (tree / "empty").mkdir()
    (tree / "val" / "c").mkdir()
    Image.new("RGB", (8, 8)).save(tree / "val" / "c" / "1.png")
    (tmp_path / "weights.pth").write_bytes(b"")
    config = configured(tree, val=f"{tree}/val", source_path=f"{tree}/empty")
    config.storage, config.model.weights = "/dev/null/runs", str(tmp_path / "weights.pth")
    said = problems_of(config, "mha@7", "fc1:lora(64)")
    assert [any(part in line for line in said) for part in ("/dev/null/runs", "training images lack: c")] == [
        True,
        True,
    ]
    assert f"data.source_path: no image lies below {tree}/empty" in said
    assert f"{tmp_path / 'weights.pth'} is an empty file; fetch the weights anew" in said
    assert any("blocks 7-7" in line and "mha@7" in line for line in said)
    assert any("lora(64)" in line for line in said)
    assert len(said) == 6


def test_a_wrong_model_does_not_hide_wrong_weights_and_places(tree: Path) -> None:
    config = configured(tree, train=f"{tree}/nowhere", source_path=f"{tree}/nor-there")
    config.model = ModelConfig(name="deit_tny", weights=f"{tree}/train/a/1.png")
    said = problems_of(config)
    assert said[0] == f"data.train: there is no folder {tree}/nowhere"
    assert said[1] == f"data.source_path: there is no folder {tree}/nor-there"
    assert said[2].startswith("timm knows no model 'deit_tny'; did you mean")
    assert said[3].startswith(f"{tree}/train/a/1.png is neither a safetensors file")


def test_a_name_that_timm_cannot_know_is_said_before_torch_is_loaded(tree: Path) -> None:
    """torch and timm alone take longer than a person waits for the answer to a slip of the fingers."""
    code = (
        "import sys\nfrom unfreeze.errors import ConfigError\nfrom unfreeze.load import load_config\n"
        "from unfreeze.sweep.preflight import check_sweep\n"
        f"model = dict(name='deit_tny', weights='{tree}/train/a/1.png')\n"
        f"data = dict(name='folder', path='{tree}', val='{tree}/nowhere', source_path='{tree}/source')\n"
        f"try:\n  check_sweep(load_config(dict(storage='{tree}/runs', model=model, data=data)))\n"
        "except ConfigError as error: print(error)\n"
        "print(*sys.modules.keys() & {'ray', 'torch', 'timm', 'torchvision', 'scipy', 'mlflow'})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heading, name, weights, loaded = done.stdout.splitlines()
    assert heading == f"3 problems, nothing was started: data.val: there is no folder {tree}/nowhere"
    assert name.startswith("  timm knows no model 'deit_tny'; did you mean deit_tiny_patch16_224, ")
    assert weights.startswith(f"  {tree}/train/a/1.png is neither a safetensors file")
    assert loaded == ""


def test_a_sweep_that_goes_on_is_not_asked_again(tree: Path, tmp_path: Path) -> None:
    config = configured(tree)
    Ledger(config.storage, config.sweep.name).claim(config)
    (tree / "source").rename(tmp_path / "gone")
    check_sweep(config)
    with pytest.raises(SweepMismatchError):
        check_sweep(configured(tree, source_path=f"{tree}/train"))


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"]
)
def test_a_model_is_looked_at_without_its_values(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unfreeze.models.check.build_model", None)  # would be the slow way
    assert list(model_problems(ModelConfig(name=name), ["all"], cache_dir=tmp_path)) == []


def test_weights_are_held_against_the_shapes(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1).state_dict()
    save_file(state, path)
    config = ModelConfig(name="vit_tiny_patch16_224", weights=str(path), kwargs={"depth": 1}, image_size=96)
    assert list(model_problems(config, [], cache_dir=tmp_path)) == []
    save_file({**state, "norm.weight": torch.zeros(5)}, path)
    (said,) = model_problems(config, [], cache_dir=tmp_path)
    assert said.startswith(f"{path} holds 20 tensors, a ViT of 1 blocks")
    assert said.endswith("norm.weight is (5,), the model's (192,)")


def test_selections_of_the_embedded_model_are_looked_at_too(tmp_path: Path) -> None:
    config = load_config({"storage": str(tmp_path), "search": {"baselines": ["all", "mha@99", "frobnicate"]}})
    with pytest.raises(ConfigError, match=r"2 problems(?s:.)*mha@99(?s:.)*unknown component 'frobnicate'"):
        check_sweep(config)


def test_the_command_answers_before_ray(tree: Path) -> None:
    code = "import sys, unfreeze.sweep.preflight; assert not {'ray', 'torch', 'timm'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
    done = run_entry(tree, "data=folder", "data.path=nowhere", f"data.source_path={tree}", f"storage={tree}/runs")
    assert done.returncode == 2
    assert done.stderr == f"error: data.path: there is no folder {tree}/nowhere\n"  # one problem, one line
    assert not (tree / "runs" / "sweep").exists()


def test_what_a_sweep_does_not_look_at_is_named(tmp_path: Path) -> None:
    raw = {"storage": str(tmp_path), "trial": {"selection": "mha"}, "probe": {"method": "logistic"}}
    with pytest.raises(ConfigError) as caught:
        check_sweep(load_config(raw))
    said = str(caught.value)
    assert "trial.selection=mha is read by nothing: a sweep chooses its own; sweeps/finetune.py is for that" in said
    assert "probe.method=logistic is read by nothing" in said
    check_inputs(load_config(raw), selections=["mha"])


def test_compiling_without_a_compiler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config({"storage": str(tmp_path / "runs"), "finetune": {"compile": True}})
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(
        ConfigError, match=r"^finetune\.compile=true needs a compiler, and there is no no-such-compiler or"
    ):
        check_sweep(config)
    (tmp_path / "bin/gcc").touch(mode=0o755)
    check_sweep(config)  # enough for a GPU
    config.cluster.gpus_per_worker = 0.0
    with pytest.raises(ConfigError, match=r"no no-such-compiler here: install one, name it by CXX, or"):
        check_sweep(config)
    config.finetune.compile = False
    check_sweep(config)
