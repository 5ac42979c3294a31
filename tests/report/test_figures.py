"""Charts: what is drawn from which numbers, the same bytes twice, and few points."""

import dataclasses
import io
import json
import math
import xml.etree.ElementTree as ElementTree

import pytest

from unfreeze.records import COMPONENTS, ScoreWorth, TrialState, Worth
from unfreeze.report import chart_data, vega
from unfreeze.report.charts import trial_charts
from unfreeze.report.figures import all_charts, render_all
from unfreeze.report.notebook import plot_by_block
from unfreeze.report.plasticity_charts import plasticity_by_block, pre_pass_charts


@pytest.fixture
def costed(full_evidence):
    """With all that a chart may be made of: tokens to count FLOPs by, cutoffs, and a score with a number."""
    model = dataclasses.replace(full_evidence.model, num_tokens=65, width=64)
    cut = [
        dataclasses.replace(t, spec=dataclasses.replace(t.spec, stop_below=((1000, 0.3),)))
        for t in full_evidence.trials
    ]
    number = Worth(mean=0.012, low=-math.inf, high=0.026, positive=0.94, p=0.058, bayes_factor=2.1)
    worths = (ScoreWorth(score="reference", num_trials=32, worth=number), *full_evidence.worths[1:])
    return dataclasses.replace(
        full_evidence, model=model, trials=tuple(cut), worths=worths, importances={"mha": 0.6, "fc1": 0.4}
    )


def rows_of(charts, name, table):
    return next(chart for chart in charts if chart.name == name).data[table]


def test_all_are_svg_and_repeat_to_the_byte(costed):
    first = render_all(costed)
    assert list(first) == [
        "plasticity_by_block_reference",
        "plasticity_by_block_in_situ",
        "plasticity_distribution_reference",
        "plasticity_distribution_in_situ",
        "plasticity_against_bound_reference",
        "accuracy_against_plasticity_reference",
        "accuracy_against_plasticity_in_situ",
        "component_by_rate",
        "selections_by_accuracy",
        "learning_curves",
        "best_so_far",
        "accuracy_against_flops",
        "accuracy_against_seconds",
        "accuracy_against_parameters",
        "cost_predicted_against_measured",
        "importances",
        "worth_of_scores",
        "slot_timeline",
    ]
    for name in ("slot_timeline", "plasticity_against_bound_reference"):
        chart = next(chart for chart in all_charts(costed) if chart.name == name)
        assert vega.to_svg(chart) == first[name]
    for svg in first.values():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert svg.count("<path") >= 3
        assert "NaN" not in svg


def test_a_page_holds_each_table_once(costed):
    charts = all_charts(costed)
    data = json.loads(vega.page_data(charts))
    assert list(data["charts"]) == [chart.name for chart in charts]
    assert len({chart["data"].get("trials") for chart in data["charts"].values()} - {None}) == 1
    trials = data["tables"][data["charts"]["learning_curves"]["data"]["trials"]]
    assert trials["selection"] == [trial.spec.selection for trial in costed.trials]


def test_what_ends_a_script_is_written_otherwise():
    assert "</script" not in vega.to_json("</script><script>")
    assert json.loads(vega.to_json("</script>")) == "</script>"
    assert "</script" not in vega.javascript()


class TestPrePass:
    def test_what_each_mode_has_the_numbers_for(self, evidence, full_table):
        names = [chart.name for chart in pre_pass_charts(full_table)]
        assert names[2:] == [
            "plasticity_distribution_reference",
            "plasticity_distribution_in_situ",
            "plasticity_against_bound_reference",
        ]
        assert [chart.name for chart in pre_pass_charts(evidence.plasticity)] == names[:2]
        unknown = tuple(dataclasses.replace(b, valid=None, as_published=None) for b in full_table.bounds)
        assert len(pre_pass_charts(dataclasses.replace(full_table, bounds=unknown))) == 4

    def test_a_box_is_the_quantiles(self, full_table):
        row = next(r for r in full_table.rows if r.component == "fc1" and r.block is None and r.mode == "reference")
        boxes = rows_of(pre_pass_charts(full_table), "plasticity_distribution_reference", "spread")
        assert [box["component"] for box in boxes] == list(COMPONENTS)
        assert boxes[3] == {
            "component": "fc1",
            "q05": row.mean - 0.4,
            "q25": row.mean - 0.1,
            "q50": row.mean + 0.02,
            "q75": row.mean + 0.2,
            "q95": row.mean + 0.5,
            "mean": row.mean,
        }

    def test_bounds_that_are_known(self, full_table):
        found = rows_of(pre_pass_charts(full_table), "plasticity_against_bound_reference", "bounds")
        kinds = {name: [row["kind"] for row in found if row["component"] == name] for name in COMPONENTS}
        assert kinds["mha"].count("valid bound") == 4
        assert "published bound" not in kinds["mha"]
        rates = {row["kind"]: row["rate"] for row in found if (row["component"], row["block"]) == ("ln1", 0)}
        assert rates["mean rate"] < rates["largest rate"] < rates["published bound"] < rates["valid bound"]

    def test_an_interval_that_says_nothing_yet(self, full_table):
        """Too few pairs for the confidence: the interval is infinite, and JSON has no such number."""
        rows = tuple(
            dataclasses.replace(row, low=-math.inf, high=math.inf) if row.component == "fc1" else row
            for row in full_table.rows
        )
        chart = plasticity_by_block(dataclasses.replace(full_table, rows=rows), "reference")
        assert [row["low"] for row in chart.data["by_block"] if row["component"] == "fc1"] == [None] * 4
        vega.page_data([chart])
        assert "NaN" not in vega.to_svg(chart)

    def test_a_panel_per_mode_for_a_notebook(self, full_table):
        figure = plot_by_block(full_table, full_table.modes)
        assert [axes.get_title(loc="left") for axes in figure.axes] == [
            "Plasticity by block, reference",
            "Plasticity by block, in_situ",
        ]
        drawn = {line.get_gid(): list(line.get_ydata()) for line in figure.axes[1].get_lines()}
        expected = {r.component: [] for r in full_table.rows}
        for row in full_table.rows:
            if row.mode == "in_situ" and row.block is not None:
                expected[row.component].append(row.mean)
        assert drawn == expected
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        assert buffer.getvalue().startswith(b"\x89PNG")


