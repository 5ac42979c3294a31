"""What of the ledger goes into which MLflow run: parameters, metrics, tags and artifacts."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from unfreeze.config import FREE_OPTIONS, FREE_SECTIONS
from unfreeze.evidence.verdict import verdict
from unfreeze.records import (
    Correlation,
    Evidence,
    FinalResult,
    PlasticityTable,
    ScoreWorth,
    TrialRecord,
    TrialState,
    final_result_from_dict,
    plasticity_table_from_dict,
    to_dict,
)
from unfreeze.report.choices import chosen_on
from unfreeze.report.settings import flatten
from unfreeze.storage.ledger import Ledger
from unfreeze.tracking.runs import PREPASS, SWEEP, MetricRow, RunTree

_STATUS = {
    TrialState.FINISHED: "FINISHED",
    TrialState.STOPPED: "KILLED",
    TrialState.DIVERGED: "FAILED",
    TrialState.FAILED: "FAILED",
}
# What may change when a sweep is resumed is a tag and no parameter, of which MLflow refuses a second value.
_FREE = {f"{section}.{option}" for section, options in FREE_OPTIONS.items() for option in options}


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """What every run of the sweep is marked with, flat."""

    config: dict[str, str]
    environment: dict[str, str]


def read_settings(ledger: Ledger) -> SweepSettings | None:
    """The sweep's settings, or None before its name is claimed."""
    config = ledger.read_json("config.json")
    if config is None:
        return None
    return SweepSettings(flatten(config), flatten(ledger.read_json("environment.json") or {}, prefix="environment."))


def write_sweep(tree: RunTree, ledger: Ledger, settings: SweepSettings) -> None:
    first = ledger.trial("trial-00000")
    tree.ensure(SWEEP, name=ledger.sweep, start_ms=_start_ms(first) if first else None)
    digest = _digest({"config": settings.config, "environment": settings.environment})
    if tree.is_written(SWEEP, digest):
        return
    fixed = {key: value for key, value in settings.config.items() if key.partition(".")[0] not in FREE_SECTIONS}
    params, tags = _apart(fixed)
    tree.write(SWEEP, params=params, tags=tags | settings.environment, digest=digest)


