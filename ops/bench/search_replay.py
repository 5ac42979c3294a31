"""How many trials a search needs, replayed on tables where the outcome of every configuration is known.

A table has every selection of the five components at every learning rate, several runs each; a replayed trial draws one
of the runs. Regret is of what would be *recommended* after each trial: the best true mean of the table minus the true
mean of the recommendation. Samplers: random and Optuna's TPE recommend their best observed run, the model of the
evidence the highest posterior mean of what it tried.

    python ops/bench/search_replay.py [--repetitions 200] [--tables digits …] [--planted 100] [--full] [--gp 20]

`synthetic` pools planted tables, each replayed once: repetitions on one of them are nearly the same search.

`theirs` is TPE's figure in the same run. Without arguments two planted tables. --save
writes every repetition to ops/bench/results/search_replay.parquet, and what they come to to search_replay.png.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from figures.record import RESULTS, figure, hand_in, make_parser
from matplotlib.figure import Figure
from scipy.special import expit, logit

from unfreeze.components.selection import parse_selection
from unfreeze.config import SearchConfig
from unfreeze.evidence.ends import gain_to_end
from unfreeze.evidence.model import Outlook, Points, Posterior, Terms, standardised, to_logits
from unfreeze.records import COMPONENTS
from unfreeze.search.candidates import promising
from unfreeze.search.fixed import place_of_fixed
from unfreeze.search.stopping import rungs

TABLES = Path(__file__).parent / "tables"
NUM_TRIALS = 32
FIRST_PLANTED = 100  # seed; lower: what the model was made on; 300 to 359: where the fixed trials stand
CLOSE = 0.005  # half a point
_MAX_EMPTY = 64  # suggestions to train nothing: the GPSampler, which learns nothing of failures, asks for it for ever
ONE_SEED = 0.076  # logits, of a run where one seed was measured: as three seeds of the digits' table differ
DRAWN = {  # sampler → colour and line
    "random": ("#7a8698", ":"),
    "tpe": ("#7a8698", "-"),
    "today:reference": ("#1c2430", "--"),
    "today:informative": ("#1c2430", "--"),
    "model:uniform": ("#0072b2", "-"),
    "model:reference": ("#009e73", "-"),
    "model:informative": ("#009e73", "-"),
    "model:reversed": ("#a84600", "--"),
    "model:misleading": ("#a84600", "-"),
}
SEVERAL = ("tpe", "model:uniform", "model:informative", "model:reference", "model:in_situ")  # in flight
SUBSETS = np.array([bits for bits in itertools.product((0.0, 1.0), repeat=len(COMPONENTS)) if any(bits)])


@dataclass(frozen=True, slots=True)
class Replayed:
    """One repetition."""

    recommended: list[int]  # after each trial, a cell
    seconds: float  # a suggestion
    images: list[float]  # after each trial, all that were trained on, in full trials


Sampler = Callable[["Table", np.random.Generator, int], Replayed]
FULL = [float(count) for count in range(1, NUM_TRIALS + 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Cells (configurations), their true means and how a run of each comes out."""

    name: str
    cells: Points
    truth: np.ndarray  # (cells,) accuracy
    runs: np.ndarray | None  # (cells, seeds, reports) measured: best accuracy so far; None: drawn around the truth
    noise: float  # standard deviation of a run in logits, where none was measured
    scores: dict[str, np.ndarray]  # prior → (5,)
    sizes: np.ndarray  # (5,)

    def run(self, cell: int, rng: np.random.Generator) -> float:
        return float(self.curve(cell, rng)[-1])

    def curve(self, cell: int, rng: np.random.Generator) -> np.ndarray:
        """Best accuracy so far at each report; one report where none was measured."""
        if self.runs is not None:
            return self.runs[cell, rng.integers(self.runs.shape[1])]
        return expit(logit(self.truth[[cell]]) + rng.normal(0, self.noise))

    @property
    def num_reports(self) -> int:
        return 1 if self.runs is None else self.runs.shape[2]

    @property
    def rates(self) -> tuple[float, float]:
        return 10 ** self.cells.log_rates.min(), 10 ** self.cells.log_rates.max()


