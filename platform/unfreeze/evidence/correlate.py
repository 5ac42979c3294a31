"""Does plasticity predict accuracy here? Rank correlations with intervals, and what was held fixed."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, mean

from unfreeze.components.selection import Selection, count_trainable, parse_selection
from unfreeze.evidence.recommend import choose_rates
from unfreeze.records import COMPONENTS, MODES, Correlation, ModelFacts, PlasticityTable, TrialRecord

_BASIS = "finished trials only, each selection at its own best learning rate"
_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionScore:
    """A selection's accuracy at its own best learning rate."""

    selection: Selection
    learning_rate: float
    val_accuracy: float  # mean over the seeds run at that learning rate
    num_seeds: int
    parameters: int  # of the selection, head left out


def score_selections(trials: Sequence[TrialRecord], model: ModelFacts) -> tuple[SelectionScore, ...]:
    """Each selection with a finished trial, best first, at the learning rate that `choose_rates` gives it.

    Stopped trials are left out: they ended because they were bad, at another budget.
    """
    blocks = model.num_blocks

    def canonical(trial: TrialRecord) -> TrialRecord:
        selection = str(parse_selection(trial.spec.selection, num_blocks=blocks))
        return replace(trial, spec=replace(trial.spec, selection=selection))

    scores = []
    for choice in choose_rates(map(canonical, trials)):
        selection = parse_selection(choice.selection, num_blocks=blocks)
        scores.append(
            SelectionScore(
                selection=selection,
                learning_rate=choice.learning_rate,
                val_accuracy=choice.val_accuracy,
                num_seeds=choice.num_seeds,
                parameters=count_trainable(selection, model.parameters, train_head=False, lora_sizes=model.lora_sizes),
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


def correlate(plasticity: PlasticityTable, trials: Sequence[TrialRecord], model: ModelFacts) -> tuple[Correlation, ...]:
    """Rank correlations of plasticity with best validation accuracy, for each mode in the table.

    Over the five components alone, over every selection, over every selection with size partialled out, and within one
    component across block subsets. Statistics are None with fewer than 3 points or a constant side.

    Intervals: 95 %, Fisher's z with the variances (1 + r²/2)/(n − 3) for Spearman's and 0.437/(n − 4) for Kendall's
    (Bonett & Wright 2000, Psychometrika 65:23–28; the latter from Fieller, Hartley & Pearson 1957); a partial
    coefficient costs one n (Fisher 1924). They take the points as independent, which selections that share components
    are not: read them as the least there is to doubt.
    """
    present = {row.mode for row in plasticity.rows}
    scores = [score for score in score_selections(trials, model) if has_plasticity(score.selection)]
    return tuple(
        correlation for mode in MODES if mode in present for correlation in _correlate_mode(plasticity, scores, mode)
    )


def _correlate_mode(table: PlasticityTable, scores: Sequence[SelectionScore], mode: str) -> Iterable[Correlation]:
    def x_of(chosen: Sequence[SelectionScore]) -> list[float]:
        return [mean_plasticity(score.selection, table, mode) for score in chosen]

    def y_of(chosen: Sequence[SelectionScore]) -> list[float]:
        return [score.val_accuracy for score in chosen]

    means = table.component_means(mode)
    whole = [score for score in scores if str(score.selection) in means]
    yield _correlation("components", mode, _BASIS, [means[str(s.selection)] for s in whole], y_of(whole))
    yield _correlation("selections", mode, _BASIS, x_of(scores), y_of(scores))
    sizes = [float(score.parameters) for score in scores]
    # Ranks of the parameter count and of its logarithm are the same: partialling either out is the same thing.
    fixed = f"{_BASIS}; (log) trainable parameters partialled out"
    yield _correlation("selections_size_partialled", mode, fixed, x_of(scores), y_of(scores), sizes)
    for component in COMPONENTS:
        subsets = [s for s in scores if s.selection.components == (component,) and str(s.selection) != component]
        if len(subsets) >= 3:
            fixed = f"{_BASIS}; component {component}, block subsets only"
            yield _correlation(f"within_{component}", mode, fixed, x_of(subsets), y_of(subsets))


def _correlation(
    name: str, mode: str, held_fixed: str, x: Sequence[float], y: Sequence[float], z: Sequence[float] | None = None
) -> Correlation:
    spearman = _coefficient(_spearman, x, y, z)
    kendall = _coefficient(_kendall, x, y, z)
    n = len(x) if z is None else len(x) - 1
    spearman_low, spearman_high = spearman_interval(spearman, n)
    kendall_low, kendall_high = kendall_interval(kendall, n)
    return Correlation(
        name=name,
        mode=mode,
        held_fixed=held_fixed,
        n=len(x),
        spearman=spearman,
        spearman_low=spearman_low,
        spearman_high=spearman_high,
        kendall=kendall,
        kendall_low=kendall_low,
        kendall_high=kendall_high,
    )


def _coefficient(
    method: Callable[[Sequence[float], Sequence[float]], float],
    x: Sequence[float],
    y: Sequence[float],
    z: Sequence[float] | None,
) -> float | None:
    """The rank coefficient of x and y, with z partialled out unless None; None where it is not defined.

    Both are SciPy's (Kendall's is tau-b); the partial coefficient is Kendall's (1942) formula for both.
    """
    if len(x) < 3 or _constant(x) or _constant(y):
        return None
    raw = method(x, y)
    if z is None or _constant(z):  # one size only: nothing to take out
        return raw
    with_x, with_y = method(x, z), method(y, z)
    left = (1 - with_x**2) * (1 - with_y**2)
    if left < 1e-12:  # size orders one side completely; what remains is rounding
        return None
    return max(-1.0, min(1.0, (raw - with_x * with_y) / math.sqrt(left)))


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    from scipy import stats  # takes a second

    return round(float(stats.spearmanr(x, y).statistic), 12)  # a perfect order is 1, not 0.9999999999999999


def _kendall(x: Sequence[float], y: Sequence[float]) -> float:
    from scipy import stats

    return round(float(stats.kendalltau(x, y).statistic), 12)


def _constant(values: Sequence[float]) -> bool:
    return len(set(values)) < 2


def spearman_interval(r: float | None, n: int) -> tuple[float | None, float | None]:
    """95 % interval of Spearman's coefficient over ``n`` points; (None, None) below n = 4."""
    if r is None or n < 4:
        return None, None
    # One swap of neighbours: the value next to a perfect order.
    inner = min(abs(r), 1 - 12 / (n * (n**2 - 1)))
    return _fisher_interval(r, inner, math.sqrt((1 + inner**2 / 2) / (n - 3)))


def kendall_interval(tau: float | None, n: int) -> tuple[float | None, float | None]:
    """95 % interval of Kendall's coefficient over ``n`` points; (None, None) below n = 5."""
    if tau is None or n < 5:
        return None, None
    inner = min(abs(tau), 1 - 4 / (n * (n - 1)))
    return _fisher_interval(tau, inner, math.sqrt(0.437 / (n - 4)))


def _fisher_interval(r: float, inner: float, error: float) -> tuple[float, float]:
    """tanh(atanh(r) ± 1.96 error). A perfect order, whose z is infinite, gets the bound of the value next to it."""
    z = math.copysign(math.atanh(inner), r)
    low, high = math.tanh(z - _Z95 * error), math.tanh(z + _Z95 * error)
    return (-1.0 if r <= -1 else low), (1.0 if r >= 1 else high)


def kendall(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Kendall's τ-b (Kendall 1945, Biometrika 33:239–251) of two scores of the same things, and its 95 % interval
    (`kendall_interval`: Fieller, Hartley & Pearson 1957); each None where there are too few things, or a score is
    constant.
    """
    tau = _coefficient(_kendall, x, y, None)
    return tau, *kendall_interval(tau, len(x))


def verdict(correlations: Sequence[Correlation]) -> str:
    """Whether plasticity predicts accuracy here, in words; a claim only where the 95 % interval excludes zero."""
    sentences = []
    for mode in MODES:
        found = {correlation.name: correlation for correlation in correlations if correlation.mode == mode}
        if "components" in found:
            sentences.append(_sentence(mode, found["components"], found.get("selections_size_partialled")))
    return " ".join(sentences) or "Plasticity was not measured, so nothing can be said about what it predicts."


def _sentence(mode: str, components: Correlation, selections: Correlation | None) -> str:
    evidence = f"{describe(components)} over n = {components.n} components"
    match _sign(components):
        case 1:
            text = f"Plasticity ({mode}) predicts accuracy here: {evidence}"
        case -1:
            text = f"Plasticity ({mode}) predicts the opposite here, more plastic components did worse: {evidence}"
        case _:
            text = f"Whether plasticity ({mode}) predicts accuracy here is undecided: {evidence}"
    if selections is None or selections.spearman_low is None:
        return f"{text}."
    claim = {1: "it does", -1: "it predicts the opposite", 0: "it is undecided"}[_sign(selections)]
    return f"{text}; over n = {selections.n} selections with their size held fixed {claim}: {describe(selections)}."


def _sign(correlation: Correlation) -> int:
    """+1 or −1 where the Spearman interval lies above or below zero, else 0."""
    low, high = correlation.spearman_low, correlation.spearman_high
    if low is None or high is None:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def describe(correlation: Correlation) -> str:
    """``Spearman −0.30 [−0.93, 0.81]``, with a real minus sign."""
    if correlation.spearman is None:
        return "no Spearman coefficient"
    text = f"Spearman {correlation.spearman:.2f}"
    if correlation.spearman_low is not None:
        text += f" [{correlation.spearman_low:.2f}, {correlation.spearman_high:.2f}]"
    else:
        text += " (too few for an interval)"
    return text.replace("-", "−")
