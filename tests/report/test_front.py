"""Where a report shows the front of accuracy against cost."""

import dataclasses

import pytest

from unfreeze.report.page import html_report, terminal_report


@pytest.fixture
def costed(evidence):
    """With the tokens of the recorded architecture: 32-pixel images in 4-pixel patches and a class token."""
    return dataclasses.replace(evidence, model=dataclasses.replace(evidence.model, num_tokens=65, width=64))


@pytest.mark.parametrize("report", [terminal_report, html_report])
def test_reports_show_it_where_facts_allow(costed, evidence, report):
    assert "Accuracy against cost" in report(costed)
    assert "training FLOPs" in report(costed)
    assert "Accuracy against cost" not in report(evidence)


def test_a_configuration_of_another_version(costed):
    finetune = {key: value for key, value in costed.config["finetune"].items() if key != "prefix_cache_gib"}
    config = {**costed.config, "finetune": {**finetune, "gone": 1}}
    assert terminal_report(dataclasses.replace(costed, config=config)) == terminal_report(costed)
