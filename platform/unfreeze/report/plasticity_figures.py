"""The pre-pass's figures: plasticity over depth, its distribution over pairs, and what bounds it."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from unfreeze.records import COMPONENTS, PlasticityRow, PlasticityTable
from unfreeze.report.drawing import COLORS, INK, OTHER, SIZE, STYLE, legend_right, make_axes, to_svg

_BOUND_PANELS = ("ln1", "ln2", "fc1", "fc2", "mha")


# Published over valid: where both are the same, dashes on a line.
_BOUND_LINES: dict[str, dict[str, Any]] = {
    "valid": {"color": INK, "linewidth": 1.3},
    "as_published": {"color": "#E69F00", "linewidth": 2.0, "linestyle": (0, (2.2, 2.2))},
}


_MEAN_LINE: dict[str, Any] = {"marker": "o", "markersize": 2.8, "linewidth": 1.3}


_LARGEST_LINE: dict[str, Any] = {"marker": "^", "markersize": 3.8, "linewidth": 0.7, "markerfacecolor": "none"}


def pre_pass_figures(table: PlasticityTable) -> dict[str, str]:
    """Those that need no trials, by file stem; of each mode only what the table has the numbers for."""
    spread = {row.mode for row in table.rows if row.block is None and row.quantiles}
    bounded = {bound.mode for bound in table.bounds if bound.valid is not None or bound.as_published is not None}
    figures = {f"plasticity_by_block_{mode}": plasticity_by_block(table, mode) for mode in table.modes}
    for mode in table.modes:
        if mode in spread:
            figures[f"plasticity_distribution_{mode}"] = plasticity_distribution(table, mode)
    for mode in table.modes:
        if mode in bounded:
            figures[f"plasticity_against_bound_{mode}"] = plasticity_against_bound(table, mode)
    return figures


def plasticity_by_block(table: PlasticityTable, mode: str) -> str:
    """Plasticity over block depth: a line per component with the band of its mean's interval."""
    with matplotlib.rc_context(STYLE):
        return to_svg(plot_by_block(table, [mode]), f"by-block-{mode}")


def plot_by_block(table: PlasticityTable, modes: Sequence[str]) -> Figure:
    """`plasticity_by_block` of each mode, side by side on scales of their own, for a notebook or `Figure.savefig`."""
    with matplotlib.rc_context(STYLE):
        width, height = SIZE
        figure = Figure(figsize=(width + (len(modes) - 1) * 0.8 * width, height), layout="constrained")
        panels = [figure.add_subplot(1, len(modes), position) for position in range(1, len(modes) + 1)]
        for axes, mode in zip(panels, modes, strict=True):
            _draw_by_block(axes, table, mode)
        legend_right(panels[-1])
        figure.draw_without_rendering()  # ticks are made when first drawn, by the style of that moment
    return figure


def plasticity_distribution(table: PlasticityTable, mode: str) -> str:
    """A box per component over the observations, each a mean over blocks; whiskers at the 5 and 95 % quantiles."""
    rows = {row.component: row for row in table.rows if row.mode == mode and row.block is None and row.quantiles}
    names = [name for name in COMPONENTS if name in rows]
    with matplotlib.rc_context(STYLE):
        figure, axes = make_axes("", "plasticity, mean over blocks", f"Spread of plasticity over pairs, {mode}")
        artists = axes.bxp(
            [_box(rows[name]) for name in names],
            widths=0.5,
            showmeans=True,
            showfliers=False,
            patch_artist=True,
            medianprops={"color": INK, "linewidth": 1.6},
            meanprops={"marker": "D", "markersize": 5, "markerfacecolor": INK, "markeredgecolor": "none"},
        )
        for index, name in enumerate(names):
            artists["boxes"][index].set(facecolor=(COLORS[name], 0.35), edgecolor=COLORS[name], gid=name)
            artists["means"][index].set_gid(f"{name}-mean")
            for line in (*artists["whiskers"][2 * index :][:2], *artists["caps"][2 * index :][:2]):
                line.set(color=COLORS[name], linewidth=1.4)
        axes.grid(visible=False, axis="x")
        return to_svg(figure, f"distribution-{mode}")


