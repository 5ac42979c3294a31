"""A point of the search space from one of Optuna's samplers, rebuilt from exactly the trials it may know."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import optuna
from optuna.trial import TrialState as OptunaState

from unfreeze.components.selection import Selection, parse_selection
from unfreeze.records import TrialRecord, TrialSpec
from unfreeze.search.space import LEARNING_RATE, SearchSpace
from unfreeze.search.stopping import observed_values
from unfreeze.seeding import derive_seed

_MAX_DRAWS = 64  # rejected samples (empty or over budget) before a feasible selection is drawn uniformly


def sample_point(
    space: SearchSpace,
    planned: Sequence[TrialSpec],
    known: Mapping[int, TrialRecord],
    *,
    sampler: str,
    num_random: int,
    pareto: bool,
    seed: int,
) -> tuple[Selection, float]:
    """The next (selection, learning rate): a pure function of its arguments.

    ``planned``: every earlier trial; those not ``known`` (final records by index) are told to Optuna as running.
    ``sampler``: ``tpe``, ``gp`` or ``random``. ``num_random``: finished trials before it models anything. ``pareto``:
    the FLOPs of training are a second objective.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a study per suggestion would say so each time
    index = len(planned)
    directions: list[Literal["maximize", "minimize"]] = ["maximize", "minimize"] if pareto else ["maximize"]
    study = optuna.create_study(
        directions=directions, sampler=_make_sampler(sampler, derive_seed(seed, "sampler", index) % 2**32, num_random)
    )
    if sampler != "random":  # which looks at none: a thousand take 0.1 s to tell
        values = observed_values(known)
        for spec in planned:
            if spec.origin != "baseline":  # `all` and `none` are no points of the space
                study.add_trial(_told(space, spec, values.get(spec.index), runs=spec.index not in known, pareto=pareto))
    for _ in range(_MAX_DRAWS):
        trial = study.ask(space.distributions)
        selection = space.selection(trial.params)
        if space.allows(selection):
            return selection, trial.params[LEARNING_RATE]
        study.tell(trial, state=OptunaState.FAIL)
    return draw_uniformly(space, np.random.default_rng(derive_seed(seed, "uniform", index)))


def _make_sampler(name: str, seed: int, num_random: int) -> optuna.samplers.BaseSampler:
    match name:
        case "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=num_random, deterministic_objective=False)
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case _:
            # Switches are sampled together, with two objectives too: one by one, the same point came out again and
            # again.
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=num_random, multivariate=True)


def _told(
    space: SearchSpace, spec: TrialSpec, value: float | None, *, runs: bool, pareto: bool
) -> optuna.trial.FrozenTrial:
    """A trial as Optuna sees it; ``value`` None: still running, or failed."""
    selection = parse_selection(spec.selection, num_blocks=space.model.num_blocks)
    costs = [space.cost.flops_share(selection)] if pareto else []
    return optuna.trial.create_trial(
        state=OptunaState.RUNNING if runs else OptunaState.FAIL if value is None else OptunaState.COMPLETE,
        values=None if value is None else [value, *costs],
        params=space.params(selection, spec.learning_rate),
        distributions=space.distributions,
    )


def draw_uniformly(space: SearchSpace, rng: np.random.Generator) -> tuple[Selection, float]:
    """A random chain of switches, each kept if it still fits; for budgets so tight that samples miss them."""
    if space.listed:
        fitting = [own for own in space.listed if space.fits(own)]
        return fitting[rng.integers(len(fitting))], _draw_rate(space, rng)
    selection = Selection(space.model.num_blocks, frozenset())
    for name in rng.permutation(sorted(space.switches)):
        larger = Selection(selection.num_blocks, selection.members | space.switches[name])
        if space.fits(larger) and (not selection.members or rng.random() < 0.5):
            selection = larger
    return selection, _draw_rate(space, rng)


def _draw_rate(space: SearchSpace, rng: np.random.Generator) -> float:
    low, high = np.log(space.learning_rate_low), np.log(space.learning_rate_high)
    rate = float(np.exp(rng.uniform(low, high)))
    # exp(log(x)) may lie a rounding error outside the range.
    return min(max(rate, space.learning_rate_low), space.learning_rate_high)
