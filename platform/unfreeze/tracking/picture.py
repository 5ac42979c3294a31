"""How the answer settled as one picture, in PNG: MLflow's charts show an estimate and its interval apart."""

import io
from collections.abc import Sequence

from unfreeze.tracking.settling import Step

_INK, _BAND, _GREY = "#24292F", "#2E86D1", "#8A8F98"


def draw_settling(steps: Sequence[Step]) -> bytes:
    """What one standard deviation more plasticity is worth, in points with its interval, over finished trials; below
    it the rank correlations."""
    import numpy as np  # matplotlib takes a second
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = [step.num_finished for step in steps]
    values = {name: np.array([step.values[name] for step in steps]) for name in steps[0].values}
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    mean, low, high = (100 * values[f"verdict/{name}"] for name in ("worth", "worth_low", "worth_high"))
    above.fill_between(counts, low, high, color=_BAND, alpha=0.2, linewidth=0, label="95 % interval")
    above.plot(counts, mean, color=_BAND, label="estimate")
    above.set_ylabel("points of accuracy")
    above.set_title("What one standard deviation more plasticity is worth, size held fixed", loc="left", fontsize=10)
    for name, style in (("components", "-"), ("selections", "--"), ("selections_size_fixed", ":")):
        below.plot(counts, values[f"correlation/{name}"], style, color=_INK, label=name.replace("_", " "))
    below.set(xlabel="finished trials", ylabel="Spearman", ylim=(-1.05, 1.05))
    below.set_title("Rank correlation of plasticity with accuracy over …", loc="left", fontsize=10)
    for axes in (above, below):
        axes.axhline(0, color=_GREY, linewidth=0.6)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()
