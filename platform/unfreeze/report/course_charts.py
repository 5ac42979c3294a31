"""Figures of how the search went, a mark for each trial; one with nothing to show is left out."""

from collections.abc import Iterator

from unfreeze.records import Evidence
from unfreeze.report.chart_data import KINDS, Row, cutoff_rows, pace_rows, report_rows
from unfreeze.report.vega import ACCURACY, INK, OTHER, Chart, by_component, hover, log_axis, number, percent, responsive

_MANY = 100  # learning curves from which they are drawn paler
_STATES = {"finished": "#2E86D1", "running": "#009E73", "stopped": OTHER, "diverged": "#E69F00", "failed": "#D55E00"}
_OF_TRIAL = hover(trial="trial", selection="selection", state="state", accuracy="best val. accuracy|.2%")
_OF_TRIAL += hover(rate="learning rate|.3~g", seed="seed", origin="origin", seconds="seconds|.1f")


def learning_curves(evidence: Evidence, trials: list[Row]) -> Iterator[Chart]:
    reports, cutoffs = report_rows(evidence.trials), cutoff_rows(evidence.trials)
    if not reports:
        return
    of_trial = ["selection", "state", "accuracy", "rate", "seed", "origin", "seconds"]
    joined = {"lookup": "trial", "from": {"data": {"name": "trials"}, "key": "trial", "fields": of_trial}}
    states = [name for name in _STATES if any(row["state"] == name for row in trials)]
    color = {"field": "state", "type": "nominal", "legend": {"title": None, "orient": "bottom"}}
    color["scale"] = {"domain": states, "range": [_STATES[name] for name in states]}
    x = number("images", "images seen", axis={"format": ",d", "tickCount": 10})
    lines = {
        "transform": [joined],
        "params": [{"name": "pointed", "select": {"type": "point", "on": "pointerover", "fields": ["trial"]}}],
        "mark": {"type": "line", "interpolate": "linear"},
        "encoding": {
            "x": x,
            "y": percent("at", ACCURACY),
            "detail": {"field": "trial"},
            "color": color,
            "opacity": {"condition": {"param": "pointed", "value": 0.8 if len(trials) < _MANY else 0.3}, "value": 0.1},
            "tooltip": _OF_TRIAL,
        },
    }
    cuts = {
        "data": {"name": "cutoffs"},
        "mark": {"type": "tick", "orient": "horizontal", "size": 22, "thickness": 2, "color": INK},
        "encoding": {
            "x": x,
            "y": percent("below", ACCURACY),
            "tooltip": hover(images="images seen|,d", below="stopped below|.2%", trials="trials with this cutoff"),
        },
    }
    said = " Bars: cutoffs of early stopping." if cutoffs else ""
    yield Chart(
        name="learning_curves",
        title="Learning curves",
        caption=f"Validation accuracy of every trial as it trains; pointing at one shows it alone.{said}",
        spec=responsive({"data": {"name": "reports"}, "layer": [lines, *([cuts] if cutoffs else [])]}, height=320),
        data={"reports": reports, "trials": trials, "cutoffs": cutoffs},
        wide=True,
    )


def best_so_far(trials: list[Row]) -> Iterator[Chart]:
    if not trials:
        return
    kinds = [name for name in KINDS if any(row["kind"] == name for row in trials)]
    x = number("trial", "trial", axis={"tickMinStep": 1}, scale={"nice": False, "padding": 8})
    points = {
        "mark": {"type": "point", "size": 45, "strokeWidth": 1.6},
        "encoding": {
            "x": x,
            "y": percent("accuracy", ACCURACY),
            **by_component("kind", kinds),
            "fillOpacity": {"condition": {"test": "datum.state == 'finished'", "value": 1}, "value": 0},
            "fill": by_component("kind", kinds)["color"],
            "tooltip": _OF_TRIAL,
        },
    }
    line = {
        "transform": [{"filter": "datum.best != null"}],
        "mark": {"type": "line", "interpolate": "step-after", "color": INK},
        "encoding": {"x": x, "y": percent("best", ACCURACY)},
    }
    yield Chart(
        name="best_so_far",
        title="Best validation accuracy so far",
        caption="Every trial in sequence. The line is the best finished trial so far; hollow marks did not finish.",
        spec=responsive({"data": {"name": "trials"}, "layer": [line, points]}),
        data={"trials": trials},
    )


def slot_timeline(trials: list[Row]) -> Iterator[Chart]:
    if not trials:
        return
    kinds = [name for name in KINDS if any(row["kind"] == name for row in trials)]
    slots = sorted({row["slot"] for row in trials})
    color = {**by_component("kind", kinds)["color"]}
    end = max(row["ended"] for row in trials)
    busy = {slot: sum(r["ended"] - r["began"] for r in trials if r["slot"] == slot) / end for slot in slots if end > 0}
    said = ", ".join(f"{slot} {share:.0%}" for slot, share in list(busy.items())[:8])
    yield Chart(
        name="slot_timeline",
        title="Who ran what when",
        caption="From a trial’s start to its last report, by the slot that ran it last; gaps are idle time, the start "
        f"of workers and writing. Busy: {said}.",
        spec=responsive(
            {
                "data": {"name": "trials"},
                "mark": {"type": "bar", "cornerRadius": 1, "height": {"band": 0.7}},
                "encoding": {
                    "y": {"field": "slot", "type": "nominal", "title": None, "sort": slots},
                    "x": number("began", "seconds since the first trial began"),
                    "x2": {"field": "ended"},
                    "color": color,
                    "opacity": {"condition": {"test": "datum.state == 'finished'", "value": 1}, "value": 0.45},
                    "tooltip": _OF_TRIAL,
                },
            },
            height=50 + 34 * len(slots),
        ),
        data={"trials": trials},
        wide=True,
    )


def predicted_against_measured(evidence: Evidence) -> Iterator[Chart]:
    rows = pace_rows(evidence)
    if not rows:
        return
    kinds = [name for name in KINDS if any(row["kind"] == name for row in rows)]
    x = log_axis("tflops", "predicted TFLOPs, training and validation", axis={"format": "~g"})
    y = log_axis("seconds", "seconds measured", axis={"format": "~g"})
    points = {
        "mark": {"type": "point", "filled": True, "size": 55, "opacity": 0.8},
        "encoding": {
            "x": x,
            "y": y,
            **by_component("kind", kinds, legend=False),
            "tooltip": hover(trial="trial", selection="selection", tflops="predicted TFLOPs|.4~g")
            + hover(seconds="seconds|.2f", expected="seconds by the line|.2f", off="off by|+.0%"),
        },
    }
    line = {"mark": {"type": "line", "color": INK}, "encoding": {"x": x, "y": log_axis("expected", "")}}
    yield Chart(
        name="cost_predicted_against_measured",
        title="Cost, predicted against measured",
        caption="Finished trials. The line is the median pace; what lies above it took longer than its arithmetic.",
        spec=responsive({"data": {"name": "pace"}, "layer": [line, points]}, height=270),
        data={"pace": rows},
    )
