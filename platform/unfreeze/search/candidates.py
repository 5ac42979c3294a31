"""Which configuration to try next, given the model: all of them looked at where they are few, a local search else."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from unfreeze.evidence.model import Outlook, Points, Posterior

_NUM_RIVALS = 96  # that a run is held against; 48 did worse on the digits' table
_NUM_RANDOM, _NUM_STARTS, _NUM_ROUNDS = 48, 3, 3  # of local search
_FEW = 4  # of the learning rates every fourth, until the subsets are chosen
_NUM_RATES = 25  # from the lowest to the highest, evenly in the logarithm
_MAX_ENUMERATED = 10  # switches: with more, local search in place of every subset

Price = Callable[[np.ndarray], np.ndarray]  # of subsets, (m, J): what they cost, in logits of accuracy, (m,)


def rates_between(low: float, high: float) -> np.ndarray:
    """log10 of the rates that are tried."""
    return np.linspace(np.log10(low), np.log10(high), _NUM_RATES if high > low else 1)


def every_subset(width: int, allowed: Callable[[np.ndarray], bool]) -> np.ndarray | None:
    """(s, J): all that are allowed; None where there are too many to look at."""
    if width > _MAX_ENUMERATED:
        return None
    every = np.array(list(itertools.product((0.0, 1.0), repeat=width)))
    return every[[allowed(row) for row in every]]


def at_every_rate(subsets: np.ndarray, log_rates: np.ndarray) -> Points:
    """(s, J) and (r,) → s·r points."""
    return Points(np.repeat(subsets, len(log_rates), axis=0), np.tile(log_rates, len(subsets)))


def promising(found: Outlook) -> Outlook:
    """What may turn out best: the highest mean plus deviation."""
    return found[np.argsort(-(found.mean + found.deviation), kind="stable")[:_NUM_RIVALS]]


def most_telling(posterior: Posterior, found: Outlook, rivals: Outlook, *, count: int = 1) -> Points:
    """Where a run is worth most; of equally good ones the first, so that nothing is left to chance."""
    order = np.argsort(-posterior.knowledge_gradient(found, rivals), kind="stable")
    return found.points[order[:count]]


class Candidates:
    """Subsets of switches that may be tried.

    Args:
        subsets: (s, J) of 0 and 1, every one that is allowed; None: too many to list.
        allowed: whether a subset, (J,), may be tried.
        draw: an allowed subset at random, asked where samples miss the budget; None: they never do.
    """

    def __init__(
        self,
        width: int,
        subsets: np.ndarray | None,
        *,
        allowed: Callable[[np.ndarray], bool],
        draw: Callable[[np.random.Generator], np.ndarray] | None = None,
    ) -> None:
        self.subsets = subsets
        self._width, self._allowed, self._draw = width, allowed, draw

    def choose(
        self,
        posterior: Posterior,
        tried: Points,
        log_rates: np.ndarray,
        rng: np.random.Generator,
        price: Price | None = None,
    ) -> Points:
        """The one point, at one of ``log_rates``, whose run is worth most; ``price`` is taken off what it may reach."""

        def outlook(points: Points) -> Outlook:
            found = posterior.outlook(points)
            return found if price is None else replace(found, mean=found.mean - price(points.switches))

        few = log_rates[np.unique(np.r_[: len(log_rates) : _FEW, len(log_rates) - 1])]
        pool = self.subsets if self.subsets is not None else self._starts(posterior, tried, rng)
        found = outlook(at_every_rate(pool, few))
        rivals = promising(found)
        best = most_telling(posterior, found, rivals, count=_NUM_STARTS)
        for _ in range(_NUM_ROUNDS if self.subsets is None else 0):
            flipped = np.abs(best.switches[:, None, :] - np.eye(self._width)).reshape(-1, self._width)
            pool = self._only_allowed([best.switches, flipped])
            found = outlook(at_every_rate(pool, np.unique(best.log_rates)))
            rivals = promising(rivals.join(found))
            best = most_telling(posterior, found, rivals, count=_NUM_STARTS)
        last = at_every_rate(np.unique(best.switches, axis=0), log_rates)
        return most_telling(posterior, outlook(last), rivals)

    def at_random(self, log_rates: np.ndarray, rng: np.random.Generator) -> Points:
        """One point without regard to any trial."""
        pool = self.subsets if self.subsets is not None else self._some(rng)
        return at_every_rate(pool[[rng.integers(len(pool))]], log_rates[[rng.integers(len(log_rates))]])

    def _starts(self, posterior: Posterior, tried: Points, rng: np.random.Generator) -> np.ndarray:
        """What did best, single switches and random subsets."""
        if not len(tried):
            return self._some(rng)
        leading = np.argsort(-posterior.expected_logits(tried), kind="stable")[: 2 * _NUM_STARTS]
        return self._some(rng, tried.switches[leading])

    def _some(self, rng: np.random.Generator, *more: np.ndarray) -> np.ndarray:
        """Single switches and random subsets, as far as they are allowed, and ``more``."""
        density = rng.uniform(0.05, 0.95, (_NUM_RANDOM, 1))
        drawn = (rng.random((_NUM_RANDOM, self._width)) < density).astype(np.float64)
        found = self._only_allowed([np.eye(self._width), drawn, *more])
        if not len(found) and self._draw is not None:
            return np.stack([self._draw(rng) for _ in range(8)])
        if not len(found):
            raise ValueError(
                f"allowed must leave some of the {self._width} switches' sets, but refused each alone and all of "
                f"{_NUM_RANDOM} drawn at random"
            )
        return found

    def _only_allowed(self, subsets: Sequence[np.ndarray]) -> np.ndarray:
        unique = np.unique(np.concatenate(subsets), axis=0)
        return unique[[self._allowed(row) for row in unique]]
