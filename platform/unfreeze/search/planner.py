"""The planner: trial i as a pure function of (configuration, i, the final records of trials 0 … i − concurrency).

Nothing else decides what is tried: no clock, no order of completion, no generator that remembers. So a sweep gives the
same trials with one slot or ten, undisturbed or killed and resumed, and resuming needs no saved search state.
"""

from collections.abc import Mapping, Sequence

from unfreeze.components.selection import Selection, parse_selection
from unfreeze.config import SearchConfig
from unfreeze.evidence.recommend import best_configurations
from unfreeze.records import Learned, TrialRecord, TrialSpec
from unfreeze.search.fixed import fixed_trials, place_of_fixed, searches_by_model
from unfreeze.search.prior import component_means
from unfreeze.search.proposals import ModelSampler
from unfreeze.search.sampler import sample_point
from unfreeze.search.space import SearchSpace
from unfreeze.search.stopping import cutoffs, rungs


class Planner:
    """Plans a sweep's trials one by one.

    Args:
        scores: (block, component) → what the prior says of it.
        milestones: images_seen at each report of a trial, ascending.
        learned: from earlier sweeps; None: nothing.
    """

    def __init__(
        self,
        config: SearchConfig,
        space: SearchSpace,
        *,
        scores: Mapping[tuple[int, str], float],
        milestones: list[int],
        seed: int,
        learned: Learned | None = None,
    ) -> None:
        self.config = config
        self.space = space
        self._seed = seed
        self._fixed = fixed_trials(config, space, component_means(scores))[: config.num_trials]
        self._place = place_of_fixed(config, len(self._fixed))
        self._rungs = rungs(milestones, grace_reports=config.grace_reports, reduction_factor=config.reduction_factor)
        pareto = config.objective == "pareto"
        by_model = searches_by_model(config)
        self._model = ModelSampler(space, scores, seed=seed, learned=learned, pareto=pareto) if by_model else None
        self._losses: dict[int, float] = {}  # trial → what choosing then was expected to give away

    @property
    def max_trials(self) -> int:
        """Upper bound on the number of trials, confirmation runs included."""
        return self.config.num_trials + self.config.confirm_top * self.config.confirm_seeds

    def is_ready(self, index: int, final: Mapping[int, TrialRecord]) -> bool:
        """Whether the outcomes that trial ``index`` may know are all there."""
        if not _all_of(index - self.config.concurrency + 1, final):
            return False
        last = self._num_searched(index, final)
        return index < last or _all_of(last, final)

    def plan(self, index: int, final: Mapping[int, TrialRecord], planned: Mapping[int, TrialSpec]) -> TrialSpec | None:
        """Trial ``index``, or None when the sweep has no such trial.

        ``final``: final records by index; those newer than ``index - concurrency`` are not looked at. ``planned``: all
        earlier specs by index.
        """
        assert self.is_ready(index, final)
        last = self._num_searched(index, final)
        if index >= last:
            return self._confirmation(index, last, final, planned)
        known = {i: final[i] for i in range(max(index - self.config.concurrency + 1, 0))}
        earlier = [planned[i] for i in range(index)]
        stop_below: tuple[tuple[int, float], ...] = ()
        if 0 <= index - self._place < len(self._fixed):
            selection, rate, origin = self._fixed[index - self._place]
            if rate is None:
                assert self._model is not None
                rate = self._model.propose_rate(selection, earlier, known)
        else:
            selection, rate = self._propose(earlier, known)
            origin, stop_below = "search", self._cutoffs(str(selection), rate, known)
        return TrialSpec(
            index=index,
            selection=str(selection),
            learning_rate=rate,
            seed=self._next_seed(str(selection), rate, earlier),
            origin=origin,
            stop_below=stop_below,
        )

    def _propose(self, earlier: Sequence[TrialSpec], known: Mapping[int, TrialRecord]) -> tuple[Selection, float]:
        if self._model is not None:
            return self._model.propose(earlier, known)
        return sample_point(
            self.space,
            earlier,
            known,
            sampler=self.config.sampler,
            num_random=min(len(self._fixed), 10),
            pareto=self.config.objective == "pareto",
            seed=self._seed,
        )

    def _cutoffs(
        self, selection: str, learning_rate: float, known: Mapping[int, TrialRecord]
    ) -> tuple[tuple[int, float], ...]:
        if not self.config.early_stopping:
            return ()
        peers = [*known.values()]
        if self.config.objective == "pareto":
            # Against costlier trials a cheap one may well lose; it is no loss while it beats those that cost no more.
            budget = self._flops_share(selection)
            peers = [record for record in peers if self._flops_share(record.spec.selection) <= budget]
        return cutoffs(peers, self._rungs, learning_rate=learning_rate)

    def _flops_share(self, text: str) -> float:
        return self.space.cost.flops_share(parse_selection(text, num_blocks=self.space.model.num_blocks))

    def _num_searched(self, index: int, final: Mapping[int, TrialRecord]) -> int:
        """How many trials the search has, as far as it may be known when ``index`` is planned: up to the first that
        finds the choice settled by what it knows, or all."""
        settle = self.config.settle
        if self._model is not None and settle is not None:
            for i in range(self._place + len(self._fixed), min(index + 1, self.config.num_trials)):
                if i not in self._losses:  # a pure function of records that are final
                    known = [final[j] for j in range(max(i - self.config.concurrency + 1, 0))]
                    self._losses[i] = self._model.loss(known)
                if 100 * self._losses[i] < settle:
                    return i
        return self.config.num_trials

    def _confirmation(
        self, index: int, last: int, final: Mapping[int, TrialRecord], planned: Mapping[int, TrialSpec]
    ) -> TrialSpec | None:
        """The best selections again, each on seeds of its own, so that the winner is not a lucky draw.

        ``last``: trials of the search, all of which are known. With the model also the confirmation runs up to
        ``index - concurrency`` are, and the next goes where it settles the choice most.
        """
        searched = [final[i] for i in range(last)]
        top, each = self.config.confirm_top, self.config.confirm_seeds
        finalists = self._model.finalists(searched, limit=top) if self._model is not None else []
        by_model = bool(finalists)
        if not by_model:
            best = best_configurations(searched, limit=top)
            finalists = [(record.spec.selection, record.spec.learning_rate) for record in best]
        position = index - last
        if position >= len(finalists) * each:
            return None
        earlier = [planned[i] for i in range(index)]
        selection, rate = finalists[position // each]
        if self._model is not None and by_model:
            known = {i: final[i] for i in range(max(last, index - self.config.concurrency + 1))}
            selection, rate = self._model.propose_replicate(finalists, earlier, known)
        return TrialSpec(
            index=index,
            selection=selection,
            learning_rate=rate,
            seed=self._next_seed(selection, rate, earlier),
            origin="confirm",
        )

    def _next_seed(self, selection: str, rate: float, earlier: Sequence[TrialSpec]) -> int:
        """A configuration that is asked for again is run on another seed: the same one would give the same numbers."""
        return self._seed + sum((spec.selection, spec.learning_rate) == (selection, rate) for spec in earlier)


def _all_of(count: int, final: Mapping[int, TrialRecord]) -> bool:
    return all(index in final for index in range(count))
