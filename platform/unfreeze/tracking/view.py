"""What of the ledger goes into which MLflow run: parameters, metrics, tags and artifacts."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unfreeze.components.selection import Selection, parse_selection
from unfreeze.config import FREE_OPTIONS, FREE_SECTIONS
from unfreeze.cost.model import CostModel, cost_model
from unfreeze.errors import ConfigError
from unfreeze.evidence.verdict import verdict
from unfreeze.load import load_config
from unfreeze.records import (
    COMPONENTS,
    DataFacts,
    Evidence,
    ModelFacts,
    PlasticityTable,
    TrialRecord,
    TrialState,
    data_facts_from_dict,
    final_result_from_dict,
    model_facts_from_dict,
    plasticity_table_from_dict,
    to_dict,
)
from unfreeze.report.choices import chosen_on
from unfreeze.report.settings import flatten
from unfreeze.storage.ledger import Ledger
from unfreeze.tracking.datasets import dataset_inputs
from unfreeze.tracking.describe import describe_sweep, source_tags
from unfreeze.tracking.picture import draw_settling
from unfreeze.tracking.runs import PREPASS, SWEEP, MetricRow, RunTree
from unfreeze.tracking.settling import Step
from unfreeze.tracking.tables import evidence_tables, shown_as_tables

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
    """What the runs of the sweep say of its configuration, model, data and surroundings."""

    raw: dict[str, Any]  # the configuration, as it was stored
    config: dict[str, str]  # the same, flat
    environment: dict[str, Any]
    model: ModelFacts | None  # None in a ledger that has no facts
    data: DataFacts | None
    cost: CostModel | None  # None for a configuration of an older version

    @property
    def source(self) -> dict[str, str]:
        return self.environment.get("source", {})


def read_settings(ledger: Ledger) -> SweepSettings | None:
    """The sweep's settings, or None before its name is claimed."""
    config = ledger.read_json("config.json")
    if config is None:
        return None
    facts = ledger.read_json("facts.json") or {}
    return SweepSettings(
        raw=config,
        config=flatten(config),
        environment=ledger.read_json("environment.json") or {},
        model=model_facts_from_dict(facts["model"]) if facts else None,
        data=data_facts_from_dict(facts["data"]) if facts else None,
        cost=_cost_model(json.dumps(config), json.dumps(facts["model"])) if facts else None,
    )


@functools.lru_cache(maxsize=1)
def _cost_model(config: str, model: str) -> CostModel | None:
    """None in ledgers of older versions. Kept, since checking a configuration takes longer than a sync."""
    facts = model_facts_from_dict(json.loads(model))
    try:
        return cost_model(load_config(json.loads(config), typed=()), facts) if facts.num_tokens else None
    except ConfigError:
        return None


def write_sweep(tree: RunTree, ledger: Ledger, settings: SweepSettings) -> None:
    first = ledger.trial("trial-00000")
    tree.ensure(SWEEP, name=ledger.sweep, start_ms=_start_ms(first) if first else None)
    digest = _digest({"config": settings.config, "environment": settings.environment, "data": settings.data is None})
    if tree.is_written(SWEEP, digest):
        return
    fixed = {key: value for key, value in settings.config.items() if key.partition(".")[0] not in FREE_SECTIONS}
    params, tags = _apart(fixed)
    versions = settings.environment.get("versions", {})
    three = {"python": settings.environment.get("python"), "torch": versions.get("torch"), "ray": versions.get("ray")}
    tags |= {f"environment.{name}": version for name, version in three.items() if version}
    if settings.data is not None:
        tree.log_datasets(SWEEP, dataset_inputs(settings.raw, settings.data))
    tree.write(SWEEP, params=params, tags=tags | source_tags(settings.source), digest=digest)


