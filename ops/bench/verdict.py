"""How often the verdict claims something without a cause, and how often with one: simulated sweeps.

Sweeps are planted by other formulas than the model's own: effects of components (and in `depth` and `blocks` of their
parts), what size and the score are worth, gains that level off, pairs, a best learning rate that moves, a run's noise.
Plasticity is drawn at random: `independent` of everything, all components nearly alike; `effects`: components differ by
0.35 logits; `size`: plasticity follows size (correlation 0.8), and so does accuracy; `shared`: trials that train most
components at once.

    python ops/bench/verdict.py [--repetitions 400] [--trials 16 32 64] [--spaces components depth blocks] [--save]

`null/…/SPACE/TRIALS[/SETS]` have β = 0: `claim_rate` is the share called supported or contradicted, at most 5 %.
`power/TIMES/SPACE/TRIALS/SETS` have the effect of the published table (its mean over eleven sets, the spread between
them, and what the components differ by besides), or multiples of it; `coverage` is of β's 95 % interval.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from figures.record import RESULTS, figure, hand_in, make_parser
from matplotlib.figure import Figure
from scipy.special import expit, logit
from threadpoolctl import threadpool_limits

from unfreeze.evidence.across import pool
from unfreeze.evidence.effects import NUM_DRAWS, Slope, slope
from unfreeze.evidence.exchange import exchanges
from unfreeze.evidence.model import Points, Posterior, Terms, standardised
from unfreeze.evidence.verdict import SUPPORTED, UNDECIDED, pooled_word, verdict_word
from unfreeze.evidence.worth import in_accuracy
from unfreeze.records import COMPONENTS
from unfreeze.report.paper import PUBLISHED

GROUPS = {"components": 1, "depth": 3, "blocks": 12}  # switches of a component
ORDERS = exchanges(len(COMPONENTS))
SIZES = np.log([1536.0, 2.36e6, 1536.0, 2.36e6, 2.36e6])  # of a ViT-B block, in the order of COMPONENTS
PUBLISHED_ORDER = {"mha": 5.0, "fc1": 4.0, "fc2": 3.0, "ln2": 2.0, "ln1": 1.0}  # of plasticity; its sizes are a figure


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What sweeps are planted with; standard deviations in logits."""

    components: float  # between components
    parts: float  # between the blocks or thirds of one
    beta: float = 0.0
    spread: float = 0.0  # of β between data sets
    size: float = 0.0  # worth of one standard deviation of log size
    confounding: float = 0.0  # correlation of plasticity with size
    density: tuple[float, float] = (0.15, 0.85)  # share of the switches that a trial has on


NULLS = {
    "independent": World(components=0.05, parts=0.03),
    "effects": World(components=0.35, parts=0.2),
    "size": World(components=0.1, parts=0.05, size=0.2, confounding=0.8),
    "shared": World(components=0.2, parts=0.1, density=(0.6, 0.95)),
}


def published_world(times: float = 1.0) -> World:
    """The effect of the published table: per set, logits of accuracy regressed on the published order."""
    order = standardised([PUBLISHED_ORDER[name] for name in ("mha", "fc1", "fc2", "ln2", "ln1")])
    accuracies = logit(np.array([[mean for mean, _ in row[:5]] for row in PUBLISHED.values()]) / 100)
    effects = accuracies - accuracies.mean(axis=1, keepdims=True)
    slopes = effects @ order / len(order)
    rest = effects - np.outer(slopes, order)
    between = float(np.sqrt((rest**2).sum() / (3 * len(rest))))  # five components less mean and slope
    return World(
        components=between, parts=between / 2, beta=times * float(slopes.mean()), spread=float(slopes.std(ddof=1))
    )


def plant_score(rng: np.random.Generator, groups: int, confounding: float) -> np.ndarray:
    """Plasticity (5, groups), standardised: four fifths of its variance lie between components."""
    own = rng.normal(size=(5, 1)) + (0.5 * rng.normal(size=(5, groups)) if groups > 1 else 0)
    size = standardised(SIZES)[:, None]
    mixed = confounding * size + np.sqrt(1 - confounding**2) * standardised(own.ravel()).reshape(own.shape)
    return standardised(mixed.ravel()).reshape(own.shape)


