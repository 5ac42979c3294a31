"""The pre-pass's figures: plasticity over depth, its distribution over pairs, and what bounds it."""

from typing import Any

from unfreeze.records import COMPONENTS, PlasticityRow, PlasticityTable
from unfreeze.report.chart_data import Row, finite
from unfreeze.report.plasticity import confidence
from unfreeze.report.vega import INK, OTHER, Chart, by_component, hover, log_axis, number, responsive

_BOUND_PANELS = ("ln1", "ln2", "fc1", "fc2", "mha")  # mha's bounds are some ten thousand times the others'
_KINDS = ("mean rate", "largest rate", "valid bound", "published bound")
_BOUND_COLORS = ("#009E73", "#56B4E9", OTHER, "#E69F00")


def pre_pass_charts(table: PlasticityTable) -> list[Chart]:
    """Those that need no trials; of each mode only what the table has the numbers for."""
    spread = {row.mode for row in table.rows if row.block is None and row.quantiles}
    bounded = {bound.mode for bound in table.bounds if bound.valid is not None or bound.as_published is not None}
    charts = [plasticity_by_block(table, mode) for mode in table.modes]
    charts += [plasticity_distribution(table, mode) for mode in table.modes if mode in spread]
    return charts + [plasticity_against_bound(table, mode) for mode in table.modes if mode in bounded]


def plasticity_by_block(table: PlasticityTable, mode: str) -> Chart:
    """Plasticity over block depth: a line per component with the band of its mean's interval."""
    rows: list[Row] = [
        {"component": row.component, "block": row.block, "mean": row.mean, **finite({"low": row.low, "high": row.high})}
        for row in _rows(table, mode)
        if row.block is not None
    ]
    names = [name for name in COMPONENTS if any(row["component"] == name for row in rows)]
    x = number("block", "block", axis={"tickMinStep": 1})
    y = number("mean", "plasticity", scale={"zero": False})
    channels = by_component("component", names)
    shown = hover(component="component", block="block", mean="mean|.3f", low="from|.3f", high="to|.3f")
    band = {
        "transform": [{"filter": "datum.low != null && datum.high != null"}],
        "mark": {"type": "area", "opacity": 0.2},
        "encoding": {"x": x, "y": number("low", "plasticity"), "y2": {"field": "high"}, "color": channels["color"]},
    }
    line = {
        "mark": {"type": "line", "point": {"filled": True, "size": 40}},
        "encoding": {"x": x, "y": y, "color": channels["color"], "tooltip": shown},
    }
    interval = f"{confidence(table)} intervals of the mean over pairs"
    if "confidence" in table.settings:  # before it was a setting, intervals were Student's, for a fixed number of pairs
        interval += ", valid whenever the measurement stopped"
    return Chart(
        name=f"plasticity_by_block_{mode}",
        title=f"Plasticity by block, {mode}",
        caption=f"Plasticity of each component by block; bands are {interval}.",
        spec=responsive({"data": {"name": "by_block"}, "layer": [band, line]}),
        data={"by_block": rows},
    )


