"""A view of the ledger in MLflow, written beside the sweep and never in its way."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from unfreeze.config import TrackingConfig, redact
from unfreeze.records import Evidence, TrialRecord, TrialState
from unfreeze.storage.ledger import Ledger
from unfreeze.tracking import view
from unfreeze.tracking.registry import register
from unfreeze.tracking.runs import SWEEP, RunTree
from unfreeze.tracking.server import (
    ExperimentDeletedError,
    check_reachable,
    check_version,
    connect,
    explain,
    open_experiment,
    page_of,
)
from unfreeze.tracking.settling import Step, steps

_log = logging.getLogger(__name__)

_PAUSE_S = 2.0  # between two syncs, so that many notices become one
_MAX_BACKOFF_S = 120.0
_CPU_SHARE = 0.028  # of one core at most, while trials run: after each sync a pause as long as that asks for
_MAX_REST_S = 600.0  # of such pauses
_TRIALS_CPU_S = 5.0  # that one sync spends on trials while others run, so that no pause has to be longer
_FILES_EVERY_S = 60.0  # while trials run
_CLOSE_TIMEOUT_S = 60.0
_KEEPS_TRYING = (
    "The sweep goes on and keeps trying; to catch up later, run the same command again, or report.py sync=true"
)


class MlflowMirror:
    """Mirrors a sweep's ledger into MLflow from a thread of its own. ``config.uri`` None: does nothing.

    Nothing here raises because MLflow is down, except `sync` called directly: there is one warning, retries with
    back-off, and the same command run again catches up.
    """

    def __init__(
        self,
        config: TrackingConfig,
        ledger: Ledger,
        gather: Callable[[Ledger, Sequence[TrialRecord]], Evidence],
    ) -> None:
        """``gather``: makes the evidence of the ledger and its trials' records, once the pre-pass is there."""
        self._config = config
        self._ledger = ledger
        self._gather = gather
        self._tree: RunTree | None = None
        self._settled: dict[str, TrialRecord] = {}  # trials written by this process that no attempt will change
        self._told: object = None  # what the evidence was last gathered from
        self._evidence: Evidence | None = None
        self._settling: list[Step] = []
        self._figures: dict[str, bytes] = {}
        self._files_fail = self._registry_fails = False
        self._files_due = 0.0
        self._lock = threading.Lock()  # one sync at a time
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._end_status: str | None = None
        self._warned = False

    def __enter__(self) -> "MlflowMirror":
        if self._config.uri is not None:
            self._thread = threading.Thread(target=self._loop, name="mlflow-mirror", daemon=True)
            self._thread.start()
            self.notify()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        broken = kind is not None and issubclass(kind, Exception)  # an interrupt is none, and was asked for
        self.close("FINISHED" if kind is None else "FAILED" if broken else "KILLED")

    @property
    def num_settled(self) -> int | None:
        """Trials that MLflow has with an outcome that no attempt will change; None: there is no MLflow."""
        return None if self._config.uri is None else len(self._settled)

    def notify(self) -> None:
        """The ledger has changed: sync soon. Returns at once."""
        self._wake.set()

    def log_figures(self, figures: Mapping[str, bytes]) -> None:
        """Hand over what the ledger does not hold: files by name, such as ``best_so_far.svg``. Returns at once."""
        self._figures = dict(figures)
        self.notify()

    def close(self, status: str = "FINISHED", *, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Sync a last time, give the sweep's run its status, and stop; after ``timeout_s`` leave the rest undone."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._end_status = status
        self._closing.set()
        self.notify()
        thread.join(timeout_s)
        if thread.is_alive():
            self._warn(f"MLflow at {redact(str(self._config.uri))} was not done after {timeout_s:g} s. {_KEEPS_TRYING}")

    def sync(self) -> None:
        """Bring MLflow up to the ledger; what is there already is left alone.

        Raises:
            ConnectionError: nothing answers at the URI, or something else than MLflow.
            ExperimentDeletedError: the experiment is in MLflow's bin.
            mlflow.exceptions.MlflowException: the server refuses or breaks off.
        """
        if self._config.uri is None:
            return
        with self._lock:
            try:
                self._sync(self._config.uri)
            except Exception:
                self._tree, self._told = None, None  # look everything up again: it may have come back with less
                self._settled.clear()
                raise

    @property
    def is_complete(self) -> bool:
        """Whether the last sync left nothing out: artifacts and the registered model may fail on their own."""
        return not (self._files_fail or self._registry_fails)

    def _loop(self) -> None:
        failures = 0
        while not self._closing.is_set():
            if failures == 0:
                self._wake.wait()
            self._wake.clear()
            began = time.thread_time()
            failures = 0 if self._try_sync() else failures + 1
            rest = min((time.thread_time() - began) / _CPU_SHARE, _MAX_REST_S)
            self._closing.wait(max(min(_PAUSE_S * 2 ** min(failures, 10), _MAX_BACKOFF_S), rest))
        self._try_sync()

    def _try_sync(self) -> bool:
        try:
            self.sync()
        except ExperimentDeletedError as error:
            self._warn(f"{error}. The sweep goes on without it")
            return False
        except Exception as error:  # whatever it is, the sweep goes on
            self._warn(f"{explain(error, str(self._config.uri))}. {_KEEPS_TRYING}")
            _log.debug("MLflow sync failed", exc_info=True)
            return False
        return True

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("%s", problem)

    def _sync(self, uri: str) -> None:
        settings = view.read_settings(self._ledger)
        if settings is None:
            return
        tree = self._open(uri)
        view.write_sweep(tree, self._ledger, settings)
        if self._thread is not None:
            tree.set_status(SWEEP, "RUNNING")  # a resumed one was FAILED, KILLED or FINISHED
        is_measured = view.write_prepass(tree, self._ledger)
        trials = self._write_trials(tree, settings)
        if is_measured and settings.model is not None:
            self._write_evidence(tree, settings, trials)
        finalized = view.write_final(tree, self._ledger)
        if self._end_status is not None:
            tree.set_status(SWEEP, self._end_status)
        elif finalized and self._thread is None:  # caught up by hand
            tree.set_status(SWEEP, "FINISHED")
        if self._ends or time.monotonic() >= self._files_due:
            self._write_files(tree, settings)
            self._files_due = time.monotonic() + _FILES_EVERY_S

    @property
    def _ends(self) -> bool:
        """Whether nothing will be written after this, as far as is known."""
        return self._end_status is not None or self._thread is None

    def _write_evidence(self, tree: RunTree, settings: view.SweepSettings, trials: Sequence[TrialRecord]) -> None:
        """The answer, if there may be another one than was last told."""
        known = ({r.spec.trial_id: r.state for r in trials if r.state.is_final}, self._ledger.read_json("final.json"))
        if known == self._told:
            return
        evidence = self._evidence = self._gather(self._ledger, trials)
        self._settling += steps(evidence.plasticity, trials, evidence.model, after=len(self._settling))
        view.write_settling(tree, self._settling)
        view.write_evidence(tree, evidence, settings)
        self._told = known

    def _write_files(self, tree: RunTree, settings: view.SweepSettings) -> None:
        """After a failure there is one more attempt, at the end: an artifact store out of reach may take minutes."""
        if self._files_fail and not self._ends:
            return
        try:
            view.write_files(
                tree,
                self._ledger,
                settings,
                evidence=self._evidence,
                settling=self._settling if self._ends else (),
                figures=self._figures,
            )
        except Exception as error:  # a folder of the server's, a bucket without credentials, a disk that is full
            if not self._files_fail:
                _log.warning(
                    "MLflow has parameters, metrics and trials, but its artifacts cannot be written from here: %s. "
                    "They are in %s",
                    explain(error, str(self._config.uri)),
                    self._ledger.url(""),
                )
            self._files_fail = True
            return
        if self._evidence is not None and self._evidence.final is not None:
            self._register(tree, self._evidence)

    def _register(self, tree: RunTree, evidence: Evidence) -> None:
        """A registry may be closed to those who may write runs, and an older server may know no logged models."""
        try:
            register(tree, self._ledger, evidence)
        except Exception as error:  # the sweep is over, and the export is in the ledger
            if not self._registry_fails:
                _log.warning(
                    "MLflow has the sweep, but its model cannot be registered from here: %s. The export's place is %s",
                    explain(error, str(self._config.uri)),
                    self._ledger.url("export"),
                )
                _log.debug("registering failed", exc_info=True)
            self._registry_fails = True

    def _write_trials(self, tree: RunTree, settings: view.SweepSettings) -> list[TrialRecord]:
        """Write every trial in a final state; returns all. The settled ones are not even read again: a sweep may have
        thousands. While it runs a part may be left to the next sync, and is not among what is returned."""
        trials, spent_s = [], 0.0
        for key in self._ledger.storage.keys(f"{self._ledger.sweep}/trials/"):
            trial_id = key.rpartition("/")[2].removesuffix(".json")
            record = self._settled.get(trial_id)
            if record is None and (record := self._ledger.trial(trial_id)) is not None and record.state.is_final:
                if spent_s > _TRIALS_CPU_S and not self._ends:
                    self._wake.set()
                    break
                began = time.thread_time()
                view.write_trial(tree, record, settings)
                spent_s += time.thread_time() - began
                if record.state is not TrialState.FAILED:  # a failed one may be taken up again
                    self._settled[trial_id] = record
            if record is not None:
                trials.append(record)
        return sorted(trials, key=lambda record: record.spec.index)

    def _open(self, uri: str) -> RunTree:
        if self._tree is None:
            problem = check_reachable(uri) or check_version(uri)
            if problem is not None:
                raise ConnectionError(problem)
            client = connect(uri)
            experiment_id = open_experiment(client, uri, self._config.experiment)
            self._tree = RunTree(client, experiment_id, self._identity(page_of(uri), experiment_id))
        return self._tree

    def _identity(self, page: str, experiment_id: str) -> dict[str, str]:
        """The tags that tell this sweep from another one of its name: elsewhere, or here before it was deleted. The
        ledger keeps its id, and where it is shown, for links in the report."""
        before = self._ledger.read_json("mlflow.json") or {"id": uuid.uuid4().hex}
        stored = {**before, "page": page, "experiment_id": experiment_id}
        if stored != before:
            self._ledger.write_json("mlflow.json", stored)
        return {
            "unfreeze.sweep": self._ledger.sweep,
            "unfreeze.storage": redact(self._ledger.url("")),
            "unfreeze.id": stored["id"],
        }
