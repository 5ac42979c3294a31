"""Data sets that are planted: what components, their parts, size, a score and the learning rate do to accuracy."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from unfreeze.evidence.model import Points, standardised
from unfreeze.report.paper import PUBLISHED

PARAMETERS = {"ln1": 1_536, "mha": 2_360_000, "ln2": 1_536, "fc1": 2_360_000, "fc2": 2_360_000}  # of a ViT-B block
SIZES = np.log(list(PARAMETERS.values()))
PUBLISHED_ORDER = {"mha": 5.0, "fc1": 4.0, "fc2": 3.0, "ln2": 2.0, "ln1": 1.0}  # of plasticity; its sizes are a figure


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What data sets are planted with; standard deviations in logits."""

    components: float  # between components, the same on every set
    parts: float  # between the blocks or thirds of one
    own: float = 0.0  # between components, of each set its own
    beta: float = 0.0
    spread: float = 0.0  # of β between data sets
    size: float = 0.0  # worth of one standard deviation of log size
    confounding: float = 0.0  # correlation of plasticity with size
    density: tuple[float, float] = (0.15, 0.85)  # share of the switches that a drawn trial has on


NULLS = {
    "independent": World(components=0.05, parts=0.03),
    "effects": World(components=0.35, parts=0.2),
    "size": World(components=0.1, parts=0.05, size=0.2, confounding=0.8),
    "shared": World(components=0.2, parts=0.1, density=(0.6, 0.95)),
}


def published_world(times: float = 1.0) -> World:
    """The effect of the published table: per set, logits of accuracy regressed on the published order. What is left
    differs more from set to set than its mean over the sets does from 0, and is shared or a set's own accordingly."""
    order = standardised([PUBLISHED_ORDER[name] for name in ("mha", "fc1", "fc2", "ln2", "ln1")])
    accuracies = logit(np.array([[mean for mean, _ in row[:5]] for row in PUBLISHED.values()]) / 100)
    effects = accuracies - accuracies.mean(axis=1, keepdims=True)
    slopes = effects @ order / len(order)
    rest = effects - np.outer(slopes, order)
    sets, freedom = len(rest), 3  # five components less mean and slope
    own = float(((rest - rest.mean(0)) ** 2).sum()) / (freedom * (sets - 1))
    shared = max(0.0, float((rest.mean(0) ** 2).sum()) / freedom - own / sets)
    return World(
        components=math.sqrt(shared),
        own=math.sqrt(own),
        parts=math.sqrt(shared + own) / 2,
        beta=times * float(slopes.mean()),
        spread=float(slopes.std(ddof=1)),
    )


def plant_score(rng: np.random.Generator, groups: int, confounding: float) -> np.ndarray:
    """Plasticity (5, groups), standardised: four fifths of its variance lie between components."""
    own = rng.normal(size=(5, 1)) + (0.5 * rng.normal(size=(5, groups)) if groups > 1 else 0)
    size = standardised(SIZES)[:, None]
    mixed = confounding * size + np.sqrt(1 - confounding**2) * standardised(own.ravel()).reshape(own.shape)
    return standardised(mixed.ravel()).reshape(own.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """What a configuration reaches on one planted data set, in logits."""

    effects: np.ndarray  # (5, groups) of each switch, had its component no other
    pairs: np.ndarray  # (5, 5), below the diagonal
    base: float
    gain: float  # of training more, which levels off
    best: float  # log10 of the best learning rate of a selection of nothing
    moves: np.ndarray  # (5,) by which a whole component moves it
    bend: float
    noise: float  # of a run

    @staticmethod
    def plant(
        rng: np.random.Generator, world: World, score: np.ndarray, components: np.ndarray, beta: float
    ) -> "DataSet":
        """``score``: (5, groups); ``components``: (5,) what each does besides; ``beta``: the score's worth."""
        parts = world.parts * rng.normal(size=score.shape) if score.shape[1] > 1 else 0.0
        return DataSet(
            effects=components[:, None] + parts + beta * score + world.size * standardised(SIZES)[:, None],
            pairs=np.tril(rng.normal(-0.05, 0.12, (5, 5)), -1),
            base=rng.normal(0.8, 0.5),
            gain=rng.uniform(0.2, 0.7),
            best=rng.uniform(-2.4, -1.4),
            moves=rng.normal(0, 0.12, 5),
            bend=rng.uniform(0.4, 1.4),
            noise=rng.uniform(0.03, 0.10),
        )

    def run(self, points: Points, rng: np.random.Generator) -> np.ndarray:
        """Accuracy of one run of each: (n,)."""
        groups = self.effects.shape[1]
        share = points.switches.reshape(-1, 5, groups).mean(2)
        off = points.log_rates - self.best - share @ self.moves
        value = self.base + points.switches @ self.effects.ravel() / groups + self.gain * np.log1p(share.sum(1))
        value += np.einsum("nj,jk,nk->n", share, self.pairs, share)
        value -= self.bend * np.where(off > 0, 1.5, 1.0) * off**2  # too high a rate costs more than too low a one
        return expit(value + rng.normal(0, self.noise, len(value)))
