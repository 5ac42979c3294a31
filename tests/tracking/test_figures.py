"""Figures: valid SVG, what is drawn, the same bytes twice, and few points."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from unfreeze.records import COMPONENTS, TrialState
from unfreeze.tracking import figures
from unfreeze.tracking.figures import pareto_front, render_all


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
    svg = figures.plasticity_by_block(evidence.plasticity, "reference")
    assert {f"by-block-reference-{name}" for name in COMPONENTS} <= ids(svg)
    assert all(figures.COLORS[name].lower() in svg for name in COMPONENTS)


def test_components_are_named_and_the_title_has_the_statistic(evidence):
    svg = figures.accuracy_against_plasticity(evidence, "in_situ")
    texts = {element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")}
    assert set(COMPONENTS) <= texts
    assert any("Spearman" in (text or "") and "n = 5" in (text or "") for text in texts)


@pytest.mark.parametrize("states", [(), (TrialState.FINISHED,), (TrialState.DIVERGED,)])
def test_few_points(build_trial, build_evidence, states):
    trials = tuple(build_trial(index, "mha", 0.0, state=state) for index, state in enumerate(states))
    assert all(ElementTree.fromstring(svg) is not None for svg in render_all(build_evidence(trials)).values())


def test_pareto_front():
    assert pareto_front([(3, 0.9), (1, 0.5), (2, 0.4), (3, 0.8), (4, 0.9), (5, 0.95)]) == [
        (1, 0.5),
        (3, 0.9),
        (5, 0.95),
    ]
    assert pareto_front([]) == []
