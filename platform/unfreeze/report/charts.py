"""The figures of a sweep's trials in the order of the page, and those of what the trials say together."""

from collections.abc import Iterator

from unfreeze.records import Evidence
from unfreeze.report.chart_data import COSTS, Row, finite, selection_rows, trial_rows
from unfreeze.report.course_charts import best_so_far, learning_curves, predicted_against_measured, slot_timeline
from unfreeze.report.selection_charts import accuracy_against_cost, accuracy_against_plasticity, matrix, rate_map
from unfreeze.report.vega import COLORS, Chart, hover, intervals, percent, responsive

_MOST_PARAMETERS = 60  # in the chart of importances; a space of blocks has more


def trial_charts(evidence: Evidence) -> list[Chart]:
    """All of them, in the order of the page."""
    selections, trials = selection_rows(evidence), trial_rows(evidence)
    charts = [*accuracy_against_plasticity(evidence, selections)]
    charts += [*rate_map(evidence), *matrix(evidence, selections)]
    charts += [*learning_curves(evidence, trials), *best_so_far(trials)]
    charts += [chart for cost in COSTS for chart in accuracy_against_cost(selections, cost)]
    charts += [*predicted_against_measured(evidence), *importances(evidence)]
    return [*charts, *worth_of_scores(evidence), *slot_timeline(trials)]


def importances(evidence: Evidence) -> Iterator[Chart]:
    rows = [{"parameter": name, "share": round(share, 4)} for name, share in evidence.importances.items()][
        :_MOST_PARAMETERS
    ]
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
