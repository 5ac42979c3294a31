"""The front of accuracy against cost."""

import dataclasses

import pytest

from unfreeze.config import FinetuneConfig
from unfreeze.cost.model import CostModel
from unfreeze.evidence.front import FrontPoint, cost_front, undominated


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
    def place(point: FrontPoint) -> tuple[float, float]:
        return point.flops_share, point.val_accuracy

    none, fc2 = point("none", 0.80, 0.3), point("fc2", 0.90, 0.6, 0.10)
    points = [
        point("all", 0.90, 1.0),  # as good as fc2, costlier
        point("ln1", 0.85, 0.6),  # as costly as fc2, worse
        fc2,
        point("fc1", 0.90, 0.6, 0.11),  # both as fc2, later
        none,
    ]
    assert undominated(points, place) == [none, fc2]
    assert undominated([], place) == []
    assert undominated([points[3], fc2], place) == [points[3]]  # of equals the first


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


def test_of_equals_the_one_that_trains_less_stays(costed, build_trial, monkeypatch):
    monkeypatch.setattr(CostModel, "flops_share", lambda *_: 0.5)
    trials = [build_trial(0, "fc1", 0.9), build_trial(1, "ln1", 0.9), build_trial(2, "mha", 0.9)]
    assert [point.selection for point in cost_front(trials, costed.model, FinetuneConfig())] == ["ln1"]


def test_pareto_of_plain_points():
    points = [(3, 0.9), (1, 0.5), (2, 0.4), (3, 0.8), (4, 0.9), (5, 0.95)]
    assert undominated(points, lambda point: point) == [(1, 0.5), (3, 0.9), (5, 0.95)]
