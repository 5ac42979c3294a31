"""When enough pairs have been measured: running moments, intervals that allow looking often, and the order they settle.

The unit is an observation, one per independent pair, or one per group of cross pairs (its mean), since the pairs of a
group share images. The driver imports this file, so it needs no torch.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unfreeze.config import PlasticityConfig
from unfreeze.records import COMPONENTS, PlasticityRanking, PlasticityRow

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Largest relative error of a rate by rounding, which no number of pairs averages out. float32 is held to it against
# float64, the others against float32, on real weights (tests/plasticity). An order within it is not called settled.
ROUNDING = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}
_NUM_ORDERINGS = math.comb(len(COMPONENTS), 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRates:
    """What one batch of pairs says. Keys are modes."""

    observations: dict[str, np.ndarray]  # float64 (observations, blocks, components)
    maxima: dict[str, np.ndarray]  # float64 (blocks, components), over single pairs
    num_pairs: int  # measured; those of distance 0 left out
    skipped_pairs: int
    extremes: dict[str, np.ndarray]  # float64 (3, blocks), see network.Extremes; empty without bounds
    token_norm: tuple[float, int, int]  # root mean square over an image's embedded tokens: sum, images; their tokens


def merge_extremes(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Mode → (3, blocks) over all parts: the smallest variances, the largest norms."""
    stacked = {mode: np.stack([part[mode] for part in parts]) for mode in parts[0]}
    return {mode: np.stack([a[:, 0].min(0), a[:, 1].max(0), a[:, 2].min(0)]) for mode, a in stacked.items()}


