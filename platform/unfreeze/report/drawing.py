"""How every figure looks, and how it becomes SVG that follows the page's light or dark theme."""

import io
import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe & Ito's palette, safe for the colour-blind and readable on white and on near-black; grey is everything else.
COLORS = {"ln1": "#56B4E9", "mha": "#D55E00", "ln2": "#2E86D1", "fc1": "#009E73", "fc2": "#CC79A7"}


OTHER = "#8A8F98"


# Replaced by `currentColor`, so that text and axes follow the page's light or dark theme.
INK = "#010203"


STYLE = {
    "svg.hashsalt": "unfreeze",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": OTHER,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
}


SIZE = (640 / 72, 370 / 72)  # 640 × 370 SVG points


def make_axes(x_label: str, y_label: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title, pad=10)
    return figure, axes


def legend_right(axes: Axes, entries: Sequence[Line2D] | None = None) -> None:
    handles = axes.get_legend_handles_labels()[0] if entries is None else entries
    if handles:
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))


def to_svg(figure: Figure, prefix: str) -> str:
    """The figure as text from ``<svg`` on: no date, no doctype, and ids no other figure on the page has."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace('pt"', '"', 2)  # 640 pixels wide
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
