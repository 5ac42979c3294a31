"""The figures of a sweep's trials, in the order of the page; one that has nothing to show is left out."""

import math
from collections.abc import Iterator

from unfreeze.evidence.correlate import describe
from unfreeze.evidence.recommend import rates_text
from unfreeze.evidence.verdict import headline
from unfreeze.records import COMPONENTS, Evidence
from unfreeze.report.chart_data import (
    COSTS,
    KINDS,
    Row,
    cell_rows,
    cutoff_rows,
    finite,
    front_of,
    member_rows,
    pace_rows,
    report_rows,
    selection_rows,
    trial_rows,
)
from unfreeze.report.vega import (
    COLORS,
    INK,
    OTHER,
    Chart,
    by_component,
    hover,
    intervals,
    log_axis,
    number,
    percent,
    responsive,
)

_ROWS = 60  # selections in the matrix
_MANY = 100  # learning curves from which they are drawn paler
_STATES = {"finished": "#2E86D1", "running": "#009E73", "stopped": OTHER, "diverged": "#E69F00", "failed": "#D55E00"}
_ACCURACY = "validation accuracy"
_OF_SELECTION = hover(selection="selection", accuracy="val. accuracy|.2%", low="worst seed|.2%", high="best seed|.2%")
_OF_SELECTION += hover(seeds="seeds", rate="learning rate|.3~g", parameters="trained parameters|,d")
_OF_TRIAL = hover(trial="trial", selection="selection", state="state", accuracy="best val. accuracy|.2%")
_OF_TRIAL += hover(rate="learning rate|.3~g", seed="seed", origin="origin", seconds="seconds|.1f")


def trial_charts(evidence: Evidence) -> list[Chart]:
    """All of them, in the order of the page."""
    selections, trials = selection_rows(evidence), trial_rows(evidence)
    charts = [*accuracy_against_plasticity(evidence, selections)]
    charts += [*rate_map(evidence), *matrix(evidence, selections)]
    charts += [*learning_curves(evidence, trials), *best_so_far(trials)]
    charts += [chart for cost in COSTS for chart in accuracy_against_cost(selections, cost)]
    charts += [*predicted_against_measured(evidence), *importances(evidence)]
    return [*charts, *worth_of_scores(evidence), *slot_timeline(trials)]


def accuracy_against_plasticity(evidence: Evidence, selections: list[Row]) -> Iterator[Chart]:
    """A chart for each mode, that of the verdict first."""
    first = headline(evidence.worths)
    for mode in sorted(evidence.plasticity.modes, key=lambda mode: first is None or mode != first.score):
        field = f"plasticity_{mode}"
        rows = [row for row in selections if field in row]
        if not rows:
            continue
        x = number(field, f"mean plasticity, {mode}", scale={"zero": False, "padding": 16})
        y = percent("accuracy", _ACCURACY)
        kinds = [name for name in KINDS if any(row["kind"] == name for row in rows)]
        point = {
            "mark": {"type": "point", "filled": True, "opacity": 0.85},
            "encoding": {
                "x": x,
                "y": y,
                **by_component("kind", kinds, legend=False),
                "size": number("parameters", "", scale={"type": "sqrt", "range": [50, 320]}, legend=None),
                "tooltip": hover(**{field: f"plasticity, {mode}|.3f"}) + _OF_SELECTION,
            },
        }
        whisker = {
            "mark": {"type": "rule", "opacity": 0.6},
            "encoding": {"x": x, "y": percent("low", _ACCURACY), "y2": {"field": "high"}},
        }
        label = {
            "transform": [{"filter": {"field": "kind", "oneOf": list(COMPONENTS)}}],
            "mark": {"type": "text", "align": "left", "dx": 11, "dy": -6},
            "encoding": {"x": x, "y": y, "text": {"field": "kind"}},
        }
        yield Chart(
            name=f"accuracy_against_plasticity_{mode}",
            title=_plasticity_title(evidence, mode),
            caption=f"Each selection {rates_text(evidence.choices)}, finished trials only; single components are "
            "named and coloured. Size: trained parameters. Whiskers: from the worst to the best seed.",
            spec=responsive({"data": {"name": "selections"}, "layer": [whisker, point, label]}, height=290),
            data={"selections": rows},
        )


def _plasticity_title(evidence: Evidence, mode: str) -> str:
    found = [c for c in evidence.correlations if (c.name, c.mode) == ("components", mode)]
    title = f"Accuracy against plasticity, {mode}"
    return f"{title}: {describe(found[0])} over n = {found[0].n} components" if found else title