def synthetic(seed: int) -> Table:
    """Planted: additive effects, pairs, more trained is better up to a point, one best rate that moves."""
    rng = np.random.default_rng(seed)
    rates = np.linspace(-3, -1, 6)
    effects, pairs = rng.normal(0, 0.35, 5), np.tril(rng.normal(-0.05, 0.12, (5, 5)), -1)
    base, best, bend = rng.normal(0.8, 0.5), rng.uniform(-2.4, -1.4), rng.uniform(0.4, 1.4)
    moves, gain, noise = rng.normal(0, 0.12, 5), rng.uniform(0.2, 0.7), rng.uniform(0.03, 0.10)
    cells = Points(np.repeat(SUBSETS, 6, axis=0), np.tile(rates, len(SUBSETS)))
    off = cells.log_rates - best - cells.switches @ moves
    value = base + cells.switches @ effects + gain * np.log1p(cells.switches.sum(1))
    value += np.einsum("nj,jk,nk->n", cells.switches, pairs, cells.switches)
    value -= bend * np.where(off > 0, 1.5, 1.0) * off**2  # too high a rate costs more than too low a one
    informative = standardised(standardised(effects) + rng.normal(0, 0.75, 5))
    scores = {
        "informative": informative,
        "reversed": -informative,
        "misleading": rng.permutation(informative),
        "oracle": standardised(effects),
    }
    sizes = np.array([128, 16640, 128, 16640, 16448])
    return Table(
        name=f"synthetic-{seed}",
        cells=cells,
        truth=expit(value),
        runs=None,
        noise=noise,
        scores=scores,
        sizes=sizes,
    )


def measured(name: str) -> Table:
    """A table of ops/bench/tables: every run's best validation accuracy; truth is the mean over seeds. With one seed
    the run is taken for the truth, and a replayed trial is drawn around it."""
    raw = pq.read_table(TABLES / f"{name}.parquet")
    meta = json.loads(raw.schema.metadata[b"unfreeze"])
    curves: dict[tuple[str, float, int], list[float]] = {}
    columns = (raw[key].to_pylist() for key in ("selection", "learning_rate", "seed", "val_accuracy"))
    for selection, rate, seed, accuracy in zip(*columns, strict=True):
        curves.setdefault((selection, rate, seed), []).append(accuracy)
    seeds = sorted({seed for _, _, seed in curves})
    cells = sorted({(selection, rate) for selection, rate, _ in curves if selection not in ("all", "none")})
    switches = [
        [float(name in parse_selection(text, num_blocks=1).components) for name in COMPONENTS] for text, _ in cells
    ]
    runs = np.maximum.accumulate([[curves[*cell, seed] for seed in seeds] for cell in cells], axis=2)
    scores = {
        score: np.array(
            [np.mean([v for group, v in groups.items() if group.endswith(f".{name}")]) for name in COMPONENTS]
        )
        for score, groups in meta["scores"].items()
    }
    scores["reversed"] = -scores["reference"]
    finals = runs[:, :, -1]
    several = len(seeds) > 1
    spread = to_logits(finals).std(axis=1, ddof=1) if several else np.full(len(cells), ONE_SEED)
    return Table(
        name=name,
        cells=Points(np.array(switches), np.log10([rate for _, rate in cells])),
        truth=finals.mean(axis=1),
        runs=runs if several else None,
        noise=float(np.sqrt((spread**2).mean())),
        scores=scores,
        sizes=np.array([meta["sizes"][name] for name in COMPONENTS]),
    )


def smoothed(table: Table) -> Table:
    """Its twin without the cells' own noise: each cell the mean of its neighbours in switches and rate."""
    logits = to_logits(table.truth)
    apart = np.abs(table.cells.switches[:, None] - table.cells.switches[None]).sum(-1)
    steps = np.abs(np.subtract.outer(table.cells.log_rates, table.cells.log_rates))
    weights = np.exp(-1.2 * apart - 0.5 * (steps / 0.15) ** 2)
    truth = expit(weights @ logits / weights.sum(1))
    fields = ("cells", "noise", "scores", "sizes")
    kept = {name: getattr(table, name) for name in fields}
    return Table(name=f"{table.name}-smooth", truth=truth, runs=None, **kept)