def plant_sweep(
    rng: np.random.Generator, world: World, score: np.ndarray, components: np.ndarray, beta: float, num_trials: int
) -> tuple[Points, np.ndarray]:
    """Trials and their accuracies: every component alone, random selections, and two of them run twice more."""
    groups = score.shape[1]
    parts = world.parts * rng.normal(size=score.shape) if groups > 1 else 0.0
    effects = components[:, None] + parts + beta * score + world.size * standardised(SIZES)[:, None]
    alone = np.repeat(np.eye(5), groups, axis=1)
    density = rng.uniform(*world.density, size=(num_trials - 5, 1))
    drawn = (rng.random((num_trials - 5, 5 * groups)) < density).astype(float)
    drawn[~drawn.any(1)] = alone[0]
    switches, log_rates = np.concatenate([alone, drawn]), rng.uniform(-3, -1, num_trials)
    again = np.repeat(rng.choice(num_trials, 2, replace=False), 2)
    switches, log_rates = np.concatenate([switches, switches[again]]), np.concatenate([log_rates, log_rates[again]])

    share = switches.reshape(-1, 5, groups).mean(2)
    off = log_rates - rng.uniform(-2.4, -1.4) - share @ rng.normal(0, 0.12, 5)
    pairs = np.tril(rng.normal(-0.05, 0.12, (5, 5)), -1)
    value = rng.normal(0.8, 0.5) + switches @ effects.ravel() / groups + rng.uniform(0.2, 0.7) * np.log1p(share.sum(1))
    value += np.einsum("nj,jk,nk->n", share, pairs, share)
    value -= rng.uniform(0.4, 1.4) * np.where(off > 0, 1.5, 1.0) * off**2  # too high a rate costs more than too low
    return Points(switches, log_rates), expit(value + rng.normal(0, rng.uniform(0.03, 0.10), len(value)))


def weigh(points: Points, accuracies: np.ndarray, score: np.ndarray) -> Slope:
    groups = score.shape[1]
    kinds = np.repeat(np.arange(5), groups)
    terms = Terms.of(np.zeros(len(kinds)), np.ones(len(kinds)), kinds, rates=(1e-3, 1e-1))
    effects = Posterior(terms, points, accuracies).linear_effects(NUM_DRAWS)
    return slope(effects, score[ORDERS].reshape(len(ORDERS), -1), np.repeat(SIZES, groups))


@dataclass(frozen=True, slots=True)
class Campaign:
    """One repetition: the verdicts of its sets one by one and pooled, in logits, and whether β lay in the intervals."""

    words: list[str]
    pooled: str
    covered: list[bool]
    width: float


def run(world: World, space: str, num_trials: int, num_sets: int, seed: int) -> Campaign:
    """Sets share the model: its plasticity, and what its components can do; β and the rest are each set's own."""
    rng = np.random.default_rng([seed, num_trials, num_sets, GROUPS[space]])
    score = plant_score(rng, GROUPS[space], world.confounding)
    components, betas = rng.normal(0, world.components, 5), rng.normal(world.beta, world.spread, num_sets)
    found = [weigh(*plant_sweep(rng, world, score, components, beta, num_trials), score) for beta in betas]
    words = [verdict_word(in_accuracy(each, 0.5)) for each in found]
    pooled = words[0]
    if num_sets > 1:
        pooled = pooled_word(pool([f.mean for f in found], [f.sd for f in found], [f.pulls for f in found]))
    covered = [each.low <= beta <= each.high for each, beta in zip(found, betas, strict=True)]
    return Campaign(words, pooled, covered, float(np.median([each.high - each.low for each in found])))


def share_interval(count: int, of: int) -> list[float]:
    """95 %, Wilson (1927)."""
    z, share = 1.96, count / of
    centre, half = share + z**2 / (2 * of), z * np.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return [max(0.0, float((centre - half) / (1 + z**2 / of))), float((centre + half) / (1 + z**2 / of))]


# --- the figures ------------------------------------------------------------------------------------------------------


def null_figure(
    name: str, world: World, space: str, num_trials: int, num_sets: int, repetitions: int
) -> dict[str, Any]:
    runs = [run(world, space, num_trials, num_sets, seed) for seed in range(repetitions)]
    claims = sum(each.pooled != UNDECIDED for each in runs)
    covered = list(itertools.chain.from_iterable(each.covered for each in runs))
    return figure(
        f"null/{name}/{space}/{num_trials}" + (f"/{num_sets}" if num_sets > 1 else ""),
        claims / repetitions,
        None,
        "share of sweeps with a claim, β = 0",
        claim_rate=claims / repetitions,
        interval=share_interval(claims, repetitions),
        coverage=sum(covered) / len(covered),
        coverage_interval=share_interval(sum(covered), len(covered)),
        width=float(np.median([each.width for each in runs])),
        repetitions=repetitions,
    )