def rate_map(evidence: Evidence) -> Iterator[Chart]:
    rows = cell_rows(evidence)
    if not rows:
        return
    place = {
        "x": {"field": "rate", "type": "ordinal", "title": "learning rate", "axis": {"labelAngle": 0}},
        "y": {"field": "component", "type": "nominal", "title": None, "sort": list(COMPONENTS)},
    }
    low, high = (pick(row["accuracy"] for row in rows) for pick in (min, max))
    color = percent("accuracy", "accuracy", scale={"scheme": "viridis"}, legend={"format": "~%"})
    del color["axis"]
    shown = hover(component="component", rate="learning rate|.3~g", accuracy="best val. accuracy|.2%")
    shown += hover(selection="by", mean="mean of the trials|.2%", trials="trials")
    # White on viridis' dark half, black on its bright one.
    bright = {"condition": {"test": f"datum.accuracy > {(low + high) / 2}", "value": "black"}, "value": "white"}
    yield Chart(
        name="component_by_rate",
        title="Component by learning rate",
        caption="The best finished trial that trains the component at about that rate, alone or beside others; the "
        "number of trials is written in the cell.",
        spec=responsive(
            {
                "data": {"name": "cells"},
                "encoding": place,
                "layer": [
                    {"mark": {"type": "rect", "cornerRadius": 2}, "encoding": {"color": color, "tooltip": shown}},
                    {"mark": "text", "encoding": {"text": {"field": "trials"}, "color": bright, "tooltip": shown}},
                ],
            },
            height=210,
        ),
        data={"cells": rows},
    )


def matrix(evidence: Evidence, selections: list[Row]) -> Iterator[Chart]:
    """Of the best selections what each trains, and how it did."""
    rows = selections[:_ROWS]
    if not rows:
        return
    members = member_rows(evidence, rows)
    # The order is data, since each panel sees part of the rows.
    order = [row["selection"] for row in rows]
    y = {"field": "selection", "type": "nominal", "title": None, "sort": order, "scale": {"domain": order}}
    x = {"field": "component", "type": "nominal", "title": None, "scale": {"domain": list(COMPONENTS)}}
    axes = {"x": {**x, "axis": {"orient": "top", "labelAngle": 0}}, "y": {**y, "axis": {"labelLimit": 260}}}
    share = number("share", "", scale={"domain": [0, 1], "range": [0.15, 1]}, legend=None)
    height = {"step": 17}
    left = {
        "width": 210,
        "height": height,
        "data": {"name": "members"},
        "mark": {"type": "rect", "cornerRadius": 2, "stroke": INK, "strokeOpacity": 0.3, "strokeWidth": 0.5},
        "encoding": {
            **axes,
            "color": by_component("component", COMPONENTS, legend=False)["color"],
            "opacity": share,
            "tooltip": hover(selection="selection", component="component", share="of the blocks|.0%"),
        },
    }
    bare = {**y, "axis": {"labels": False, "ticks": False, "domain": False, "grid": True}}
    right = {
        "width": 330,
        "height": height,
        "data": {"name": "selections"},
        "encoding": {"y": bare},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {"x": percent("low", _ACCURACY), "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 55, "color": COLORS["ln2"]},
                "encoding": {"x": percent("accuracy", _ACCURACY), "tooltip": _OF_SELECTION},
            },
        ],
    }
    count = f"the best {_ROWS} of {len(selections)}" if len(selections) > _ROWS else f"all {len(selections)}"
    yield Chart(
        name="selections_by_accuracy",
        title="Tried selections by accuracy",
        caption=f"Each {rates_text(evidence.choices)}, {count}. Filled: trained, the paler in the fewer blocks. "
        "Whiskers: from the worst to the best seed.",
        spec={"hconcat": [left, right], "spacing": 14},
        data={"selections": rows, "members": members},
        wide=True,
    )


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
            "y": percent("at", _ACCURACY),
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
            "y": percent("below", _ACCURACY),
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
            "y": percent("accuracy", _ACCURACY),
            **by_component("kind", kinds),
            "fillOpacity": {"condition": {"test": "datum.state == 'finished'", "value": 1}, "value": 0},
            "fill": by_component("kind", kinds)["color"],
            "tooltip": _OF_TRIAL,
        },
    }
    line = {
        "transform": [{"filter": "datum.best != null"}],
        "mark": {"type": "line", "interpolate": "step-after", "color": INK},
        "encoding": {"x": x, "y": percent("best", _ACCURACY)},
    }
    yield Chart(
        name="best_so_far",
        title="Best validation accuracy so far",
        caption="Every trial in sequence. The line is the best finished trial so far; hollow marks did not finish.",
        spec=responsive({"data": {"name": "trials"}, "layer": [line, points]}),
        data={"trials": trials},
    )


