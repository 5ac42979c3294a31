"""Stochastic depth: each image's own choices, in the blocks that are trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from unfreeze.config import FinetuneConfig
from unfreeze.data.sets.catalog import Dataset
from unfreeze.finetune.depth import DropPaths, ImageDropPath
from unfreeze.finetune.loop import finetune
from unfreeze.finetune.prefix import PrefixCache
from unfreeze.finetune.warm import WarmModel
from unfreeze.records import TrialReport, TrialSpec

Make = Callable[..., Any]
CPU = torch.device("cpu")


class Stack(nn.Module):
    """Two blocks of a drop path each, over the identity."""

    def __init__(self, *rates: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(DropPath(rate)) for rate in rates)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [block(x) for block in self.blocks]


def draw(paths: DropPaths, *, step: int = 0, places: slice = slice(0, 4000), lowest: int = 0) -> None:
    paths.draw(seed=3, step=step, batch_size=4000, mine=places, lowest=lowest, device=CPU)


def test_each_layer_drops_its_share_and_keeps_the_mean() -> None:
    stack = Stack(0.1, 0.5).train()
    paths = DropPaths(stack)
    draw(paths)
    paths.choose(slice(0, 4000))
    for rate, out in zip((0.1, 0.5), stack(torch.ones(4000, 2, 3)), strict=True):
        image = out.view(4000, -1)
        assert (image == image[:, :1]).all()  # all of an image or nothing
        assert image[:, 0].unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
        assert (image[:, 0] == 0).float().mean().item() == pytest.approx(rate, abs=0.025)
        assert out.mean().item() == pytest.approx(1, abs=0.04)
    first, second = (out[:, 0, 0] for out in stack(torch.ones(4000, 1, 1)))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) < 0.05


def test_places_layers_and_steps_decide_and_nothing_else() -> None:
    stack = Stack(0.3, 0.3).train()
    paths = DropPaths(stack)
    draw(paths)
    paths.choose(slice(0, 4000))
    whole = stack(torch.ones(4000, 1))[1]
    torch.rand(7)
    draw(paths, places=slice(1000, 3000))  # another worker
    paths.choose(slice(500, 600))  # its micro-batch
    assert torch.equal(stack(torch.ones(100, 1))[1], whole[1500:1600])
    draw(paths, step=1)
    paths.choose(slice(0, 4000))
    assert not torch.equal(stack(torch.ones(4000, 1))[1], whole)


def test_frozen_blocks_rest_and_so_does_evaluation() -> None:
    stack = Stack(0.5, 0.5).train()
    paths = DropPaths(stack)
    draw(paths, lowest=1)
    paths.choose(slice(0, 100))
    ones = torch.ones(100, 1)
    below, above = stack(ones)
    assert torch.equal(below, ones)
    assert not torch.equal(above, ones)
    assert all(torch.equal(out, ones) for out in stack.eval()(ones))
    paths.rest()
    assert all(torch.equal(out, ones) for out in stack.train()(ones))


def test_every_drop_path_of_a_model_is_replaced(make_warm: Make) -> None:
    warm = make_warm(drop_path_rate=0.2)
    kinds = {type(layer) for layer in warm.module.modules() if isinstance(layer, DropPath)}
    assert kinds == {ImageDropPath}


def reports(
    warm: WarmModel, data: Dataset, spec: TrialSpec, config: FinetuneConfig, prefixes: PrefixCache | None = None
) -> tuple[TrialReport, ...]:
    *_, last = finetune(warm, data, spec, config, augment="none", prefixes=prefixes)
    return last.reports


@pytest.mark.parametrize("checkpointing", [False, True])
def test_micro_batches_change_no_number(
    checkpointing: bool, data: Dataset, make_warm: Make, make_spec: Make, make_config: Make
) -> None:
    losses = [
        [
            (report.train_loss, report.val_loss)
            for report in reports(
                make_warm(drop_path_rate=0.4),
                data,
                make_spec("mha"),
                make_config(micro_batch_size=size, activation_checkpointing=checkpointing),
            )
        ]
        for size in (None, 3, 1)
    ]
    for other in losses[1:]:
        assert torch.tensor(other) == pytest.approx(torch.tensor(losses[0]), rel=1e-4)
    without = reports(make_warm(), data, make_spec("mha"), make_config())
    assert without[-1].train_loss != pytest.approx(losses[0][-1][0], rel=1e-3)


def test_kept_activations_give_the_same_numbers(
    data: Dataset, make_warm: Make, make_spec: Make, make_config: Make, tmp_path: Path
) -> None:
    cache = PrefixCache(tmp_path / "prefix", 2**30, {})
    found = [
        [
            report.train_loss
            for report in reports(make_warm(drop_path_rate=0.4), data, make_spec("mha@1"), make_config(), own)
        ]
        for own in (None, cache)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert list(cache.folder.glob("*/tokens"))
