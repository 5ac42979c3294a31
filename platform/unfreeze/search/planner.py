"""The planner: trial i as a pure function of (configuration, i, the final records of trials 0 … i − concurrency).

Nothing else decides what is tried: no clock, no order of completion, no generator that remembers. So a sweep gives the
same trials with one slot or ten, undisturbed or killed and resumed, and resuming needs no saved search state.
"""

from collections.abc import Mapping

from unfreeze.components.selection import parse_selection, select_components
from unfreeze.config import SearchConfig
from unfreeze.evidence.recommend import best_configurations
from unfreeze.records import COMPONENTS, TrialRecord, TrialSpec, TrialState
from unfreeze.search.sampler import sample_point
from unfreeze.search.space import SearchSpace
from unfreeze.search.stopping import cutoffs, rungs


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
        self._first = first_points(config, space, scores)[: config.num_trials]
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
        if index < len(self._first):
            selection, rate, origin = self._first[index]
            return TrialSpec(index=index, selection=selection, learning_rate=rate, seed=self._seed, origin=origin)
        known = {i: final[i] for i in range(max(index - self.config.concurrency + 1, 0))}
        chosen, rate = sample_point(
            self.space,
            [planned[earlier] for earlier in range(index)],
            known,
            num_random=min(len(self._first), 10),
            pareto=self.config.objective == "pareto",
            seed=self._seed,
        )
        return TrialSpec(
            index=index,
            selection=str(chosen),
            learning_rate=rate,
            seed=self._seed,
            origin="search",
            stop_below=self._cutoffs(str(chosen), known),
        )

    def _cutoffs(self, selection: str, known: Mapping[int, TrialRecord]) -> tuple[tuple[int, float], ...]:
        if not self.config.early_stopping:
            return ()
        peers = [record for record in known.values() if record.state is not TrialState.FAILED]
        if self.config.objective == "pareto":
            # Against costlier trials a cheap one may well lose; it is no loss while it beats those that cost no more.
            budget = self._flops_share(selection)
            peers = [record for record in peers if self._flops_share(record.spec.selection) <= budget]
        return cutoffs(peers, self._rungs, reduction_factor=self.config.reduction_factor)

    def _flops_share(self, text: str) -> float:
        return self.space.cost.flops_share(parse_selection(text, num_blocks=self.space.model.num_blocks))

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


def first_points(config: SearchConfig, space: SearchSpace, scores: Mapping[str, float]) -> list[tuple[str, float, str]]:
    """(selection, learning rate, origin): single components from the highest score to the lowest, then the baselines,
    at each start learning rate.

    They are never stopped early: they are the evidence on plasticity, and what every recommendation is held against.
    """
    num_blocks = space.model.num_blocks
    geometric_mean = (config.learning_rate_low * config.learning_rate_high) ** 0.5
    rates = config.start_learning_rates or [geometric_mean]
    order = sorted(COMPONENTS, key=lambda name: (-scores[name], COMPONENTS.index(name)))
    singles = [(select_components([name], num_blocks=num_blocks), "prior") for name in order]
    baselines = [(parse_selection(text, num_blocks=num_blocks), "baseline") for text in config.baselines]
    return [
        (str(selection), rate, origin)
        for selection, origin in [*singles, *baselines]
        if space.fits(selection)
        for rate in rates
    ]
