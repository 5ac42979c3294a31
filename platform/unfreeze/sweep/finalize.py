"""The sealed test, opened once for the chosen selection, and the exported model. Runs as a Ray task, like a worker."""

import hashlib

from safetensors.torch import save
from scipy.stats import binomtest

from unfreeze.config import Config
from unfreeze.data.sets.catalog import load_test
from unfreeze.finetune.lora import merge_adapters
from unfreeze.records import DataFacts, FinalResult, Recommendation, to_dict
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.restore import evaluate_model, load_model, restore_trial

_EXPORT = "export/model.safetensors"


def finalize(config: Config, ledger: Ledger, recommendation: Recommendation, data: DataFacts) -> FinalResult:
    """Evaluate the recommended trial's best-validation checkpoint on the test images and export it.

    The export is a full timm state dict: ``timm.create_model(name, checkpoint_path=…, **create_kwargs)`` loads it.
    LoRA's updates are merged into the weights.
    Writes ``final.json``; where that is already there, the test is not opened again.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another base model.
        DataError: the test images are not those that the sweep began with.
    """
    warm = load_model(config, num_classes=len(data.classes))
    trial_id = recommendation.trial_ids[0]
    restore_trial(warm, ledger, trial_id, config.finetune)
    merge_adapters(warm.module)
    test = load_test(config.data, image_size=warm.base.spec.image_size, facts=data)
    result = evaluate_model(warm, test, config.finetune)
    state = {name: value.detach().cpu().contiguous() for name, value in warm.module.state_dict().items()}
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
        create_kwargs=warm.base.facts.create_kwargs,
        model_name=config.model.name,
        select_on=recommendation.select_on,
    )
    ledger.write_json("export/classes.json", list(data.classes))
    ledger.write_json("final.json", to_dict(final))
    return final
