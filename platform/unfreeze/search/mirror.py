"""The sweep as a study in a database of Optuna's, for optuna-dashboard. Nothing is ever read back from it."""

import logging
import threading
from collections.abc import Sequence
from types import TracebackType

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from unfreeze.components.selection import parse_selection
from unfreeze.config import Config
from unfreeze.cost.model import cost_model
from unfreeze.records import ModelFacts, TrialRecord
from unfreeze.records import TrialState as State
from unfreeze.search.space import LEARNING_RATE, make_space
from unfreeze.storage.ledger import Ledger

logger = logging.getLogger(__name__)

_TRIAL = "unfreeze.trial"  # user attribute: the trial's id in the ledger
_CLOSE_TIMEOUT_S = 20.0
_STATES = {State.FINISHED: TrialState.COMPLETE, State.STOPPED: TrialState.PRUNED}  # all else failed


class StudyMirror:
    """Adds the ledger's final trials to the study named as the sweep, from a thread of its own.

    A context manager; without `search.mirror` it does nothing. A database that is down costs one warning, and what is
    missing is added when the same command runs again.
    """

    def __init__(self, config: Config, ledger: Ledger, model: ModelFacts) -> None:
        self._url, self._ledger = config.search.mirror, ledger
        self._space = make_space(config.search, cost_model(config, model)) if self._url is not None else None
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "StudyMirror":
        if self._url is not None:
            self._thread = threading.Thread(target=self._loop, name="study-mirror", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._closing.set()
            self._wake.set()
            self._thread.join(_CLOSE_TIMEOUT_S)

    def notify(self) -> None:
        """A trial has ended. Returns at once."""
        self._wake.set()

    def _loop(self) -> None:
        warned = False
        while True:
            self._wake.wait()
            self._wake.clear()
            try:
                self.sync(self._ledger.trials())
            except Exception as error:  # whatever it is, the sweep goes on
                if not warned:
                    logger.warning("search.mirror: %s; the sweep goes on without it", str(error).partition("\n")[0])
                warned = True
            if self._closing.is_set():
                return

    def sync(self, records: Sequence[TrialRecord]) -> None:
        """Add what is final and not there yet."""
        assert self._url is not None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name=self._ledger.sweep, storage=self._url, direction="maximize", load_if_exists=True
        )
        there = {trial.user_attrs.get(_TRIAL) for trial in study.get_trials(deepcopy=False)}
        for record in records:
            if record.state.is_final and record.spec.trial_id not in there:
                study.add_trial(self._as_trial(record))

    def _as_trial(self, record: TrialRecord) -> FrozenTrial:
        assert self._space is not None
        spec = record.spec
        selection = parse_selection(spec.selection, num_blocks=self._space.model.num_blocks)
        low, high = self._space.learning_rate_low, self._space.learning_rate_high
        rates = FloatDistribution(min(low, spec.learning_rate), max(high, spec.learning_rate), log=True)
        state = _STATES.get(record.state, TrialState.FAIL)
        distributions = {**self._space.distributions, LEARNING_RATE: rates}
        if self._space.listed and selection not in self._space.listed:  # a baseline, which the study knows no value for
            distributions = {LEARNING_RATE: rates}
        params = self._space.params(selection, spec.learning_rate)
        return optuna.trial.create_trial(
            state=state,
            value=record.best_val_accuracy if state is TrialState.COMPLETE else None,
            params={name: params[name] for name in distributions},
            distributions=distributions,
            intermediate_values={report.images_seen: report.val_accuracy for report in record.reports},
            user_attrs={_TRIAL: spec.trial_id, "selection": spec.selection, "seed": spec.seed, "origin": spec.origin},
        )
