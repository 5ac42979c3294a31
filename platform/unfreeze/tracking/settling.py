"""How the answer on plasticity settled: its ten numbers after every finished trial, recomputed from the records.

They are of the one mode of plasticity that the verdict is about. NaN where so few trials have no number, or where an
interval has no end: so every chart has a point for each finished trial.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from unfreeze.evidence.correlate import correlate, score_selections
from unfreeze.evidence.worth import weigh_scores
from unfreeze.records import ModelFacts, PlasticityTable, TrialRecord, TrialState

_VERDICT = ("worth", "worth_low", "worth_high", "positive", "p", "n")
_CORRELATION = {
    "components": "components",
    "selections": "selections",
    "selections_size_partialled": "selections_size_fixed",
}
METRICS = (
    *(f"verdict/{name}" for name in _VERDICT),
    *(f"correlation/{name}" for name in _CORRELATION.values()),
    "correlation/n",
)


@dataclass(frozen=True, slots=True)
class Step:
    """What the first ``num_finished`` trials said: the values of `METRICS`, in accuracy where they are worth."""

    num_finished: int
    timestamp_ms: int  # when the last of them finished
    values: dict[str, float]


def steps(
    plasticity: PlasticityTable, trials: Sequence[TrialRecord], model: ModelFacts, *, after: int = 0
) -> Iterator[Step]:
    """One for each finished trial in the order in which they finished, those up to ``after`` left out."""
    if not plasticity.modes:
        return
    table = _of_one_mode(plasticity)
    finished = [trial for trial in trials if trial.state is TrialState.FINISHED and trial.reports]
    finished.sort(key=lambda trial: (trial.reports[-1].timestamp_ms, trial.spec.index))
    for count in range(after + 1, len(finished) + 1):
        values = dict.fromkeys(METRICS, math.nan) | _values(table, finished[:count], model)
        yield Step(count, finished[count - 1].reports[-1].timestamp_ms, values)


def _of_one_mode(table: PlasticityTable) -> PlasticityTable:
    mode = table.modes[0]
    return replace(table, rows=tuple(row for row in table.rows if row.mode == mode), scores={})


def _values(table: PlasticityTable, trials: Sequence[TrialRecord], model: ModelFacts) -> dict[str, float]:
    scores = score_selections(trials, model)
    (weighed,) = weigh_scores(table, trials, model, scores=scores)
    values: dict[str, float] = {"verdict/n": weighed.num_trials}
    if weighed.worth is not None:
        ends = {"verdict/worth_low": weighed.worth.low, "verdict/worth_high": weighed.worth.high}
        values |= {name: end for name, end in ends.items() if math.isfinite(end)}
        values["verdict/worth"] = weighed.worth.mean
        values["verdict/positive"] = weighed.worth.positive
        values["verdict/p"] = weighed.worth.p
    for found in correlate(table, trials, model, scores=scores):
        if found.name in _CORRELATION:
            if found.spearman is not None:
                values[f"correlation/{_CORRELATION[found.name]}"] = found.spearman
            if found.name == "selections":
                values["correlation/n"] = found.n
    return values
