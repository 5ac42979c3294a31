"""Whether the model of the evidence is as sure as it should be, on planted tables (`synthetic` of search_replay.py).

After 8, 16 and 32 trials of a search of its own it says of every configuration how likely it is to be within half a
point of the best, and an interval for its accuracy: of those given 80 %, are 80 % within? Tables are new ones, on which
nothing was chosen.

    python ops/bench/calibration.py [--tables 200] [--save]

The figure (`ours`) is the largest gap, in points, between what was said and what was, over bins with enough of them.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from figures.record import figure, hand_in, make_parser
from scipy.special import expit
from scipy.stats import beta
from search_replay import CLOSE, Table, synthetic

from unfreeze.evidence.model import Posterior, Terms
from unfreeze.search.candidates import promising

FIRST_TABLE = 1000  # seeds no replay uses
LOOKS = (8, 16, 32)
EDGES = np.array([0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0])
ENOUGH = 100  # of a bin before its gap counts


@dataclass(frozen=True, slots=True)
class Said:
    """After some trials: of every configuration, what was said and what is."""

    trials: int
    probability: np.ndarray  # of being within half a point of the best
    near: np.ndarray  # bool
    inside: np.ndarray  # bool, of those within ten points of the best: the true accuracy in its 95 % interval
    chosen: int  # what would be recommended


def search(table: Table, prior: str, rng: np.random.Generator) -> Iterator[Said]:
    terms = Terms.of(table.scores.get(prior, np.zeros(5)), table.sizes, np.arange(5), rates=table.rates)
    near = table.truth >= table.truth.max() - CLOSE
    tried: list[int] = []
    values: list[float] = []
    while len(tried) < LOOKS[-1]:
        posterior = Posterior(terms, table.cells[np.array(tried, dtype=int)], np.array(values))
        every = posterior.outlook(table.cells)
        worth = posterior.knowledge_gradient(every, promising(every))
        tried.append(int(np.argmax(worth)))
        values.append(table.run(tried[-1], rng))
        if len(tried) in LOOKS:
            posterior = Posterior(terms, table.cells[np.array(tried)], np.array(values))
            drawn = expit(posterior.samples(table.cells, 512))
            probability = (drawn >= drawn.max(1, keepdims=True) - CLOSE).mean(0)
            expected, low, high = posterior.accuracies(table.cells)
            good = table.truth >= table.truth.max() - 0.1  # the model takes what is far worse for as bad as that
            inside = ((low <= table.truth) & (table.truth <= high))[good]
            yield Said(len(tried), probability, near, inside, int(np.argmax(expected)))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tables", type=int, default=4)
    arguments = parser.parse_args()
    results = []
    for prior in ("uniform", "informative", "misleading"):
        said = [
            look
            for number in range(arguments.tables)
            for look in search(synthetic(FIRST_TABLE + number), prior, np.random.default_rng([number, 11]))
        ]
        for trials in LOOKS:
            results.append(describe(f"{prior}/{trials}", [look for look in said if look.trials == trials]))
        results.append(describe(prior, said))
    hand_in("calibration", results, arguments, tables=arguments.tables)


def describe(name: str, said: list[Said]) -> dict:
    probability, near = np.concatenate([s.probability for s in said]), np.concatenate([s.near for s in said])
    bins = []
    for low, high in itertools.pairwise(EDGES):
        own = (probability >= low) & ((probability < high) | (high == 1))
        if own.any():
            bins.append({"said": float(probability[own].mean()), "were": float(near[own].mean()), "n": int(own.sum())})
    gaps = [100 * abs(b["said"] - b["were"]) for b in bins if b["n"] >= ENOUGH]
    chosen_said = np.array([s.probability[s.chosen] for s in said])
    chosen_near = np.array([s.near[s.chosen] for s in said])
    hits, count = int(chosen_near.sum()), len(chosen_near)
    found = figure(
        name,
        max(gaps, default=float("nan")),
        None,
        "points, largest gap of a bin",
        bins=bins,
        coverage_95=float(np.concatenate([s.inside for s in said]).mean()),
        chosen_said=float(chosen_said.mean()),
        chosen_near=float(chosen_near.mean()),
        chosen_near_interval=[
            float(beta.ppf(0.025, hits, count - hits + 1)) if hits else 0.0,
            float(beta.ppf(0.975, hits + 1, count - hits)) if hits < count else 1.0,
        ],
    )
    print(name, f"gap {found['ours']:.1f}, covered {found['coverage_95']:.3f}", flush=True)
    return found


if __name__ == "__main__":
    main()