# --- samplers: the cells that would be recommended after each trial, and seconds a suggestion -------------------------


def best_observed(tried: list[int], values: list[float]) -> list[int]:
    return [tried[int(np.argmax(values[: count + 1]))] for count in range(len(tried))]


def by_random(table: Table, rng: np.random.Generator, in_flight: int) -> Replayed:
    tried = [int(rng.integers(len(table.cells))) for _ in range(NUM_TRIALS)]
    return Replayed(best_observed(tried, [table.run(cell, rng) for cell in tried]), 0.0, FULL)


def by_optuna(make: Callable[[int], optuna.samplers.BaseSampler], *, first: str | None = None) -> Sampler:
    """``first``: the score in whose order every component is tried alone, at the middle rate, before anything else."""

    def replay(table: Table, rng: np.random.Generator, in_flight: int) -> Replayed:
        study = optuna.create_study(direction="maximize", sampler=make(int(rng.integers(2**31))))
        rates = np.unique(table.cells.log_rates)
        rows = np.column_stack([table.cells.switches, table.cells.log_rates])
        for component in order_of(table, first) if first is not None else []:
            alone = {name: place == component for place, name in enumerate(COMPONENTS)}
            study.enqueue_trial({**alone, "rate": rates.mean()})
        tried: list[int] = []
        running: list[tuple[optuna.Trial, int]] = []
        values: list[float] = []
        seconds, num_empty = 0.0, 0
        while len(tried) < NUM_TRIALS:
            if len(running) == in_flight:
                trial, cell = running.pop(0)
                study.tell(trial, values[len(tried) - len(running) - 1])
            started = time.perf_counter()
            trial = study.ask()
            switches = [trial.suggest_categorical(name, [False, True]) for name in COMPONENTS]
            rate = trial.suggest_float("rate", rates[0], rates[-1])
            seconds += time.perf_counter() - started
            if not any(switches):
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                num_empty += 1
                if num_empty % _MAX_EMPTY == 0:
                    drawn = SUBSETS[rng.integers(len(SUBSETS))]
                    study.enqueue_trial(dict(zip(COMPONENTS, map(bool, drawn), strict=True)))
                continue
            wanted = [*map(float, switches), rates[np.argmin(np.abs(rates - rate))]]
            cell = int(np.argmin(np.abs(rows - wanted).sum(1)))
            tried.append(cell)
            values.append(table.run(cell, rng))
            running.append((trial, cell))
        return Replayed(best_observed(tried, values), seconds / NUM_TRIALS, FULL)

    return replay


def order_of(table: Table, prior: str) -> list[int]:
    """The components from the highest score to the lowest."""
    scores = table.scores.get(prior, np.zeros(5))
    return sorted(range(5), key=lambda component: -scores[component])


