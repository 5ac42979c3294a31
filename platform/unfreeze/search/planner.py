"""The planner: trial i as a pure function of (configuration, i, the final records of trials 0 … i − concurrency).

Nothing else decides what is tried: no clock, no order of completion, no generator that remembers. So a sweep gives the
same trials with one slot or ten, undisturbed or killed and resumed, and resuming needs no saved search state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import TrialState as OptunaState

from unfreeze.components.selection import Selection, parse_selection, select_components
from unfreeze.config import SearchConfig
from unfreeze.evidence.recommend import best_configurations
from unfreeze.records import COMPONENTS, TrialRecord, TrialSpec, TrialState
from unfreeze.search.space import LEARNING_RATE, SearchSpace
from unfreeze.search.stopping import cutoffs, rungs
from unfreeze.seeding import derive_seed

_MAX_DRAWS = 64  # rejected samples (empty or over budget) before a feasible selection is drawn uniformly


@dataclass(frozen=True, slots=True)
class _Point:
    selection: str
    learning_rate: float
    origin: str


class Planner:
    """Plans a sweep's trials one by one.

    Args:
        scores: component → prior score; the first points go from the highest to the lowest.
        milestones: images_seen at each report of a trial, ascending.
    """

    def __init__(
        self, config: SearchConfig, space: SearchSpace, *, scores: Mapping[str, float], milestones: list[int], seed: int
    ) -> None:
        self.config = config
        self.space = space
        self._seed = seed
        self._first = _first_points(config, space, scores)[: config.num_trials]
        self._rungs = rungs(milestones, grace_reports=config.grace_reports, reduction_factor=config.reduction_factor)

    @property
    def max_trials(self) -> int:
        """Upper bound on the number of trials, confirmation runs included."""
        return self.config.num_trials + self.config.confirm_top * self.config.confirm_seeds

    def is_ready(self, index: int, final: Mapping[int, TrialRecord]) -> bool:
        """Whether the outcomes that trial ``index`` may know are all there."""
        needed = index - self.config.concurrency + 1 if index < self.config.num_trials else self.config.num_trials
        return all(earlier in final for earlier in range(needed))

    def plan(self, index: int, final: Mapping[int, TrialRecord], planned: Mapping[int, TrialSpec]) -> TrialSpec | None:
        """Trial ``index``, or None when the sweep has no such trial.

        ``final``: final records by index; those newer than ``index - concurrency`` are not looked at. ``planned``: all
        earlier specs by index.
        """
        assert self.is_ready(index, final)
        if index >= self.config.num_trials:
            return self._confirmation(index, final)
        known = {i: final[i] for i in range(max(index - self.config.concurrency + 1, 0))}
        if index < len(self._first):
            point = self._first[index]
            stop_below: tuple[tuple[int, float], ...] = ()
        else:
            point = self._sample(index, known, planned)
            stop_below = self._cutoffs(point, known)
        return TrialSpec(
            index=index,
            selection=point.selection,
            learning_rate=point.learning_rate,
            seed=self._seed,
            origin=point.origin,
            stop_below=stop_below,
        )

    def _cutoffs(self, point: _Point, known: Mapping[int, TrialRecord]) -> tuple[tuple[int, float], ...]:
        if not self.config.early_stopping:
            return ()
        peers = [record for record in known.values() if record.state is not TrialState.FAILED]
        if self._is_pareto:
            # Against costlier trials a cheap one may well lose; it is no loss while it beats those that cost no more.
            budget = self._flops_share(point.selection)
            peers = [record for record in peers if self._flops_share(record.spec.selection) <= budget]
        return cutoffs(peers, self._rungs, reduction_factor=self.config.reduction_factor)

    def _sample(self, index: int, known: Mapping[int, TrialRecord], planned: Mapping[int, TrialSpec]) -> _Point:
        """Ask a fresh TPE that has seen exactly the known trials, and the planned ones as running."""
        seed = derive_seed(self._seed, "sampler", index) % 2**32
        # Switches are sampled together, with two objectives too: one by one, the same point came out again and again.
        num_random = min(len(self._first), 10)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=num_random, multivariate=True)
        # Accuracy, and with two objectives the FLOPs of training.
        directions: list[Literal["maximize", "minimize"]] = ["maximize"]
        if self._is_pareto:
            directions.append("minimize")
        study = optuna.create_study(directions=directions, sampler=sampler)
        for earlier in range(index):
            spec = planned[earlier]
            if spec.origin != "baseline":  # `all` and `none` are no points of the space
                costs = [self._flops_share(spec.selection)] if self._is_pareto else []
                study.add_trial(self._frozen_trial(spec, known.get(earlier), costs))
        for _ in range(_MAX_DRAWS):
            trial = study.ask(self.space.distributions)
            selection = self.space.selection(trial.params)
            if self.space.allows(selection):
                return _Point(str(selection), trial.params[LEARNING_RATE], "search")
            study.tell(trial, state=OptunaState.FAIL)
        return self._draw_uniformly(index)

    @property
    def _is_pareto(self) -> bool:
        return self.config.objective == "pareto"

    def _flops_share(self, text: str) -> float:
        return self.space.cost.flops_share(parse_selection(text, num_blocks=self.space.model.num_blocks))

    def params(self, spec: TrialSpec) -> dict[str, Any]:
        """The point of the space that a trial stands for."""
        selection = parse_selection(spec.selection, num_blocks=self.space.model.num_blocks)
        return self.space.params(selection, spec.learning_rate)

    def optuna_trial(self, spec: TrialSpec, record: TrialRecord | None) -> optuna.trial.FrozenTrial:
        """A trial as Optuna sees it, by its accuracy alone; ``record`` None: still running."""
        return self._frozen_trial(spec, record, [])

    def _frozen_trial(
        self, spec: TrialSpec, record: TrialRecord | None, costs: list[float]
    ) -> optuna.trial.FrozenTrial:
        value = None if record is None else observed_value(record)
        state = OptunaState.RUNNING if record is None else OptunaState.FAIL if value is None else OptunaState.COMPLETE
        return optuna.trial.create_trial(
            state=state,
            values=None if value is None else [value, *costs],
            params=self.params(spec),
            distributions=self.space.distributions,
        )

    def _draw_uniformly(self, index: int) -> _Point:
        """A random chain of switches, each kept if it still fits; for budgets so tight that samples miss them."""
        rng = np.random.default_rng(derive_seed(self._seed, "uniform", index))
        selection = Selection(self.space.model.num_blocks, frozenset())
        for name in rng.permutation(sorted(self.space.switches)):
            larger = Selection(selection.num_blocks, selection.members | self.space.switches[name])
            if self.space.fits(larger) and (not selection.members or rng.random() < 0.5):
                selection = larger
        low, high = np.log(self.space.learning_rate_low), np.log(self.space.learning_rate_high)
        rate = float(np.exp(rng.uniform(low, high)))
        # exp(log(x)) may lie a rounding error outside the range.
        rate = min(max(rate, self.space.learning_rate_low), self.space.learning_rate_high)
        return _Point(str(selection), rate, "search")

    def _confirmation(self, index: int, final: Mapping[int, TrialRecord]) -> TrialSpec | None:
        """The best selections again, each on seeds of its own, so that the winner is not a lucky draw."""
        best = best_configurations([final[i] for i in range(self.config.num_trials)], limit=self.config.confirm_top)
        runs = [(record, number) for record in best for number in range(1, self.config.confirm_seeds + 1)]
        position = index - self.config.num_trials
        if position >= len(runs):
            return None
        record, number = runs[position]
        return TrialSpec(
            index=index,
            selection=record.spec.selection,
            learning_rate=record.spec.learning_rate,
            seed=self._seed + number,
            origin="confirm",
        )


def observed_value(record: TrialRecord) -> float | None:
    """What a sampler is told of a final trial: its best accuracy; 0 when it diverged; None when it failed."""
    if record.state is TrialState.FAILED:
        return None
    return 0.0 if record.state is TrialState.DIVERGED else record.best_val_accuracy


def _first_points(config: SearchConfig, space: SearchSpace, scores: Mapping[str, float]) -> list[_Point]:
    """Single components from the highest score to the lowest, then the baselines, at each start learning rate.

    They are never stopped early: they are the evidence on plasticity, and what every recommendation is held against.
    """
    num_blocks = space.model.num_blocks
    geometric_mean = (config.learning_rate_low * config.learning_rate_high) ** 0.5
    rates = config.start_learning_rates or [geometric_mean]
    order = sorted(COMPONENTS, key=lambda name: (-scores[name], COMPONENTS.index(name)))
    singles = [(select_components([name], num_blocks=num_blocks), "prior") for name in order]
    baselines = [(parse_selection(text, num_blocks=num_blocks), "baseline") for text in config.baselines]
    return [
        _Point(str(selection), rate, origin)
        for selection, origin in [*singles, *baselines]
        if space.fits(selection)
        for rate in rates
    ]
