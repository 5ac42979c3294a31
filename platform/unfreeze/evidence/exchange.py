"""Rank coefficients of many exchanges of the components' labels at once, and the p that they give.

Selections, blocks and pairs of scores all share five components, so the points of a plot are no independent
observations: an interval or a p that takes them so claims something in 34 to 52 % of sweeps whose plasticity was drawn
at random. If plasticity has nothing to do with accuracy, the five components' values may be exchanged between their
names; all 120 exchanges are equally likely, and p is the share of them whose coefficient is no smaller in magnitude.
That is exact for any number of points, and can never be below 1/120.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np

_MAX_EXACT = 5040  # exchanges, 7!: beyond it as many are drawn
_DIGITS = 12  # what differs later is rounding


def exchanges(num_labels: int) -> np.ndarray:
    """Orders of the labels, int (P, num_labels), the present one first: all of them up to 7, else 5,040 drawn."""
    if math.factorial(num_labels) <= _MAX_EXACT:
        return np.array(list(itertools.permutations(range(num_labels))))
    rng = np.random.default_rng(num_labels)
    drawn = [rng.permutation(num_labels) for _ in range(_MAX_EXACT - 1)]
    return np.array([np.arange(num_labels), *drawn])


def exchanged_means(values: np.ndarray, members: np.ndarray, *, axis: int) -> np.ndarray:
    """Mean value of each selection under every exchange: (P, n).

    ``values``: (components, blocks). ``members``: bool (n, components, blocks). ``axis``: 0 exchanges the components,
    each with the values of all its blocks; 1 the blocks.
    """
    orders = exchanges(values.shape[axis])
    exchanged = values[orders] if axis == 0 else values[:, orders].transpose(1, 0, 2)
    weights = members / members.sum(axis=(1, 2), keepdims=True)
    means = np.tensordot(exchanged, weights, axes=([1, 2], [1, 2]))
    # Equal values summed in another order are still ties.
    return np.round(means / np.abs(values).max(), _DIGITS) if np.abs(values).max() > 0 else means


def exchange_p(coefficients: np.ndarray) -> float:
    """Two-sided, the present order first; an exchange without a coefficient counts against the claim."""
    return float(exchange_ps(coefficients[None])[0])


def exchange_ps(coefficients: np.ndarray) -> np.ndarray:
    """The same of each row: (n, P) → (n,)."""
    magnitudes = np.abs(coefficients)
    return (~(magnitudes < magnitudes[:, :1] - 10.0**-_DIGITS)).mean(1)


Coefficient = Callable[[np.ndarray, np.ndarray], np.ndarray]


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's coefficient of each row of x (P, n) with y (n,): (P,), NaN where a side is constant."""
    from scipy.stats import rankdata  # takes a second

    ranks, other = rankdata(x, axis=-1), rankdata(y)
    ranks, other = ranks - ranks.mean(-1, keepdims=True), other - other.mean()
    return _ratio(ranks @ other, (ranks**2).sum(-1), (other**2).sum())


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's τ-b (1945, Biometrika 33:239–251) of each row of x (P, n) with y (n,): (P,), NaN likewise."""
    left, right = np.triu_indices(len(y), 1)
    signs, other = np.sign(x[:, left] - x[:, right]), np.sign(y[left] - y[right])
    return _ratio(signs @ other, (signs**2).sum(-1), (other**2).sum())


def partial(coefficient: Coefficient, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Of each row of x with y, with z (n,) taken out by Kendall's (1942) formula for both coefficients: (P,).

    z constant: there is nothing to take out. NaN where z orders a side completely: what remains is rounding.
    """
    raw = coefficient(x, y)
    if np.ptp(z) == 0:
        return raw
    with_x, with_y = coefficient(x, z), coefficient(y[None], z)[0]
    left = (1 - with_x**2) * (1 - with_y**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (raw - with_x * with_y) / np.sqrt(left)
    return np.where(left < 1e-12, np.nan, np.clip(found, -1, 1))


def _ratio(products: np.ndarray, squares: np.ndarray, other: float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(np.where(squares * other > 0, products / np.sqrt(squares * other), np.nan), -1, 1)