def by_model(prior: str, *, alone: str = "as a sweep", stopping: bool = False) -> Sampler:
    """``alone``: where the five trials stand that try each component alone: "as a sweep" has them, "first" or "none".
    ``stopping``: by the rule of `search.stopping` with its defaults."""

    def replay(table: Table, rng: np.random.Generator, in_flight: int) -> Replayed:
        scores = table.scores.get(prior, np.zeros(5))
        terms = Terms.of(scores, table.sizes, np.arange(5), rates=table.rates)
        order = [] if alone == "none" else order_of(table, prior)
        sweep = SearchConfig(num_trials=NUM_TRIALS, concurrency=in_flight)
        start = place_of_fixed(sweep, len(order)) if alone == "as a sweep" else 0
        tried: list[int] = []
        recommended: list[int] = []
        curves: list[np.ndarray] = []
        images: list[float] = []
        seconds = 0.0

        def posterior(known: int) -> Posterior:
            done, running = np.array(tried[:known], dtype=int), np.array(tried[known:], dtype=int)
            values = expected_ends(curves[:known], table.cells.log_rates[done])
            return Posterior(terms, table.cells[done], values, table.cells[running])

        after = posterior(0)
        # Stopped trials are cheap: twice as many take about as many images.
        for index in range(2 * NUM_TRIALS if stopping else NUM_TRIALS):
            known = max(0, index - in_flight + 1)
            started = time.perf_counter()
            before = after if in_flight == 1 else posterior(known)
            is_fixed = start <= index < start + len(order)
            if is_fixed:
                own = np.flatnonzero((table.cells.switches == np.eye(5)[order[index - start]]).all(1))
                each = before.outlook(table.cells[own])
                tried.append(own[chosen(before, each, each, None)])
            else:
                # Nothing tells the first ones apart: any of the equally good.
                luck = rng if not tried else None
                every = before.outlook(table.cells)
                tried.append(chosen(before, every, promising(every), luck))
            seconds += time.perf_counter() - started
            curve = table.curve(tried[-1], rng)
            if stopping and not is_fixed:
                rates = table.cells.log_rates[np.array(tried)]
                curve = curve[: until_stopped(curve, rates[-1], curves[:known], rates[:known])]
            images.append((images[-1] if images else 0.0) + len(curve) / table.num_reports)
            curves.append(curve)
            after = posterior(len(tried))
            recommended.append(int(np.argmax(after.expected_logits(table.cells))))
        return Replayed(recommended, seconds / len(tried), images)

    return replay


def chosen(posterior: Posterior, points: Outlook, rivals: Outlook, rng: np.random.Generator | None) -> int:
    worth = posterior.knowledge_gradient(points, rivals)
    return int(np.argmax(worth if rng is None else worth + 1e-12 * rng.random(len(worth))))


def until_stopped(curve: np.ndarray, log_rate: float, peers: Sequence[np.ndarray], log_rates: np.ndarray) -> int:
    """Reports until a trial misses a cutoff that its finished peers' curves set: all of them if it never does."""
    finished = np.array([len(peer) == len(curve) for peer in peers], dtype=bool)
    whole = np.array([peer for peer in peers if len(peer) == len(curve)]).reshape(-1, len(curve))
    for rung in rungs(list(range(1, len(curve) + 1)), grace_reports=2, reduction_factor=3.0):
        gain = gain_to_end(whole[:, rung - 1], whole[:, -1], log_rates[finished], log_rate=log_rate)
        if gain is not None and curve[rung - 1] < gain.needed(whole[:, -1].max()):
            return rung
    return len(curve)


def expected_ends(curves: Sequence[np.ndarray], log_rates: np.ndarray) -> np.ndarray:
    """What each curve ends at; what is expected, of those that were stopped."""
    length = max(map(len, curves), default=1)
    finished = np.array([len(curve) == length for curve in curves], dtype=bool)
    whole = np.array([curve for curve in curves if len(curve) == length]).reshape(-1, length)
    ends = np.array([curve[-1] for curve in curves])
    for row in np.flatnonzero(~finished):
        at = len(curves[row]) - 1
        gain = gain_to_end(whole[:, at], whole[:, -1], log_rates[finished], log_rate=log_rates[row])
        ends[row] = ends[row] if gain is None else gain.end(ends[row])
    return ends


def samplers(table: Table, *, full: bool) -> dict[str, Sampler]:
    found: dict[str, Sampler] = {
        "random": by_random,
        "tpe": by_optuna(lambda seed: optuna.samplers.TPESampler(seed=seed)),
        "gp": by_optuna(lambda seed: optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)),
        "today:uniform": by_optuna(before_the_model, first="uniform"),
        "model:uniform": by_model("uniform"),
    }
    priors = ("informative", "reversed", "misleading", "oracle", "reference", "in_situ", "local")
    wanted = [prior for prior in table.scores if full or prior in priors]
    found |= {f"model:{prior}": by_model(prior) for prior in wanted}
    for prior in ("uniform", *(p for p in ("informative", "reference") if p in wanted)):
        found[f"model:{prior}, alone first"] = by_model(prior, alone="first")
        found[f"model:{prior}, none alone"] = by_model(prior, alone="none")
    found |= {f"today:{p}": by_optuna(before_the_model, first=p) for p in ("informative", "reference") if p in wanted}
    if table.runs is not None:
        found["model:uniform, stopping"] = by_model("uniform", stopping=True)
    return found


