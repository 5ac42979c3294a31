"""A trial that dies in the middle of a step and is taken up again, by the same slot, from its last report."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unfreeze.data.sets.catalog import Dataset
from unfreeze.finetune.checkpoint import Checkpoint
from unfreeze.finetune.loop import finetune
from unfreeze.finetune.warm import WarmModel
from unfreeze.records import TrialReport

NUM_PASSES = 12 * 3  # micro-batches of a trial: 12 steps of 8 images, 3 at a time


class Killed(BaseException):
    """What no handler of the loop's may swallow."""


def kill_in_pass(module: nn.Module, count: int) -> None:
    """Raise in the ``count``-th training pass (from 0), half of the step's gradients made perhaps."""
    passes = 0

    def step(*_: Any) -> None:
        nonlocal passes
        passes += module.training
        if passes == count + 1 and module.training:
            handle.remove()
            raise Killed

    handle = module.head.register_forward_hook(step)  # type: ignore[union-attr]


@pytest.mark.parametrize("draw", range(6))
def test_killed_in_a_random_pass_and_resumed_the_weights_are_bitwise_equal(
    draw: int,
    data: Dataset,
    make_warm: Callable[..., WarmModel],
    make_spec: Callable[..., Any],
    make_config: Callable[..., Any],
) -> None:
    rng = np.random.default_rng(draw)
    spec = make_spec(["all", "mha", "ln1+fc2@1"][draw % 3], seed=draw)
    config = make_config(micro_batch_size=3, num_reports=5)  # uneven: after steps 2, 5, 7, 10, 12
    dropout = {"proj_drop_rate": 0.2, "drop_path_rate": 0.2}
    warm = make_warm(**dropout)
    *_, whole = finetune(warm, data, spec, config, augment="crop_flip")
    final = {name: value.detach().clone() for name, value in warm.module.named_parameters()}

    slot = make_warm(**dropout)
    kill_in_pass(slot.module, int(rng.integers(NUM_PASSES)))
    saved: bytes | None = None
    reports: tuple[TrialReport, ...] = ()
    with pytest.raises(Killed):  # noqa: PT012
        for progress in finetune(slot, data, spec, config, augment="crop_flip"):
            saved, reports = progress.checkpoint.to_bytes(), progress.reports
    last = None if saved is None else Checkpoint.from_bytes(saved, base_digest=slot.base.facts.digest)
    last = None if last is None else replace(last, reports=reports)
    *_, resumed = finetune(slot, data, spec, config, augment="crop_flip", resume=last)
    assert [(r.images_seen, r.train_loss, r.val_loss) for r in resumed.reports] == [
        (r.images_seen, r.train_loss, r.val_loss) for r in whole.reports
    ]
    own = dict(slot.module.named_parameters())
    assert [name for name in final if not torch.equal(final[name], own[name])] == []
