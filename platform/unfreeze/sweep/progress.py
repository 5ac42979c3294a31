"""What is said while trials run: a panel where standard error is a terminal, else a line now and then."""

import contextlib
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import ray
from rich.console import Console
from rich.live import Live

from unfreeze.records import TrialSpec, TrialState, trial_spec_from_dict
from unfreeze.report.progress import Running, Standing, panel, summary
from unfreeze.report.streams import complete, in_notebook, progress_bar, say
from unfreeze.search.searcher import PlannedSearch
from unfreeze.slots.callback import DriverCallback

_QUIET_S = 10.0  # a line at most this often
_LONG_S = 30.0  # and at least this often
_REFRESH_S = 1.0  # the panel, at most
_PACE_S = 60.0  # over which images a second are counted
_MANY = 50  # ends of trials that the time left is reckoned from


class Progress(DriverCallback):
    """Trials done, training and stopped, the best so far, images a second, time left.

    To be entered around the trials. ``images``: that a trial trains on, by which its bar grows.
    """

    def __init__(
        self, search: PlannedSearch, on_trial_end: Sequence[Callable[[], None]], board: Any, *, images: int
    ) -> None:
        self._search = search
        self._on_trial_end = on_trial_end
        self._board = board
        self._images = images
        self._holders: dict[str, str] = {}  # trial → slot
        self._results: dict[str, dict[str, Any]] = {}  # trial of Tune's → its last result
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])  # (when, images in all until then)
        self._ends: deque[float] = deque([time.monotonic()], maxlen=_MANY)
        self._began = self._last_line = time.monotonic()
        self._bar = progress_bar(total=search.max_trials, what="trials") if in_notebook() else None
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        console = Console(stderr=True)
        if self._bar is None and sys.stderr is not None and console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, refresh_per_second=2, transient=True, redirect_stdout=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()
        if self._bar is not None and kind is None:
            complete(self._bar)
        elif self._bar is not None:
            self._bar.close()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        before = self._results.get(trial.trial_id, {"images_seen": 0})
        self._results[trial.trial_id] = result
        now, total = time.monotonic(), self._seen[-1][1]
        self._seen.append((now, total + max(result["images_seen"] - before["images_seen"], 0)))
        while len(self._seen) > 2 and self._seen[0][0] < now - _PACE_S:
            self._seen.popleft()
        self._show(trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        for notify in self._on_trial_end:
            notify()
        self._ends.append(time.monotonic())
        self._show(trials, at_once=len(self._search.final) >= self._search.max_trials)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Tune's own trace is off: of an actor that died it says nothing, and an error of ours is shown whole."""
        error = trial.get_pickled_error() or trial.get_error()
        say(str(error).partition("\n")[0] if isinstance(error, ray.exceptions.RayActorError) else str(error))
        self._show(trials, at_once=True)

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if time.monotonic() - self._last_line >= (_LONG_S if self._live is None else _REFRESH_S):
            self._show(trials)

    def _show(self, trials: list[Any], *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._last_line >= (_QUIET_S if self._live is None else _REFRESH_S):
            self._last_line = now
            standing = self._standing(trials)
            if self._live is not None:
                self._live.update(panel(standing))
            elif self._bar is None:
                say(summary(standing))
            else:
                self._bar.set_postfix_str(summary(standing).partition(" · ")[2], refresh=False)
                self._bar.update(standing.done - self._bar.n)

    def _standing(self, trials: list[Any]) -> Standing:
        with contextlib.suppress(ray.exceptions.RayError):  # a board that is being made anew; a timeout is one too
            self._holders = ray.get(self._board.holders.remote(), timeout=_REFRESH_S)
        final = self._search.final.values()
        finished = [record for record in final if record.state is TrialState.FINISHED and record.reports]
        best = max(finished, key=lambda record: record.best_val_accuracy or 0.0, default=None)
        (began, before), (now, after) = self._seen[0], self._seen[-1]
        return Standing(
            done=len(final),
            total=self._search.max_trials,
            stopped=sum(record.state is TrialState.STOPPED for record in final),
            broken=sum(record.state in (TrialState.FAILED, TrialState.DIVERGED) for record in final),
            running=tuple(self._running(trial) for trial in trials if trial.status == "RUNNING"),
            best="" if best is None else f"{best.best_val_accuracy:.1%} ({_short(best.spec)})",
            images_per_s=(after - before) / (now - began) if now > began and after > before else None,
            gaps=tuple(later - earlier for earlier, later in itertools.pairwise(self._ends)),
            seconds=time.monotonic() - self._began,
        )

    def _running(self, trial: Any) -> Running:
        spec, result = trial_spec_from_dict(trial.config["trial"]), self._results.get(trial.trial_id, {})
        seen = result.get("images_seen", 0)
        return Running(
            spec=spec,
            slot=self._holders.get(spec.trial_id),
            share=min(seen / self._images, 1.0),
            accuracy=result["val_accuracy"] if seen else None,
        )


def _short(spec: TrialSpec) -> str:
    return f"{spec.selection}, lr {spec.learning_rate:.2g}"
