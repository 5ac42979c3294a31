"""What the charts are drawn from: rows of plain values, made of the evidence once."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from unfreeze.components.selection import parse_selection
from unfreeze.cost.model import CostModel
from unfreeze.evidence.correlate import has_plasticity, mean_plasticity, score_selections
from unfreeze.evidence.front import undominated
from unfreeze.records import COMPONENTS, Evidence, TrialRecord, TrialState
from unfreeze.report.front import stored_finetune

SEVERAL = "several"  # components, or parts of the depth
KINDS = (*COMPONENTS, SEVERAL, "all", "none")
COSTS = {
    "flops": "training FLOPs, share of all’s",
    "seconds": "seconds of a run",
    "parameters": "trained parameters, head included",
}
_MANY_RATES = 12  # from which the rates are gathered by thirds of a power of ten

Row = dict[str, Any]


def kind_of(selection: str) -> str:
    """A component trained alone in every block, `all`, `none`, or several."""
    return selection if selection in KINDS else SEVERAL


def trial_rows(evidence: Evidence) -> list[Row]:
    """Every trial that reported, in sequence; seconds are of its last report, ``began`` and ``ended`` since the first
    trial's start."""
    reported = [trial for trial in evidence.trials if trial.reports]
    origin_ms = min((_start_ms(trial) for trial in reported), default=0)
    best, rows = 0.0, []
    for trial in reported:
        accuracy = trial.best_val_accuracy
        assert accuracy is not None
        if trial.state is TrialState.FINISHED:
            best = max(best, accuracy)
        last = trial.reports[-1]
        rows.append(
            {
                "trial": trial.spec.index,
                "selection": trial.spec.selection,
                "kind": kind_of(trial.spec.selection),
                "state": trial.state.value,
                "origin": trial.spec.origin,
                "rate": trial.spec.learning_rate,
                "seed": trial.spec.seed,
                "accuracy": _short(accuracy),
                "best": _short(best) or None,
                "seconds": round(last.seconds, 2),
                "slot": trial.slot or "–",
                "began": (_start_ms(trial) - origin_ms) / 1000,
                "ended": (last.timestamp_ms - origin_ms) / 1000,
            }
        )
    return rows


def _start_ms(trial: TrialRecord) -> int:
    """Of the attempt that brought the first report: a restart's pause lies between two reports."""
    first = trial.reports[0]
    return first.timestamp_ms - round(1000 * first.seconds)


def report_rows(trials: Iterable[TrialRecord]) -> list[Row]:
    """Every validation of every trial."""
    return [
        {"trial": trial.spec.index, "images": report.images_seen, "at": _short(report.val_accuracy)}
        for trial in trials
        for report in trial.reports
    ]


def cutoff_rows(trials: Iterable[TrialRecord]) -> list[Row]:
    """Each cutoff of early stopping once, with how many trials had it."""
    counts: dict[tuple[int, float], int] = {}
    for trial in trials:
        for images, below in trial.spec.stop_below:
            counts[images, _short(below)] = counts.get((images, _short(below)), 0) + 1
    return [{"images": images, "below": below, "trials": n} for (images, below), n in sorted(counts.items())]


def selection_rows(evidence: Evidence) -> list[Row]:
    """Each selection at its best rate, best first; ``low`` and ``high`` are its worst and best seed's run."""
    runs: dict[tuple[str, float], list[TrialRecord]] = {}
    blocks, model = evidence.model.num_blocks, evidence.model
    for trial in evidence.trials:
        if trial.state is TrialState.FINISHED and trial.reports:
            selection = str(parse_selection(trial.spec.selection, num_blocks=blocks))
            runs.setdefault((selection, trial.spec.learning_rate), []).append(trial)
    cost = cost_of(evidence)
    rows = []
    for rank, score in enumerate(score_selections(evidence.trials, model), start=1):
        own = runs[str(score.selection), score.learning_rate]
        accuracies = [_short(trial.best_val_accuracy or 0.0) for trial in own]
        row: Row = {
            "selection": str(score.selection),
            "kind": kind_of(str(score.selection)),
            "rank": rank,
            "rate": score.learning_rate,
            "accuracy": _short(score.val_accuracy),
            "low": min(accuracies),
            "high": max(accuracies),
            "seeds": score.num_seeds,
            "parameters": own[0].trainable_parameters,
            "seconds": round(fmean(trial.reports[-1].seconds for trial in own), 3),
            "flops": None if cost is None else round(cost.flops_share(score.selection), 5),
        }
        if has_plasticity(score.selection):
            for mode in evidence.plasticity.modes:
                row[f"plasticity_{mode}"] = round(mean_plasticity(score.selection, evidence.plasticity, mode), 6)
        rows.append(row)
    return rows


