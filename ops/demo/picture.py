"""The picture in README.md, from the ledger that `make demo` leaves: what it prints, and the report's main figure.

make demo && .venv/bin/python ops/demo/picture.py
"""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from unfreeze.evidence.correlate import has_plasticity, mean_plasticity, score_selections
from unfreeze.records import COMPONENTS, Evidence
from unfreeze.report.page import terminal_report
from unfreeze.report.vega import COLORS, OTHER
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.gather import read_evidence

PICTURE = Path(__file__).parent / "report.png"
FIRST_LINES = 23  # recommendation, plasticity, and the order that is settled
INK, PAPER = "#E6EDF3", "#0D1117"


def main() -> None:
    evidence = read_evidence(Ledger("runs", "demo"))
    style = {"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK}
    with matplotlib.rc_context({**style, "font.size": 9}):
        figure = Figure(figsize=(11.5, 4.0), facecolor=PAPER)
        text = "\n".join(["$ make demo", *terminal_report(evidence).splitlines()[:FIRST_LINES], "…"])
        figure.text(0.012, 0.97, text, family="DejaVu Sans Mono", va="top", fontsize=8.6, linespacing=1.22)
        draw_accuracy(figure.add_axes((0.70, 0.15, 0.285, 0.72)), evidence)
        figure.savefig(PICTURE, dpi=110)


def draw_accuracy(axes: Axes, evidence: Evidence) -> None:
    """As the report has it: the best of each selection against its plasticity, single components named."""
    axes.set_facecolor(PAPER)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="mean plasticity, reference", ylabel="validation accuracy")
    axes.set_title("report.html: accuracy against plasticity", loc="left", color=INK)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for score in score_selections(evidence.trials, evidence.model):
        if has_plasticity(score.selection):
            x, name = mean_plasticity(score.selection, evidence.plasticity, "reference"), str(score.selection)
            axes.scatter([x], [score.val_accuracy], s=60 if name in COMPONENTS else 25, color=COLORS.get(name, OTHER))
            if name in COMPONENTS:
                axes.annotate(name, (x, score.val_accuracy), xytext=(6, 5), textcoords="offset points")
    axes.margins(x=0.12, y=0.15)


if __name__ == "__main__":
    main()
