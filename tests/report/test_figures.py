"""Figures: valid SVG, what is drawn, the same bytes twice, and few points."""

import dataclasses
import io
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from unfreeze.records import COMPONENTS, TrialState
from unfreeze.report import drawing, figures, plasticity_figures
from unfreeze.report.figures import render_all
from unfreeze.report.plasticity_figures import plot_by_block, pre_pass_figures


def ids(svg: str) -> set[str]:
    return {element.get("id", "") for element in ElementTree.fromstring(svg).iter()}


def test_all_are_svg_and_repeat_to_the_byte(evidence):
    first = render_all(evidence)
    assert list(first) == [
        "plasticity_by_block_reference",
        "plasticity_by_block_in_situ",
        "accuracy_against_plasticity_reference",
        "accuracy_against_plasticity_in_situ",
        "best_so_far",
        "accuracy_against_parameters",
    ]
    assert render_all(evidence) == first
    for svg in first.values():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "date" not in svg
        assert svg.startswith('<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="640" height="370"')


def test_ids_are_unique_on_one_page_and_refer_to_each_other(evidence):
    svgs = list(render_all(evidence).values())
    found = [name for svg in svgs for name in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(found) == len(set(found))
    for svg in svgs:
        assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_a_line_per_component(evidence):
    svg = plasticity_figures.plasticity_by_block(evidence.plasticity, "reference")
    assert {f"by-block-reference-{name}" for name in COMPONENTS} <= ids(svg)
    assert all(drawing.COLORS[name].lower() in svg for name in COMPONENTS)


def without(table, component, **values):
    """The table with fields of every row of one component replaced."""
    rows = tuple(dataclasses.replace(row, **values) if row.component == component else row for row in table.rows)
    return dataclasses.replace(table, rows=rows)


def heights(svg: str, gid: str) -> list[float]:
    """y of the points of a line, downwards as in SVG."""
    path = next(e for e in ElementTree.fromstring(svg).iter() if e.get("id") == gid)[0]
    return [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path.get("d"))]


class TestPrePass:
    def test_what_each_mode_has_the_numbers_for(self, evidence, full_table, full_evidence):
        first = pre_pass_figures(full_table)
        assert list(first) == [
            "plasticity_by_block_reference",
            "plasticity_by_block_in_situ",
            "plasticity_distribution_reference",
            "plasticity_distribution_in_situ",
            "plasticity_against_bound_reference",
        ]
        assert pre_pass_figures(full_table) == first
        assert list(pre_pass_figures(evidence.plasticity)) == list(first)[:2]
        assert list(render_all(full_evidence))[:5] == list(first)
        unknown = tuple(dataclasses.replace(b, valid=None, as_published=None) for b in full_table.bounds)
        assert list(pre_pass_figures(dataclasses.replace(full_table, bounds=unknown))) == list(first)[:4]

    def test_ids_and_size(self, full_evidence):
        svgs = list(render_all(full_evidence).values())
        found = [name for svg in svgs for name in re.findall(r'\bid="([^"]+)"', svg)]
        assert len(found) == len(set(found))
        assert all(svg.startswith("<svg") and 'width="640" height="370"' in svg[:200] for svg in svgs)

    def test_a_box_per_component_that_has_quantiles(self, full_table):
        svg = plasticity_figures.plasticity_distribution(full_table, "reference")
        assert {f"distribution-reference-{name}" for name in COMPONENTS} <= ids(svg)
        assert {f"distribution-reference-{name}-mean" for name in COMPONENTS} <= ids(svg)
        svg = plasticity_figures.plasticity_distribution(without(full_table, "ln2", quantiles=()), "reference")
        assert "distribution-reference-ln2" not in ids(svg)
        assert {"distribution-reference-mha", "distribution-reference-fc1"} <= ids(svg)
        assert ">ln2<" not in svg

    def test_a_box_is_the_quantiles(self, full_table):
        row = next(r for r in full_table.rows if r.component == "fc1" and r.block is None and r.mode == "reference")
        assert plasticity_figures._box(row) == {
            "whislo": row.mean - 0.4,
            "q1": row.mean - 0.1,
            "med": row.mean + 0.02,
            "q3": row.mean + 0.2,
            "whishi": row.mean + 0.5,
            "mean": row.mean,
            "label": "fc1",
        }

    def test_rates_lie_below_the_bounds_that_are_known(self, full_table):
        svg = plasticity_figures.plasticity_against_bound(full_table, "reference")
        for name in COMPONENTS:
            mean, largest, valid = (
                heights(svg, f"against-bound-reference-{name}-{kind}") for kind in ("mean", "largest", "valid")
            )
            assert len(mean) == len(largest) == len(valid) == 4
            assert all(a > b > c for a, b, c in zip(mean, largest, valid, strict=True))
        published = heights(svg, "against-bound-reference-ln1-as_published")
        above = [a > b for a, b in zip(published, heights(svg, "against-bound-reference-ln1-largest"), strict=True)]
        assert above == [False, True, True, True]
        assert "against-bound-reference-mha-as_published" not in ids(svg)

    def test_a_bound_unknown_in_one_block_and_no_maxima(self, full_table):
        bounds = tuple(dataclasses.replace(b, valid=None) if b.block == 1 else b for b in full_table.bounds)
        table = dataclasses.replace(without(full_table, "fc1", maximum=None), bounds=bounds)
        svg = plasticity_figures.plasticity_against_bound(table, "reference")
        assert len(heights(svg, "against-bound-reference-fc1-valid")) == 3
        assert "against-bound-reference-fc1-largest" not in ids(svg)
        assert "against-bound-reference-fc1-mean" in ids(svg)

    def test_an_interval_that_says_nothing_yet(self, full_table):
        """Too few pairs for the confidence: the interval is infinite."""
        svg = plasticity_figures.plasticity_by_block(
            without(full_table, "fc1", low=-math.inf, high=math.inf), "reference"
        )
        assert len(heights(svg, "by-block-reference-fc1")) == 4
        assert "inf" not in svg
        assert "nan" not in svg

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


def test_components_are_named_and_the_title_has_the_statistic(evidence):
    svg = figures.accuracy_against_plasticity(evidence, "in_situ")
    texts = {element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")}
    assert set(COMPONENTS) <= texts
    assert any("Spearman" in (text or "") and "n = 5" in (text or "") for text in texts)


@pytest.mark.parametrize("states", [(), (TrialState.FINISHED,), (TrialState.DIVERGED,)])
def test_few_points(build_trial, build_evidence, states):
    trials = tuple(build_trial(index, "mha", 0.0, state=state) for index, state in enumerate(states))
    assert all(ElementTree.fromstring(svg) is not None for svg in render_all(build_evidence(trials)).values())
