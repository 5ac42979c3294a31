"""Rank correlations of plasticity with accuracy, as description: what they are over, and what was held fixed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Literal

import numpy as np

from unfreeze.components.selection import Selection, count_trainable, parse_selection
from unfreeze.evidence.exchange import exchange_p, exchanged_means, exchanges, kendall, partial, spearman
from unfreeze.evidence.recommend import choose_rates, rates_text
from unfreeze.records import COMPONENTS, Correlation, ModelFacts, PlasticityTable, TrialRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionScore:
    """A selection's accuracy at its own best learning rate."""

    selection: Selection
    learning_rate: float
    val_accuracy: float  # mean over the seeds run at that learning rate
    num_seeds: int
    num_rates: int  # learning rates that were tried to the end
    parameters: int  # of the selection, head left out
    trial_ids: tuple[str, ...]  # of those runs


def score_selections(trials: Sequence[TrialRecord], model: ModelFacts) -> tuple[SelectionScore, ...]:
    """Each selection with a finished trial, best first, at the learning rate that `choose_rates` gives it.

    Stopped trials are left out: they ended because they were bad, at another budget.
    """
    blocks = model.num_blocks

    texts = {trial.spec.selection for trial in trials}  # few, of thousands of trials
    canonical_texts = {text: str(parse_selection(text, num_blocks=blocks)) for text in texts}

    def canonical(trial: TrialRecord) -> TrialRecord:
        text = canonical_texts[trial.spec.selection]
        return trial if text == trial.spec.selection else replace(trial, spec=replace(trial.spec, selection=text))

    scores = []
    for choice in choose_rates(map(canonical, trials)):
        selection = parse_selection(choice.selection, num_blocks=blocks)
        scores.append(
            SelectionScore(
                selection=selection,
                learning_rate=choice.learning_rate,
                val_accuracy=choice.val_accuracy,
                num_seeds=choice.num_seeds,
                num_rates=choice.num_rates,
                parameters=count_trainable(selection, model.parameters, train_head=False, lora_sizes=model.lora_sizes),
                trial_ids=choice.trial_ids,
            )
        )
    return tuple(scores)


def mean_plasticity(selection: Selection, table: PlasticityTable, mode: str) -> float:
    """Mean plasticity over the (block, component) members, each counted once whatever its size."""
    by_member = {(row.block, row.component): row.mean for row in table.rows if row.mode == mode}
    return mean(by_member[member] for member in selection.members)


def has_plasticity(selection: Selection) -> bool:
    """Whether a selection has a place on the plasticity axis: no baseline (`none`, `all`), no ``embed``, no LoRA.

    Plasticity is of a component as it is; a low-rank update of it is another way to train, whose accuracy would be
    laid at the component's door.
    """
    return bool(selection.members) and not selection.embed and not selection.lora


def correlate(
    plasticity: PlasticityTable,
    trials: Sequence[TrialRecord],
    model: ModelFacts,
    *,
    scores: Sequence[SelectionScore] | None = None,
) -> tuple[Correlation, ...]:
    """Rank correlations of plasticity with best validation accuracy, for each mode in the table.

    Over the five components alone, over every selection, over every selection with size partialled out, and within one
    component across block subsets. Statistics are None with fewer than 3 points or a constant side. p exchanges the
    labels of the components (`exchange`), within one component those of the blocks. ``scores``: what `score_selections`
    gives for the trials, where that is known.
    """
    scores = scores if scores is not None else score_selections(trials, model)
    scores = [score for score in scores if has_plasticity(score.selection)]
    return tuple(
        correlation
        for mode in plasticity.modes
        for correlation in _correlate_mode(_values(plasticity, mode, model.num_blocks), scores, mode)
    )


def _values(table: PlasticityTable, mode: str, num_blocks: int) -> np.ndarray:
    """Plasticity (components, blocks), NaN where it was not measured."""
    groups = table.by_group[mode]
    rows = [[groups.get(f"{block}.{name}", math.nan) for block in range(num_blocks)] for name in COMPONENTS]
    return np.array(rows)


