"""The planner: trial i as a pure function of (configuration, i, the final records of trials 0 … i − concurrency).

Nothing else decides what is tried: no clock, no order of completion, no generator that remembers. So a sweep gives the
same trials with one slot or ten, undisturbed or killed and resumed, and resuming needs no saved search state.
"""

from collections.abc import Mapping, Sequence

from unfreeze.components.selection import Selection, parse_selection
from unfreeze.config import SearchConfig
from unfreeze.evidence.recommend import best_configurations
from unfreeze.records import TrialRecord, TrialSpec, TrialState
from unfreeze.search.first import first_points
from unfreeze.search.prior import component_means
from unfreeze.search.proposals import ModelSampler, searches_by_model
from unfreeze.search.sampler import sample_point
from unfreeze.search.space import SearchSpace
from unfreeze.search.stopping import cutoffs, rungs


class Planner:
    """Plans a sweep's trials one by one.

    Args:
        scores: (block, component) → what the prior says of it.
        milestones: images_seen at each report of a trial, ascending.
    """

    def __init__(
        self,
        config: SearchConfig,
        space: SearchSpace,
        *,
        scores: Mapping[tuple[int, str], float],
        milestones: list[int],
        seed: int,
    ) -> None:
        self.config = config
        self.space = space
        self._seed = seed
        self._first = first_points(config, space, component_means(scores))[: config.num_trials]
        self._rungs = rungs(milestones, grace_reports=config.grace_reports, reduction_factor=config.reduction_factor)
        self._model = ModelSampler(space, scores, seed=seed) if searches_by_model(config) else None

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
        earlier = [planned[i] for i in range(index)]
        stop_below: tuple[tuple[int, float], ...] = ()
        if index < len(self._first):
            selection, rate, origin = self._first[index]
            if rate is None:
                rate = self._first_rate(selection, earlier, known)
        else:
            selection, rate = self._propose(earlier, known)
            origin, stop_below = "search", self._cutoffs(str(selection), known)
        # A configuration that is asked for again is run on another seed: the same one would give the same numbers.
        times = sum((spec.selection, spec.learning_rate) == (str(selection), rate) for spec in earlier)
        return TrialSpec(
            index=index,
            selection=str(selection),
            learning_rate=rate,
            seed=self._seed + times,
            origin=origin,
            stop_below=stop_below,
        )

    def _first_rate(
        self, selection: Selection, earlier: Sequence[TrialSpec], known: Mapping[int, TrialRecord]
    ) -> float:
        if self._model is not None:
            return self._model.propose_rate(selection, earlier, known)
        return (self.config.learning_rate_low * self.config.learning_rate_high) ** 0.5

    def _propose(self, earlier: Sequence[TrialSpec], known: Mapping[int, TrialRecord]) -> tuple[Selection, float]:
        if self._model is not None:
            return self._model.propose(earlier, known)
        return sample_point(
            self.space,
            earlier,
            known,
            sampler="tpe" if self.config.sampler == "model" else self.config.sampler,
            num_random=min(len(self._first), 10),
            pareto=self.config.objective == "pareto",
            seed=self._seed,
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
        records = [final[i] for i in range(self.config.num_trials)]
        expected = self._model.expected(records) if self._model is not None else {}
        best = best_configurations(records, limit=self.config.confirm_top, expected=expected)
        runs = [(record, number) for record in best for number in range(1, self.config.confirm_seeds + 1)]
        position = index - self.config.num_trials
        if position >= len(runs):
            return None
        record, number = runs[position]
        spec = record.spec
        # The search may have run it on several seeds itself: the next ones, or the same run would come twice.
        times = sum((r.spec.selection, r.spec.learning_rate) == (spec.selection, spec.learning_rate) for r in records)
        return TrialSpec(
            index=index,
            selection=spec.selection,
            learning_rate=spec.learning_rate,
            seed=self._seed + times - 1 + number,
            origin="confirm",
        )