def _apart(settings: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What is fixed for the sweep, and what may change when it is resumed."""
    fixed, free = ({key: text for key, text in settings.items() if (key in _FREE) is kind} for kind in (False, True))
    return fixed, free


def write_prepass(tree: RunTree, ledger: Ledger) -> bool:
    """What the pre-pass measured; False while it has not."""
    raw = ledger.read_json("plasticity.json")
    if raw is None or tree.is_written(PREPASS, digest := _digest(raw)):
        return raw is not None
    table = plasticity_table_from_dict(raw)
    stamp = tree.start_ms(SWEEP)
    tree.ensure(PREPASS, name=PREPASS, start_ms=stamp)
    tree.write(SWEEP, metrics=_component_metrics(table, stamp))
    params = flatten(table.settings) | {"model_digest": table.model_digest, "data_digest": table.data_digest}
    metrics = [*_component_metrics(table, stamp), *_block_metrics(table, stamp)]
    tags = {f"unfreeze.stopped.{mode}": reason for mode, reason in table.stopped.items()}
    tags |= {f"unfreeze.ranking.{ranking.mode}": str(ranking) for ranking in table.rankings if ranking.block is None}
    tree.write(PREPASS, params=params, metrics=metrics, tags=tags, digest=digest)
    tree.set_status(PREPASS, "FINISHED", end_ms=stamp + round(1000 * table.seconds))
    return True


def write_trial(tree: RunTree, record: TrialRecord, settings: SweepSettings) -> None:
    """A trial in a final state; complete once its digest is there and its status is no longer RUNNING."""
    key, digest = record.spec.trial_id, _digest(to_dict(record))
    if tree.is_written(key, digest):
        return
    start_ms = _start_ms(record) or tree.start_ms(SWEEP)
    spec = record.spec
    tree.ensure(key, name=f"{spec.selection} · {spec.learning_rate:.2g} · s{spec.seed}", start_ms=start_ms)
    params = {
        "selection": spec.selection,
        "learning_rate": repr(spec.learning_rate),
        "seed": str(spec.seed),
        "origin": spec.origin,
        "model": settings.config["model.name"],
        "data": settings.config["data.name"],
    }
    tags = {
        "unfreeze.trial": key,
        "unfreeze.state": record.state.value,
        "unfreeze.slot": record.slot,
        "unfreeze.checkpoint": record.checkpoint,
        "unfreeze.attempts": str(record.attempts),
        "unfreeze.error": record.error,
    }
    metrics = _trial_metrics(record, start_ms)
    if settings.model is not None:
        selection = parse_selection(spec.selection, num_blocks=settings.model.num_blocks)
        params |= _trained_shares(selection, settings.model.num_blocks)
        metrics += _cost_metrics(record, selection, settings, metrics[-1])
    tree.write(key, params=params, metrics=metrics, tags=tags, digest=digest)
    tree.set_status(key, _STATUS[record.state], end_ms=record.reports[-1].timestamp_ms if record.reports else start_ms)


def _trained_shares(selection: Selection, num_blocks: int) -> dict[str, str]:
    """``train.mha`` → share of the blocks whose MHA is trained: 1, 0 or between."""
    shares = {name: sum(own == name for _, own in selection.members) / num_blocks for name in COMPONENTS}
    return {f"train.{name}": f"{share:.3g}" for name, share in shares.items()}


def _cost_metrics(
    record: TrialRecord, selection: Selection, settings: SweepSettings, last: MetricRow
) -> list[MetricRow]:
    """What the trial costs, as shares of the model and of training all of it; at the time and step of ``last``."""
    assert settings.model is not None
    found = {"trainable_share": record.trainable_parameters / settings.model.num_parameters}
    if settings.cost is not None:
        found["flops_share"] = settings.cost.flops_share(selection)
    return [(name, value, *last[2:]) for name, value in found.items()]


def write_settling(tree: RunTree, found: Sequence[Step]) -> None:
    """The coefficients after every finished trial that MLflow does not have yet."""
    new = [step for step in found if step.num_finished > tree.settled]
    if new:
        metrics = [(n, v, step.timestamp_ms, step.num_finished) for step in new for n, v in step.values.items()]
        tree.write_settled(new[-1].num_finished, metrics)


def write_evidence(tree: RunTree, evidence: Evidence, settings: SweepSettings) -> None:
    """The answer as it stands: in words above the sweep's run, and what of it one compares between sweeps."""
    # The step grows with the trials seen, so that of two answers MLflow shows the later one.
    stamps = [report.timestamp_ms for trial in evidence.trials for report in trial.reports]
    stamp, step = max(stamps, default=tree.start_ms(SWEEP)), len(evidence.trials)
    tags: dict[str, str | None] = {
        "mlflow.note.content": describe_sweep(evidence, command=settings.source.get("command", "")),
        "verdict": verdict(evidence.worths),
        "mlflow.loggedArtifacts": shown_as_tables(),
    }
    chosen = evidence.recommendation
    values: dict[str, float | None] = {}
    if chosen is not None:
        values["recommendation/val_accuracy"] = chosen.val_accuracy
        values["recommendation/val_accuracy_sd"] = chosen.val_accuracy_sd
        values["recommendation/num_seeds"] = chosen.num_seeds
        values["recommendation/trainable_parameters"] = chosen.trainable_parameters
        values["recommendation/test_accuracy"] = chosen.test_accuracy
        tags["recommendation.selection"] = chosen.selection
        tags["recommendation.learning_rate"] = repr(chosen.learning_rate)
        tags["recommendation.trials"] = ", ".join(chosen.trial_ids)
        tags["recommendation.chosen_on"] = chosen_on(chosen)
    metrics = [(name, value, stamp, step) for name, value in values.items() if value is not None]
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


def write_files(
    tree: RunTree,
    ledger: Ledger,
    settings: SweepSettings,
    *,
    evidence: Evidence | None,
    settling: Sequence[Step],
    figures: Mapping[str, bytes],
) -> None:
    """Everything that goes to the artifact store, which the server may reach and this machine not: so it comes last."""
    tree.upload(SWEEP, "config.json", json.dumps(settings.config, indent=1).encode())
    tree.upload(SWEEP, "environment.json", json.dumps(settings.environment, indent=1).encode())
    plasticity = ledger.read_json("plasticity.json")
    if plasticity is not None:
        tree.upload(PREPASS, "plasticity.json", json.dumps(plasticity, indent=1).encode())
    for name, content in ({} if evidence is None else evidence_tables(evidence)).items():
        tree.upload(SWEEP, name, content)
    for name, content in figures.items():
        tree.upload(SWEEP, f"figures/{name}", content)
    if settling:
        tree.upload(SWEEP, "figures/settling.png", draw_settling(settling))
    with contextlib.suppress(KeyError):  # not written yet
        tree.upload(SWEEP, "report.html", ledger.read_bytes("report.html"))


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
        metrics += [(f"system/{name}", value, stamp, step) for name, value in report.usage.items()]
    metrics.append(("trainable_parameters", record.trainable_parameters, stamp, step))
    if record.best_val_accuracy is not None:
        metrics.append(("best_val_accuracy", record.best_val_accuracy, stamp, step))
    return metrics


def _start_ms(record: TrialRecord) -> int | None:
    """When the trial began, restarts left out; None without a report."""
    if not record.reports:
        return None
    first = record.reports[0]
    return first.timestamp_ms - round(1000 * first.seconds)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
