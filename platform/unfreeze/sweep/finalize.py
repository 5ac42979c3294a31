"""The sealed test, opened once for the chosen selection, and the exported model. Runs as a Ray task, like a worker."""

import hashlib

import torch
from safetensors.torch import save
from scipy.stats import binomtest

from unfreeze.components.selection import parse_selection
from unfreeze.config import Config
from unfreeze.data.sets.catalog import load_test
from unfreeze.finetune.checkpoint import Checkpoint, restore
from unfreeze.finetune.evaluate import evaluate
from unfreeze.finetune.lora import inject_adapters, merge_adapters
from unfreeze.finetune.network import make_autocast
from unfreeze.models.build import build_base, init_classifier
from unfreeze.records import DataFacts, FinalResult, Recommendation, to_dict
from unfreeze.storage.ledger import Ledger

_EXPORT = "export/model.safetensors"


def finalize(config: Config, ledger: Ledger, recommendation: Recommendation, data: DataFacts) -> FinalResult:
    """Evaluate the recommended trial's best-validation checkpoint on the test images and export it.

    The export is a full timm state dict: ``timm.create_model(name, checkpoint_path=…, **create_kwargs)`` loads it.
    LoRA's updates are merged into the weights.
    Writes ``final.json``; where that is already there, the test is not opened again.

    Raises:
        CheckpointError: the checkpoint is damaged or of another base model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = build_base(config, num_classes=len(data.classes))
    trial_id = recommendation.trial_ids[0]
    stored = ledger.read_bytes(f"checkpoints/{trial_id}/best.safetensors")
    checkpoint = Checkpoint.from_bytes(stored, base_digest=base.facts.digest)
    init_classifier(base.module, base.classifier, seed=checkpoint.spec.seed)
    seed, selection = checkpoint.spec.seed, parse_selection(checkpoint.spec.selection, num_blocks=base.facts.num_blocks)
    inject_adapters(base.module, selection, seed=seed, lora_alpha=config.finetune.lora_alpha)
    restore(checkpoint, base.module, None, [])
    merge_adapters(base.module)
    module = base.module.to(device)
    test = load_test(config.data, image_size=base.spec.image_size)
    result = evaluate(
        module,
        test,
        base.spec,
        batch_size=config.finetune.eval_batch_size,
        autocast=make_autocast(config.finetune.precision, device),
        device=device,
    )
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    exported = save(state, metadata={"format": "pt"})
    ledger.write_bytes(_EXPORT, exported)
    interval = binomtest(result.correct, result.count).proportion_ci(method="wilson")
    final = FinalResult(
        trial_id=trial_id,
        selection=recommendation.selection,
        test_correct=result.correct,
        num_test=result.count,
        test_low=float(interval.low),
        test_high=float(interval.high),
        export=_EXPORT,
        export_sha256=hashlib.sha256(exported).hexdigest(),
        create_kwargs=base.facts.create_kwargs,
        model_name=config.model.name,
        select_on=recommendation.select_on,
    )
    ledger.write_json("export/classes.json", list(data.classes))
    ledger.write_json("final.json", to_dict(final))
    return final
