"""The sealed test, opened once for the chosen selection, and the exported model. Runs as a Ray task, like a worker."""

import hashlib
import io
import tempfile
from pathlib import Path

from scipy.stats import binomtest

from unfreeze.config import Config
from unfreeze.data.sets.catalog import load_test, load_train_val
from unfreeze.finetune.lora import merge_adapters
from unfreeze.models.export import CONFIG, WEIGHTS, Exported, write_export
from unfreeze.records import DataFacts, FinalResult, Recommendation, to_dict
from unfreeze.report.card import EXAMPLE
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.probe import probe_head
from unfreeze.sweep.restore import load_model, restore_trial

EXPORT = "export"  # the folder, below the sweep


def finalize(config: Config, ledger: Ledger, recommendation: Recommendation, data: DataFacts) -> FinalResult:
    """Export the recommended trial's best-validation checkpoint and evaluate the export on the test images.

    What is evaluated, on validation images too, is the exported folder as anybody loads it, with timm's own
    preprocessing of the images as they came and in float32: so the stated accuracy is what people get. LoRA's updates
    are merged into the weights. Beside it goes a ridge probe of the pretrained head, on validation images.
    Writes ``final.json``; where that is already there, the test is not opened again.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another base model.
        DataError: the images are not those that the sweep began with.
    """
    warm = load_model(config, num_classes=len(data.classes))
    spec, batch_size = warm.base.spec, config.finetune.eval_batch_size
    test = load_test(config.data, image_size=spec.image_size, facts=data)
    seen = load_train_val(config.data, image_size=spec.image_size)
    seen.check(data)
    val = seen.val
    probe = probe_head(warm, seen, batch_size=batch_size)
    trial_id = recommendation.trial_ids[0]
    restore_trial(warm, ledger, trial_id, config.finetune)
    merge_adapters(warm.module)
    with tempfile.TemporaryDirectory(prefix="unfreeze-export-") as folder:
        write_export(
            Path(folder),
            warm.module,
            spec,
            classes=data.classes,
            stored=val.stored,
            crop_share=config.data.crop_share,
            layer_norm_eps=config.model.layer_norm_eps,
            upright=config.data.exif == "apply",
            white=val.white,
        )
        exported = Exported.open(Path(folder), warm.device)
        files = {name: (Path(folder) / name).read_bytes() for name in (WEIGHTS, CONFIG)}
    example = io.BytesIO()
    val.original(0).save(example, format="PNG")
    files[EXAMPLE] = example.getvalue()
    val_correct = exported.count_correct(val, batch_size=batch_size)
    test_correct = exported.count_correct(test, batch_size=batch_size)
    for name, content in files.items():
        ledger.write_bytes(f"{EXPORT}/{name}", content)
    interval = binomtest(test_correct, len(test)).proportion_ci(method="wilson")
    final = FinalResult(
        trial_id=trial_id,
        selection=recommendation.selection,
        val_correct=val_correct,
        num_val=len(val),
        probe_correct=probe.val_correct,
        test_correct=test_correct,
        num_test=len(test),
        test_low=float(interval.low),
        test_high=float(interval.high),
        export=f"{EXPORT}/{WEIGHTS}",
        export_sha256=hashlib.sha256(files[WEIGHTS]).hexdigest(),
        create_kwargs=warm.base.facts.create_kwargs,
        model_name=config.model.name,
        select_on=recommendation.select_on,
    )
    ledger.write_json("final.json", to_dict(final))
    return final
