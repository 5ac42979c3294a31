"""What the model of the evidence proposes: the configuration whose run is expected to improve most on what is known."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from scipy.special import expit
from threadpoolctl import threadpool_limits

from unfreeze.components.selection import Selection, count_trainable, parse_selection
from unfreeze.config import SearchConfig
from unfreeze.evidence.model import Points, Posterior, Terms
from unfreeze.records import COMPONENTS, Contender, TrialRecord, TrialSpec, TrialState
from unfreeze.search.sampler import draw_uniformly, observed_value
from unfreeze.search.space import SearchSpace
from unfreeze.seeding import derive_seed

logger = logging.getLogger(__name__)

_NUM_RATES = 25  # from the lowest to the highest, evenly in the logarithm
_MAX_ENUMERATED = 10  # switches: with more, local search in place of every subset
_NUM_RANDOM, _NUM_STARTS, _NUM_ROUNDS = 48, 3, 3  # of local search
_FEW_RATES = 5  # of local search, of `_NUM_RATES`
_NUM_SAMPLES, _MAX_CONTENDERS = 1024, 100  # joint draws cost the cube of what is drawn


def searches_by_model(config: SearchConfig) -> bool:
    """Whether it is the model that proposes; a grid, another sampler and a second objective do without."""
    return config.space != "grid" and config.sampler == "model" and config.objective == "accuracy"


# One thread: sums in one order, so the same bits wherever a sweep goes on; and many small matrices, for which two
# threads of a busy machine took minutes in place of seconds.
_one_thread = threadpool_limits.wrap(limits=1, user_api="blas")


class ModelSampler:
    """Proposes by `evidence.model`; every answer is a pure function of the arguments.

    Args:
        members: (block, component) → score; a switch's is the mean over what it turns on.
    """

    def __init__(self, space: SearchSpace, members: Mapping[tuple[int, str], float], *, seed: int) -> None:
        self._space, self._seed = space, seed
        self._names = list(space.switches)
        pairs = list(space.switches.values())
        model = space.model
        self._terms = Terms.of(
            # fmean rounds once: a set's order, and so the last bit of a plain sum, differs from process to process.
            np.array([fmean(members[member] for member in own) for own in pairs]),
            np.array(
                [count_trainable(Selection(model.num_blocks, own), model.parameters, train_head=False) for own in pairs]
            ),
            np.array([COMPONENTS.index(min(name for _, name in own)) for own in pairs]),
            rates=(space.learning_rate_low, space.learning_rate_high),
        )
        low, high = np.log10(space.learning_rate_low), np.log10(space.learning_rate_high)
        self._log_rates = np.linspace(low, high, _NUM_RATES if high > low else 1)
        self._subsets = self._enumerate() if len(self._names) <= _MAX_ENUMERATED else None

    @_one_thread
    def propose(self, planned: Sequence[TrialSpec], known: Mapping[int, TrialRecord]) -> tuple[Selection, float]:
        """The next configuration of the space. ``planned``: every earlier trial; ``known``: final records by index."""
        rng = np.random.default_rng(derive_seed(self._seed, "proposal", len(planned)))
        try:
            posterior, tried = self._posterior(planned, known)
            if self._subsets is not None:
                chosen = self._best(posterior, self._at_every_rate(self._subsets, self._log_rates))
            else:
                chosen = self._search_locally(posterior, tried, rng)
        except np.linalg.LinAlgError as error:  # never seen; a sweep must not end by it
            logger.warning("trial %d is drawn at random: the model could not be fitted (%s)", len(planned), error)
            return draw_uniformly(self._space, rng)
        return self._selection(chosen.switches[0]), self._rate(chosen.log_rates[0])

    @_one_thread
    def propose_rate(
        self, selection: Selection, planned: Sequence[TrialSpec], known: Mapping[int, TrialRecord]
    ) -> float:
        """The learning rate at which a run of ``selection`` is expected to tell or give most."""
        switches = self._switches(selection)
        if switches is None:  # no point of the model: the middle of the range
            return self._rate(self._terms.middle)
        posterior, _ = self._posterior(planned, known)
        return self._rate(self._best(posterior, self._at_every_rate(switches[None], self._log_rates)).log_rates[0])

    @_one_thread
    def expected(self, records: Sequence[TrialRecord]) -> dict[int, float]:
        """Trial → the accuracy that its configuration is expected to have, seen from all ``records``; those that are
        no points of the model have none, and none has where the model could not be fitted."""
        try:
            posterior, _ = self._after(records)
        except np.linalg.LinAlgError as error:
            logger.warning("finalists are chosen by their runs: the model could not be fitted (%s)", error)
            return {}
        points = {r.spec.index: point for r in records if (point := self._point(r.spec)) is not None}
        expected, _, _ = posterior.accuracies(_join(list(points.values()), len(self._names)))
        return dict(zip(points, expected.tolist(), strict=True))

    @_one_thread
    def contenders(self, records: Sequence[TrialRecord], *, tolerance: float = 0.005) -> tuple[Contender, ...]:
        """The configurations with a finished run, the most promising first, a hundred at most.

        Held against each other and, where every subset can be looked at, against each subset at its best rate: what
        was never run may be better.
        """
        finished = {
            (r.spec.selection, r.spec.learning_rate): point
            for r in records
            if r.state is TrialState.FINISHED and (point := self._point(r.spec)) is not None
        }
        if not finished:
            return ()
        posterior, _ = self._after(records)
        tried = _join(list(finished.values()), len(self._names))
        leading = np.argsort(-posterior.logits(tried)[0], kind="stable")[:_MAX_CONTENDERS]
        own, names = tried[leading], [list(finished)[row] for row in leading]
        rivals = own
        if self._subsets is not None:
            grid = self._at_every_rate(self._subsets, self._log_rates)
            means = posterior.logits(grid)[0].reshape(len(self._subsets), -1)
            best = np.arange(len(self._subsets)) * means.shape[1] + means.argmax(1)
            rivals = _join([own, grid[best]], len(self._names))
        drawn = expit(posterior.samples(rivals, _NUM_SAMPLES))
        behind = drawn.max(1, keepdims=True) - drawn[:, : len(own)]
        expected, low, high = posterior.accuracies(own)
        found = [
            Contender(
                selection=selection,
                learning_rate=rate,
                expected=float(expected[row]),
                low=float(low[row]),
                high=float(high[row]),
                near_best=float((behind[:, row] <= tolerance).mean()),
                loss=float(behind[:, row].mean()),
                tolerance=tolerance,
            )
            for row, (selection, rate) in enumerate(names)
        ]
        return tuple(sorted(found, key=lambda contender: -contender.expected))

    @_one_thread
    def worth(self, records: Sequence[TrialRecord]) -> tuple[float, float, float]:
        """Of one standard deviation more of the score: mean and 95 % interval, in accuracy near the best expected."""
        posterior, tried = self._after(records)
        accuracy = posterior.accuracies(tried)[0].max() if len(tried) else 0.5
        effect = posterior.score_effect()
        slope = accuracy * (1 - accuracy)  # of the logistic function
        mean, low, high = (slope * value for value in (effect.mean, *effect.interval))
        return mean, low, high

    def _after(self, records: Sequence[TrialRecord]) -> tuple[Posterior, Points]:
        return self._posterior([r.spec for r in records], {r.spec.index: r for r in records if r.state.is_final})

    # ----------------------------------------------------------------------------------------------------------------

    def _posterior(self, planned: Sequence[TrialSpec], known: Mapping[int, TrialRecord]) -> tuple[Posterior, Points]:
        """The model after the known trials, with the others taken to run; and what was tried."""
        done: list[Points] = []
        running: list[Points] = []
        values: list[float] = []
        for spec in planned:
            point, record = self._point(spec), known.get(spec.index)
            if point is None:
                continue
            value = None if record is None else observed_value(record)
            if value is None:  # running, or failed for another reason than its configuration's accuracy
                running.append(point)
            else:
                done.append(point)
                values.append(value)
        width = len(self._names)
        tried = _join(done, width)
        return Posterior(self._terms, tried, np.array(values), _join(running, width)), tried

    def _point(self, spec: TrialSpec) -> Points | None:
        switches = self._switches(parse_selection(spec.selection, num_blocks=self._space.model.num_blocks))
        return None if switches is None else Points(switches[None], np.log10([spec.learning_rate]))

    def _switches(self, selection: Selection) -> np.ndarray | None:
        """Which switches make a selection; None where none do. ``all`` is all of them, its embedding aside."""
        on = np.array([pairs <= selection.members for pairs in self._space.switches.values()])
        made = frozenset().union(*(p for p, is_on in zip(self._space.switches.values(), on, strict=True) if is_on))
        return on.astype(np.float64) if made == selection.members and not selection.lora else None

    def _selection(self, switches: np.ndarray) -> Selection:
        return self._space.selection(dict(zip(self._names, switches > 0.5, strict=True)))

    def _rate(self, log_rate: float) -> float:
        # 10**log10(x) may lie a rounding error outside the range.
        return float(min(max(10**log_rate, self._space.learning_rate_low), self._space.learning_rate_high))

    def _enumerate(self) -> np.ndarray:
        every = np.array(list(itertools.product((0.0, 1.0), repeat=len(self._names))))
        return every[[self._space.allows(self._selection(row)) for row in every]]

    def _at_every_rate(self, subsets: np.ndarray, log_rates: np.ndarray) -> Points:
        return Points(np.repeat(subsets, len(log_rates), axis=0), np.tile(log_rates, len(subsets)))

    def _best(self, posterior: Posterior, candidates: Points, count: int = 1) -> Points:
        """The most promising; of equally good ones the first, so that nothing is left to chance."""
        order = np.argsort(-posterior.expected_improvement(candidates), kind="stable")
        return candidates[order[:count]]

    def _search_locally(self, posterior: Posterior, tried: Points, rng: np.random.Generator) -> Points:
        """From what did best, single switches and random subsets, by flipping one switch at a time."""
        width = len(self._names)
        density = rng.uniform(0.05, 0.95, (_NUM_RANDOM, 1))
        starts = [np.eye(width), (rng.random((_NUM_RANDOM, width)) < density).astype(np.float64)]
        if len(tried):
            starts.append(tried.switches[np.argsort(-posterior.logits(tried)[0], kind="stable")[: 2 * _NUM_STARTS]])
        few = self._log_rates[np.linspace(0, len(self._log_rates) - 1, _FEW_RATES).round().astype(int)]
        pool = self._allowed(np.concatenate(starts))
        if not len(pool):  # a budget so tight that samples miss it
            drawn = [self._switches(draw_uniformly(self._space, rng)[0]) for _ in range(8)]
            pool = np.stack([switches for switches in drawn if switches is not None])
        best = self._best(posterior, self._at_every_rate(pool, few), _NUM_STARTS)
        for _ in range(_NUM_ROUNDS):
            flipped = np.abs(best.switches[:, None, :] - np.eye(width)).reshape(-1, width)
            pool = self._allowed(np.concatenate([best.switches, flipped]))
            near = np.unique(np.clip(best.log_rates[:, None] + [-0.2, 0.0, 0.2], few[0], few[-1]))
            best = self._best(posterior, self._at_every_rate(pool, near), _NUM_STARTS)
        return self._best(posterior, self._at_every_rate(best.switches[:1], self._log_rates))

    def _allowed(self, subsets: np.ndarray) -> np.ndarray:
        unique = np.unique(subsets, axis=0)
        return unique[[self._space.allows(self._selection(row)) for row in unique]]


def _join(points: Sequence[Points], width: int) -> Points:
    if not points:
        return Points(np.zeros((0, width)), np.zeros(0))
    return Points(np.concatenate([p.switches for p in points]), np.concatenate([p.log_rates for p in points]))
