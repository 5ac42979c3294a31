"""What each measured score was worth in a sweep, from its finished trials; or why that has no number."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from threadpoolctl import ThreadpoolController

from unfreeze.components.selection import Selection, parse_selection
from unfreeze.evidence.correlate import SelectionScore, has_plasticity, score_selections
from unfreeze.evidence.effects import NUM_DRAWS, Slope, slope
from unfreeze.evidence.exchange import exchanges
from unfreeze.evidence.model import Points, Posterior, Terms
from unfreeze.records import COMPONENTS, ModelFacts, PlasticityTable, ScoreWorth, TrialRecord, TrialState, Worth

MIN_TRIALS, MIN_COMPONENTS = 8, 4
_threads = functools.cache(ThreadpoolController)  # looking for the libraries takes 5 ms, a tenth of what a number takes


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSlope:
    """β of a score in logits, or why it has no number."""

    score: str
    num_trials: int
    slope: Slope | None = None
    accuracy: float = math.nan  # of the median selection at its best rate, where logits are turned into points
    trouble: str = ""


def weigh_scores(
    plasticity: PlasticityTable,
    trials: Sequence[TrialRecord],
    model: ModelFacts,
    *,
    scores: Sequence[SelectionScore] | None = None,
) -> tuple[ScoreWorth, ...]:
    """Of each mode of plasticity, then each rival score: what it is worth in accuracy.

    ``scores``: what `score_selections` gives for the finished ones among the trials, where that is known.
    """
    found = []
    for each in score_slopes(plasticity, trials, model, scores=scores):
        worth = None if each.slope is None else in_accuracy(each.slope, each.accuracy)
        found.append(ScoreWorth(score=each.score, num_trials=each.num_trials, worth=worth, trouble=each.trouble))
    return tuple(found)


def score_slopes(
    plasticity: PlasticityTable,
    trials: Sequence[TrialRecord],
    model: ModelFacts,
    *,
    scores: Sequence[SelectionScore] | None = None,
) -> tuple[ScoreSlope, ...]:
    """Of each mode of plasticity, then each rival score: β in logits.

    Finished trials of components alone count (`has_plasticity`), whatever searched; the others ended at another budget
    or have no place on the score's axis.
    """
    kept = weighed_trials(trials, model)
    trouble = _trouble([trial for trial, _ in kept], [selection for _, selection in kept])
    if trouble is not None:
        return tuple(_nothing(score, len(kept), trouble) for score in plasticity.by_group)
    num_groups = count_groups(kept, model)
    with _threads().limit(limits=1):  # the same bits on every machine
        nothing = np.zeros((len(COMPONENTS), num_groups))  # score and size are no part of this likelihood
        effects = fit_trials(kept, nothing, nothing).linear_effects(NUM_DRAWS)
        scores = scores if scores is not None else score_selections([t for t, _ in kept], model)
        accuracy = median(score.val_accuracy for score in scores if has_plasticity(score.selection))
        sizes = np.log(np.maximum(by_switch(model.parameters, model.num_blocks, num_groups).ravel(), 1))
        found = []
        for score, groups in plasticity.by_group.items():
            values = by_switch(groups, model.num_blocks, num_groups)
            if not np.isfinite(values).all():
                found.append(_nothing(score, len(kept), "the score is not finite or not measured everywhere"))
            elif np.ptp(values) <= 1e-12 * np.abs(values).max():
                found.append(_nothing(score, len(kept), "the score is the same everywhere"))
            else:
                exchanged = values[exchanges(len(COMPONENTS))].reshape(-1, values.size)
                own = slope(effects, exchanged, sizes)
                found.append(ScoreSlope(score=score, num_trials=len(kept), slope=own, accuracy=accuracy))
        return tuple(found)


def weighed_trials(trials: Sequence[TrialRecord], model: ModelFacts) -> list[tuple[TrialRecord, Selection]]:
    """The trials that count, each with its selection."""
    finished = [t for t in trials if t.state is TrialState.FINISHED and t.reports]
    # Each text once: there are thousands of trials and few selections.
    selections = {
        text: parse_selection(text, num_blocks=model.num_blocks) for text in {t.spec.selection for t in finished}
    }
    return [(t, selections[t.spec.selection]) for t in finished if has_plasticity(selections[t.spec.selection])]


def _trouble(trials: Sequence[TrialRecord], selections: Sequence[Selection]) -> str | None:
    """Why trials give no number, whatever the score."""
    accuracies = [trial.best_val_accuracy for trial in trials if trial.best_val_accuracy is not None]
    components = {name for selection in {*selections} for name in selection.components}
    if len(trials) < MIN_TRIALS:
        many = (
            "1 finished trial of components is"
            if len(trials) == 1
            else f"{len(trials)} finished trials of components are"
        )
        return f"{many} too few, it takes {MIN_TRIALS}"
    # A sum is not finite where one of its terms is not, and thousands of trials have ten reports each.
    if not math.isfinite(sum(report.val_accuracy for trial in trials for report in trial.reports)):
        return "an accuracy is not finite"
    if len(set(accuracies)) == 1:
        return f"every trial has the same accuracy, {accuracies[0]:.2%}"
    if len(components) < MIN_COMPONENTS:
        return f"only {', '.join(sorted(components))} were trained, it takes {MIN_COMPONENTS} of the components"
    if len({*selections}) == len(selections):
        return "every selection was run once, which cannot tell an effect from a run’s luck"
    return None


def count_groups(kept: Sequence[tuple[TrialRecord, Selection]], model: ModelFacts) -> int:
    """Switches of each component: one, or where some blocks were trained alone one for each block."""
    whole = all(str(selection) == "+".join(selection.components) for selection in {own for _, own in kept})
    return 1 if whole else model.num_blocks


def fit_trials(kept: Sequence[tuple[TrialRecord, Selection]], scores: np.ndarray, sizes: np.ndarray) -> Posterior:
    """The model after the trials; ``scores``, ``sizes``: (components, groups) as `by_switch` has them."""
    num_groups = scores.shape[1]
    rows = {selection: np.zeros((len(COMPONENTS), num_groups)) for _, selection in kept}
    for selection, row in rows.items():
        for block, name in selection.members:
            row[COMPONENTS.index(name), block if num_groups > 1 else 0] = 1
    switches = np.array([rows[selection].ravel() for _, selection in kept])
    rates = [trial.spec.learning_rate for trial, _ in kept]
    kinds = np.repeat(np.arange(len(COMPONENTS)), num_groups)
    terms = Terms.of(scores.ravel(), sizes.ravel(), kinds, rates=(min(rates), max(rates)))
    points = Points(switches, np.log10(rates))
    return Posterior(terms, points, np.array([trial.best_val_accuracy for trial, _ in kept]))


def by_switch(values: Mapping[str, float], num_blocks: int, num_groups: int) -> np.ndarray:
    """(components, groups) from "3.mha" → value: by block, or where components are whole the mean over blocks; NaN
    where there is none."""
    rows = [[values.get(f"{block}.{name}", math.nan) for block in range(num_blocks)] for name in COMPONENTS]
    found = np.array(rows)
    return found if num_groups > 1 else found.mean(1, keepdims=True)


def in_accuracy(found: Slope, accuracy: float) -> Worth:
    """In accuracy, near ``accuracy``."""
    rate = accuracy * (1 - accuracy)  # of the logistic function
    return Worth(
        mean=rate * found.mean,
        low=rate * found.low,
        high=rate * found.high,
        positive=found.positive,
        p=found.p,
        bayes_factor=math.exp(min(found.log_bayes_factor, 700)),
    )


def _nothing(score: str, num_trials: int, reason: str) -> ScoreSlope:
    return ScoreSlope(score=score, num_trials=num_trials, trouble=reason)
