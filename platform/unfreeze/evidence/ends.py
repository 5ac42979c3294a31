"""Where a run ends, told from where it is: by what finished runs still gained from there, at what learning rates.

High rates start low and finish high. On the digits' table (ops/bench/tables) a fifth of the images says nothing of the
order in which the best third of the runs ends: rank correlation −0.15. So accuracies so far are not held against each
other, but what each is expected to come to.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from unfreeze.evidence.model import to_logits

_LEAST = 8  # finished runs: stopped by a line through four, the winner is lost before it is known (digits, replayed)
_STEADY = 0.25  # decades², as much spread of rates at which nothing is gained more by higher ones
_SPREAD, _WEIGHT = 0.2, 2.0  # logits by which gains differ, before any is seen, and how many runs that counts for


@dataclass(frozen=True, slots=True)
class Gain:
    """What a run still gains up to its end, in logits of accuracy; ``deviation``: of a single run."""

    mean: float
    deviation: float

    def end(self, accuracy: float) -> float:
        """The accuracy that is expected of a run which has reached ``accuracy``."""
        return float(expit(to_logits(accuracy) + self.mean))

    def needed(self, end: float) -> float:
        """The accuracy below which a run reaches ``end`` by luck alone: two standard deviations of it."""
        return float(expit(to_logits(end) - self.mean - 2 * self.deviation))


def gain_to_end(reached: np.ndarray, ends: np.ndarray, log_rates: np.ndarray, *, log_rate: float) -> Gain | None:
    """Of a run at ``log_rate``; None where fewer than eight have finished.

    Args:
        reached, ends: best accuracies up to now and to the end of finished runs, (n,).
        log_rates: log10 of their learning rates, (n,).
    """
    if len(ends) < _LEAST:
        return None
    gains = to_logits(ends) - to_logits(reached)
    off = log_rates - log_rates.mean()
    spread = off @ off + _STEADY
    slope = off @ gains / spread
    at = log_rate - log_rates.mean()
    rest = gains - gains.mean() - slope * off
    variance = (rest @ rest + _WEIGHT * _SPREAD**2) / (len(gains) - 2 + _WEIGHT)
    deviation = np.sqrt(variance * (1 + 1 / len(gains) + at**2 / spread))
    # The best so far never falls.
    return Gain(max(float(gains.mean() + slope * at), 0.0), float(deviation))
