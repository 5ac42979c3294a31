"""One Bayesian model of accuracy over (switches, learning rate): what a search asks, chooses by and concludes from.

For a trial of selection s (the switches that are on) at rate r, on the logit scale, where effects add up:

    y = μ + m·log(1 + |s|) + Σ_{j∈s} a_j + Σ_{j<k∈s} b_jk + (d + Σ_{j∈s} d_j)·l + c·l² + h_s(l) + ε,   l = log10 r
    a_j ~ N(β·z_j + γ·size_j, τ_a²)    z: the score whose worth is asked, size: log parameters, both standardised
    b_jk ~ N(0, τ_b²)                  pairs that do more or less together
    c ~ N(−1/2, …), d_j ~ N(0, …)      one best rate, which moves with the selection
    h_s(l)                             what is left: smooth in l, alike for like selections

Given the scales of its parts all of it is Gaussian, so a posterior is linear algebra. The scales have weakly
informative priors and are integrated over, never estimated as a point from six trials: quasi-random draws, weighted by
their marginal likelihood; one common scale is integrated in closed form. β is centred on 0: a useless score shrinks to
nothing, and a reversed one turns around by itself, since −z is the same model.

What other trials said of the switches (`Terms.before`) is added to their prior: its mean, and its covariance on top of
what switches differ by from one set of images to the next.

Plain arrays in, arrays out; the same arguments give the same bits.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg
from scipy.special import expit, logit
from scipy.stats import norm, qmc

# Standard deviations of each part in logits (of the score and size: per standard deviation of it; of the rate's: per
# decade), and the noise of a run: log-uniform, wide on purpose.
_SCALES = {
    "count": (0.05, 0.6),
    "score": (0.02, 0.6),
    "size": (0.02, 0.3),
    "kind": (0.02, 0.3),
    "main": (0.02, 0.3),
    "pair": (0.005, 0.12),
    "slope": (0.2, 1.0),
    "bend": (0.1, 0.6),
    "shift": (0.02, 0.3),
    "rest": (0.03, 0.5),
    "noise": (0.01, 0.3),
}
_INTERCEPT = 2.0
_LENGTHS = (0.35, 0.6, 1.0)  # decades: of h, one for each draw
_COUNT, _BEND = 0.15, -0.5  # prior means: more trained is a little better, a best rate lies between too little and much
_SHAPE, _SCALE = 3.0, 2.0  # inverse gamma of the common scale's square: around 1, known to a factor of two
_NUM_DRAWS, _NUM_KEPT = 64, 16  # a suggestion costs in proportion; how many are enough is not measured
_NEGLIGIBLE = 0.01  # of the largest weight
# Configurations that the draws are sifted on before the best are fitted to all, and how far in log likelihood they may
# lie behind: of 64 draws at most `_NUM_KEPT` are left, and with many trials two or three, each of which costs n³.
_SIEVES = ((64, np.inf), (256, 12.0))
_LARGEST = 2**21  # numbers of all covariances that are held at once
_CLIP = 0.005  # accuracies are kept this far from 0 and 1, where a logit says more than images can
_WORST = 2.5  # logits below the best: what is worse is as bad as that, it would bend the fit near the top


def _gauss_hermite(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of an expectation over a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes, weights / weights.sum()


_NODES = _gauss_hermite(9)


@dataclass(frozen=True, slots=True)
class Points:
    """Configurations: which switches are on, float64 (n, J) of 0 and 1, and log10 of the learning rates, (n,)."""

    switches: np.ndarray
    log_rates: np.ndarray

    def __len__(self) -> int:
        return len(self.log_rates)

    def __getitem__(self, chosen: np.ndarray | slice) -> "Points":
        return Points(self.switches[chosen], self.log_rates[chosen])

    @staticmethod
    def join(points: Sequence["Points"], *, width: int) -> "Points":
        """One after another; ``width``: switches, for there may be none."""
        switches = [np.zeros((0, width)), *(own.switches for own in points)]
        return Points(np.concatenate(switches), np.concatenate([np.zeros(0), *(own.log_rates for own in points)]))


@dataclass(frozen=True, slots=True)
class Terms:
    """What is known of each switch before any trial, (J,) each, and where rates are centred."""

    score: np.ndarray  # standardised; zeros: nothing
    size: np.ndarray  # log parameters, standardised
    kind: np.ndarray  # int: switches of one component share an effect
    middle: float  # log10 of the rate that l counts from
    before: "Effects | None" = None  # of the switches, from other trials than those of the fit

    @staticmethod
    def of(
        scores: np.ndarray,
        sizes: np.ndarray,
        kinds: np.ndarray,
        *,
        rates: tuple[float, float],
        before: "Effects | None" = None,
    ) -> "Terms":
        """``scores``: on any scale, constant or not finite ones say nothing; ``sizes``: parameters of each switch;
        ``rates``: the range that is searched."""
        size = standardised(np.log(np.maximum(np.asarray(sizes, dtype=np.float64), 1)))
        return Terms(standardised(scores), size, np.asarray(kinds), float(np.log10(rates).mean()), before)


@dataclass(frozen=True, slots=True)
class Effects:
    """Of k things, in logits: mean (k,) and covariance (k, k)."""

    mean: np.ndarray
    covariance: np.ndarray

    def through(self, weights: np.ndarray) -> "Effects":
        """Of ``weights`` (j, k) times them."""
        return Effects(weights @ self.mean, weights @ self.covariance @ weights.T)


def to_logits(accuracies: np.ndarray | float) -> np.ndarray:
    """Of accuracies in 0 to 1; those at either end lie `_CLIP` off it."""
    return logit(np.clip(accuracies, _CLIP, 1 - _CLIP))


def standardised(values: np.ndarray) -> np.ndarray:
    """Mean 0, standard deviation 1; zeros where they are constant or not all finite."""
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all() or np.ptp(values) <= 1e-12 * np.abs(values).max():
        return np.zeros_like(values)
    return (values - values.mean()) / values.std()


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of some configurations, without the noise of a run, in logits. Costly, so it is worked out once
    for a point and handed on: rows of one are an outlook too, and two of one posterior can be joined."""

    points: Points
    mean: np.ndarray  # (m,)
    deviation: np.ndarray  # (m,)
    means: np.ndarray  # under each draw of the scales: (draws, m)
    variances: np.ndarray  # (draws, m)
    spans: np.ndarray  # L⁻¹ K(known, points): (draws, n, m)

    def __getitem__(self, chosen: np.ndarray | slice) -> "Outlook":
        return Outlook(
            self.points[chosen],
            self.mean[chosen],
            self.deviation[chosen],
            self.means[:, chosen],
            self.variances[:, chosen],
            self.spans[:, :, chosen],
        )

    def join(self, other: "Outlook") -> "Outlook":
        return Outlook(
            Points.join([self.points, other.points], width=self.points.switches.shape[1]),
            np.concatenate([self.mean, other.mean]),
            np.concatenate([self.deviation, other.deviation]),
            np.concatenate([self.means, other.means], axis=1),
            np.concatenate([self.variances, other.variances], axis=1),
            np.concatenate([self.spans, other.spans], axis=2),
        )