def plasticity_against_bound(table: PlasticityTable, mode: str) -> str:
    """Mean and largest rate of every block under its published and its valid bound: a panel per component, log scale.

    MHA has a scale of its own: its bounds are some ten thousand times the others'.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        panels: dict[str, Axes] = {}
        for position, component in enumerate(_BOUND_PANELS, start=1):
            shared = panels[_BOUND_PANELS[0]] if 1 < position < len(_BOUND_PANELS) else None
            axes = panels[component] = figure.add_subplot(1, len(_BOUND_PANELS), position, sharey=shared)
            _draw_against_bound(axes, table, mode, component)
            axes.tick_params(axis="y", labelleft=shared is None)
        panels[_BOUND_PANELS[0]].set_ylabel("rate of change")
        figure.suptitle(f"Rates and their upper bounds, {mode}", x=0.01, ha="left", fontsize=11.5)
        panels[_BOUND_PANELS[len(_BOUND_PANELS) // 2]].set_xlabel("block")
        figure.legend(handles=_bound_legend(), loc="outside lower center", ncols=4)
        for axes in panels.values():
            _log_ticks(axes)
        return to_svg(figure, f"against-bound-{mode}")


def _draw_by_block(axes: Axes, table: PlasticityTable, mode: str) -> None:
    for component in COMPONENTS:
        found = _by_block(table, mode, component)
        if not found:
            continue
        blocks, rows = zip(*found, strict=True)
        color = COLORS[component]
        axes.fill_between(
            blocks, [row.low for row in rows], [row.high for row in rows], color=color, alpha=0.2, linewidth=0
        )
        axes.plot(
            blocks, [row.mean for row in rows], color=color, marker="o", markersize=4, label=component, gid=component
        )
    axes.set(xlabel="block", ylabel="plasticity")
    axes.set_title(f"Plasticity by block, {mode}", pad=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _box(row: PlasticityRow) -> dict[str, float | str]:
    low, first, median, third, high = row.quantiles
    names = ("whislo", "q1", "med", "q3", "whishi", "mean")
    return {**dict(zip(names, (low, first, median, third, high, row.mean), strict=True)), "label": row.component}


def _draw_against_bound(axes: Axes, table: PlasticityTable, mode: str, component: str) -> None:
    bounds = [bound for bound in table.bounds if (bound.mode, bound.component) == (mode, component)]
    for kind, style in _BOUND_LINES.items():
        known = sorted((b.block, getattr(b, kind)) for b in bounds if getattr(b, kind) is not None)
        if known:
            axes.plot(*zip(*known, strict=True), **style, gid=f"{component}-{kind}")
    found, color = _by_block(table, mode, component), COLORS[component]
    largest = [(block, row.maximum) for block, row in found if row.maximum is not None]
    if largest:
        axes.plot(*zip(*largest, strict=True), color=color, **_LARGEST_LINE, gid=f"{component}-largest")
    if found:
        means = [(block, row.mean) for block, row in found]
        axes.plot(*zip(*means, strict=True), color=color, **_MEAN_LINE, gid=f"{component}-mean")
    axes.set_yscale("log", nonpositive="mask")
    axes.set_title(component)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))


def _bound_legend() -> list[Line2D]:
    styles = {"mean rate": _MEAN_LINE, "largest rate": _LARGEST_LINE}
    lines = [Line2D([], [], label=label, **{"color": OTHER, **style}) for label, style in styles.items()]
    lines.append(Line2D([], [], label="valid bound", **_BOUND_LINES["valid"]))
    return [*lines, Line2D([], [], label="published bound", **_BOUND_LINES["as_published"])]


def _log_ticks(axes: Axes) -> None:
    """Labels 1, 2, 5, 10, … where the axis spans few powers of ten, else the powers alone; no exponents below 10⁶."""
    low, high = axes.get_ylim()
    few = math.log10(high / low) < 3
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.minorticks_off()


def _by_block(table: PlasticityTable, mode: str, component: str) -> list[tuple[int, PlasticityRow]]:
    rows = [row for row in table.rows if (row.mode, row.component) == (mode, component)]
    return sorted(((row.block, row) for row in rows if row.block is not None), key=lambda pair: pair[0])
