"""How far a sweep is: one line for a log, and a panel that a terminal keeps in place."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from unfreeze.records import TrialSpec

_FEWEST_GAPS = 3  # between ends of trials, from which their spread tells something
_SURE = 2.0  # standard deviations either way


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A trial that trains, or waits for a slot."""

    spec: TrialSpec
    slot: str | None  # None: it waits for one
    share: float  # of its images
    accuracy: float | None  # at its last report


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What there is to say at one moment."""

    done: int
    total: int
    stopped: int
    broken: int  # failed or diverged
    running: tuple[Running, ...]  # those that wait for a slot among them
    best: str  # accuracy, selection and rate; empty: none has finished
    images_per_s: float | None  # over all slots; None: nothing reported yet
    gaps: tuple[float, ...]  # seconds between the ends of trials, newest last
    seconds: float  # since this run of the sweep came to its trials


def summary(standing: Standing) -> str:
    """One line."""
    waiting = sum(each.slot is None for each in standing.running)
    parts = [f"{standing.done}/{standing.total} trials done", f"{len(standing.running) - waiting} running"]
    if waiting:
        parts.append(f"{waiting} waiting for a slot")
    parts.append(f"{standing.stopped} stopped early")
    if standing.broken:
        parts.append(f"{standing.broken} failed or diverged")
    if standing.best:
        parts.append(f"best {standing.best}")
    if standing.images_per_s:
        parts.append(f"{standing.images_per_s:,.0f} images/s")
    if left := time_left(standing.gaps, standing.total - standing.done):
        parts.append(f"{left} left")
    return " · ".join(parts)


def panel(standing: Standing) -> RenderableType:
    """The slots with what each trains, and the line below them; its title's clock shows that something lives."""
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column(width=20)
    table.add_column(justify="right", no_wrap=True)
    for each in sorted(standing.running, key=lambda each: (each.slot is None, each.slot or "", each.spec.index)):
        accuracy = "" if each.accuracy is None else f"{each.accuracy:.1%}"
        bar = ProgressBar(total=1.0, completed=each.share, width=20)
        table.add_row(each.slot or "waits", name_of(each.spec), bar, accuracy)
    rows = Table.grid(expand=True)  # a bar ends no line of its own
    rows.add_row(table)
    rows.add_row(ProgressBar(total=max(standing.total, 1), completed=standing.done))
    rows.add_row(Text(summary(standing)))
    return Panel(rows, title=Text(f"trials · {_duration(standing.seconds)}"), title_align="left")


def name_of(spec: TrialSpec) -> str:
    """``mha+fc1 · 0.012 · s0``, as MLflow names its run."""
    return f"{spec.selection} · {spec.learning_rate:.2g} · s{spec.seed}"


def time_left(gaps: Sequence[float], remaining: int) -> str:
    """``about 4 min (3 to 6)``: the mean time between two trials' ends times what remains, and where that is 95 % sure
    to lie if the rest is like what was seen. Empty before the first end, and at the last."""
    if not gaps or remaining <= 0:
        return ""
    mean = statistics.fmean(gaps)
    middle = mean * remaining
    if len(gaps) < _FEWEST_GAPS:
        return f"about {_duration(middle)}"
    # The sum of what remains scatters, and the mean itself is known from so many gaps only.
    error = _SURE * statistics.stdev(gaps) * math.sqrt(remaining + remaining**2 / len(gaps))
    divisor, unit, digits = _unit(middle + error)
    low, high = max(middle - error, 0.0) / divisor, (middle + error) / divisor
    return f"about {middle / divisor:.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f})"


def _duration(seconds: float) -> str:
    divisor, unit, digits = _unit(seconds)
    return f"{seconds / divisor:.{digits}f} {unit}"


def _unit(seconds: float) -> tuple[float, str, int]:
    if seconds < 90:
        return 1.0, "s", 0
    return (60.0, "min", 0) if seconds < 5400 else (3600.0, "h", 1)