class TestTrials:
    def test_a_selection_spans_its_seeds(self, evidence):
        rows = chart_data.selection_rows(evidence)
        assert [row["accuracy"] for row in rows] == sorted((row["accuracy"] for row in rows), reverse=True)
        best = rows[0]
        assert (best["selection"], best["kind"], best["seeds"]) == ("mha+fc1", "several", 2)
        assert (best["low"], best["accuracy"], best["high"]) == (0.96, 0.965, 0.97)
        assert {row["kind"] for row in rows} == {*COMPONENTS, "several", "all", "none"}
        assert "plasticity_reference" not in next(row for row in rows if row["selection"] == "all")

    def test_the_front_is_what_nothing_cheaper_matches(self, evidence):
        rows = chart_data.selection_rows(evidence)
        front = chart_data.front_of(rows, "parameters")
        for one in front:
            assert not any(r["parameters"] < one["parameters"] and r["accuracy"] >= one["accuracy"] for r in rows)
        assert front[-1]["selection"] == "mha+fc1"

    def test_a_cell_is_the_best_trial_that_trains_the_component(self, evidence):
        cells = {(row["component"], row["rate"]): row for row in chart_data.cell_rows(evidence)}
        found = cells["fc1", 0.01]
        assert (found["accuracy"], found["trials"], found["selection"]) == (0.97, 4, "mha+fc1")  # `all` among them
        assert found["mean"] == pytest.approx((0.95 + 0.94 + 0.96 + 0.97) / 4, abs=1e-5)
        assert cells["fc2", 0.01]["trials"] == 2  # what was stopped or diverged does not count

    def test_many_rates_are_gathered(self, build_trial, build_evidence):
        rates = [10 ** (-3 + index / 20) for index in range(40)]
        trials = tuple(build_trial(index, "mha", 0.9, learning_rate=rate) for index, rate in enumerate(rates))
        cells = chart_data.cell_rows(build_evidence(trials))
        assert [row["rate"] for row in cells] == [0.001, 0.0022, 0.0046, 0.01, 0.022, 0.046, 0.1]
        assert sum(row["trials"] for row in cells) == 40

    def test_the_line_of_the_best_is_of_finished_trials(self, evidence):
        rows = chart_data.trial_rows(evidence)
        assert [row["best"] for row in rows[:3]] == [0.95, 0.95, 0.95]
        assert rows[-1]["best"] == 0.97

    def test_a_slot_is_busy_from_the_start_to_the_last_report(self, evidence):
        rows = chart_data.trial_rows(evidence)
        assert (rows[0]["began"], rows[0]["ended"]) == (0.0, 6.0)
        assert (rows[2]["began"], rows[2]["ended"]) == (120.0, 126.0)
        assert {row["slot"] for row in rows} == {"slot-0"}

    def test_the_median_trial_lies_on_the_line_of_the_pace(self, costed):
        rows = chart_data.pace_rows(costed)
        assert len(rows) == 9
        assert sorted(row["off"] for row in rows)[4] == pytest.approx(0, abs=1e-4)

    def test_cutoffs_are_counted(self, costed):
        assert chart_data.cutoff_rows(costed.trials) == [{"images": 1000, "below": 0.3, "trials": 13}]

    def test_the_title_has_the_statistic(self, evidence):
        (chart,) = [c for c in trial_charts(evidence) if c.name == "accuracy_against_plasticity_in_situ"]
        assert "Spearman" in chart.title
        assert chart.title.endswith("over n = 5 components")


@pytest.mark.parametrize("states", [(), (TrialState.FINISHED,), (TrialState.DIVERGED,)])
def test_few_points(build_trial, build_evidence, states):
    trials = tuple(build_trial(index, "mha", 0.0, state=state) for index, state in enumerate(states))
    svgs = render_all(build_evidence(trials))
    assert all(ElementTree.fromstring(svg) is not None for svg in svgs.values())
    assert ("best_so_far" in svgs) == bool(states)
    assert ("component_by_rate" in svgs) == (states == (TrialState.FINISHED,))