def member_rows(evidence: Evidence, selections: Sequence[Row]) -> list[Row]:
    """Which components each selection trains, and in what share of the blocks."""
    blocks = evidence.model.num_blocks
    rows = []
    for row in selections:
        selection = parse_selection(row["selection"], num_blocks=blocks)
        for name in COMPONENTS:
            if count := sum(component == name for _, component in selection.members):
                rows.append({"selection": row["selection"], "component": name, "share": round(count / blocks, 3)})
    return rows


def cell_rows(evidence: Evidence) -> list[Row]:
    """Component by learning rate: the finished trials that train it, others' components beside it or not."""
    finished = [trial for trial in evidence.trials if trial.state is TrialState.FINISHED and trial.reports]
    gathered = len({trial.spec.learning_rate for trial in finished}) > _MANY_RATES
    cells: dict[tuple[str, float], list[TrialRecord]] = {}
    for trial in finished:
        selection = parse_selection(trial.spec.selection, num_blocks=evidence.model.num_blocks)
        rate = trial.spec.learning_rate
        if gathered:
            rate = 10 ** (round(3 * math.log10(rate)) / 3)
        for name in dict.fromkeys(component for _, component in selection.members):
            cells.setdefault((name, rate), []).append(trial)
    rows = []
    for (name, rate), trials in cells.items():
        best = max(trials, key=lambda trial: trial.best_val_accuracy or 0.0)
        mean = fmean(trial.best_val_accuracy or 0.0 for trial in trials)
        rows.append(
            {
                "component": name,
                "rate": float(f"{rate:.2g}"),
                "accuracy": _short(best.best_val_accuracy or 0.0),
                "mean": _short(mean),
                "trials": len(trials),
                "selection": best.spec.selection,
            }
        )
    return sorted(rows, key=lambda row: (row["component"], row["rate"]))


def front_of(selections: Sequence[Row], cost: str) -> list[Row]:
    """The selections that nothing cheaper matches, cheapest first."""
    priced = [row for row in selections if row[cost]]
    return undominated(priced, lambda row: (row[cost], row["accuracy"]))


def pace_rows(evidence: Evidence) -> list[Row]:
    """Predicted FLOPs of the training of each finished trial, and the seconds that it took."""
    cost = cost_of(evidence)
    if cost is None:
        return []
    rows: list[Row] = []
    for trial in evidence.trials:
        if trial.state is TrialState.FINISHED and trial.reports:
            selection = parse_selection(trial.spec.selection, num_blocks=evidence.model.num_blocks)
            last = trial.reports[-1]
            flops = cost.flops(selection).total * last.images_seen
            flops += len(trial.reports) * cost.validation_flops(evidence.data.num_val)
            rows.append(
                {
                    "trial": trial.spec.index,
                    "selection": trial.spec.selection,
                    "kind": kind_of(trial.spec.selection),
                    "tflops": float(f"{flops / 1e12:.5g}"),
                    "seconds": round(last.seconds, 3),
                }
            )
    if rows:
        pace = median(row["seconds"] / row["tflops"] for row in rows)
        for row in rows:
            row["expected"] = float(f"{pace * row['tflops']:.4g}")
            row["off"] = _short(row["seconds"] / row["expected"] - 1)
    return rows


def cost_of(evidence: Evidence) -> CostModel | None:
    """None where the facts are too old to give FLOPs."""
    if not evidence.model.num_tokens or not evidence.model.width:
        return None
    return CostModel(evidence.model, stored_finetune(evidence.config["finetune"]))


def finite(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """JSON has no infinity: an interval that excludes nothing has no end."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def _short(value: float) -> float:
    return round(value, 5)
