"""What the model of the evidence proposes: the configuration whose run is expected to tell most of what is best."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np
from scipy.special import expit
from scipy.stats import qmc
from threadpoolctl import threadpool_limits

from unfreeze.components.selection import Selection, count_trainable, parse_selection
from unfreeze.evidence.model import Effects, Points, Posterior, Terms
from unfreeze.evidence.transfer import expected_of_components
from unfreeze.records import COMPONENTS, Contender, Learned, TrialRecord, TrialSpec, TrialState
from unfreeze.search.candidates import Candidates, Price, at_every_rate, every_subset, most_telling, rates_between
from unfreeze.search.prior import component_means
from unfreeze.search.sampler import draw_uniformly
from unfreeze.search.space import SearchSpace
from unfreeze.search.stopping import observed_values
from unfreeze.seeding import derive_seed

logger = logging.getLogger(__name__)

_REACH, _MOST = 0.5, 1.0  # decades beyond the best one's rate, and beyond the range, with search.extend_rates
_LEAST_SPREAD = 0.2  # logits of accuracy, between what was tried: none is no reason for FLOPs to cost nothing
_NUM_SAMPLES, _MAX_CONTENDERS = 1024, 100  # joint draws cost the cube of what is drawn


# One thread: sums in one order, so the same bits wherever a sweep goes on; and many small matrices, for which two
# threads of a busy machine took minutes in place of seconds.
_one_thread = threadpool_limits.wrap(limits=1, user_api="blas")


class ModelSampler:
    """Proposes by `evidence.model`; every answer is a pure function of the arguments.

    Args:
        members: (block, component) → score; a switch's is the mean over what it turns on.
        learned: from earlier sweeps; None: nothing.
        pareto: FLOPs of a training step count against a selection, at another price each trial.
    """

    def __init__(
        self,
        space: SearchSpace,
        members: Mapping[tuple[int, str], float],
        *,
        seed: int,
        learned: Learned | None = None,
        pareto: bool = False,
    ) -> None:
        self._space, self._seed, self._pareto = space, seed, pareto
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
            before=None if learned is None else self._from_components(learned, members),
        )
        listed = [row for own in space.listed if space.fits(own) and (row := self._switches(own)) is not None]
        subsets = np.stack(listed) if listed else every_subset(len(self._names), self._allows)
        self._candidates = Candidates(len(self._names), subsets, allowed=self._allows, draw=self._draw)

    @_one_thread
    def propose(self, planned: Sequence[TrialSpec], known: Mapping[int, TrialRecord]) -> tuple[Selection, float]:
        """The next configuration of the space. ``planned``: every earlier trial; ``known``: final records by index."""
        rng = np.random.default_rng(derive_seed(self._seed, "proposal", len(planned)))
        try:
            posterior, tried = self._posterior(planned, known)
            price = self._price(len(planned), posterior, tried) if self._pareto else None
            chosen = self._candidates.choose(posterior, tried, self._log_rates(posterior, tried), rng, price)
        except np.linalg.LinAlgError as error:  # never seen; a sweep must not end by it
            logger.warning("trial %d is drawn at random: the model could not be fitted (%s)", len(planned), error)
            return draw_uniformly(self._space, rng)
        return self._selection(chosen.switches[0]), self._rate(chosen.log_rates[0])

    @_one_thread
    def propose_rate(
        self, selection: Selection, planned: Sequence[TrialSpec], known: Mapping[int, TrialRecord]
    ) -> float:
        """The learning rate at which a run tells most of which rate is the best of ``selection``."""
        switches = self._switches(selection)
        if switches is None:  # no point of the model: the middle of the range
            return self._rate(self._terms.middle)
        try:
            posterior, tried = self._posterior(planned, known)
            own = posterior.outlook(at_every_rate(switches[None], self._log_rates(posterior, tried)))
            return self._rate(most_telling(posterior, own, own).log_rates[0])
        except np.linalg.LinAlgError as error:
            logger.warning("trial %d takes the middle rate: the model could not be fitted (%s)", len(planned), error)
            return self._rate(self._terms.middle)

    @_one_thread
    def finalists(self, records: Sequence[TrialRecord], *, limit: int) -> list[tuple[str, float]]:
        """The (selection, learning rate) of the highest expectation, one a selection, the best first.

        Where every subset can be looked at, each at its best rate counts, run or not: between two rates that did well
        lies a better one. Empty where nothing finished, or the model could not be fitted.
        """
        own = self._finished(records)
        if not own:
            return []
        try:
            posterior, tried = self._after(records)
            points = Points.join(list(own.values()), width=len(self._names))
            names = list(own)
            if self._candidates.subsets is not None:
                best = self._best_rates(posterior, self._log_rates(posterior, tried))
                points = Points.join([points, best], width=len(self._names))
                names += [
                    (str(self._selection(point.switches[0])), self._rate(point.log_rates[0])) for point in _each(best)
                ]
            means = posterior.expected_logits(points)
        except np.linalg.LinAlgError as error:
            logger.warning("finalists are chosen by their runs: the model could not be fitted (%s)", error)
            return []
        found: dict[str, float] = {}
        for row in np.argsort(-means, kind="stable"):
            found.setdefault(*names[row])
        return list(found.items())[:limit]

    @_one_thread
    def propose_replicate(
        self,
        finalists: Sequence[tuple[str, float]],
        planned: Sequence[TrialSpec],
        known: Mapping[int, TrialRecord],
    ) -> tuple[str, float]:
        """Which of the finalists is run once more: the leading one until it has two seeds, or what settles the choice
        most."""
        runs = {own: sum((spec.selection, spec.learning_rate) == own for spec in planned) for own in finalists}
        points = Points.join(
            [p for own in finalists if (p := self._point_of(*own)) is not None], width=len(self._names)
        )
        try:
            posterior, _ = self._posterior(planned, known)
            found = posterior.outlook(points)
            leader = finalists[int(np.argmax(found.mean))]
            if runs[leader] < 2:
                return leader
            return finalists[int(np.argmax(posterior.knowledge_gradient(found, found)))]
        except np.linalg.LinAlgError as error:
            logger.warning("trial %d goes to the least run: the model could not be fitted (%s)", len(planned), error)
            return min(finalists, key=lambda own: runs[own])

    @_one_thread
    def contenders(self, records: Sequence[TrialRecord], *, tolerance: float = 0.005) -> tuple[Contender, ...]:
        """The configurations with a finished run, the most promising first, a hundred at most.

        Held against each other and, where every subset can be looked at, against each subset at its best rate: what
        was never run may be better.
        """
        finished = self._finished(records)
        if not finished:
            return ()
        posterior, _ = self._after(records)
        tried = Points.join(list(finished.values()), width=len(self._names))
        leading = np.argsort(-posterior.expected_logits(tried), kind="stable")[:_MAX_CONTENDERS]
        own, names = tried[leading], [list(finished)[row] for row in leading]
        rivals = own
        if self._candidates.subsets is not None:
            best = self._best_rates(posterior, self._log_rates(posterior, tried))
            rivals = Points.join([own, best], width=len(self._names))
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

    def loss(self, records: Sequence[TrialRecord]) -> float:
        """Accuracy that choosing the most promising of what finished gives away on average; infinite before any."""
        try:
            return next((contender.loss for contender in self.contenders(records)), math.inf)
        except np.linalg.LinAlgError as error:
            logger.warning("the search goes on: the model could not be fitted (%s)", error)
            return math.inf

    def _after(self, records: Sequence[TrialRecord]) -> tuple[Posterior, Points]:
        return self._posterior([r.spec for r in records], {r.spec.index: r for r in records if r.state.is_final})

    # ----------------------------------------------------------------------------------------------------------------

    def _posterior(self, planned: Sequence[TrialSpec], known: Mapping[int, TrialRecord]) -> tuple[Posterior, Points]:
        """The model after the known trials, with the others taken to run; and what was tried."""
        done: list[Points] = []
        running: list[Points] = []
        values: list[float] = []
        observed = observed_values(known)
        for spec in planned:
            point = self._point(spec)
            if point is None:
                continue
            if spec.index in observed:
                done.append(point)
                values.append(observed[spec.index])
            else:  # running, or failed for another reason than its configuration's accuracy
                running.append(point)
        width = len(self._names)
        tried = Points.join(done, width=width)
        return Posterior(self._terms, tried, np.array(values), Points.join(running, width=width)), tried

    def _from_components(self, learned: Learned, members: Mapping[tuple[int, str], float]) -> Effects:
        """Of each switch: of every component the share that it turns on."""
        num_blocks = self._space.model.num_blocks
        shares = [
            [sum(own == name for _, own in pairs) / num_blocks for name in COMPONENTS]
            for pairs in self._space.switches.values()
        ]
        return expected_of_components(learned, component_means(members)).through(np.array(shares))

    def _finished(self, records: Sequence[TrialRecord]) -> dict[tuple[str, float], Points]:
        """(selection, learning rate) → point, of what has a finished run."""
        return {
            (r.spec.selection, r.spec.learning_rate): point
            for r in records
            if r.state is TrialState.FINISHED and (point := self._point(r.spec)) is not None
        }

    def _point(self, spec: TrialSpec) -> Points | None:
        return self._point_of(spec.selection, spec.learning_rate)

    def _point_of(self, text: str, learning_rate: float) -> Points | None:
        switches = self._switches(parse_selection(text, num_blocks=self._space.model.num_blocks))
        return None if switches is None else Points(switches[None], np.log10([learning_rate]))

    def _switches(self, selection: Selection) -> np.ndarray | None:
        """Which switches make a selection; None where none do. ``all`` is all of them, its embedding aside."""
        on = np.array([pairs <= selection.members for pairs in self._space.switches.values()])
        made = frozenset().union(*(p for p, is_on in zip(self._space.switches.values(), on, strict=True) if is_on))
        return on.astype(np.float64) if made == selection.members and not selection.lora else None

    def _selection(self, switches: np.ndarray) -> Selection:
        on = (self._space.switches[name] for name, value in zip(self._names, switches, strict=True) if value)
        return Selection(self._space.model.num_blocks, frozenset[tuple[int, str]]().union(*on))

    def _rate(self, log_rate: float) -> float:
        """An end of the range as it was given: 10**log10(x) may lie a rounding error outside."""
        rate = float(10**log_rate)
        ends = (self._space.learning_rate_low, self._space.learning_rate_high)
        return next((end for end in ends if math.isclose(rate, end)), rate)

    def _log_rates(self, posterior: Posterior, tried: Points) -> np.ndarray:
        """Of the range; where it may grow, as far as half a decade beyond the rate of what did best."""
        rates = rates_between(self._space.learning_rate_low, self._space.learning_rate_high)
        if not self._space.extend_rates or not len(tried) or len(rates) == 1:
            return rates
        step = rates[1] - rates[0]
        leading = tried.log_rates[np.argmax(posterior.expected_logits(tried))]
        below = int(np.clip(rates[0] - (leading - _REACH), 0, _MOST) / step)
        above = int(np.clip(leading + _REACH - rates[-1], 0, _MOST) / step)
        lower = rates[0] - step * np.arange(below, 0, -1)
        return np.concatenate([lower, rates, rates[-1] + step * np.arange(1, above + 1)])

    def _price(self, index: int, posterior: Posterior, tried: Points) -> Price:
        """Of the FLOPs of a training step, between nothing and all that accuracy may win: with one price the best is
        one point of the front, with many it is all of its convex part (ParEGO: Knowles, 2006, IEEE TEVC 10:50-66)."""
        weight = float(qmc.Halton(1, scramble=False).fast_forward(index).random()[0, 0])  # evenly in [0, 1)
        spread = float(np.ptp(posterior.expected_logits(tried))) if len(tried) else 0.0
        price = weight / (1 - weight) * max(spread, _LEAST_SPREAD)

        def of(subsets: np.ndarray) -> np.ndarray:
            unique, place = np.unique(subsets, axis=0, return_inverse=True)
            shares = np.array([self._space.cost.flops_share(self._selection(row)) for row in unique])
            return price * shares[place.ravel()]

        return of

    def _best_rates(self, posterior: Posterior, log_rates: np.ndarray) -> Points:
        """Every subset at the rate of its highest expectation."""
        assert self._candidates.subsets is not None
        grid = at_every_rate(self._candidates.subsets, log_rates)
        means = posterior.expected_logits(grid).reshape(-1, len(log_rates))
        return grid[np.arange(len(means)) * len(log_rates) + means.argmax(1)]

    def _allows(self, switches: np.ndarray) -> bool:
        return self._space.allows(self._selection(switches))

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        switches = self._switches(draw_uniformly(self._space, rng)[0])
        assert switches is not None  # of the space's own switches
        return switches


def _each(points: Points) -> Iterator[Points]:
    return (points[row : row + 1] for row in range(len(points)))
