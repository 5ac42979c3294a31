"""Calibration: which steps are measured, and what is read off them. The clock is the test's own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from unfreeze.components.selection import parse_selection
from unfreeze.config import FinetuneConfig
from unfreeze.cost import calibrate as calibration
from unfreeze.cost.calibrate import calibrate, measure_step
from unfreeze.cost.model import CostModel
from unfreeze.data.sets.catalog import Dataset
from unfreeze.finetune.loop import finetune
from unfreeze.finetune.warm import WarmModel
from unfreeze.records import TrialReport, TrialSpec


def flops(cost: CostModel, text: str) -> float:
    return cost.flops(parse_selection(text, num_blocks=cost.model.num_blocks)).total


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Steps take 0.1 s and a second for each GFLOP that the whole model computes; (selection, images) of each."""
    seen: list[tuple[str, int]] = []

    def step(warm: WarmModel, selection: str, cost: CostModel, *, images: int) -> float:
        seen.append((selection, images))
        plain = CostModel(warm.base.facts, FinetuneConfig())
        return 0.1 + images * flops(plain, selection) / 1e9

    monkeypatch.setattr(calibration, "measure_step", step)
    return seen


@pytest.mark.parametrize(
    ("settings", "images"),
    [
        ({"batch_size": 8}, 8),
        ({"batch_size": 64}, 16),
        ({"batch_size": 64, "micro_batch_size": 4}, 4),
        ({"batch_size": 8, "prefix_cache_gib": 1.0}, 8),
        ({"batch_size": 8, "train_head": False}, 8),
    ],
)
def test_the_line_is_that_of_the_machine_whatever_is_configured(
    settings: dict[str, Any], images: int, counted: list[tuple[str, int]], make_warm: Callable[..., WarmModel]
) -> None:
    """A cached prefix is no part of the measured step, and must not be missing from its FLOPs either."""
    warm = make_warm()
    time = calibrate(warm, CostModel(warm.base.facts, FinetuneConfig(**settings)))
    assert counted == [("all", images), ("none", images)]
    assert (time.overhead_s, time.flops_per_s) == (pytest.approx(0.1), pytest.approx(1e9))


def test_a_real_step_is_measured(make_warm: Callable[..., WarmModel]) -> None:
    warm = make_warm()
    cost = CostModel(warm.base.facts, FinetuneConfig(batch_size=4))
    assert measure_step(warm, "mha", cost, images=4) > 0
    assert calibrate(warm, cost).flops_per_s > 0


def test_a_trial_after_it_is_the_trial_without_it(
    make_warm: Callable[..., WarmModel],
    make_spec: Callable[..., TrialSpec],
    make_config: Callable[..., FinetuneConfig],
    data: Dataset,
) -> None:
    config = make_config()

    def reports(warm: WarmModel) -> list[TrialReport]:
        progress = list(finetune(warm, data, make_spec(), config, augment="none"))
        return [replace(report, seconds=0.0, timestamp_ms=0) for report in progress[-1].reports]

    calibrated = make_warm()
    calibrate(calibrated, CostModel(calibrated.base.facts, config))
    assert reports(calibrated) == reports(make_warm())
