"""The front of accuracy against cost, and where a report shows it."""

import dataclasses

import pytest

from unfreeze.config import FinetuneConfig
from unfreeze.report.front import FrontPoint, cost_front, undominated
from unfreeze.report.page import html_report, terminal_report


def point(selection: str, accuracy: float, flops_share: float, trained_share: float = 0.1) -> FrontPoint:
    return FrontPoint(
        selection=selection,
        val_accuracy=accuracy,
        val_accuracy_sd=None,
        num_seeds=1,
        flops_share=flops_share,
        trained_share=trained_share,
    )


@pytest.fixture
def costed(evidence):
    """With the tokens of the recorded architecture: 32-pixel images in 4-pixel patches and a class token."""
    return dataclasses.replace(evidence, model=dataclasses.replace(evidence.model, num_tokens=65, width=64))


def test_ties_go_to_the_cheaper():
    none, fc2 = point("none", 0.80, 0.3), point("fc2", 0.90, 0.6, 0.10)
    points = [
        point("all", 0.90, 1.0),  # as good as fc2, costlier
        point("ln1", 0.85, 0.6),  # as costly as fc2, worse
        point("fc1", 0.90, 0.6, 0.11),  # both as fc2, trains more
        fc2,
        none,
    ]
    assert undominated(points) == (none, fc2)
    assert undominated([]) == ()


def test_selections_at_their_best_rate_over_seeds(costed, build_trial):
    trials = [
        build_trial(0, "none", 0.70),
        build_trial(1, "all", 0.90, seed=0),
        build_trial(2, "all", 0.94, seed=1),
        build_trial(3, "all", 0.80, learning_rate=0.1, seed=0),
        build_trial(4, "all", 0.82, learning_rate=0.1, seed=1),
        build_trial(5, "ln1", 0.60),  # costs more than none, gives less
    ]
    none, everything = cost_front(trials, costed.model, FinetuneConfig())
    assert (none.selection, none.num_seeds, none.val_accuracy_sd) == ("none", 1, None)
    assert (everything.selection, everything.num_seeds) == ("all", 2)
    assert everything.val_accuracy == pytest.approx(0.92)
    assert everything.flops_share == everything.trained_share == 1
    # Forward pass alone: a third of forward, input and weight gradients, less what the attention's five products add.
    assert 0.25 < none.flops_share < 0.4
    assert none.trained_share == pytest.approx(778 / costed.model.num_parameters)


@pytest.mark.parametrize("report", [terminal_report, html_report])
def test_reports_show_it_where_facts_allow(costed, evidence, report):
    assert "Accuracy against cost" in report(costed)
    assert "training FLOPs" in report(costed)
    assert "Accuracy against cost" not in report(evidence)


def test_a_configuration_of_another_version(costed):
    finetune = {key: value for key, value in costed.config["finetune"].items() if key != "prefix_cache_gib"}
    config = {**costed.config, "finetune": {**finetune, "gone": 1}}
    assert terminal_report(dataclasses.replace(costed, config=config)) == terminal_report(costed)
