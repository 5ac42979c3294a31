"""Plasticity over depth as a figure of matplotlib's, which notebooks show and `Figure.savefig` writes."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unfreeze.records import COMPONENTS, PlasticityTable
from unfreeze.report.vega import COLORS

_WIDTH, _HEIGHT = 8.0, 4.5  # inches of a panel


class _Shown(Figure):
    """A notebook draws a Figure by itself only once pyplot is imported there, else it shows a line of text."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def plot_by_block(table: PlasticityTable, modes: Sequence[str]) -> Figure:
    """A line per component with the band of its mean's interval; modes side by side on scales of their own."""
    figure = _Shown(figsize=(len(modes) * _WIDTH, _HEIGHT), layout="constrained")
    panels = [figure.add_subplot(1, len(modes), position) for position in range(1, len(modes) + 1)]
    for axes, mode in zip(panels, modes, strict=True):
        _draw_by_block(axes, table, mode)
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _draw_by_block(axes: Axes, table: PlasticityTable, mode: str) -> None:
    for component in COMPONENTS:
        own = [row for row in table.rows if (row.mode, row.component) == (mode, component)]
        found = sorted(((row.block, row) for row in own if row.block is not None), key=lambda pair: pair[0])
        if found:
            blocks, rows = zip(*found, strict=True)
            low, mean, high = ([getattr(row, name) for row in rows] for name in ("low", "mean", "high"))
            axes.fill_between(blocks, low, high, color=COLORS[component], alpha=0.2, linewidth=0)
            axes.plot(blocks, mean, color=COLORS[component], marker="o", markersize=4, label=component, gid=component)
    axes.set(xlabel="block", ylabel="plasticity")
    axes.set_title(f"Plasticity by block, {mode}", loc="left", pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