@dataclass(frozen=True, slots=True)
class LinearEffects:
    """What trials say of effects that add up over the switches, all else integrated out, under each draw of its scales.

    With v the effect of each switch per share of its component (J,), and the common scale integrated out, the log
    likelihood under a draw is, up to a constant, log_weights − shape·log(squares − 2·gradient·v + v·information·v).
    """

    information: np.ndarray  # (draws, J, J)
    gradient: np.ndarray  # (draws, J)
    squares: np.ndarray  # (draws,)
    log_weights: np.ndarray  # (draws,)
    shape: float  # of the inverse gamma that the square of the common scale has


class Posterior:
    """The model after some trials.

    Args:
        points, accuracies: what came out, (n,) in 0 to 1; none at all is the prior. Values that are not finite are an
            error of the caller's.
        pending: configurations that are being tried; they are taken to come out as expected, which leaves the means
            as they are and makes asking there again worth less.
    """

    def __init__(self, terms: Terms, points: Points, accuracies: np.ndarray, pending: Points | None = None) -> None:
        accuracies = np.asarray(accuracies, dtype=np.float64)
        assert np.isfinite(accuracies).all(), accuracies
        self.terms = terms
        components, place, counts = np.unique(terms.kind, return_inverse=True, return_counts=True)
        self._share = 1 / counts[place]  # what of its component each switch is
        self._kinds = (terms.kind[:, None] == components).astype(np.float64)
        self._draws = _draw_scales(_NUM_DRAWS, shares_kinds=len(components) < len(terms.kind))
        y = to_logits(accuracies)
        if len(y):
            y = np.maximum(y, y.max() - _WORST)
        # Runs of one configuration are one observation of their mean; what they differ by tells of the noise.
        rows = np.column_stack([points.switches, points.log_rates])
        _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        self._observed, self._counts = points[first], np.bincount(group, minlength=len(first)).astype(np.float64)
        sums = np.bincount(group, y, minlength=len(first))
        self._means = sums / self._counts
        self._within = float(((y - self._means[group]) ** 2).sum())
        self._fit()
        self._known = self._observed  # what every prediction is conditioned on
        if pending is not None and len(pending):
            self._condition(pending)

    # --- predictions ------------------------------------------------------------------------------------------------

    def outlook(self, points: Points) -> Outlook:
        """All that is asked of points, worked out."""
        spans = _solve(self._factors, self._covariance(self._known, points))
        means = self._prior_mean(points) + (self._residuals[:, None, :] @ spans)[:, 0]
        left = self._prior_variance(points) - (spans**2).sum(1)
        variances = self._scale[:, None] * np.maximum(left, 1e-12)
        mean = self._weights @ means
        deviation = np.sqrt(self._weights @ (variances + (means - mean) ** 2))
        return Outlook(points, mean, deviation, means, variances, spans)

    def logits(self, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of a configuration's expected outcome, without the noise of a run: (m,) each."""
        found = self.outlook(points)
        return found.mean, found.deviation

    def expected_logits(self, points: Points) -> np.ndarray:
        """The means alone, (m,), at a fraction of what the deviations cost."""
        solved = _solve(self._factors, self._residuals[:, :, None], transposed=True)
        means = self._prior_mean(points) + (self._covariance(points, self._known) @ solved)[:, :, 0]
        return self._weights @ means

    def accuracies(self, points: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Expected accuracy with its 95 % interval: (m,) each."""
        mean, sd = self.logits(points)
        nodes, weights = _NODES
        expected = expit(mean[:, None] + sd[:, None] * nodes) @ weights
        return expected, expit(mean - 1.96 * sd), expit(mean + 1.96 * sd)

    def knowledge_gradient(self, points: Outlook, rivals: Outlook) -> np.ndarray:
        """By how much (in logits) one more run at a point is expected to raise the best expected outcome: (m,).

        Frazier et al. (2009, INFORMS J. on Computing 21:599–613), with correlated beliefs: a run at one place tells of
        every other, and is worth what it can change about which is taken. The best is looked for among ``rivals`` and
        the point itself, run or not. Over the draws the same quantile is taken of each, their weights as they are.
        """
        # A run that comes out one deviation better than expected raises the mean of where it was run, and of others.
        deviations = np.sqrt(points.variances + (self._scale * self._draws[:, -1] ** 2)[:, None])
        covariance = self._covariance(rivals.points, points.points) - rivals.spans.transpose(0, 2, 1) @ points.spans
        raised = np.einsum("drm,dm->rm", covariance, self._weights[:, None] * self._scale[:, None] / deviations)
        raised_here = self._weights @ (points.variances / deviations)
        gain = np.zeros(len(points.mean))
        for node, weight in zip(*_NODES, strict=True):
            best = (rivals.mean[:, None] + node * raised).max(0)
            gain += weight * np.maximum(best, points.mean + node * raised_here)
        return gain - np.maximum(rivals.mean.max(), points.mean)

    def samples(self, points: Points, count: int) -> np.ndarray:
        """Joint draws of expected outcomes in logits, (count, m); quasi-random, the same each time."""
        found = self.outlook(points)
        share = np.floor(self._weights * count).astype(int)
        share[np.argmax(self._weights)] += count - share.sum()
        normal = norm.ppf(np.clip(qmc.Sobol(len(points), scramble=True, rng=1).random(count), 1e-9, 1 - 1e-9))
        drawn, start = np.empty((count, len(points))), 0
        prior = self._covariance(points, points)
        for draw in np.flatnonzero(share):
            covariance = self._scale[draw] * (prior[draw] - found.spans[draw].T @ found.spans[draw])
            values, vectors = linalg.eigh(covariance)
            root = vectors * np.sqrt(np.maximum(values, 0))
            rows = slice(start, start + share[draw])
            drawn[rows] = found.means[draw] + normal[rows] @ root.T
            start += share[draw]
        return drawn

    @property
    def noise(self) -> float:
        """Standard deviation of a run, in logits."""
        return float(np.sqrt(self._weights @ (self._scale * self._draws[:, -1] ** 2)))

    # --- effects ----------------------------------------------------------------------------------------------------

    def component_effects(self) -> Effects:
        """β, and what each whole component does besides it, its size's part included: 1 + C things, the components in
        the order of their kinds, over the draws. What its parts differ by is integrated out."""
        share, observed = self._share, self._observed
        whole = self._kinds.T * share  # (C, J)
        size, trained = whole @ self.terms.size, observed.switches @ whole.T
        features = self._features(observed)
        means, covariances = [], []
        for draw, variances in enumerate(_variances(self._draws)):
            part = dict(zip(_LINEAR, variances, strict=False))
            own = part["kind"] + part["main"]
            prior = linalg.block_diag(part["score"], own * np.eye(len(size)) + part["size"] * np.outer(size, size))
            sized = part["size"] * np.outer(features["size"], size)
            shared = np.column_stack([part["score"] * features["score"], own * trained + sized])
            whitened = _solve(self._factors[draw][None], shared[None])[0]
            means.append(whitened.T @ self._residuals[draw])
            covariances.append(self._scale[draw] * (prior - whitened.T @ whitened))
        mean = self._weights @ np.array(means)
        apart = np.array(means) - mean
        within = np.einsum("d,djk->jk", self._weights, np.array(covariances))
        return Effects(mean, within + np.einsum("d,dj,dk->jk", self._weights, apart, apart))

    def linear_effects(self, num_draws: int) -> LinearEffects:
        """Of whatever is linear in the switches, score and size among it: neither has an effect in this likelihood.

        Every draw counts: those that explain the trials well without an effect need not be those that do with one.
        """
        draws = _draw_scales(num_draws, shares_kinds=bool(self._draws[:, _COLUMNS["kind"]].any()))
        variances = _variances(draws)
        variances[:, [_LINEAR.index("score"), _LINEAR.index("size")]] = 0
        noise, observed = draws[:, -1] ** 2, self._observed
        grams, diagonal = self._grams(observed, observed), np.arange(len(observed))
        sides = np.column_stack([observed.switches * self._share, self._means - self._prior_mean(observed)])
        products, determinants = [], []
        for start in range(0, num_draws, step := max(1, _LARGEST // (len(observed) ** 2 + 1))):
            part = slice(start, start + step)
            covariance = _INTERCEPT**2 + np.tensordot(variances[part], grams, axes=1)
            covariance[:, diagonal, diagonal] += noise[part, None] / self._counts + 1e-9
            products.append(sides.T @ np.linalg.solve(covariance, sides))
            determinants.append(np.linalg.slogdet(covariance)[1])
        product = np.concatenate(products)
        num_runs = self._counts.sum()
        return LinearEffects(
            information=product[:, :-1, :-1],
            gradient=product[:, :-1, -1],
            squares=2 * _SCALE + product[:, -1, -1] + self._within / noise,
            log_weights=-0.5 * np.concatenate(determinants) - 0.5 * (num_runs - len(observed)) * np.log(noise),
            shape=float(_SHAPE + num_runs / 2),
        )

    # ----------------------------------------------------------------------------------------------------------------

    def _features(self, points: Points) -> dict[str, np.ndarray]:
        """Of what is linear in one feature, that feature: (n,)."""
        shares = points.switches * self._share
        count = shares.sum(1)
        rate = points.log_rates - self.terms.middle
        return {
            "count": np.log1p(count),
            "score": shares @ self.terms.score,
            "size": shares @ self.terms.size,
            "slope": rate,
            "bend": rate**2,
        }

    def _grams(self, a: Points, b: Points) -> np.ndarray:
        """Each part's covariances at scale 1, in the order of `_variances`: (parts, len(a), len(b))."""
        left, right, share = self._features(a), self._features(b), self._share
        grams = np.empty((len(_LINEAR) + len(_LENGTHS), len(a), len(b)))  # filled in place: a copy takes as long
        parts = dict(zip(_LINEAR, grams, strict=False))
        for name in left:
            np.outer(left[name], right[name], out=parts[name])
        common, counts = parts["main"], (a.switches @ share)[:, None] + b.switches @ share
        np.matmul(a.switches * share, b.switches.T, out=common)
        np.matmul(a.switches * share @ self._kinds, (b.switches * share @ self._kinds).T, out=parts["kind"])
        np.multiply(parts["slope"], common, out=parts["shift"])
        parts["pair"][:] = (common**2 - (a.switches * share**2) @ b.switches.T) / 2
        likeness = 0.25 + 0.75 * np.exp(-0.5 * (counts - 2 * common))
        rates = -0.5 * np.subtract.outer(a.log_rates, b.log_rates) ** 2
        for length, rest in zip(_LENGTHS, grams[len(_LINEAR) :], strict=True):
            np.multiply(likeness, np.exp(rates / length**2), out=rest)
        return grams

    def _covariance(self, a: Points, b: Points) -> np.ndarray:
        """Prior, in units of the common scale: (draws, len(a), len(b))."""
        found = _INTERCEPT**2 + np.tensordot(_variances(self._draws), self._grams(a, b), axes=1)
        before = self.terms.before
        return found if before is None else found + a.switches @ before.covariance @ b.switches.T

    def _prior_mean(self, points: Points) -> np.ndarray:
        features = self._features(points)
        mean = _COUNT * features["count"] + _BEND * features["bend"]
        before = self.terms.before
        return mean if before is None else mean + points.switches @ before.mean

    def _factorise(self, points: Points, means: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
        """Cholesky factors (draws, n, n), whitened residuals (draws, n), scales and log likelihoods (draws,)."""
        noise = self._draws[:, -1] ** 2
        covariance = self._covariance(points, points)
        diagonal = np.arange(len(points))
        covariance[:, diagonal, diagonal] += noise[:, None] / counts + 1e-9
        factors = np.linalg.cholesky(covariance)
        residual = means - self._prior_mean(points)
        whitened = _solve(factors, np.broadcast_to(residual[:, None], (len(factors), len(residual), 1)))[:, :, 0]
        num_runs = counts.sum()
        squares = (whitened**2).sum(1) + self._within / noise
        scale = (_SCALE + squares / 2) / (_SHAPE + num_runs / 2 - 1)
        likelihood = (
            -np.log(np.einsum("dii->di", factors)).sum(1)
            - 0.5 * (num_runs - len(points)) * np.log(noise)
            - (_SHAPE + num_runs / 2) * np.log(_SCALE + squares / 2)
        )
        return factors, whitened, scale, likelihood

    def _fit(self) -> None:
        if not len(self._observed):
            self._draws = self._draws[:_NUM_KEPT]
            count = len(self._draws)
            self._factors, self._residuals = np.zeros((count, 0, 0)), np.zeros((count, 0))
            self._scale, self._weights = np.full(count, _SCALE / (_SHAPE - 1)), np.full(count, 1 / count)
            return
        factors, residuals, scale, likelihood = self._sift()
        weights = np.exp(likelihood - likelihood.max())
        # With many trials few draws are left that matter, and each costs the same.
        kept = weights > _NEGLIGIBLE
        self._draws, self._factors, self._residuals = self._draws[kept], factors[kept], residuals[kept]
        self._scale, self._weights = scale[kept], weights[kept] / weights[kept].sum()

    def _sift(self) -> tuple[np.ndarray, ...]:
        """Keep the draws of the highest marginal likelihood, on some configurations where there are many; what
        `_factorise` says of all configurations under those."""
        count = len(self._observed)
        for size, slack in _SIEVES:
            some = np.unique(np.linspace(0, count - 1, size).astype(int))
            found = self._factorise(self._observed[some], self._means[some], self._counts[some])
            likelihoods = found[-1]
            kept = np.argsort(-likelihoods, kind="stable")[:_NUM_KEPT]
            kept = kept[likelihoods[kept] >= likelihoods.max() - slack]
            self._draws = self._draws[kept]
            if len(some) == count:
                return tuple(part[kept] for part in found)
        return self._factorise(self._observed, self._means, self._counts)

    def _prior_variance(self, points: Points) -> np.ndarray:
        features, share = self._features(points), self._share
        count = points.switches @ share
        parts = {name: value**2 for name, value in features.items()}
        parts["kind"] = ((points.switches * share @ self._kinds) ** 2).sum(1)
        parts["main"] = count
        parts["pair"] = (count**2 - points.switches @ share**2) / 2
        parts["shift"] = features["slope"] ** 2 * count
        rest = [np.ones(len(points))] * len(_LENGTHS)
        found = _INTERCEPT**2 + _variances(self._draws) @ np.stack([*(parts[name] for name in _LINEAR), *rest])
        before = self.terms.before
        return found if before is None else found + ((points.switches @ before.covariance) * points.switches).sum(1)

    def _condition(self, pending: Points) -> None:
        """Take the pending ones as run and come out as expected: rows of the factors without a residual."""
        spans = _solve(self._factors, self._covariance(self._known, pending))
        left = self._covariance(pending, pending) - spans.transpose(0, 2, 1) @ spans
        diagonal = np.arange(len(pending))
        left[:, diagonal, diagonal] += self._draws[:, -1:] ** 2 + 1e-9
        count, size = len(self._known), len(self._known) + len(pending)
        factors = np.zeros((len(self._draws), size, size))
        factors[:, :count, :count] = self._factors
        factors[:, count:, :count] = spans.transpose(0, 2, 1)
        factors[:, count:, count:] = np.linalg.cholesky(left)
        self._factors = factors
        self._residuals = np.pad(self._residuals, ((0, 0), (0, len(pending))))
        self._known = Points.join([self._known, pending], width=pending.switches.shape[1])


_LINEAR = ("count", "score", "size", "slope", "bend", "kind", "main", "pair", "shift")
_COLUMNS = {name: column for column, name in enumerate(name for name in _SCALES if name != "noise")}


def _solve(factors: np.ndarray, right: np.ndarray, *, transposed: bool = False) -> np.ndarray:
    """L⁻¹ B, or L⁻ᵀ B, for each of (d, n, n) lower factors and (d, n, m): (d, n, m).

    LAPACK itself: scipy's checks around it take ten times as long as solving for a few trials.
    """
    solved = np.empty(right.shape)
    if right.shape[1]:
        for draw, factor in enumerate(factors):
            solved[draw], failed = linalg.lapack.dtrtrs(factor.T, right[draw], lower=0, trans=not transposed)
            assert not failed  # of a Cholesky factor the diagonal is positive
    return solved


def _variances(draws: np.ndarray) -> np.ndarray:
    """Of each part under each draw: (draws, parts)."""
    linear = draws[:, [_COLUMNS[name] for name in _LINEAR]] ** 2
    chosen = draws[:, -2].astype(int)[:, None] == np.arange(len(_LENGTHS))
    return np.concatenate([linear, chosen * draws[:, [_COLUMNS["rest"]]] ** 2], axis=1)


@functools.cache
def _draw_scales(num_draws: int, *, shares_kinds: bool) -> np.ndarray:
    """Quasi-random draws of the prior: (draws, parts + 2), the last two the length scale's place and the noise."""
    names = [*_COLUMNS, "length", "noise"]
    unit = qmc.Sobol(len(names), scramble=True, rng=0).random(num_draws)
    columns = []
    for column, name in enumerate(names):
        if name == "length":
            columns.append(np.floor(unit[:, column] * len(_LENGTHS)))
        elif name == "kind" and not shares_kinds:  # each switch is its component
            columns.append(np.zeros(num_draws))
        else:
            low, high = np.log(_SCALES[name])
            columns.append(np.exp(low + (high - low) * unit[:, column]))
    return np.column_stack(columns)