def before_the_model(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, multivariate=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """All repetitions of one sampler on one table."""

    table: str
    sampler: str
    in_flight: int
    regret: np.ndarray  # (repetitions, trials)
    images: np.ndarray  # likewise
    seconds: float  # a suggestion, mean

    @property
    def name(self) -> str:
        return f"{self.table}/{self.sampler}" + ("" if self.in_flight == 1 else f"@{self.in_flight}")

    @property
    def numbers(self) -> dict[str, float]:
        return summary(self.regret[:, :NUM_TRIALS]) | at_equal_images(self.regret, self.images)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tables", nargs="+", default=[], help="measured ones by name; NAME-smooth: without noise")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1])
    parser.add_argument("--planted", type=int, default=2, help="planted tables that nothing was chosen on")
    parser.add_argument("--full", action="store_true", help="rival scores as priors, too")
    parser.add_argument(
        "--gp",
        type=int,
        default=0,
        help="repetitions of Optuna's GPSampler, one of which takes as long as forty of TPE",
    )
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    outcomes = []
    for table in tables(arguments.tables):
        outcomes += replay_all(table, range(arguments.repetitions), arguments, gp=arguments.gp)
    planted = [
        outcome
        for seed in range(FIRST_PLANTED, FIRST_PLANTED + arguments.planted)
        for outcome in replay_all(synthetic(seed), [seed], arguments, gp=int(seed < FIRST_PLANTED + arguments.gp))
    ]
    outcomes += pooled("synthetic", planted)
    if arguments.save:
        regrets = as_table(outcomes)
        pq.write_table(regrets, RESULTS / "search_replay.parquet", compression="zstd")
        draw(regrets).savefig(RESULTS / "search_replay.png", dpi=110)
    counts = {"repetitions": arguments.repetitions, "planted": arguments.planted}
    hand_in("search_replay", figures(outcomes), arguments, **counts)


def replay_all(table: Table, seeds: Sequence[int], arguments: argparse.Namespace, *, gp: int) -> list[Outcome]:
    """``gp``: of the seeds, for the GPSampler."""
    found = []
    for in_flight, (sampler, replay) in itertools.product(
        arguments.in_flight, samplers(table, full=arguments.full).items()
    ):
        own = seeds[:gp] if sampler == "gp" else seeds
        if not own or (in_flight > 1 and sampler not in SEVERAL):
            continue
        found.append(repeat(table, sampler, replay, in_flight, own))
        print(f"{found[-1].name:40} {found[-1].numbers}", flush=True)
    return found


def repeat(table: Table, sampler: str, replay: Sampler, in_flight: int, seeds: Sequence[int]) -> Outcome:
    runs = [replay(table, np.random.default_rng([seed, 7]), in_flight) for seed in seeds]
    regret = np.array([table.truth.max() - table.truth[run.recommended] for run in runs])
    images = np.array([run.images for run in runs])
    return Outcome(table.name, sampler, in_flight, regret, images, float(np.mean([run.seconds for run in runs])))


def pooled(name: str, outcomes: list[Outcome]) -> list[Outcome]:
    """The repetitions on all tables together."""
    groups: dict[tuple[str, int], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.sampler, outcome.in_flight), []).append(outcome)
    return [
        Outcome(
            name,
            sampler,
            in_flight,
            np.concatenate([outcome.regret for outcome in group]),
            np.concatenate([outcome.images for outcome in group]),
            float(np.mean([outcome.seconds for outcome in group])),
        )
        for (sampler, in_flight), group in groups.items()
    ]


