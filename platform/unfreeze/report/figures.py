"""The report's figures, each a self-contained SVG string that is byte-identical for the same evidence."""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from unfreeze.evidence.correlate import (
    SelectionScore,
    describe,
    has_plasticity,
    mean_plasticity,
    score_selections,
)
from unfreeze.evidence.front import undominated
from unfreeze.records import COMPONENTS, Evidence, TrialRecord, TrialState
from unfreeze.report.drawing import COLORS, INK, OTHER, STYLE, legend_right, make_axes, to_svg
from unfreeze.report.plasticity_figures import pre_pass_figures

_ORIGIN_MARKERS = {"prior": "o", "baseline": "s", "search": "^", "confirm": "D"}


def render_all(evidence: Evidence) -> dict[str, str]:
    """Every figure by file stem, in the order of the report."""
    modes = evidence.plasticity.modes
    figures = pre_pass_figures(evidence.plasticity)
    figures |= {f"accuracy_against_plasticity_{mode}": accuracy_against_plasticity(evidence, mode) for mode in modes}
    figures["best_so_far"] = best_so_far(evidence)
    figures["accuracy_against_parameters"] = accuracy_against_parameters(evidence)
    return figures


def accuracy_against_plasticity(evidence: Evidence, mode: str) -> str:
    """Best validation accuracy against mean plasticity: the single components named, other selections faint."""
    scores = [s for s in score_selections(evidence.trials, evidence.model) if has_plasticity(s.selection)]
    with matplotlib.rc_context(STYLE):
        figure, axes = make_axes(f"mean plasticity, {mode}", "validation accuracy", _plasticity_title(evidence, mode))
        for score in sorted(scores, key=lambda score: str(score.selection) in COMPONENTS):
            x, text = mean_plasticity(score.selection, evidence.plasticity, mode), str(score.selection)
            if text in COMPONENTS:
                axes.scatter([x], [score.val_accuracy], s=70, color=COLORS[text], zorder=3, gid=text)
                axes.annotate(text, (x, score.val_accuracy), xytext=(7, 5), textcoords="offset points", zorder=4)
            else:
                axes.scatter([x], [score.val_accuracy], s=26, color=OTHER, alpha=0.55, linewidth=0)
        axes.margins(x=0.1, y=0.12)
        _percent(axes)
        return to_svg(figure, f"against-plasticity-{mode}")


def best_so_far(evidence: Evidence) -> str:
    """Best validation accuracy of every trial in sequence, by origin and state, and the best finished one so far."""
    shown = [(t, t.best_val_accuracy) for t in evidence.trials if t.best_val_accuracy is not None]
    with matplotlib.rc_context(STYLE):
        figure, axes = make_axes("trial", "validation accuracy", "Best validation accuracy so far")
        best, steps = 0.0, []
        for trial, accuracy in shown:
            if trial.state is TrialState.FINISHED:
                best = max(best, accuracy)
            if best:
                steps.append((trial.spec.index, best))
            color = _trial_color(trial)
            axes.scatter(
                [trial.spec.index],
                [accuracy],
                s=36,
                marker=_ORIGIN_MARKERS.get(trial.spec.origin, "o"),
                facecolors=color if trial.state is TrialState.FINISHED else "none",
                edgecolors=color,
                linewidth=1.3,
                zorder=3,
            )
        if steps:
            axes.plot(*zip(*steps, strict=True), drawstyle="steps-post", color=INK, linewidth=1.2, gid="best")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _percent(axes)
        legend_right(axes, _trial_legend([trial for trial, _ in shown]))
        return to_svg(figure, "best-so-far")


def accuracy_against_parameters(evidence: Evidence) -> str:
    """Validation accuracy against trainable parameters, head included, with the selections nothing else dominates."""
    sizes = {t.spec.selection: t.trainable_parameters for t in evidence.trials if t.state is TrialState.FINISHED}
    with matplotlib.rc_context(STYLE):
        figure, axes = make_axes("trainable parameters, head included", "validation accuracy", "Accuracy against size")
        scores = score_selections(evidence.trials, evidence.model)
        points = [(_size_of(score, sizes), score.val_accuracy, str(score.selection)) for score in scores]
        points = [point for point in points if point[0] > 0]
        for x, y, text in points:
            single = text in COMPONENTS
            axes.scatter([x], [y], s=60 if single else 30, color=COLORS.get(text, OTHER), zorder=3, linewidth=0)
        front = undominated({(x, y) for x, y, _ in points}, lambda point: point)
        if points:
            axes.set_xscale("log")
            axes.plot(*zip(*front, strict=True), drawstyle="steps-post", color=INK, linewidth=1.2, gid="front")
            axes.margins(x=0.12, y=0.12)
        for x, y, text in points:
            if text in COMPONENTS or text in ("all", "none") or (x, y) in front:
                axes.annotate(text, (x, y), xytext=(6, -11), textcoords="offset points", fontsize=9, zorder=4)
        _percent(axes)
        return to_svg(figure, "against-parameters")


def _size_of(score: SelectionScore, sizes: dict[str, int]) -> int:
    # The trial's own count includes the head; a text that is not canonical falls back on the selection's.
    return sizes.get(str(score.selection), score.parameters)


def _plasticity_title(evidence: Evidence, mode: str) -> str:
    found = [c for c in evidence.correlations if (c.name, c.mode) == ("components", mode)]
    return f"{describe(found[0])} over n = {found[0].n} components" if found else "Accuracy against plasticity"


def _trial_color(trial: TrialRecord) -> str:
    return COLORS.get(trial.spec.selection, OTHER)


def _trial_legend(trials: Sequence[TrialRecord]) -> list[Line2D]:
    """Entries for what appears: origins by shape, components by colour, hollow for a trial that did not finish."""

    def entry(label: str, marker: str, color: str, *, filled: bool = True) -> Line2D:
        face = color if filled else "none"
        return Line2D([], [], linestyle="", marker=marker, color=color, markerfacecolor=face, label=label)

    origins = {trial.spec.origin for trial in trials}
    entries = [entry(name, marker, OTHER) for name, marker in _ORIGIN_MARKERS.items() if name in origins]
    if any(trial.state is not TrialState.FINISHED for trial in trials):
        entries.append(entry("not finished", "o", OTHER, filled=False))
    selections = {trial.spec.selection for trial in trials}
    entries += [entry(name, "o", COLORS[name]) for name in COMPONENTS if name in selections]
    return entries


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if not axes.has_data():
        axes.text(0.5, 0.5, "no finished trial yet", transform=axes.transAxes, ha="center", va="center")
