"""Across data sets: what a score is worth on the average set and on the next one, and the paper's own comparison."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize, stats

from unfreeze.evidence.exchange import exchange_p
from unfreeze.records import Comparison, Pooled

_DIGITS = 9  # of a difference of accuracies; ties of signed ranks are lost to rounding otherwise


def pool(means: Sequence[float], sds: Sequence[float], pulls: Sequence[np.ndarray]) -> Pooled:
    """Random-effects meta-analysis of independent estimates: (K,) means and deviations, K arrays (P,) of pulls.

    The spread is Paule & Mandel's (1982), the interval Hartung & Knapp's (2001, Statistics in Medicine 20:3875–3889),
    never narrower than with the spread taken as known; the prediction interval Higgins, Thompson & Spiegelhalter's
    (2009, JRSS A 172:137–159), Student's t with K − 2. Labels are exchanged in all sets at once: sets share the model,
    and so what its components can do, which makes eleven sets no eleven draws of the components.
    """
    effects, variances = np.asarray(means, dtype=np.float64), np.asarray(sds, dtype=np.float64) ** 2
    count = len(effects)
    spread = _between(effects, variances) if count > 1 else 0.0
    weights = 1 / (variances + spread)
    mean = float(weights @ effects / weights.sum())
    low = high = next_low = next_high = None
    if count > 1:
        inflation = max(1.0, float(weights @ (effects - mean) ** 2) / (count - 1))
        error = math.sqrt(inflation / weights.sum())
        half = float(stats.t.ppf(0.975, count - 1)) * error
        low, high = mean - half, mean + half
        if count > 2:
            half = float(stats.t.ppf(0.975, count - 2)) * math.sqrt(spread + error**2)
            next_low, next_high = mean - half, mean + half
    return Pooled(
        mean=mean,
        low=low,
        high=high,
        spread=math.sqrt(spread),
        next_low=next_low,
        next_high=next_high,
        num_sets=count,
        p=exchange_p(np.sum(pulls, axis=0)),
    )


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
