"""Across data sets: what a score is worth on the average set and on the next one, and the paper's own comparison."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import optimize, stats

from unfreeze.evidence.effects import Slope, interval_end
from unfreeze.evidence.exchange import exchange_ps
from unfreeze.records import Comparison, Pooled

_DIGITS = 9  # of a difference of accuracies; ties of signed ranks are lost to rounding otherwise


def pool(found: Sequence[Slope]) -> Pooled:
    """Random-effects meta-analysis of one score in several data sets.

    The mean weighs by inverse variance, the spread between sets being Paule & Mandel's (1982). Two intervals answer to
    two doubts, and the wider one on each side is given:

    - what the components differ by without the score's doing, which sets share: those β whose removal from every set
      leaves the score exchangeable, the labels exchanged in all sets at once. Eleven sets are no eleven draws of the
      components. Where β is the same in every set it covers 95 % alone, the noise of single sets included; where β
      differs from set to set, 85 to 93 %.
    - what sets differ by: 1.96 standard errors of their estimates' mean; for the next set's β 1.96 standard deviations
      of them, the error of the mean included. Alone it covers 26 to 92 %.

    Each holds the noise of single sets, so that added as squares they cover 97 %, and 99 % with Student's t for the
    latter; ops/bench/verdict.py measures what they do as they are.
    """
    effects, variances = np.array([own.mean for own in found]), np.array([own.sd for own in found]) ** 2
    count = len(effects)
    spread = _between(effects, variances) if count > 1 else 0.0
    weights = 1 / (variances + spread)
    mean = float(weights @ effects / weights.sum())
    low = high = next_low = next_high = None
    if count > 1:
        sd = float(np.sqrt(variances).mean())
        common = [interval_end(_common_p(found), mean, side * sd) for side in (-1, 1)]
        scatter = 1.96 * float(effects.std(ddof=1))
        low, high = _wider(common, mean, scatter / math.sqrt(count))
        if count > 2:
            next_low, next_high = _wider(common, mean, scatter * math.sqrt(1 + 1 / count))
    return Pooled(
        mean=mean,
        low=low,
        high=high,
        spread=math.sqrt(spread),
        next_low=next_low,
        next_high=next_high,
        num_sets=count,
        p=float(_common_p(found)(np.zeros(1))[0]),
    )


def _wider(interval: Sequence[float], middle: float, half: float) -> tuple[float, float]:
    return min(interval[0], middle - half), max(interval[1], middle + half)


def _common_p(found: Sequence[Slope]) -> Callable[[np.ndarray], np.ndarray]:
    """Of each hypothesis that every set's β is the same given one."""
    return lambda betas: exchange_ps(np.sum([own.pulls(betas) for own in found], axis=0))


def _between(effects: np.ndarray, variances: np.ndarray) -> float:
    """The variance between sets that makes the weighted squares as large as is expected of them; 0 if none does."""

    def excess(between: float) -> float:
        weights = 1 / (variances + between)
        mean = weights @ effects / weights.sum()
        return float(weights @ (effects - mean) ** 2) - (len(effects) - 1)

    if excess(0.0) <= 0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, np.ptp(effects) ** 2 * len(effects), xtol=1e-15))


def compare(accuracies: Mapping[str, Sequence[float]]) -> tuple[Comparison, ...]:
    """Every pair of columns, each paired over the same sets: component → accuracy of each set, in points.

    The published statistics (arXiv 2602.06883): two-sided paired t-tests, one-sided Wilcoxon signed-rank tests with
    their exact distribution up to 50 sets (zeros left out), mean and relative gains. They take sets as independent, and
    are not adjusted for the number of pairs.
    """
    return tuple(
        _compare(first, second, np.asarray(accuracies[first]), np.asarray(accuracies[second]))
        for first, second in itertools.combinations(accuracies, 2)
    )


def _compare(first: str, second: str, left: np.ndarray, right: np.ndarray) -> Comparison:
    gains = np.round(left - right, _DIGITS)
    testable = len(gains) > 1 and np.ptp(gains) > 0
    return Comparison(
        first=first,
        second=second,
        num_sets=len(gains),
        difference=float(gains.mean()),
        relative=float((100 * gains / right).mean()),
        t_p=float(stats.ttest_rel(left, right).pvalue) if testable else None,
        wilcoxon_p=float(stats.wilcoxon(gains, alternative="greater").pvalue) if testable else None,
    )


def mean_ranks(accuracies: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Column → mean over the sets of its rank, 1 for the best; ties share theirs."""
    ranks = stats.rankdata(-np.column_stack([np.round(values, _DIGITS) for values in accuracies.values()]), axis=1)
    return dict(zip(accuracies, ranks.mean(axis=0).tolist(), strict=True))
