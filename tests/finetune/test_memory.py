from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from unfreeze.config import FinetuneConfig
from unfreeze.data.pixels.batches import TrainBatches
from unfreeze.data.sets.catalog import Dataset
from unfreeze.errors import DeviceMemoryError
from unfreeze.finetune.loop import finetune
from unfreeze.finetune.memory import MicroBatch, is_out_of_memory
from unfreeze.finetune.warm import WarmModel
from unfreeze.records import TrialReport, TrialSpec

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_the_allocators_of_host_and_device_are_told_from_other_errors() -> None:
    assert is_out_of_memory(FULL)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_it_is_halved_down_to_one_image_and_no_further() -> None:
    micro, sizes = MicroBatch(13, batch_size=26), []
    for _ in range(4):
        micro.halve(FULL)
        sizes.append(micro.size)
    assert sizes == [7, 4, 2, 1]
    with pytest.raises(DeviceMemoryError, match=r"batch_size=26 .*set finetune.activation_checkpointing"):
        micro.halve(FULL)


def test_of_several_workers_none_halves_alone() -> None:
    with pytest.raises(DeviceMemoryError, match=r"set finetune\.micro_batch_size=8"):
        MicroBatch(16, batch_size=32, world_size=2).halve(FULL)


class Small:
    """A device on which ``most`` images fit into a forward pass in training."""

    def __init__(self, module: nn.Module, most: int) -> None:
        self.tried: list[int] = []
        self._module, self._most = module, most
        module.patch_embed.register_forward_pre_hook(self)

    def __call__(self, _: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if not self._module.training:
            return
        self.tried.append(len(arguments[0]))
        if len(arguments[0]) > self._most:
            raise FULL


def run(warm: WarmModel, data: Dataset, spec: TrialSpec, config: FinetuneConfig) -> list[TrialReport]:
    return [progress.reports[-1] for progress in finetune(warm, data, spec, config, augment="none")]


def test_a_trial_trains_the_same_batch_in_smaller_pieces(
    data: Dataset,
    make_warm: Callable[..., WarmModel],
    make_spec: Callable[..., TrialSpec],
    make_config: Callable[..., FinetuneConfig],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = run(make_warm(), data, make_spec(), make_config(micro_batch_size=2))
    warm = make_warm()
    device = Small(warm.module, most=3)
    reports = run(warm, data, make_spec(), make_config())
    assert device.tried[:7] == [8, 4, 2, 2, 2, 2, 2]
    assert max(device.tried[2:]) == 2
    assert [(r.train_loss, r.val_loss) for r in reports] == [(r.train_loss, r.val_loss) for r in expected]
    assert caplog.text.count("out of memory") == 2
    device.tried.clear()
    run(warm, data, make_spec(), make_config())  # the slot remembers
    assert set(device.tried) == {2}


def test_no_room_for_the_next_batch_is_had_by_smaller_pieces_too(
    data: Dataset,
    make_warm: Callable[..., WarmModel],
    make_spec: Callable[..., TrialSpec],
    make_config: Callable[..., FinetuneConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch is made beside the step before it, whose activations take the room."""
    expected = run(make_warm(), data, make_spec(), make_config())
    warm, errors = make_warm(), [FULL]
    device, whole = Small(warm.module, most=8), TrainBatches.iterate

    def iterate(batches: TrainBatches, first_step: int, num_steps: int) -> Iterator[Any]:
        for step, batch in enumerate(whole(batches, first_step, num_steps), first_step):
            if step == 2 and errors:
                raise errors.pop()
            yield batch

    monkeypatch.setattr(TrainBatches, "iterate", iterate)
    reports = run(warm, data, make_spec(), make_config())
    assert device.tried[:4] == [8, 8, 4, 4]
    assert set(device.tried[2:]) == {4}
    assert warm.fitting == {"mha": 4}
    assert [r.val_loss for r in reports] == pytest.approx([r.val_loss for r in expected], rel=1e-5)


def test_where_one_image_does_not_fit_the_trial_fails_with_the_way_out(
    data: Dataset,
    make_warm: Callable[..., WarmModel],
    make_spec: Callable[..., TrialSpec],
    make_config: Callable[..., Any],
) -> None:
    warm = make_warm()
    Small(warm.module, most=0)
    with pytest.raises(DeviceMemoryError, match="one image alone does not fit"):
        run(warm, data, make_spec(), make_config())
