"""The real thing, without Ray: one trial's checkpoint is exported, and evaluated as others load it."""

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load

from unfreeze.data.sets.catalog import load_test, load_train_val
from unfreeze.errors import DataError
from unfreeze.finetune.loop import finetune
from unfreeze.finetune.warm import WarmModel
from unfreeze.load import load_config
from unfreeze.models.build import build_base
from unfreeze.records import DataFacts, FinalResult, Recommendation, TrialSpec
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.finalize import finalize
from unfreeze.sweep.probe import probe_once

SMALL_VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SHORT = {"epochs": 20.0, "batch_size": 12, "num_reports": 1}
# What anybody would write, from the export and the image files alone.
RECOMPUTE = """
import json, sys
import timm, torch
from PIL import Image
from torchvision.datasets import ImageFolder

def count(export, test):
    model = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = ImageFolder(test, transform)
    assert list(model.pretrained_cfg["label_names"]) == images.classes
    with torch.inference_mode():
        return sum(int(model(image[None]).argmax()) == label for image, label in images)

print(json.dumps([count(*case) for case in json.loads(sys.argv[1])]))
assert "unfreeze" not in sys.modules
"""


def write_tree(root: Path, *, num_train: int = 20, num_test: int = 40) -> Path:
    """Blurred colours of three classes, told apart by their tint, of many shapes and sizes."""
    random = np.random.default_rng(0)
    for part, count in (("train", num_train), ("val", num_train), ("test", num_test)):
        for label, name in enumerate("abc"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                coarse = random.integers(0, 200, (3, 4, 3)) + 56 * (np.arange(3) == label) * random.random()
                image = Image.fromarray(coarse.astype(np.uint8)).resize(random.integers(20, 90, 2).tolist())
                image.save(folder / f"{index}.png")
    return root


def train_and_finalize(folder: Path, selection: str, **sections: dict[str, Any]) -> tuple[Ledger, FinalResult]:
    """One short trial, its checkpoint in a ledger as a slot leaves it, and the end of its sweep."""
    common = {"sweep": {"name": "final"}, "storage": str(folder), "finetune": SHORT}
    config = load_config({**common, **sections})
    base = build_base(config, num_classes=10 if config.data.name == "digits" else 3)
    data = load_train_val(config.data, image_size=base.spec.image_size)
    warm = WarmModel(base, torch.device("cpu"))
    spec = TrialSpec(index=0, selection=selection, learning_rate=0.05, seed=1, origin="search")
    (progress,) = finetune(warm, data, spec, config.finetune, augment="none")
    ledger = Ledger(config.storage, config.sweep.name)
    saved = replace(progress.checkpoint, optimizer={}).to_bytes()
    ledger.write_bytes("checkpoints/trial-00000/best.safetensors", saved)
    recommendation = Recommendation(
        selection=spec.selection,
        learning_rate=spec.learning_rate,
        val_accuracy=progress.reports[-1].val_accuracy,
        val_accuracy_sd=None,
        num_seeds=1,
        trainable_parameters=1,
        trial_ids=("trial-00000",),
    )
    facts = DataFacts(
        name=config.data.name,
        digest=data.digest,
        classes=data.classes,
        num_train=len(data.train),
        num_val=len(data.val),
        num_test=data.num_test,
        num_source=0,
        test_digest=load_test(config.data, image_size=base.spec.image_size).digest,
    )
    for other in (replace(facts, test_digest="of others"), replace(facts, classes=("aardvark", *facts.classes[1:]))):
        with pytest.raises(DataError, match="not those that the sweep began with"):
            finalize(config, ledger, recommendation, other)
    assert ledger.read_json("final.json") is None
    final = finalize(config, ledger, recommendation, facts)
    # At 32 px what a crop of half a pixel more or less shows decides some images.
    assert final.val_accuracy == pytest.approx(recommendation.val_accuracy, abs=0.08)
    assert final.num_val == len(data.val)
    (head,) = probe_once(config).results
    assert final.probe_correct == head.val_correct
    return ledger, final


def without_warnings_of_peft() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft imports warns of its own dependencies
        import peft  # noqa: F401


def test_a_lora_trial_is_exported_merged(tmp_path: Path) -> None:
    without_warnings_of_peft()
    ledger, final = train_and_finalize(
        tmp_path, "mha:lora(4)+fc2@5:lora(2)", finetune={"epochs": 0.1, "num_reports": 1}
    )
    exported = load(ledger.read_bytes(final.export))
    assert "blocks.0.attn.qkv.weight" in exported
    plain = timm.create_model(final.model_name, **final.create_kwargs)
    plain.load_state_dict(exported)
    assert final.num_test > 0


MODEL = {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32, "kwargs": SMALL_VIT}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "imagenet": {"model": {"normalization": "imagenet"}},
    "adapters": {},
    "another size": {"model": {"image_size": 48}, "data": {"crop_share": 0.8}},
    "enlarged": {"model": {"image_size": 96}, "data": {"interpolation": "bilinear"}},
    "streamed": {"data": {"loading": "stream", "num_workers": 1}},
    "eps": {"model": {"layer_norm_eps": 1e-12}},
    "bfloat16": {"finetune": {"precision": "bfloat16"}},
}


@pytest.mark.parametrize(
    "names", [["imagenet", "adapters"], pytest.param(list(CASES)[2:], marks=pytest.mark.slow)], ids=["usual", "rare"]
)
def test_the_export_gives_the_stated_accuracy_in_a_process_that_knows_nothing_of_us(
    tmp_path: Path, names: list[str]
) -> None:
    without_warnings_of_peft()
    tree = write_tree(tmp_path / "tree")
    data = {"name": "folder", "path": str(tree), "source_path": str(tree), "cache_dir": str(tmp_path / "cache")}
    base = {"model": MODEL, "data": data, "finetune": SHORT}
    stated, arguments = [], []
    for name in names:
        sections = {section: {**common, **CASES[name].get(section, {})} for section, common in base.items()}
        selection = "mha:lora(4)" if name == "adapters" else "all"
        _, final = train_and_finalize(tmp_path / name, selection, **sections)
        assert 60 < final.test_correct < 110 < final.num_test  # neither chance nor saturated
        stated.append(final.test_correct)
        arguments.append((str(tmp_path / name / "final" / final.export_folder), str(tree / "test")))
    command = [sys.executable, "-W", "ignore", "-c", RECOMPUTE, json.dumps(arguments)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == stated
