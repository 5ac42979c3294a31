"""Across data sets: what a score is worth on the average set and on the next one, and the paper's own comparison."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import optimize, stats

from unfreeze.evidence.effects import Slope, interval_end
from unfreeze.evidence.exchange import exchange_p
from unfreeze.records import Comparison, Pooled

_PRIOR = 4  # sets; with 2 intervals are up to a tenth wider and cover as much
_DIGITS = 9  # of a difference of accuracies; ties of signed ranks are lost to rounding otherwise


def pool(found: Sequence[Slope]) -> Pooled:
    """Random-effects meta-analysis of one score in several data sets.

    The mean weighs by inverse variance, the spread between sets being Paule & Mandel's (1982). The interval has two
    parts, added as squares (Zou & Donner 2008, Statistics in Medicine 27:1693–1702):

    - what the components differ by without the score's doing, which all sets share: those β whose removal from every
      set leaves the score exchangeable, the labels exchanged in all sets at once. Eleven sets are no eleven draws of
      the components, and without this part the interval covered 35 % for 95.
    - what sets differ by: Hartung & Knapp's (2001, Statistics in Medicine 20:3875–3889), with a weakly informative
      prior in place of a floor, since two or three sets say little of their own spread: the estimates differ by what
      their own deviations and the spread say, which counts as `_PRIOR` sets more.

    The next set's adds what one estimate varies by, its noise included.
    """
    effects, variances = np.array([own.mean for own in found]), np.array([own.sd for own in found]) ** 2
    count = len(effects)
    spread = _between(effects, variances) if count > 1 else 0.0
    weights = 1 / (variances + spread)
    mean = float(weights @ effects / weights.sum())
    low = high = next_low = next_high = None
    if count > 1:
        freedom = count - 1 + _PRIOR
        inflation = (_PRIOR + float(weights @ (effects - mean) ** 2)) / freedom
        half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(inflation / weights.sum())
        sd = float(np.sqrt(variances).mean())
        below, above = (mean - interval_end(_common_p(found), mean, side * sd) for side in (-1, 1))
        low, high = mean - math.hypot(half, below), mean + math.hypot(half, above)
        if count > 2:
            half *= math.sqrt(count + 1)
            next_low, next_high = mean - math.hypot(half, below), mean + math.hypot(half, above)
    return Pooled(
        mean=mean,
        low=low,
        high=high,
        spread=math.sqrt(spread),
        next_low=next_low,
        next_high=next_high,
        num_sets=count,
        p=_common_p(found)(0.0),
    )


def _common_p(found: Sequence[Slope]) -> Callable[[float], float]:
    """Of the hypothesis that every set's β is the same given one."""
    return lambda beta: exchange_p(np.sum([own.pulls(beta) for own in found], axis=0))


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
