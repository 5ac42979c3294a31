"""How often the pre-pass settles an ordering of two components wrongly: the stopping rule on simulated observations.

Five components, their observations correlated as those of one pair of images are. An error is a run that settles a
wrong ordering at any look, the orderings of equal means among them; a run is looked at to its end, also after it would
have stopped. The rule is that of `unfreeze.plasticity.sequential`, written again for many runs at a time
(tests/plasticity/test_sequential.py holds both to the same decisions). `theirs` is the error rate that is promised. The
last line of output is one JSON object. The published figures are of 20,000 runs; 1,000 take seconds.

    python ops/bench/stopping_rule.py [--runs 1000] [--min-observations 32] [--seed 0] [--save]
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfreeze.plasticity.sequential import ROUNDING, confidence_radius
from unfreeze.records import COMPONENTS

CONFIDENCE = 0.95
MIN_OBSERVATIONS = 32
MAX_OBSERVATIONS = 512
LOOKS = (32, 1)  # observations from one look to the next
CORRELATION = 0.5  # of two components' observations
_CHUNK = 1000  # runs at a time: the running sums fit the cache
_FIRST, _SECOND = (np.array(side) for side in zip(*itertools.combinations(range(len(COMPONENTS)), 2), strict=True))

Radius = Callable[[np.ndarray, int], np.ndarray]  # (standard deviations of differences, count) → half widths


@dataclass(frozen=True, slots=True)
class Scenario:
    """Means and standard deviations of the five components, and how their observations are distributed."""

    name: str
    distribution: str  # of _DISTRIBUTIONS
    means: tuple[float, ...]
    sds: tuple[float, ...] = (1.0,) * len(COMPONENTS)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One entry per run."""

    wrong: np.ndarray  # bool: a wrong ordering was settled at some look
    stopped_at: np.ndarray  # observations when the whole order was first settled; 0: never
    signs: np.ndarray  # int8 (runs, 10): 1 the first of the two is settled above the second, −1 below, 0 not settled


def scenarios() -> Iterator[Scenario]:
    patterns: dict[str, tuple[tuple[float, ...], ...]] = {
        "equal means": ((8.0,) * 5,),
        # Equal spreads make a difference symmetric, whatever the distribution; unequal ones leave it its skewness.
        "equal means, unequal spreads": ((8.0,) * 5, (1.0, 0.3, 0.1, 0.6, 0.1)),
        "two equal": ((8.0, 8.0, 6.0, 10.0, 12.0),),
        "close means": ((8.0, 8.1, 8.2, 8.3, 8.4),),
        "clear gaps": ((6.0, 7.0, 8.0, 9.0, 10.0),),
    }
    for (name, spread), distribution in itertools.product(patterns.items(), _DISTRIBUTIONS):
        yield Scenario(f"{name}, {distribution}", distribution, *spread)


def draw(scenario: Scenario, runs: int, rng: np.random.Generator) -> np.ndarray:
    """Observations float64 (MAX_OBSERVATIONS, runs, components)."""
    shared = rng.standard_normal((MAX_OBSERVATIONS, runs, 1))
    own = rng.standard_normal((MAX_OBSERVATIONS, runs, len(COMPONENTS)))
    normal = math.sqrt(CORRELATION) * shared + math.sqrt(1 - CORRELATION) * own
    return scenario.means + np.array(scenario.sds) * _DISTRIBUTIONS[scenario.distribution](normal, rng)


