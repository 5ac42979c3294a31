"""Figures of what was tried, a mark for each selection or component at its best rate; one with nothing to show is left
out."""

import math
from collections.abc import Iterator

from unfreeze.evidence.correlate import describe
from unfreeze.evidence.recommend import rates_text
from unfreeze.evidence.verdict import headline
from unfreeze.records import COMPONENTS, Evidence
from unfreeze.report.chart_data import COSTS, KINDS, Row, cell_rows, front_of, member_rows
from unfreeze.report.vega import (
    ACCURACY,
    COLORS,
    INK,
    Chart,
    by_component,
    hover,
    log_axis,
    number,
    percent,
    responsive,
)

_ROWS = 60  # selections in the matrix
_OF_SELECTION = hover(selection="selection", accuracy="val. accuracy|.2%", low="worst seed|.2%", high="best seed|.2%")
_OF_SELECTION += hover(seeds="seeds", rate="learning rate|.3~g", parameters="trained parameters|,d")


def accuracy_against_plasticity(evidence: Evidence, selections: list[Row]) -> Iterator[Chart]:
    """A chart for each mode, that of the verdict first."""
    first = headline(evidence.worths)
    for mode in sorted(evidence.plasticity.modes, key=lambda mode: first is None or mode != first.score):
        field = f"plasticity_{mode}"
        rows = [row for row in selections if field in row]
        if not rows:
            continue
        x = number(field, f"mean plasticity, {mode}", scale={"zero": False, "padding": 16})
        y = percent("accuracy", ACCURACY)
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
            "encoding": {"x": x, "y": percent("low", ACCURACY), "y2": {"field": "high"}},
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
                "encoding": {"x": percent("low", ACCURACY), "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 55, "color": COLORS["ln2"]},
                "encoding": {"x": percent("accuracy", ACCURACY), "tooltip": _OF_SELECTION},
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


def accuracy_against_cost(selections: list[Row], cost: str) -> Iterator[Chart]:
    rows = [row for row in selections if row[cost]]
    if not rows:
        return
    front = front_of(rows, cost)
    x = log_axis(cost, COSTS[cost], axis={"format": {"parameters": "~s", "flops": ".0%", "seconds": "~g"}[cost]})
    y = percent("accuracy", ACCURACY, scale={"padding": 14})  # room for the name below the cheapest
    kinds = [name for name in KINDS if any(row["kind"] == name for row in rows)]
    points = {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.85},
        "encoding": {
            "x": x,
            "y": y,
            **by_component("kind", kinds, legend=False),
            "tooltip": _OF_SELECTION + hover(flops="FLOPs of all’s|.1%", seconds="seconds|.1f"),
        },
    }
    line = {
        "data": {"name": f"front_{cost}"},
        "mark": {"type": "line", "interpolate": "step-after", "color": INK},
        "encoding": {"x": x, "y": y},
    }
    whisker = {
        "mark": {"type": "rule", "opacity": 0.6},
        "encoding": {"x": x, "y": percent("low", ACCURACY), "y2": {"field": "high"}},
    }
    place = {"x": x, "y": y, "text": {"field": "selection"}}
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