def accuracy_against_cost(selections: list[Row], cost: str) -> Iterator[Chart]:
    rows = [row for row in selections if row[cost]]
    if not rows:
        return
    front = front_of(rows, cost)
    x = log_axis(cost, COSTS[cost], axis={"format": {"parameters": "~s", "flops": ".0%", "seconds": "~g"}[cost]})
    kinds = [name for name in KINDS if any(row["kind"] == name for row in rows)]
    points = {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.85},
        "encoding": {
            "x": x,
            "y": percent("accuracy", _ACCURACY),
            **by_component("kind", kinds, legend=False),
            "tooltip": _OF_SELECTION + hover(flops="FLOPs of all’s|.1%", seconds="seconds|.1f"),
        },
    }
    line = {
        "data": {"name": f"front_{cost}"},
        "mark": {"type": "line", "interpolate": "step-after", "color": INK},
        "encoding": {"x": x, "y": percent("accuracy", _ACCURACY)},
    }
    whisker = {
        "mark": {"type": "rule", "opacity": 0.6},
        "encoding": {"x": x, "y": percent("low", _ACCURACY), "y2": {"field": "high"}},
    }
    place = {"x": x, "y": percent("accuracy", _ACCURACY), "text": {"field": "selection"}}
    middle = math.sqrt(min(row[cost] for row in rows) * max(row[cost] for row in rows))
    labels = [  # towards the middle, where there is room
        {
            "data": {"name": f"front_{cost}"},
            "transform": [{"filter": f"datum.{cost} {side} {middle}"}],
            "mark": {"type": "text", "align": align, "dx": dx, "dy": dy, "limit": 150},
            "encoding": place,
        }
        for side, align, dx, dy, holds in (
            ("<=", "left", 8, 11, True),  # the cheapest is there
            (">", "right", -9, -7, front[-1][cost] > middle),
        )
        if holds
    ]
    yield Chart(
        name=f"accuracy_against_{cost}",
        title=f"Accuracy against {COSTS[cost].partition(',')[0]}",
        caption="Named and joined: the selections that no cheaper one matches. Whiskers: from the worst to the best "
        "seed.",
        spec=responsive({"data": {"name": "selections"}, "layer": [line, whisker, points, *labels]}, height=270),
        data={"selections": rows, f"front_{cost}": [{k: r[k] for k in (cost, "accuracy", "selection")} for r in front]},
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


def importances(evidence: Evidence) -> Iterator[Chart]:
    rows = [{"parameter": name, "share": round(share, 4)} for name, share in evidence.importances.items()][:_ROWS]
    if not rows:
        return
    y = {"field": "parameter", "type": "nominal", "title": None, "sort": [row["parameter"] for row in rows]}
    yield Chart(
        name="importances",
        title="What told the best trials from the rest",
        caption="Each parameter’s share, by Optuna’s PED-ANOVA over the finished trials.",
        spec=responsive(
            {
                "data": {"name": "importances"},
                "mark": {"type": "bar", "color": COLORS["ln2"], "height": {"band": 0.7}},
                "encoding": {
                    "x": percent("share", "share", scale={"zero": True}),
                    "y": y,
                    "tooltip": hover(parameter="parameter", share="share|.1%"),
                },
            },
            height=40 + 20 * len(rows),
        ),
        data={"importances": rows},
    )


def worth_of_scores(evidence: Evidence) -> Iterator[Chart]:
    rows: list[Row] = []
    for found in evidence.worths:
        if found.worth is not None:
            in_points = {name: 100 * getattr(found.worth, name) for name in ("mean", "low", "high")}
            own: Row = {"score": found.score, "p": found.worth.p, "positive": found.worth.positive}
            rows.append(own | finite(in_points))
    if not rows:
        return
    yield Chart(
        name="worth_of_scores",
        title="What each score is worth, size held fixed",
        caption="95 % intervals by exchange of the components’ labels; a score without a bar excludes nothing.",
        spec=intervals(
            "worths",
            rows,
            "score",
            "points of accuracy for one standard deviation more",
            hover(positive="P(β > 0)|.2f", p="p|.3f"),
        ),
        data={"worths": rows},
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
