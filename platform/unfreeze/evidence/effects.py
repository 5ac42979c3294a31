"""β: what one standard deviation more of a score is worth, size held fixed, and what exchanged labels leave possible.

From the model of the evidence (`model`) without its own terms for score and size: components (and where blocks are
searched their switches) are random effects, so that trials which share components count as what they are. In this
likelihood the effect of any score is linear, so one fit answers for every score and every exchange of its labels.

Two answers stand side by side. The posterior gives β's mean and P(β > 0); β and γ (of log size) have wide priors,
N(0, 1) in logits, because the search's narrow ones shrink what they estimate. Its spread rests on how much five
components differ, of which five components say little: taken alone it covers between 77 and 99 % for 95. So the
interval is of those β whose removal leaves the score exchangeable between the components. Of a score that was drawn
without regard to them it covers 95 % whatever they differ by; ops/bench/verdict.py measures it, for a score that
follows size too. It holds 0 where more than 5 % of the exchanged labels do as well as the true ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, stdtr

from unfreeze.evidence.exchange import exchange_ps
from unfreeze.evidence.model import LinearEffects, standardised

NUM_DRAWS = 128
LEVEL = 0.05  # of p at the ends of the interval
_WIDE = 1.0  # logits
_NARROW = np.geomspace(0.02, 0.6, 8)  # of β where a score is held against none: as large as the search expects one
_STEP, _NUM_STEPS, _NUM_HALVINGS = 0.25, 80, 16  # of the walk to the interval's ends, in standard deviations


@dataclass(frozen=True, slots=True)
class Slope:
    """β in logits, for a whole component."""

    mean: float  # posterior
    sd: float
    positive: float  # P(β > 0)
    p: float  # share of all exchanges of the components' labels under which β is as far from 0
    low: float  # 95 % by exchange; infinite where no β is excluded on that side
    high: float
    log_bayes_factor: float  # natural; of this score against none
    pulls: Callable[[np.ndarray], np.ndarray]  # βs taken out (n,) → (n, P) of every exchange, the present order first


def slope(effects: LinearEffects, scores: np.ndarray, sizes: np.ndarray) -> Slope:
    """β of the first of ``scores``.

    ``scores``: (P, J), the switches' score under every exchange of the components' labels, the present one first, on
    any scale but not constant. ``sizes``: (J,) log parameters.
    """
    z = (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)
    score = _ExchangedScore(_fix_size(effects, standardised(sizes)), z)
    mean, sd, positive = score.posterior()
    return Slope(
        mean=mean,
        sd=sd,
        positive=positive,
        p=float(score.p(np.zeros(1))[0]),
        low=interval_end(score.p, mean, -sd),
        high=interval_end(score.p, mean, sd),
        log_bayes_factor=score.log_bayes_factor(),
        pulls=score.pulls,
    )


def interval_end(p: Callable[[np.ndarray], np.ndarray], start: float, step: float) -> float:
    """The outermost β on one side of ``start`` that ``p``, of several at once, does not exclude, infinite where it
    excludes none; ``step``: about one standard deviation, with the side's sign."""
    places = start + _STEP * step * np.arange(_NUM_STEPS)
    kept = np.flatnonzero(p(places) > LEVEL)
    last = kept[-1] if len(kept) else 0
    if last == len(places) - 1:
        return float(np.copysign(np.inf, step))
    inside, outside = places[last], places[last + 1]
    for _ in range(_NUM_HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if p(np.array([middle]))[0] > LEVEL else (inside, middle)
    return float(inside)


def _fix_size(effects: LinearEffects, size: np.ndarray) -> LinearEffects:
    """γ integrated out: size is held fixed in the model of every score, and of none."""
    own = np.einsum("j,djk,k->d", size, effects.information, size) + 1 / _WIDE**2
    common, pull = effects.information @ size, effects.gradient @ size
    return LinearEffects(
        information=effects.information - common[:, :, None] * (common / own[:, None])[:, None],
        gradient=effects.gradient - common * (pull / own)[:, None],
        squares=effects.squares - pull**2 / own,
        log_weights=effects.log_weights - 0.5 * np.log(own),
        shape=effects.shape,
    )


class _ExchangedScore:
    """A score and its exchanges (P, J), standardised, against one likelihood."""

    def __init__(self, effects: LinearEffects, z: np.ndarray) -> None:
        self._of = effects
        self._gradient = z @ effects.gradient.T  # (P, draws)
        self._information = np.einsum("pj,djk,pk->pd", z, effects.information, z, optimize=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.sqrt(self._information)
            self._pulls = self._gradient / root
            self._shares = z @ (effects.information @ z[0]).T / root  # of it that the present order accounts for

    def posterior(self) -> tuple[float, float, float]:
        """Mean, deviation and P(β > 0): Student's t under each draw, weighted."""
        of, precision = self._of, self._information[0] + 1 / _WIDE**2
        means = self._gradient[0] / precision
        squares = of.squares - self._gradient[0] * means
        weights = _normalised(of.log_weights - 0.5 * np.log(precision) - of.shape * np.log(squares))
        variances = squares / precision / (2 * of.shape)
        mean = weights @ means
        freedom = 2 * of.shape
        sd = np.sqrt(weights @ (variances * freedom / (freedom - 2) + (means - mean) ** 2))
        return float(mean), float(sd), float(weights @ stdtr(freedom, means / np.sqrt(variances)))

    def p(self, betas: np.ndarray) -> np.ndarray:
        """Of each hypothesis of β: how many exchanges pull as hard as the present order."""
        return exchange_ps(self.pulls(betas))

    def pulls(self, betas: np.ndarray) -> np.ndarray:
        """How far the trials, with each of ``betas`` (n,) of the score taken out, pull every exchange of it from 0, in
        standard errors: (n, P). The draws' weights are the same for all of them."""
        of, beta = self._of, betas[:, None]
        squares = of.squares - 2 * beta * self._gradient[0] + beta**2 * self._information[0]
        weights = _normalised(of.log_weights - of.shape * np.log(squares)) / np.sqrt(squares / (2 * of.shape))
        return weights @ self._pulls.T - beta * (weights @ self._shares.T)

    def log_bayes_factor(self) -> float:
        """This score, its β as large as the search expects one, against no score."""
        of, precision = self._of, self._information[0][:, None] + 1 / _NARROW**2
        squares = of.squares[:, None] - self._gradient[0][:, None] ** 2 / precision
        own = of.log_weights[:, None] - 0.5 * np.log(precision * _NARROW**2) - of.shape * np.log(squares)
        return float(logsumexp(own) - np.log(len(_NARROW)) - logsumexp(of.log_weights - of.shape * np.log(of.squares)))


def _normalised(logs: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    weights = np.exp(logs - logs.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)
