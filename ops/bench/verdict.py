"""How often the verdict claims something without a cause, and how often with one: simulated sweeps.

Sweeps are planted by other formulas than the model's own: effects of components (and in `depth` and `blocks` of their
parts), what size and the score are worth, gains that level off, pairs, a best learning rate that moves, a run's noise.
Plasticity is drawn at random: `independent` of everything, all components nearly alike; `effects`: components differ by
0.35 logits; `size`: plasticity follows size (correlation 0.8), and so does accuracy; `shared`: trials that train most
components at once. Trials are drawn at random; in `proposed-…` the planner proposes them, as in a real sweep with its
default options, from plasticity and from what the earlier ones came to.

    python ops/bench/verdict.py [--repetitions 400] [--trials 16 32 64] [--spaces components depth blocks] [--save]

`null/…/SPACE/TRIALS[/SETS]` have β = 0: `claim_rate` is the share called supported or contradicted, at most 5 %.
`power/TIMES/SPACE/TRIALS/SETS` have the effect of the published table (its mean over eleven sets, the spread between
them, and what the components differ by besides, on all sets and on each), or multiples of it; `coverage` is of β's 95 %
interval, of several sets `pooled_coverage` of the average set's and `next_coverage` of another set's β.
"""

import argparse
import functools
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from figures.record import RESULTS, figure, hand_in, make_parser, origin
from matplotlib.figure import Figure
from planted.sweeps import draw_sweep, propose_sweeps, weigh_plasticity
from planted.worlds import NULLS, SIZES, DataSet, World, plant_score, published_world
from threadpoolctl import threadpool_limits

from unfreeze.evidence.across import pool
from unfreeze.evidence.effects import NUM_DRAWS, Slope, slope
from unfreeze.evidence.exchange import exchanges
from unfreeze.evidence.model import Points, Posterior, Terms
from unfreeze.evidence.verdict import SUPPORTED, UNDECIDED, pooled_word, verdict_word
from unfreeze.evidence.worth import in_accuracy
from unfreeze.records import COMPONENTS

GROUPS = {"components": 1, "depth": 3, "blocks": 12}  # switches of a component
ORDERS = exchanges(len(COMPONENTS))
KINDS = ("null", "pooled", "proposed", "power")
PROPOSED = ("effects", "size")  # the nulls that a search may be led astray by


def weigh(points: Points, accuracies: np.ndarray, score: np.ndarray) -> Slope:
    groups = score.shape[1]
    kinds = np.repeat(np.arange(5), groups)
    terms = Terms.of(np.zeros(len(kinds)), np.ones(len(kinds)), kinds, rates=(1e-3, 1e-1))
    effects = Posterior(terms, points, accuracies).linear_effects(NUM_DRAWS)
    return slope(effects, score[ORDERS].reshape(len(ORDERS), -1), np.repeat(SIZES, groups))


@dataclass(frozen=True, slots=True)
class Campaign:
    """One repetition: the verdict of its sets together, in logits, and whether β lay in the intervals."""

    word: str
    covered: list[bool]  # of each set
    width: float
    pooled: tuple[bool, bool] | None = None  # the average set's and the next one's; None: too few sets


def run(world: World, space: str, num_trials: int, num_sets: int, seed: int) -> Campaign:
    """Sets share the model: its plasticity, and in part what its components do; β and the rest are each set's own."""
    rng = np.random.default_rng([seed, num_trials, num_sets, GROUPS[space]])
    score = plant_score(rng, GROUPS[space], world.confounding)
    components, betas = rng.normal(0, world.components, 5), rng.normal(world.beta, world.spread, num_sets)
    sets = [DataSet.plant(rng, world, score, components + rng.normal(0, world.own, 5), beta) for beta in betas]
    found = [weigh(*draw_sweep(rng, world, planted, num_trials), score) for planted in sets]
    covered = [each.low <= beta <= each.high for each, beta in zip(found, betas, strict=True)]
    width = float(np.median([each.high - each.low for each in found]))
    if num_sets == 1:
        return Campaign(verdict_word(in_accuracy(found[0], 0.5)), covered, width)
    pooled, following = pool(found), rng.normal(world.beta, world.spread)
    assert pooled.low is not None
    assert pooled.high is not None
    covers_next = (
        pooled.next_low is None or pooled.next_high is None or pooled.next_low <= following <= pooled.next_high
    )
    return Campaign(pooled_word(pooled), covered, width, (pooled.low <= world.beta <= pooled.high, covers_next))


def run_proposed(world: World, space: str, counts: list[int], seed: int) -> list[Campaign]:
    """A sweep of each number of trials; one whose trials give no number claims nothing."""
    rng = np.random.default_rng([seed, 0, 1, GROUPS[space]])
    score = plant_score(rng, GROUPS[space], world.confounding)
    planted = DataSet.plant(rng, world, score, rng.normal(0, world.components, 5), world.beta)
    found = []
    for trials in propose_sweeps(rng, planted, score, space, counts):
        own = weigh_plasticity(trials, score).slope
        if own is None:
            found.append(Campaign(UNDECIDED, [], np.nan))
        else:
            covered = own.low <= world.beta <= own.high
            found.append(Campaign(verdict_word(in_accuracy(own, 0.5)), [covered], own.high - own.low))
    return found


