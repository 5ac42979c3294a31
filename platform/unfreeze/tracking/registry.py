"""The exported model in MLflow's registry: one version for each export, the best on validation is the champion."""

import contextlib
import json
import tempfile
from pathlib import Path

from unfreeze.errors import StorageError
from unfreeze.records import Evidence
from unfreeze.report.card import CARD, EXAMPLE, model_card
from unfreeze.storage.ledger import Ledger
from unfreeze.tracking.datasets import describe_parts
from unfreeze.tracking.flavor import save_flavors
from unfreeze.tracking.runs import MetricRow, RunTree

CHAMPION = "champion"
_DATA, _VAL = "unfreeze.data_digest", "unfreeze.val_accuracy"


def register(tree: RunTree, ledger: Ledger, evidence: Evidence) -> None:
    """Make the export a version of the model ``unfreeze-<sweep>``, once for each digest, and champion if it is best.

    Raises:
        mlflow.exceptions.MlflowException: the registry refuses.
        ModelError: the export cannot be loaded.
        StorageError: it is not where the ledger says.
    """
    final, name = evidence.final, f"unfreeze-{evidence.sweep}"
    assert final is not None
    val_accuracy, data = _val_accuracy(evidence), evidence.data
    version = tree.registered_version(name, final.export_sha256)
    is_new = version is None
    if version is None:
        tags = {
            "unfreeze.selection": final.selection,
            "unfreeze.trial": final.trial_id,
            "unfreeze.select_on": final.select_on,
            "unfreeze.test_accuracy": f"{final.test_accuracy:.4f}",
            _VAL: repr(val_accuracy),
            _DATA: data.digest,
        }
        version = _add_version(tree, ledger, evidence, name, tags)
    champion = tree.version_called(name, CHAMPION)
    # Of an older version somebody may have decided otherwise.
    if champion is None or (is_new and _beats(val_accuracy, data.digest, champion.tags)):
        tree.call_version(name, CHAMPION, version)


def _add_version(tree: RunTree, ledger: Ledger, evidence: Evidence, name: str, tags: dict[str, str]) -> str:
    final = evidence.final
    assert final is not None
    folder = final.export_folder
    config, weights = (_read_export(ledger, key) for key in (f"{folder}/config.json", final.export))
    card = model_card(evidence, json.loads(config))
    parameters = {"selection": final.selection, "model": final.model_name, "data": evidence.data.name}
    model = tree.find_or_create_model(name, final.export_sha256, params=parameters, tags=tags)
    with tempfile.TemporaryDirectory(prefix="unfreeze-model-") as temporary:
        export, target = Path(temporary) / "export", Path(temporary) / "model"
        export.mkdir()
        (export / "config.json").write_bytes(config)
        (export / "model.safetensors").write_bytes(weights)
        (export / CARD).write_text(card, encoding="utf-8")
        with contextlib.suppress(KeyError):  # older ledgers have none
            (export / EXAMPLE).write_bytes(ledger.read_bytes(f"{folder}/{EXAMPLE}"))
        save_flavors(target, export, run_id=tree.sweep_run_id, model_id=model.model_id)
        tree.finish_model(model, target, _metrics(evidence))
    return tree.add_version(name, model, digest=final.export_sha256, tags=tags, description=card)


def _read_export(ledger: Ledger, key: str) -> bytes:
    try:
        return ledger.read_bytes(key)
    except KeyError as error:
        raise StorageError(
            f"{ledger.url(key)}, a part of the export, is not there; bring it back from a copy, then "
            f"`python sweeps/report.py sweep.name={ledger.sweep} sync=true` registers the model"
        ) from error


def _beats(val_accuracy: float, data_digest: str, champion: dict[str, str]) -> bool:
    """On the same validation images alone; by test accuracy nothing is ever chosen."""
    return champion.get(_DATA) == data_digest and val_accuracy > float(champion[_VAL])


def _val_accuracy(evidence: Evidence) -> float:
    """Of the exported model; in older ledgers of the trial it came from."""
    final = evidence.final
    assert final is not None
    if final.num_val:
        return final.val_accuracy
    (trial,) = (trial for trial in evidence.trials if trial.spec.trial_id == final.trial_id)
    assert trial.best_val_accuracy is not None
    return trial.best_val_accuracy


def _metrics(evidence: Evidence) -> list[tuple[MetricRow, tuple[str, str]]]:
    """Accuracy on each part, with the data set's name and digest."""
    final, data = evidence.final, evidence.data
    assert final is not None
    stamp = max((report.timestamp_ms for trial in evidence.trials for report in trial.reports), default=0)
    digests = {context: digest for context, (digest, _) in describe_parts(data).items()}
    found = {"validation": _val_accuracy(evidence), "test": final.test_accuracy}
    return [
        ((f"{context}_accuracy", value, stamp, 0), (f"{data.name}/{context}", digests[context]))
        for context, value in found.items()
    ]