def _correlate_mode(values: np.ndarray, scores: Sequence[SelectionScore], mode: str) -> Iterable[Correlation]:
    whole = [score for score in scores if str(score.selection) in COMPONENTS]
    yield _correlation("components", mode, "", values, whole)
    yield _correlation("selections", mode, "", values, scores)
    # Ranks of the parameter count and of its logarithm are the same: partialling either out is the same thing.
    fixed = "; (log) trainable parameters partialled out"
    yield _correlation("selections_size_partialled", mode, fixed, values, scores, fix_size=True)
    for component in COMPONENTS:
        subsets = [s for s in scores if s.selection.components == (component,) and str(s.selection) != component]
        if len(subsets) >= 3:
            fixed = f"; component {component}, block subsets only"
            yield _correlation(f"within_{component}", mode, fixed, values, subsets, exchanged="blocks")


def _correlation(
    name: str,
    mode: str,
    fixed: str,
    values: np.ndarray,
    scores: Sequence[SelectionScore],
    *,
    fix_size: bool = False,
    exchanged: Literal["components", "blocks"] = "components",
) -> Correlation:
    found: dict[str, tuple[float, float] | None] = {"spearman": None, "kendall": None}
    if len(scores) >= 3 and np.isfinite(values).all():
        x = exchanged_means(values, _members(scores, values.shape), axis=0 if exchanged == "components" else 1)
        y = np.array([score.val_accuracy for score in scores])
        z = np.array([float(score.parameters) for score in scores])
        for method, coefficient in (("spearman", spearman), ("kendall", kendall)):
            each = partial(coefficient, x, y, z) if fix_size else coefficient(x, y)
            found[method] = _first_with_p(each)
    return Correlation(
        name=name,
        mode=mode,
        held_fixed=f"finished trials only, each selection {rates_text(scores)}{fixed}",
        exchanged=exchanged,
        n=len(scores),
        spearman=found["spearman"][0] if found["spearman"] else None,
        spearman_p=found["spearman"][1] if found["spearman"] else None,
        kendall=found["kendall"][0] if found["kendall"] else None,
        kendall_p=found["kendall"][1] if found["kendall"] else None,
    )


def _members(scores: Sequence[SelectionScore], shape: tuple[int, ...]) -> np.ndarray:
    """Which (component, block) each selection trains: bool (n, components, blocks)."""
    members = np.zeros((len(scores), *shape), dtype=bool)
    for row, score in enumerate(scores):
        for block, name in score.selection.members:
            members[row, COMPONENTS.index(name), block] = True
    return members


def _first_with_p(coefficients: np.ndarray) -> tuple[float, float] | None:
    if not math.isfinite(coefficients[0]):
        return None
    return round(float(coefficients[0]), 12), exchange_p(coefficients)  # a perfect order is 1, not 0.9999999999999999


def agreement(
    first: Mapping[str, float], other: Mapping[str, float], *, num_blocks: int
) -> tuple[tuple[float, float] | None, int]:
    """Kendall's τ-b of two scores of the same groups ("3.mha") with its p by exchange, and over how many groups.

    ``num_blocks`` 0: the groups are the components themselves ("mha").
    """
    names = [f"{block}.{name}" for name in COMPONENTS for block in range(num_blocks)] or list(COMPONENTS)
    names = [name for name in names if name in first and name in other]
    x, y = (np.array([side[name] for name in names]) for side in (first, other))
    if len(names) < 3 or len(names) % len(COMPONENTS) or not np.isfinite([x, y]).all():
        return None, len(names)
    exchanged = x.reshape(len(COMPONENTS), -1)[exchanges(len(COMPONENTS))].reshape(-1, len(x))
    return _first_with_p(kendall(exchanged, y)), len(names)


def describe(correlation: Correlation) -> str:
    """``Spearman −0.30, p = 0.683``, with a real minus sign."""
    return coefficient_text("Spearman ", correlation.spearman, correlation.spearman_p) or "no Spearman coefficient"


def coefficient_text(name: str, value: float | None, p: float | None) -> str:
    return "" if value is None else f"{name}{value:.2f}, p = {p:.3f}".replace("-", "−")
