"""One line of progress, readable in a terminal and in a log file alike."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune

from unfreeze.records import TrialState
from unfreeze.report.streams import in_notebook, progress_bar, say
from unfreeze.search.searcher import PlannedSearch

_QUIET_S = 5.0  # a line at most this often


class ProgressLine(tune.Callback):
    """Trials done, running and stopped, the best so far, time left; a new line when a trial ends."""

    def __init__(self, search: PlannedSearch, on_trial_end: Sequence[Callable[[], None]]) -> None:
        self._search = search
        self._max_trials = search.max_trials
        self._on_trial_end = on_trial_end
        self._done_before = len(search.final)
        self._started = self._last_line = time.monotonic()
        self._bar = progress_bar(total=search.max_trials, what="trials") if in_notebook() else None

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its callbacks for a restore we never do; this one holds threads and a search.
        return (tune.Callback, ())

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        for notify in self._on_trial_end:
            notify()
        if time.monotonic() - self._last_line >= _QUIET_S or len(self._search.final) >= self._max_trials:
            self._say(trials)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Tune's own trace is off: of an actor that died it says nothing, and an error of ours is shown whole."""
        error = trial.get_pickled_error() or trial.get_error()
        say(str(error).partition("\n")[0] if isinstance(error, ray.exceptions.RayActorError) else str(error))
        self._say(trials)

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if time.monotonic() - self._last_line >= 6 * _QUIET_S:
            self._say(trials)

    def _say(self, trials: list[Any]) -> None:
        self._last_line = time.monotonic()
        final = self._search.final
        stopped = sum(record.state is TrialState.STOPPED for record in final.values())
        broken = sum(record.state in (TrialState.FAILED, TrialState.DIVERGED) for record in final.values())
        running = sum(trial.status == "RUNNING" for trial in trials)
        parts = [f"{len(final)}/{self._max_trials} trials done", f"{running} running", f"{stopped} stopped early"]
        if broken:
            parts.append(f"{broken} failed or diverged")
        finished = [record for record in final.values() if record.state is TrialState.FINISHED and record.reports]
        if finished:
            best = max(finished, key=lambda record: record.best_val_accuracy or 0.0)
            parts.append(f"best {best.best_val_accuracy:.1%} ({best.spec.selection}, lr {best.spec.learning_rate:.2g})")
        fresh = len(final) - self._done_before
        if fresh:
            left = (self._max_trials - len(final)) * (time.monotonic() - self._started) / fresh
            parts.append(f"about {_duration(left)} left")
        if self._bar is None:
            say(" · ".join(parts))
        else:
            self._bar.set_postfix_str(" · ".join(parts[1:]), refresh=False)
            self._bar.update(len(final) - self._bar.n)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