def figures(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """``theirs`` is TPE's on the same table, one in flight."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    found = []
    for outcome in outcomes:
        theirs = by_name.get(f"{outcome.table}/tpe")
        found.append(
            figure(
                outcome.name,
                outcome.numbers["trials_to_half_point"],
                theirs.numbers["trials_to_half_point"] if theirs else None,
                "trials to within half a point",
                repetitions=len(outcome.regret),
                **outcome.numbers,
                ms_per_suggestion=1000 * outcome.seconds,
            )
        )
    return found


def as_table(outcomes: list[Outcome]) -> pa.Table:
    """Every repetition's regret after every trial."""
    tables = []
    for outcome in outcomes:
        repetitions, trials = (grid.ravel() for grid in np.indices(outcome.regret.shape))
        columns = {"repetition": repetitions, "trial": trials + 1, "regret": outcome.regret.ravel()}
        same = {"table": outcome.table, "sampler": outcome.sampler, "in_flight": outcome.in_flight}
        tables.append(pa.table({**{key: [value] * len(trials) for key, value in same.items()}, **columns}))
    return pa.concat_tables(tables)


def draw(regrets: pa.Table) -> Figure:
    """Regret after each trial, one in flight: mean over the repetitions with the middle half of them."""
    columns = {name: np.array(regrets[name].to_pylist()) for name in regrets.column_names}
    alone = (columns["in_flight"] == 1) & (columns["trial"] <= NUM_TRIALS)
    names = list(dict.fromkeys(columns["table"][alone].tolist()))
    whole = Figure(figsize=(4.2 * len(names), 3.8), layout="constrained")
    for axes, table in zip(np.atleast_1d(whole.subplots(1, len(names))), names, strict=True):
        for sampler, (color, style) in DRAWN.items():
            own = alone & (columns["table"] == table) & (columns["sampler"] == sampler)
            if not own.any():
                continue
            by_trial = 100 * columns["regret"][own].reshape(-1, NUM_TRIALS)
            trials = np.arange(1, NUM_TRIALS + 1)
            axes.plot(trials, by_trial.mean(0), style, color=color, label=sampler, linewidth=1.6)
            axes.fill_between(
                trials, *np.quantile(by_trial, (0.25, 0.75), axis=0), color=color, alpha=0.08, linewidth=0
            )
        axes.axhline(100 * CLOSE, color="#1c2430", linestyle=":", linewidth=1)
        axes.set(title=table, xlabel="trials", yscale="symlog", ylim=(0, None))
        axes.set_yticks([0, 0.5, 1, 2, 5, 10], ["0", "0.5", "1", "2", "5", "10"])
        axes.legend(fontsize=7, frameon=False)
    whole.supylabel("regret of the recommendation, points", fontsize=9)
    return whole


def tables(names: list[str]) -> Iterator[Table]:
    for name in names:
        table = measured(name.removesuffix("-smooth"))
        yield smoothed(table) if name.endswith("-smooth") else table


def summary(regret: np.ndarray) -> dict[str, float]:
    """Of (repetitions, trials): trials until the recommendation is within half a point, and until it stays there;
    regrets."""
    far = regret > CLOSE
    # The last trial after which it was still off, plus one; one more than there were where it never settled.
    trials = np.where(far.any(1), regret.shape[1] - np.argmax(far[:, ::-1], axis=1), 0) + 1
    first = np.where((~far).any(1), np.argmax(~far, axis=1) + 1, regret.shape[1] + 1)
    return {
        "trials_to_half_point": float(np.median(first)),
        "trials_to_stay": float(np.median(trials)),
        "trials_to_half_point_p90": float(np.quantile(first, 0.9)),
        "mean_regret_32": float(regret.mean()),
        "regret_8": float(regret[:, 7].mean()),
        "regret_16": float(regret[:, 15].mean()),
        "regret_32": float(regret[:, 31].mean()),
    }


def at_equal_images(regret: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """Regret when as many images were trained on as 8, 16 and 24 full trials take."""
    found = {}
    for budget in (8, 16, 24):
        last = np.maximum((images <= budget + 1e-9).sum(1) - 1, 0)
        found[f"regret_images_{budget}"] = float(regret[np.arange(len(regret)), last].mean())
    return found


if __name__ == "__main__":
    main()