class Moments:
    """Count, mean and co-moments of arrays (…, k), merged batch by batch (Chan, Golub & LeVeque 1979)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean = np.zeros(shape)
        self.comoments = np.zeros((*shape, shape[-1]))  # Σ (x_i − x̄_i)(x_j − x̄_j)

    def update(self, values: np.ndarray) -> None:
        """Add float64 observations (n, *shape)."""
        if not len(values):
            return
        mean = values.mean(0)
        total = self.count + len(values)
        shift = mean - self.mean
        centred = values - mean
        self.comoments += np.einsum("n...i,n...j->...ij", centred, centred)
        self.comoments += np.einsum("...i,...j->...ij", shift, shift) * (self.count * len(values) / total)
        self.mean += shift * (len(values) / total)
        self.count = total

    @property
    def sd(self) -> np.ndarray:
        """Sample standard deviation (…, k); NaN with one observation."""
        return self._root(np.einsum("...ii->...i", self.comoments))

    @property
    def difference_sd(self) -> np.ndarray:
        """Sample standard deviation of x_i − x_j: (…, k, k)."""
        squares = np.einsum("...ii->...i", self.comoments)
        return self._root(squares[..., :, None] + squares[..., None, :] - 2 * self.comoments)

    def _root(self, squares: np.ndarray) -> np.ndarray:
        if self.count < 2:
            return np.full(squares.shape, math.nan)
        return np.sqrt(np.maximum(squares, 0) / (self.count - 1))


def confidence_radius(sd: np.ndarray, count: int, alpha: float) -> np.ndarray:
    """Half width of a confidence sequence for a mean: with probability 1 − ``alpha`` it covers at all counts together.

    So it may be looked at after each batch, and the measurement stopped at any look, with no further correction. It
    inverts the t-test's Bayes factor with a standard normal prior on the effect size, an e-process whatever the
    variance: exact for normal observations (Pérez-Ortiz, Lardy, de Heide & Grünwald 2024, Annals of Statistics
    52:1410; Wang & Ramdas, arXiv 2310.03722). For others it is as good as a t-test is; `ops/bench/stopping_rule.py`
    measures how good.
    Infinite while ``count`` is too small to exclude anything.
    """
    if count < 2:
        return np.full_like(sd, math.inf)
    # (1 + count)^(−1/2) · [(1 + u) / (1 + u / (1 + count))]^(count/2) = 1/alpha, solved for u = t² / (count − 1).
    ratio = math.exp((math.log1p(count) - 2 * math.log(alpha)) / count)
    if ratio >= 1 + count:
        return np.full_like(sd, math.inf)
    u = (ratio - 1) / (1 - ratio / (1 + count))
    return sd * math.sqrt(u * (count - 1) / count)


class Standing:
    """One mode's running result: moments of every block and of the mean over blocks, and which orderings are settled.

    An ordering of two components is settled once the confidence sequence of their difference excludes 0 and all that
    rounding could add; it stays settled, since the sequence covers at all times together. The error rate is
    split over the ten pairs of components (Bonferroni), and for the blocks' own orders over the blocks too.
    """

    def __init__(self, num_blocks: int, config: PlasticityConfig) -> None:
        self._config = config
        self._moments = Moments((num_blocks + 1, len(COMPONENTS)))  # last row: the mean over blocks
        self._values: list[np.ndarray] = []
        self._maxima = np.full((num_blocks, len(COMPONENTS)), -math.inf)
        # sign[…, i, j] = 1: component i is settled above j.
        self._sign = np.zeros((num_blocks + 1, len(COMPONENTS), len(COMPONENTS)), dtype=int)

    def add(self, observations: np.ndarray, maxima: np.ndarray) -> None:
        """Take in one batch: (n, blocks, components) and the single pairs' maxima (blocks, components); then look."""
        values = np.concatenate([observations, observations.mean(1, keepdims=True)], axis=1)
        self._moments.update(values)
        self._values.append(values)
        self._maxima = np.maximum(self._maxima, maxima)
        if self._moments.count >= self._config.min_observations:
            self.look()

    @property
    def count(self) -> int:
        """Observations so far."""
        return self._moments.count

    @property
    def is_settled(self) -> bool:
        """Whether the order of the components over all blocks is."""
        order = np.argsort(-self._moments.mean[-1], kind="stable")
        return all(self._sign[-1, i, j] == 1 for i, j in itertools.pairwise(order))

    @property
    def is_precise(self) -> bool:
        """Whether every component's standard error over its mean is as small as asked for."""
        count = self._moments.count
        if count < self._config.min_observations or not self._config.relative_error:
            return False
        allowed = self._config.relative_error * self._moments.mean[-1]
        return bool((self._moments.sd[-1] / math.sqrt(count) <= allowed).all())

    def rankings(self, mode: str) -> Iterator[PlasticityRanking]:
        for row, mean in enumerate(self._moments.mean):
            order = np.argsort(-mean, kind="stable")
            yield PlasticityRanking(
                mode=mode,
                block=None if row == len(self._moments.mean) - 1 else row,
                order=tuple(COMPONENTS[i] for i in order),
                ties=tuple(bool(self._sign[row, i, j] != 1) for i, j in itertools.pairwise(order)),
            )

    def rows(self, mode: str, num_pairs: int) -> Iterator[PlasticityRow]:
        moments, last = self._moments, len(self._moments.mean) - 1
        radius = confidence_radius(moments.sd, moments.count, 1 - self._config.confidence)
        quantiles = np.quantile(np.concatenate(self._values), QUANTILES, axis=0)
        for block, index in np.ndindex(moments.mean.shape):
            mean = float(moments.mean[block, index])
            yield PlasticityRow(
                mode=mode,
                block=None if block == last else block,
                component=COMPONENTS[index],
                mean=mean,
                sd=float(moments.sd[block, index]),
                num_pairs=num_pairs,
                low=mean - float(radius[block, index]),
                high=mean + float(radius[block, index]),
                quantiles=tuple(float(value) for value in quantiles[:, block, index]),
                maximum=None if block == last else float(self._maxima[block, index]),
            )

    def look(self) -> None:
        """Settle what can be; at any count, though few observations are worth a look only when no more will come."""
        moments, num_blocks = self._moments, len(self._moments.mean) - 1
        alpha = (1 - self._config.confidence) / _NUM_ORDERINGS
        gaps = moments.mean[:, :, None] - moments.mean[:, None, :]
        sd = moments.difference_sd
        radius = np.concatenate(
            [
                confidence_radius(sd[:-1], moments.count, alpha / num_blocks),
                confidence_radius(sd[-1:], moments.count, alpha),
            ]
        )
        rounding = ROUNDING[self._config.precision] * (moments.mean[:, :, None] + moments.mean[:, None, :])
        newly = (np.abs(gaps) > radius + rounding) & (self._sign == 0)
        self._sign[newly] = np.sign(gaps[newly]).astype(int)