def power_figure(times: float, space: str, num_trials: int, num_sets: int, repetitions: int) -> dict[str, Any]:
    world = published_world(times)
    runs = [run(world, space, num_trials, num_sets, seed) for seed in range(repetitions)]
    supported = sum(each.pooled == SUPPORTED for each in runs)
    covered = list(itertools.chain.from_iterable(each.covered for each in runs))
    return figure(
        f"power/{times:g}x/{space}/{num_trials}/{num_sets}",
        supported / repetitions,
        None,
        "share called supported",
        more_is_better=True,
        power=supported / repetitions,
        interval=share_interval(supported, repetitions),
        wrong=sum(each.pooled not in (SUPPORTED, UNDECIDED) for each in runs) / repetitions,
        coverage=sum(covered) / len(covered),
        coverage_interval=share_interval(sum(covered), len(covered)),
        width=float(np.median([each.width for each in runs])),
        beta=world.beta,
        repetitions=repetitions,
    )


def all_figures(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for space, num_trials in itertools.product(arguments.spaces, arguments.trials):
        for name, world in NULLS.items():
            yield null_figure(name, world, space, num_trials, 1, arguments.repetitions)
    for num_sets, (name, world) in itertools.product(arguments.sets, NULLS.items()):
        if num_sets > 1:
            repetitions = max(1, arguments.repetitions // 4)
            yield null_figure(name, world, "components", arguments.trials[0], num_sets, repetitions)
    for times, space, num_trials, num_sets in itertools.product(
        arguments.times, arguments.spaces, arguments.trials, arguments.sets
    ):
        repetitions = max(1, arguments.repetitions // (8 if num_sets < 11 else 16))
        yield power_figure(times, space, num_trials, num_sets, repetitions)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--repetitions", type=int, default=8, help="of a null; pooled a fourth, power an eighth or less"
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[16])
    parser.add_argument("--spaces", nargs="+", choices=GROUPS, default=["components"])
    parser.add_argument("--sets", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--times", type=float, nargs="+", default=[1.0], help="multiples of the published effect")
    arguments = parser.parse_args()
    found = []
    with threadpool_limits(limits=1):
        for each in all_figures(arguments):
            print(
                f"{each['name']:40} {each['ours']:.3f} {each['interval']} coverage {each['coverage']:.3f}", flush=True
            )
            found.append(each)
    hand_in("verdict", found, arguments, repetitions=arguments.repetitions)
    if arguments.save:
        draw(found).savefig(RESULTS / "verdict.png", dpi=110)


def draw(found: list[dict[str, Any]]) -> Figure:
    """Left how often a null is claimed, right how often an effect is found."""
    nulls = [each for each in found if each["name"].startswith("null/")]
    whole = Figure(figsize=(11, 0.19 * len(nulls) + 1.6), layout="constrained")
    left, right = whole.subplots(1, 2)
    for row, each in enumerate(reversed(nulls)):
        left.plot(np.multiply(100, each["interval"]), [row, row], color="#7a8698", linewidth=2)
        left.plot([100 * each["claim_rate"]], [row], "o", color="#a84600", markersize=4)
    left.axvline(5, color="#1c2430", linestyle=":", linewidth=1)
    left.set_yticks(range(len(nulls)), [each["name"].removeprefix("null/") for each in reversed(nulls)], fontsize=7)
    left.set(title="Claims without a cause", xlabel="% of sweeps, with 95 % interval", xlim=(0, None))
    lines: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for each in found:
        kind, *place = each["name"].split("/")
        if kind == "power":
            times, space, trials, sets = place
            lines.setdefault((times, space, sets), []).append((int(trials), 100 * each["power"]))
    colors = dict(zip(GROUPS, ("#0072b2", "#009e73", "#a84600"), strict=True))
    for (times, space, sets), points in lines.items():
        style = {"1": ":", "3": "--"}.get(sets, "-")
        marker = "o" if times == "1x" else "^"
        label = f"{times}, {space}, {sets} set{'s' * (sets != '1')}"
        right.plot(*zip(*points, strict=True), style, marker=marker, markersize=4, color=colors[space], label=label)
    right.set(
        title="Effects found (1x: the published one)",
        xlabel="trials of a set",
        ylabel="% called supported",
        ylim=(-2, 102),
    )
    right.legend(fontsize=6, frameon=False, ncols=2)
    return whole


if __name__ == "__main__":
    main()
