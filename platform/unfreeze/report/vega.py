"""Charts in Vega-Lite: how every one looks, and what draws them, in a page without network and as SVG."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

Rows = Sequence[Mapping[str, Any]]

# Okabe & Ito's palette, safe for the colour-blind and readable on white and on near-black; grey is everything else.
COLORS = {"ln1": "#56B4E9", "mha": "#D55E00", "ln2": "#2E86D1", "fc1": "#009E73", "fc2": "#CC79A7"}
OTHER = "#8A8F98"
_KIND_COLORS = {**COLORS, "all": "#E69F00", "none": "#9A7FD1"}
INK = "currentColor"  # text and axes follow the page's light or dark theme
ACCURACY = "validation accuracy"  # an axis's title

_SHAPES = {"ln1": "circle", "mha": "square", "ln2": "diamond", "fc1": "triangle-up", "fc2": "triangle-down"}
_SHAPES |= {"several": "cross", "all": "triangle-right", "none": "triangle-left"}
_CONFIG: dict[str, Any] = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "mark": {"aria": False},  # a figure has one description; a thousand marks that announce themselves help nobody
    "axis": {
        "aria": False,
        "labelColor": INK,
        "titleColor": INK,
        "titleFontWeight": "normal",
        "domainColor": INK,
        "domainOpacity": 0.5,
        "tickColor": INK,
        "tickOpacity": 0.5,
        "gridColor": INK,
        "gridOpacity": 0.12,
        "labelFlush": False,
        "labelFontSize": 11,
        "titleFontSize": 12,
    },
    "legend": {
        "aria": False,
        "labelColor": INK,
        "titleColor": INK,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "symbolOpacity": 1,
        "columns": 5,
    },
    "header": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12},
    "text": {"color": INK, "fontSize": 11},
    "rule": {"color": INK},
    "line": {"strokeWidth": 1.6},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One figure. ``spec``: Vega-Lite, whose data are names of ``data``; ``text`` says in words what it shows."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    data: Mapping[str, Rows]
    wide: bool = False

    @property
    def text(self) -> str:
        return f"{self.title}. {self.caption}"


def percent(field: str, title: str, **more: Any) -> dict[str, Any]:
    """A channel for a share from 0 to 1, on an axis that need not begin at 0."""
    scale = {"zero": False, "nice": True, **more.pop("scale", {})}
    return {"field": field, "type": "quantitative", "title": title, "axis": {"format": "~%"}, "scale": scale, **more}


def number(field: str, title: str, **more: Any) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "title": title, **more}


def log_axis(field: str, title: str, **more: Any) -> dict[str, Any]:
    axis = {"grid": False, "tickCount": 5, **more.pop("axis", {})}
    return number(field, title, scale={"type": "log", "nice": False, "padding": 12}, axis=axis, **more)


def hover(**titles: str) -> list[dict[str, Any]]:
    """What pointing at a mark shows: field → title, with a format after ``|``: ``accuracy="val. accuracy|.2%"``."""
    found = []
    for field, text in titles.items():
        title, _, form = text.partition("|")
        found.append({"field": field, "title": title, **({"type": "quantitative", "format": form} if form else {})})
    return found


def by_component(field: str, names: Sequence[str], *, legend: bool = True) -> dict[str, Any]:
    """Channels that tell components apart, by colour and by shape; several of them are grey."""
    colors = [_KIND_COLORS.get(name, OTHER) for name in names]
    shapes = [_SHAPES[name] for name in names]
    shown = {"title": None, "orient": "bottom"} if legend else None
    return {
        "color": {"field": field, "type": "nominal", "scale": {"domain": names, "range": colors}, "legend": shown},
        "shape": {"field": field, "type": "nominal", "scale": {"domain": names, "range": shapes}, "legend": shown},
    }


def responsive(spec: dict[str, Any], *, height: int = 300) -> dict[str, Any]:
    """As wide as the page gives it room."""
    return {"width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"}, **spec}


def intervals(table: str, rows: Rows, name: str, title: str, more: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Of each row its ``mean`` and, where both ends are there, ``low`` to ``high``, about a line at 0."""
    shown = [*hover(**{name: name, "mean": "mean|+.2f", "low": "from|.2f", "high": "to|.2f"}), *more]
    bar = {
        "transform": [{"filter": "datum.low != null && datum.high != null"}],
        "mark": {"type": "rule", "strokeWidth": 2},
        "encoding": {"x": number("low", title), "x2": {"field": "high"}, "tooltip": shown},
    }
    point = {
        "mark": {"type": "point", "filled": True, "size": 80, "color": COLORS["ln2"]},
        "encoding": {"x": number("mean", title), "tooltip": shown},
    }
    zero = {"mark": {"type": "rule", "strokeDash": [3, 3]}, "encoding": {"x": {"datum": 0}, "y": None}}
    spec = {
        "data": {"name": table},
        "encoding": {"y": {"field": name, "type": "nominal", "title": None, "sort": [row[name] for row in rows]}},
        "layer": [zero, *([bar] if any(None not in (row["low"], row["high"]) for row in rows) else []), point],
    }
    return responsive(spec, height=40 + 28 * len(rows))


def whole(spec: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", "config": _CONFIG, **spec}


def to_svg(chart: Chart) -> str:
    """The chart as it stands in a page, 640 points wide where it adapts."""
    import vl_convert  # 84 MB of it, which nobody loads who draws nothing

    spec = whole({**chart.spec, "datasets": {name: list(rows) for name, rows in chart.data.items()}})
    if spec.get("width") == "container":
        spec |= {"width": 640, "autosize": "pad"}
    return vl_convert.vegalite_to_svg(spec)


def page_data(charts: Sequence[Chart]) -> str:
    """The charts as page.js reads them: tables that several draw from are there once."""
    tables: list[Rows] = []

    def place(rows: Rows) -> str:
        number = next((number for number, known in enumerate(tables) if known is rows or known == rows), len(tables))
        if number == len(tables):
            tables.append(rows)
        return str(number)

    found = {
        chart.name: {"spec": chart.spec, "data": {name: place(rows) for name, rows in chart.data.items()}}
        for chart in charts
    }
    shared = {str(number): columns(rows) for number, rows in enumerate(tables)}
    return to_json({"config": _CONFIG, "charts": found, "tables": shared})


def to_json(value: Any) -> str:
    """As a page may hold it between script tags."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def columns(rows: Rows) -> dict[str, list[Any]]:
    """The rows with each name written once, a third of the bytes; what is not finite is null, as JSON has it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [_plain(row.get(name)) for row in rows] for name in names}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def javascript() -> str:
    """Vega, Vega-Lite and vega-embed as one script, 0.9 MB, which leaves `window.vegaEmbed`; takes seconds to make."""
    import vl_convert

    text: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return text.replace("</script", "<\\/script")