def _lognormal(normal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    variance = 0.5**2  # of the logarithm
    mean, sd = math.exp(variance / 2), math.sqrt(math.expm1(variance) * math.exp(variance))
    return (np.exp(0.5 * normal) - mean) / sd


def _student(normal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    dof = 5
    return normal / np.sqrt(rng.chisquare(dof, normal.shape) / dof) * math.sqrt((dof - 2) / dof)


# Standard normal → mean 0 and standard deviation 1.
_DISTRIBUTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "normal": lambda normal, rng: normal,
    "lognormal": _lognormal,
    "student t": _student,
}


def our_radius(sd: np.ndarray, count: int) -> np.ndarray:
    return confidence_radius(sd, count, (1 - CONFIDENCE) / len(_FIRST))


def decide(
    values: np.ndarray,
    means: Sequence[float],
    *,
    every: int,
    first: int = MIN_OBSERVATIONS,
    radius: Radius = our_radius,
) -> Outcome:
    """Look at observations (count, runs, components) after each ``every``, from ``first`` on."""
    runs, truth = values.shape[1], np.sign(np.array(means)[_FIRST] - np.array(means)[_SECOND]).astype(np.int8)
    sums, squares = np.zeros((runs, len(means))), np.zeros((runs, len(truth)))
    signs, wrong, stopped_at = np.zeros((runs, len(truth)), np.int8), np.zeros(runs, bool), np.zeros(runs, int)
    centred = values - np.array(means)
    expected = np.array(means)[_FIRST] - np.array(means)[_SECOND]
    for count, rows in enumerate(centred, start=1):
        sums += rows
        squares += (rows[:, _FIRST] - rows[:, _SECOND]) ** 2
        if count % every or count < first:
            continue
        shift = (sums[:, _FIRST] - sums[:, _SECOND]) / count
        sd = np.sqrt(np.maximum(squares - count * shift**2, 0) / (count - 1))
        mean = sums / count + means
        gaps = shift + expected
        margin = radius(sd, count) + ROUNDING["float32"] * (mean[:, _FIRST] + mean[:, _SECOND])
        newly = (np.abs(gaps) > margin) & (signs == 0)
        if newly.any():
            signs[newly] = np.sign(gaps[newly])
            wrong |= (newly & (signs != truth)).any(1)
        # The whole order takes four orderings at least.
        open_runs = np.flatnonzero((stopped_at == 0) & ((signs != 0).sum(1) >= len(means) - 1))
        if len(open_runs):
            stopped_at[open_runs[_is_settled(mean[open_runs], signs[open_runs])]] = count
    return Outcome(wrong, stopped_at, signs)


def _is_settled(mean: np.ndarray, signs: np.ndarray) -> np.ndarray:
    above = np.zeros((len(mean), mean.shape[1], mean.shape[1]), np.int8)
    above[:, _FIRST, _SECOND], above[:, _SECOND, _FIRST] = signs, -signs
    order = np.argsort(-mean, axis=1, kind="stable")
    return (above[np.arange(len(mean))[:, None], order[:, :-1], order[:, 1:]] == 1).all(1)


def wilson(errors: int, runs: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z = statistics.NormalDist().inv_cdf(0.975)
    share = errors / runs
    centre, half = share + z**2 / (2 * runs), z * math.sqrt(share * (1 - share) / runs + z**2 / (4 * runs**2))
    return max(0.0, (centre - half) / (1 + z**2 / runs)), (centre + half) / (1 + z**2 / runs)


def run_scenario(
    scenario: Scenario, runs: int, *, seed: int, first: int = MIN_OBSERVATIONS, radius: Radius = our_radius
) -> list[dict[str, Any]]:
    """One result per schedule of looks, all on the same observations."""
    rng = np.random.default_rng([seed, *scenario.name.encode()])
    outcomes: dict[int, list[Outcome]] = {every: [] for every in LOOKS}
    for start in range(0, runs, _CHUNK):
        values = draw(scenario, min(_CHUNK, runs - start), rng)
        for every in LOOKS:
            outcomes[every].append(decide(values, scenario.means, every=every, first=first, radius=radius))
    results = []
    for every, chunks in outcomes.items():
        wrong, stopped_at = (np.concatenate([getattr(c, name) for c in chunks]) for name in ("wrong", "stopped_at"))
        low, high = wilson(int(wrong.sum()), runs)
        results.append(
            {
                "scenario": scenario.name,
                "looks": f"every {every}" if every > 1 else "every observation",
                "error_rate": round(float(wrong.mean()), 5),
                "low": round(low, 5),
                "high": round(high, 5),
                "stopped_settled_share": round(float((stopped_at > 0).mean()), 5),
                "median_observations": float(np.median(np.where(stopped_at > 0, stopped_at, MAX_OBSERVATIONS))),
            }
        )
    return results


def main() -> None:
    from figures.record import figure, hand_in, make_parser  # not above: a test loads this file by its path

    parser = make_parser(__doc__)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--min-observations", type=int, default=MIN_OBSERVATIONS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{'scenario':40} {'looks':18} {'error rate':>10} {'95 % interval':>18} {'settled':>8} {'median n':>8}")
    figures = []
    for scenario in scenarios():
        for row in run_scenario(scenario, arguments.runs, seed=arguments.seed, first=arguments.min_observations):
            interval = f"{row['low']:.4f} to {row['high']:.4f}"
            print(
                f"{row['scenario']:40} {row['looks']:18} {row['error_rate']:10.4f} {interval:>18} "
                f"{row['stopped_settled_share']:8.3f} {row['median_observations']:8.0f}",
                flush=True,
            )
            error_rate = row.pop("error_rate")
            name = f"{row['scenario']}, looking {row['looks']}"
            figures.append(figure(name, error_rate, 1 - CONFIDENCE, "share of runs that err", **row))
    hand_in(
        "stopping_rule",
        figures,
        arguments,
        runs=arguments.runs,
        confidence=CONFIDENCE,
        min_observations=arguments.min_observations,
        max_observations=MAX_OBSERVATIONS,
        seed=arguments.seed,
        worst_error_rate=max(row["ours"] for row in figures),
    )


if __name__ == "__main__":
    main()