def plasticity_distribution(table: PlasticityTable, mode: str) -> Chart:
    """A box per component over the observations, each a mean over blocks; whiskers at the 5 and 95 % quantiles."""
    quantiles = ("q05", "q25", "q50", "q75", "q95")
    rows: list[Row] = [
        {"component": row.component, "mean": row.mean, **dict(zip(quantiles, row.quantiles, strict=True))}
        for row in _rows(table, mode)
        if row.block is None and row.quantiles
    ]
    names = [name for name in COMPONENTS if any(row["component"] == name for row in rows)]
    x = {"field": "component", "type": "nominal", "title": None, "sort": names, "axis": {"labelAngle": 0}}
    title = "plasticity, mean over blocks"
    color = by_component("component", names, legend=False)["color"]

    def over(low: str, high: str) -> dict[str, Any]:
        return {"x": x, "y": number(low, title, scale={"zero": False}), "y2": {"field": high}, "color": color}

    shown = hover(component="component", mean="mean|.3f", q50="median|.3f", q05="5 %|.3f", q25="25 %|.3f")
    shown += hover(q75="75 %|.3f", q95="95 %|.3f")
    point = {"x": x, "y": number("mean", title)}
    median = {"x": x, "y": number("q50", title)}
    layers = [
        {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": over("q05", "q95")},
        {"mark": {"type": "bar", "size": 44, "opacity": 0.5}, "encoding": {**over("q25", "q75"), "tooltip": shown}},
        {"mark": {"type": "tick", "size": 44, "thickness": 2, "color": INK}, "encoding": median},
        {"mark": {"type": "point", "shape": "diamond", "filled": True, "color": INK, "size": 40}, "encoding": point},
    ]
    return Chart(
        name=f"plasticity_distribution_{mode}",
        title=f"Spread of plasticity over pairs, {mode}",
        caption="Plasticity of single pairs (where pairs were crossed: of groups that share images), averaged over "
        "blocks. Boxes hold the middle half, whiskers end at the 5 and 95 % quantiles; the line is the median, the "
        "diamond the mean.",
        spec=responsive({"data": {"name": "spread"}, "layer": layers}),
        data={"spread": rows},
    )


def plasticity_against_bound(table: PlasticityTable, mode: str) -> Chart:
    """Mean and largest rate of every block under its published and its valid bound: a panel per component, log scale.

    Each panel has a scale of its own.
    """
    rows: list[Row] = []
    for row in _rows(table, mode):
        if row.block is not None:
            rows.append(_rate(row.component, row.block, "mean rate", row.mean))
            if row.maximum is not None:
                rows.append(_rate(row.component, row.block, "largest rate", row.maximum))
    for bound in table.bounds:
        if bound.mode == mode:
            for kind, value in (("valid bound", bound.valid), ("published bound", bound.as_published)):
                if value is not None:
                    rows.append(_rate(bound.component, bound.block, kind, value))
    color = {"field": "kind", "type": "nominal", "scale": {"domain": list(_KINDS), "range": list(_BOUND_COLORS)}}
    color["legend"] = {"title": None, "orient": "bottom"}
    dash = {"field": "kind", "type": "nominal", "legend": color["legend"]}
    dash["scale"] = {"domain": list(_KINDS), "range": [[1, 0], [1, 0], [1, 0], [4, 3]]}
    y = log_axis("rate", "rate of change", axis={"format": ",.2~r"})
    return Chart(
        name=f"plasticity_against_bound_{mode}",
        title=f"Rates and their upper bounds, {mode}",
        caption="Rates of change in each block and their upper bounds. The published bound is what the paper’s code "
        "computes; the valid one holds for every measured pair. Each component has a scale of its own.",
        spec={
            "data": {"name": "bounds"},
            "facet": {"field": "component", "type": "nominal", "title": None, "sort": list(_BOUND_PANELS)},
            "columns": len(_BOUND_PANELS),
            "spacing": 18,
            "spec": {
                "width": 140,
                "height": 220,
                "mark": {"type": "line", "point": {"filled": True, "size": 22}},
                "encoding": {
                    "x": number("block", "block", axis={"tickMinStep": 1, "tickCount": 3}),
                    "y": y,
                    "color": color,
                    "strokeDash": dash,
                    "tooltip": hover(component="component", block="block", kind="what", rate="rate|,.3f"),
                },
            },
            "resolve": {"scale": {"y": "independent"}},
        },
        data={"bounds": [row for row in rows if row["rate"] > 0]},
        wide=True,
    )


def _rate(component: str, block: int, kind: str, value: float) -> Row:
    return {"component": component, "block": block, "kind": kind, "rate": value}


def _rows(table: PlasticityTable, mode: str) -> list[PlasticityRow]:
    order = {name: position for position, name in enumerate(COMPONENTS)}
    own = [row for row in table.rows if row.mode == mode]
    return sorted(own, key=lambda row: (order[row.component], -1 if row.block is None else row.block))