def _apart(settings: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What is fixed for the sweep, and what may change when it is resumed."""
    fixed, free = ({key: text for key, text in settings.items() if (key in _FREE) is kind} for kind in (False, True))
    return fixed, free


def write_prepass(tree: RunTree, ledger: Ledger, settings: SweepSettings) -> None:
    raw = ledger.read_json("plasticity.json")
    if raw is None or tree.is_written(PREPASS, digest := _digest(raw)):
        return
    table = plasticity_table_from_dict(raw)
    stamp = tree.start_ms(SWEEP)
    tree.ensure(PREPASS, name=PREPASS, start_ms=stamp)
    tree.write(SWEEP, metrics=_component_metrics(table, stamp))
    params = flatten(table.settings) | {"model_digest": table.model_digest, "data_digest": table.data_digest}
    metrics = [*_component_metrics(table, stamp), *_block_metrics(table, stamp)]
    tags = {f"unfreeze.stopped.{mode}": reason for mode, reason in table.stopped.items()}
    tags |= {f"unfreeze.ranking.{ranking.mode}": str(ranking) for ranking in table.rankings if ranking.block is None}
    tree.write(PREPASS, params=params, metrics=metrics, tags={**tags, **settings.environment}, digest=digest)
    tree.set_status(PREPASS, "FINISHED", end_ms=stamp + round(1000 * table.seconds))


def write_trial(tree: RunTree, record: TrialRecord, settings: SweepSettings) -> None:
    """A trial in a final state; complete once its digest is there and its status is no longer RUNNING."""
    key, digest = record.spec.trial_id, _digest(to_dict(record))
    if tree.is_written(key, digest):
        return
    start_ms = _start_ms(record) or tree.start_ms(SWEEP)
    tree.ensure(key, name=f"{key} {record.spec.selection}", start_ms=start_ms)
    params = {
        "selection": record.spec.selection,
        "learning_rate": repr(record.spec.learning_rate),
        "seed": str(record.spec.seed),
        "origin": record.spec.origin,
        "model": settings.config["model.name"],
        "data": settings.config["data.name"],
    }
    own, free = _apart({name: value for name, value in settings.config.items() if name.startswith("finetune.")})
    params |= own
    tags = {
        **free,
        "unfreeze.trial": key,
        "unfreeze.state": record.state.value,
        "unfreeze.slot": record.slot,
        "unfreeze.checkpoint": record.checkpoint,
        "unfreeze.attempts": str(record.attempts),
        "unfreeze.error": record.error,
        **settings.environment,
    }
    tree.write(key, params=params, metrics=_trial_metrics(record, start_ms), tags=tags, digest=digest)
    tree.set_status(key, _STATUS[record.state], end_ms=record.reports[-1].timestamp_ms if record.reports else start_ms)


def write_evidence(tree: RunTree, evidence: Evidence) -> None:
    # The step grows with the trials seen, so that of two answers MLflow shows the later one.
    stamps = [report.timestamp_ms for trial in evidence.trials for report in trial.reports]
    stamp, step = max(stamps, default=tree.start_ms(SWEEP)), len(evidence.trials)
    metrics = [row for found in evidence.correlations for row in _correlation_metrics(found, stamp, step)]
    metrics += [row for found in evidence.worths for row in _worth_metrics(found, stamp, step)]
    tags: dict[str, str | None] = {"verdict": verdict(evidence.worths)}
    chosen = evidence.recommendation
    if chosen is not None:
        metrics.append(("recommendation/val_accuracy", chosen.val_accuracy, stamp, step))
        if chosen.val_accuracy_sd is not None:
            metrics.append(("recommendation/val_accuracy_sd", chosen.val_accuracy_sd, stamp, step))
        metrics.append(("recommendation/num_seeds", chosen.num_seeds, stamp, step))
        metrics.append(("recommendation/trainable_parameters", chosen.trainable_parameters, stamp, step))
        tags["recommendation.selection"] = chosen.selection
        tags["recommendation.learning_rate"] = repr(chosen.learning_rate)
        tags["recommendation.trials"] = ", ".join(chosen.trial_ids)
        tags["recommendation.chosen_on"] = chosen_on(chosen)
        if chosen.test_accuracy is not None:
            metrics.append(("recommendation/test_accuracy", chosen.test_accuracy, stamp, step))
    tree.write(SWEEP, metrics=metrics, tags=tags)


def write_final(tree: RunTree, ledger: Ledger) -> bool:
    """The sealed test's result; False while there is none."""
    raw = ledger.read_json("final.json")
    if raw is None:
        return False
    final = final_result_from_dict(raw)
    stamp = tree.start_ms(SWEEP)
    figures = {"test_accuracy": final.test_accuracy, "test_low": final.test_low, "test_high": final.test_high}
    if final.probe_correct is not None:
        figures["probe/val_accuracy"] = final.probe_correct / final.num_val
    tree.write(SWEEP, metrics=[(name, value, stamp, 0) for name, value in figures.items()])
    return True


def write_files(tree: RunTree, ledger: Ledger, settings: SweepSettings, figures: Mapping[str, str]) -> None:
    """Everything that goes to the artifact store, which the server may reach and this machine not: so it comes last."""
    tree.upload(SWEEP, "config.json", json.dumps(settings.config, indent=1).encode())
    plasticity, final = ledger.read_json("plasticity.json"), ledger.read_json("final.json")
    if plasticity is not None:
        tree.upload(PREPASS, "plasticity.json", json.dumps(plasticity, indent=1).encode())
    for name, svg in figures.items():
        tree.upload(SWEEP, f"figures/{name}.svg", svg.encode())
    with contextlib.suppress(KeyError):  # not written yet
        tree.upload(SWEEP, "report.html", ledger.read_bytes("report.html"))
    if final is not None:
        register(tree, ledger, final_result_from_dict(final))


def register(tree: RunTree, ledger: Ledger, final: FinalResult) -> None:
    """Upload the exported model and make it a version of the model ``unfreeze-<sweep>``, once for each digest."""
    name = f"unfreeze-{ledger.sweep}"
    if tree.is_registered(name, final.export_sha256):
        return
    folder = f"model/{final.export_sha256[:12]}"  # a version's files are never overwritten by the next one's
    for file in ("model.safetensors", "config.json"):
        tree.upload(SWEEP, f"{folder}/{file}", ledger.read_bytes(f"{final.export_folder}/{file}"))
    tree.register(
        name,
        folder=folder,
        digest=final.export_sha256,
        tags={
            "unfreeze.selection": final.selection,
            "unfreeze.trial": final.trial_id,
            "unfreeze.test_accuracy": f"{final.test_accuracy:.4f}",
            "unfreeze.select_on": final.select_on,
        },
        description="timm.create_model('local-dir:FOLDER', pretrained=True), FOLDER being where these files lie",
    )


def _component_metrics(table: PlasticityTable, stamp: int) -> list[MetricRow]:
    scores = [*(("plasticity", mode) for mode in table.modes), *(("score", name) for name in table.scores)]
    return [
        (f"{kind}/{name}/{component}", value, stamp, 0)
        for kind, name in scores
        for component, value in table.component_means(name).items()
    ]


def _block_metrics(table: PlasticityTable, stamp: int) -> list[MetricRow]:
    """By block as the step, so that MLflow draws plasticity over depth."""
    rows = [(row, row.block) for row in table.rows if row.block is not None]
    return [(f"plasticity_by_block/{row.mode}/{row.component}", row.mean, stamp, block) for row, block in rows]


def _trial_metrics(record: TrialRecord, start_ms: int) -> list[MetricRow]:
    """Each report at its own time and step (images seen): written twice they are the same rows."""
    metrics: list[MetricRow] = []
    stamp, step = start_ms, 0
    for report in record.reports:
        stamp, step = report.timestamp_ms, report.images_seen
        for name in ("train_loss", "val_loss", "val_accuracy", "seconds"):
            metrics.append((name, getattr(report, name), stamp, step))
    metrics.append(("trainable_parameters", record.trainable_parameters, stamp, step))
    if record.best_val_accuracy is not None:
        metrics.append(("best_val_accuracy", record.best_val_accuracy, stamp, step))
    return metrics


def _correlation_metrics(found: Correlation, stamp: int, step: int) -> list[MetricRow]:
    prefix = f"correlation/{found.mode}/{found.name}"
    names = ("n", "spearman", "spearman_p", "kendall", "kendall_p")
    values = {name: getattr(found, name) for name in names}
    return [(f"{prefix}/{name}", value, stamp, step) for name, value in values.items() if value is not None]


def _worth_metrics(found: ScoreWorth, stamp: int, step: int) -> list[MetricRow]:
    """What has a value: an interval may have no end, and a score no number."""
    values = {} if found.worth is None else to_dict(found.worth)
    return [(f"worth/{found.score}/{name}", value, stamp, step) for name, value in values.items() if isfinite(value)]


def _start_ms(record: TrialRecord) -> int | None:
    """When the trial began, restarts left out; None without a report."""
    if not record.reports:
        return None
    first = record.reports[0]
    return first.timestamp_ms - round(1000 * first.seconds)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
