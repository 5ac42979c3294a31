"""A slot's worker where a trial cannot be run. No Ray: rank 1 of two, the one that does not speak to the board."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from unfreeze.data.pixels.decode import make_array
from unfreeze.data.pixels.part import Part
from unfreeze.data.sets.catalog import Dataset
from unfreeze.errors import DeviceMemoryError
from unfreeze.finetune.parallel import Worker
from unfreeze.finetune.warm import WarmModel
from unfreeze.load import load_config
from unfreeze.models.build import build_base
from unfreeze.records import TrialSpec, TrialState, to_dict
from unfreeze.slots.slot import Slot
from unfreeze.slots.worker import run_job
from unfreeze.slots.writer import Writer
from unfreeze.storage.ledger import Ledger

SPEC = TrialSpec(index=0, selection="mha", learning_rate=0.1, seed=0, origin="search")
JOB = {"job_id": SPEC.trial_id, "trial": to_dict(SPEC), "attempt": 1}


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[Slot]:
    """Its group has one process, which is enough for DDP to be set up in it."""
    small = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 16}
    config = load_config(
        {
            "model": {"weights": "random", "kwargs": small},
            "data": {"augment": "none"},
            "finetune": {"steps": 2, "batch_size": 8, "num_reports": 1},
        }
    )
    images = make_array(np.zeros((16, 32, 32, 3), dtype=np.uint8), np.arange(16) % 4)
    part = Part(images, np.arange(16))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield Slot(
        slot_id="slot-0",
        worker=Worker(rank=1, world_size=2),
        board=None,
        ledger=Ledger(str(tmp_path / "runs"), "sweep"),
        config=config,
        warm=WarmModel(build_base(config, num_classes=4), torch.device("cpu")),
        data=Dataset(tuple("abcd"), part, part, num_test=0, digest="", bad_files=()),
        prefixes=None,
        writer=Writer(),
    )
    dist.destroy_process_group()


def test_of_several_workers_the_one_without_memory_records_why_and_the_trial_is_not_tried_again(
    slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards: list[int] = []

    def is_full(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        forwards.append(len(arguments[0]))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    slot.warm.module.patch_embed.register_forward_pre_hook(is_full)
    with pytest.raises(DeviceMemoryError):  # the group restarts
        run_job(slot, JOB)
    record = slot.ledger.trial(SPEC.trial_id)
    assert record is not None
    assert record.state is TrialState.FAILED
    assert "finetune.micro_batch_size=2" in str(record.error)
    # The leader, which is not here, reads the record and tells it.
    monkeypatch.setattr(Slot, "agree", lambda *_: record)
    run_job(slot, {**JOB, "attempt": 2})
    assert forwards == [4]
    assert slot.ledger.trial(SPEC.trial_id) == record


def test_an_error_that_another_worker_caused_is_left_to_that_one(slot: Slot) -> None:
    def breaks(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        raise RuntimeError("Connection closed by peer")

    slot.warm.module.patch_embed.register_forward_pre_hook(breaks)
    with pytest.raises(RuntimeError, match="closed by peer"):
        run_job(slot, JOB)
    assert slot.ledger.trial(SPEC.trial_id) is None