def share_interval(count: int, of: int) -> list[float]:
    """95 %, Wilson (1927)."""
    z, share = 1.96, count / of
    centre, half = share + z**2 / (2 * of), z * np.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return [max(0.0, float((centre - half) / (1 + z**2 / of))), float((centre + half) / (1 + z**2 / of))]


# --- the figures ------------------------------------------------------------------------------------------------------


def null_figure(name: str, runs: list[Campaign]) -> dict[str, Any]:
    claims = sum(each.word != UNDECIDED for each in runs)
    return figure(
        f"null/{name}",
        claims / len(runs),
        None,
        "share of sweeps with a claim, β = 0",
        claim_rate=claims / len(runs),
        interval=share_interval(claims, len(runs)),
        **coverage(runs),
    )


def power_figure(name: str, world: World, runs: list[Campaign]) -> dict[str, Any]:
    supported = sum(each.word == SUPPORTED for each in runs)
    return figure(
        f"power/{name}",
        supported / len(runs),
        None,
        "share called supported",
        more_is_better=True,
        power=supported / len(runs),
        interval=share_interval(supported, len(runs)),
        wrong=sum(each.word not in (SUPPORTED, UNDECIDED) for each in runs) / len(runs),
        beta=world.beta,
        **coverage(runs),
    )


def coverage(runs: list[Campaign]) -> dict[str, Any]:
    """Of the single sets' intervals, and of several sets' together."""
    covered = list(itertools.chain.from_iterable(each.covered for each in runs))
    found: dict[str, Any] = {
        "coverage": sum(covered) / len(covered),
        "coverage_interval": share_interval(sum(covered), len(covered)),
        "width": float(np.nanmedian([each.width for each in runs])),
        "repetitions": len(runs),
    }
    if pooled := [each.pooled for each in runs if each.pooled is not None]:
        average, following = (sum(side) for side in zip(*pooled, strict=True))
        found |= {
            "pooled_coverage": average / len(pooled),
            "pooled_coverage_interval": share_interval(average, len(pooled)),
            "next_coverage": following / len(pooled),
        }
    return found


def all_figures(arguments: argparse.Namespace, executor: Executor) -> Iterator[dict[str, Any]]:
    most: int = arguments.repetitions

    def repeat(share: int, world: World, space: str, num_trials: int, num_sets: int) -> list[Campaign]:
        seeds = range(max(1, most // share))
        return list(executor.map(functools.partial(run, world, space, num_trials, num_sets), seeds, chunksize=5))

    if "null" in arguments.only:
        for space, num_trials, name in itertools.product(arguments.spaces, arguments.trials, NULLS):
            yield null_figure(f"{name}/{space}/{num_trials}", repeat(1, NULLS[name], space, num_trials, 1))
    several = [count for count in arguments.sets if count > 1 and "pooled" in arguments.only]
    for num_sets, name in itertools.product(several, NULLS):
        num_trials = arguments.trials[0]
        runs = repeat(2, NULLS[name], "components", num_trials, num_sets)
        yield null_figure(f"{name}/components/{num_trials}/{num_sets}", runs)
    for space, name in itertools.product(arguments.spaces, PROPOSED) if "proposed" in arguments.only else ():
        seeds = range(max(1, most // (2 if space == "components" else 4)))  # a sweep of 64 takes one to three seconds
        sweeps = executor.map(functools.partial(run_proposed, NULLS[name], space, arguments.trials), seeds)
        for num_trials, runs_of in zip(arguments.trials, zip(*sweeps, strict=True), strict=True):
            yield null_figure(f"proposed-{name}/{space}/{num_trials}", list(runs_of))
    for times, space, num_trials, num_sets in itertools.product(
        arguments.times, arguments.spaces, arguments.trials, arguments.sets if "power" in arguments.only else ()
    ):
        world = published_world(times)
        runs = repeat(4 if num_sets < 11 else 8, world, space, num_trials, num_sets)
        yield power_figure(f"{times:g}x/{space}/{num_trials}/{num_sets}", world, runs)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repetitions", type=int, default=8, help="of a null; of the others a half to an eighth")
    parser.add_argument(
        "--only", nargs="+", choices=KINDS, default=KINDS, help="--save keeps what an earlier run has of the others"
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[16])
    parser.add_argument("--spaces", nargs="+", choices=GROUPS, default=["components"])
    parser.add_argument("--sets", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--times", type=float, nargs="+", default=[1.0], help="multiples of the published effect")
    arguments = parser.parse_args()
    found = []
    with ProcessPoolExecutor(initializer=threadpool_limits, initargs=(1,)) as executor:
        for each in all_figures(arguments, executor):
            rate = each["claim_rate"] if "claim_rate" in each else each["power"]
            low, high = each["interval"]
            print(f"{each['name']:40} {rate:.3f} [{low:.3f}, {high:.3f}] covers {each['coverage']:.3f}", flush=True)
            found.append({**each, **origin()})
    if arguments.save:
        earlier = json.loads((RESULTS / "verdict.json").read_text(encoding="utf-8"))["results"]
        found = list({each["name"]: each for each in [*earlier, *found]}.values())
    hand_in("verdict", found, arguments)
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
