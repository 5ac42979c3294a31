"""The real thing on the embedded digits, without Ray: one trial's checkpoint, evaluated and exported."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load

from unfreeze.config import Config
from unfreeze.data.sets.catalog import load_test, load_train_val
from unfreeze.errors import DataError
from unfreeze.finetune.loop import finetune
from unfreeze.finetune.warm import WarmModel
from unfreeze.load import load_config
from unfreeze.models.build import build_model
from unfreeze.records import DataFacts, Recommendation, TrialSpec
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.finalize import finalize


@pytest.fixture
def config(tmp_path: Path) -> Config:
    raw = {"sweep": {"name": "final"}, "storage": str(tmp_path), "finetune": {"epochs": 0.1, "num_reports": 1}}
    return load_config(raw)


def test_a_lora_trial_is_exported_merged(config: Config) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft imports warns of its own dependencies
        import peft  # noqa: F401
    data = load_train_val(config.data, image_size=32)
    base = build_model(config.model, num_classes=len(data.classes), cache_dir=Path("unused"))
    warm = WarmModel(base, torch.device("cpu"))
    spec = TrialSpec(index=0, selection="mha:lora(4)+fc2@5:lora(2)", learning_rate=0.05, seed=1, origin="search")
    (progress,) = finetune(warm, data, spec, config.finetune, augment="none")
    ledger = Ledger(config.storage, config.sweep.name)
    saved = replace(progress.checkpoint, optimizer={}).to_bytes()
    ledger.write_bytes("checkpoints/trial-00000/best.safetensors", saved)
    recommendation = Recommendation(
        selection=spec.selection,
        learning_rate=spec.learning_rate,
        val_accuracy=0.5,
        val_accuracy_sd=None,
        num_seeds=1,
        trainable_parameters=1,
        trial_ids=("trial-00000",),
    )
    facts = DataFacts(
        name="digits",
        digest=data.digest,
        classes=data.classes,
        num_train=len(data.train),
        num_val=len(data.val),
        num_test=data.num_test,
        num_source=0,
        test_digest=load_test(config.data, image_size=32).digest,
    )
    for other in (replace(facts, test_digest="of others"), replace(facts, classes=("aardvark", *facts.classes[1:]))):
        with pytest.raises(DataError, match="not those that the sweep began with"):
            finalize(config, ledger, recommendation, other)
    assert ledger.read_json("final.json") is None
    final = finalize(config, ledger, recommendation, facts)

    exported = load(ledger.read_bytes(final.export))
    images = torch.randn(4, 3, 32, 32)
    adapted = warm.module.eval()(images)
    plain = timm.create_model("unfreeze_tiny", **final.create_kwargs)
    plain.load_state_dict(exported)
    assert torch.allclose(plain.eval()(images), adapted, atol=1e-5)
    assert "blocks.0.attn.qkv.weight" in exported
    assert final.num_test > 0
