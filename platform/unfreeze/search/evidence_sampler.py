"""The model of the evidence as a sampler of Optuna's, for studies of anything that is switched on or off."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_limits

from unfreeze.evidence.model import Points, Posterior, Terms
from unfreeze.search.candidates import Candidates, every_subset, rates_between
from unfreeze.seeding import derive_seed

logger = logging.getLogger(__name__)


class EvidenceSampler(BaseSampler):
    """Proposes which switches to turn on, and at which learning rate, by one Bayesian model of all finished trials.

    Trials suggest every switch with ``trial.suggest_categorical(name, [False, True])`` and the rate with
    ``trial.suggest_float(learning_rate_name, *learning_rate, log=True)``, and return an accuracy in 0 to 1, which the
    study maximises. What else they suggest is drawn at random. A trial is a pure function of the seed, its number, and
    the trials that are there when it is asked for; running ones are taken to come out as expected, pruned ones count
    with their best intermediate value that is a number, failed ones not at all.

    Args:
        switches: name → parameters that it trains (the model's `size`).
        learning_rate: the lowest and the highest.
        scores: name → what is held to predict a switch's worth, on any scale: plasticity, say. Its weight is learned,
            a useless one does next to no harm; None: nothing is.
        kinds: name → the kind of component it is part of: switches of one kind share an effect; None: each its own.
        allowed: whether a set of switches may be tried; None: any but the empty one.

    Raises:
        ValueError: no switch, a rate range that is none, scores or kinds of other switches, no set that is allowed;
            while sampling a study of several objectives or that minimises, or a value outside 0 to 1.
    """

    def __init__(
        self,
        switches: Mapping[str, int],
        learning_rate: tuple[float, float],
        *,
        scores: Mapping[str, float] | None = None,
        kinds: Mapping[str, str] | None = None,
        allowed: Callable[[frozenset[str]], bool] | None = None,
        learning_rate_name: str = "learning_rate",
        seed: int = 0,
    ) -> None:
        low, high = learning_rate
        if not switches:
            raise ValueError("switches must name at least one, but got none")
        if not 0 < low <= high < math.inf:
            raise ValueError(f"learning_rate must be a positive (low, high), but got {learning_rate}")
        for argument, values in (("scores", scores), ("kinds", kinds)):
            if values is not None and set(values) != set(switches):
                raise ValueError(f"{argument} must have each of {list(switches)}, but got {list(values)}")
        self._names, self._rate_name, self._seed = list(switches), learning_rate_name, seed
        names_of_kinds = [self._names.index(name) if kinds is None else kinds[name] for name in self._names]
        self._terms = Terms.of(
            np.array([0.0 if scores is None else scores[name] for name in self._names]),
            np.array([switches[name] for name in self._names]),
            np.unique(names_of_kinds, return_inverse=True)[1],
            rates=(low, high),
        )
        self._space: dict[str, BaseDistribution] = {
            **{name: CategoricalDistribution([False, True]) for name in self._names},
            learning_rate_name: FloatDistribution(low, high, log=True),
        }
        self._range = low, high
        self._log_rates = rates_between(low, high)

        def fits(row: np.ndarray) -> bool:
            on = frozenset(name for name, value in zip(self._names, row, strict=True) if value)
            return bool(on) and (allowed is None or allowed(on))

        subsets = every_subset(len(self._names), fits)
        if subsets is not None and not len(subsets):
            raise ValueError(f"allowed must leave some set of {self._names}, but refused every one")
        self._candidates = Candidates(len(self._names), subsets, allowed=fits)
        self._independent = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if study.directions != [StudyDirection.MAXIMIZE]:
            raise ValueError(f"the study must maximise one accuracy, but its directions are {study.directions}")
        rng = np.random.default_rng(derive_seed(self._seed, "proposal", trial.number))
        with threadpool_limits(limits=1, user_api="blas"):
            try:
                posterior, tried = self._posterior(study, trial.number)
                chosen = self._candidates.choose(posterior, tried, self._log_rates, rng)
            except np.linalg.LinAlgError as error:  # never seen; a study must not end by it
                logger.warning("trial %d is drawn at random: the model could not be fitted (%s)", trial.number, error)
                chosen = self._candidates.at_random(self._log_rates, rng)
        low, high = self._range
        rate = min(max(float(10 ** chosen.log_rates[0]), low), high)  # 10**log10(x) may lie a rounding error outside
        return {**dict(zip(self._names, (chosen.switches[0] > 0.5).tolist(), strict=True)), self._rate_name: rate}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """For parallel workers of one study: their draws of other parameters must differ."""
        self._independent.reseed_rng()

    def _posterior(self, study: Study, number: int) -> tuple[Posterior, Points]:
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        done: list[Points] = []
        values: list[float] = []
        running: list[Points] = []
        for trial in study.get_trials(deepcopy=False, states=states):
            if trial.number == number or not self._space.keys() <= trial.params.keys():
                continue
            switches = np.array([[float(trial.params[name]) for name in self._names]])
            point = Points(switches, np.log10([trial.params[self._rate_name]]))
            value = outcome(trial)
            if value is not None:
                done.append(point)
                values.append(value)
            elif trial.state is TrialState.RUNNING:
                running.append(point)
        width = len(self._names)
        tried = Points.join(done, width=width)
        return Posterior(self._terms, tried, np.array(values), Points.join(running, width=width)), tried


def outcome(trial: FrozenTrial) -> float | None:
    """What a trial came to; None while it runs, or where no number was reported before it was pruned."""
    if trial.state is TrialState.COMPLETE:
        value = trial.value
    elif trial.state is TrialState.PRUNED:
        reported = [value for value in trial.intermediate_values.values() if not math.isnan(value)]
        if not reported:
            return None
        value = max(reported)
    else:
        return None
    if value is None or not 0 <= value <= 1:
        raise ValueError(f"trial {trial.number} must give an accuracy in 0 to 1, but gave {value}")
    return value
