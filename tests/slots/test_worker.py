"""A slot's worker and its trials, without Ray: alone, or as rank 1 of two, which does not speak to the board."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
import torch.distributed as dist
from finished_sweep import DATA
from torch import nn

from unfreeze.data.pixels.decode import make_array
from unfreeze.data.pixels.part import Part
from unfreeze.data.sets.catalog import Dataset
from unfreeze.errors import DataError, DeviceMemoryError, SelectionError, StorageError
from unfreeze.finetune.parallel import Worker
from unfreeze.finetune.warm import WarmModel
from unfreeze.load import load_config
from unfreeze.models.build import build_base
from unfreeze.records import TrialRecord, TrialSpec, TrialState, to_dict
from unfreeze.slots.outcome import Lost, Settled
from unfreeze.slots.slot import Slot
from unfreeze.slots.worker import next_job, run_job
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


class Remote:
    """A board's method as Ray offers it; what it was called with."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def remote(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return True


class FakeBoard:
    def __init__(self) -> None:
        self.push, self.finish, self.drop, self.hand_back = Remote(), Remote(), Remote(), Remote()


@pytest.fixture
def alone(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> Slot:
    """The slot as its own leader, with a board that notes what it hears."""
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    return replace(slot, worker=Worker(rank=0, world_size=1), board=FakeBoard())


def test_a_slot_waits_for_the_pre_pass_and_refuses_images_that_are_not_its(alone: Slot) -> None:
    answers = [False, False, True]
    alone.board.await_opening = SimpleNamespace(remote=lambda _: answers.pop(0))
    alone.data = replace(alone.data, digest="seen")
    alone.ledger.write_json("facts.json", {"data": to_dict(replace(DATA, classes=tuple("abcd"), digest="seen"))})
    alone.await_jobs()
    assert answers == []
    answers = [True]
    alone.ledger.write_json("facts.json", {"data": to_dict(replace(DATA, classes=tuple("abcd"), digest="others"))})
    with pytest.raises(DataError):
        alone.await_jobs()


def breaking_with(error: Exception, slot: Slot) -> None:
    def breaks(*_: Any) -> None:
        raise error

    slot.warm.module.patch_embed.register_forward_pre_hook(breaks)


def test_a_trial_ends_and_the_board_hears_it(alone: Slot) -> None:
    run_job(alone, JOB)
    record = alone.ledger.trial(SPEC.trial_id)
    assert record is not None
    assert record.state is TrialState.FINISHED
    assert alone.board.finish.calls == [("slot-0", JOB, Settled())]


@pytest.mark.parametrize(
    "error", [DeviceMemoryError("one image alone does not fit"), SelectionError("nothing to adapt")]
)
def test_what_would_happen_again_is_the_trials_and_recorded(error: Exception, alone: Slot) -> None:
    breaking_with(error, alone)
    run_job(alone, JOB)
    record = alone.ledger.trial(SPEC.trial_id)
    assert record is not None
    assert (record.state, record.error) == (TrialState.FAILED, f"{type(error).__name__}: {error}")
    assert alone.board.finish.calls == [("slot-0", JOB, Settled())]


@pytest.mark.parametrize("error", [StorageError("cannot write"), DataError("no such folder")])
def test_what_the_infrastructure_lacks_leaves_the_trial_open_and_the_slot_alive(error: Exception, alone: Slot) -> None:
    breaking_with(error, alone)
    run_job(alone, JOB)
    record = alone.ledger.trial(SPEC.trial_id)
    assert record is not None
    assert record.state is TrialState.RUNNING
    assert alone.board.finish.calls == [("slot-0", JOB, Lost(f"{type(error).__name__}: {error}"))]


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("CUDA error: an illegal memory access"), RuntimeError("?"), OSError("?")]
)
def test_a_sticky_device_error_and_what_nobody_foresaw_end_the_slot_not_the_trial(
    error: Exception, alone: Slot
) -> None:
    breaking_with(error, alone)
    with pytest.raises(type(error)):
        run_job(alone, JOB)
    record = alone.ledger.trial(SPEC.trial_id)
    assert record is not None
    assert record.state is TrialState.RUNNING
    assert alone.board.drop.calls == [("slot-0", JOB, f"{type(error).__name__}: {error}")]
    assert alone.board.finish.calls == []


def test_a_slot_that_was_given_up_changes_nothing_of_its_successors(alone: Slot) -> None:
    """It finishes what another slot has taken up meanwhile."""
    theirs = TrialRecord(spec=SPEC, state=TrialState.RUNNING, slot="slot-1", attempts=2)
    key = f"checkpoints/{SPEC.trial_id}/last.safetensors"
    ledger = alone.ledger

    class Takeover(Remote):
        def remote(self, *arguments: Any) -> Any:
            alone.writer.flush()
            ledger.write_trial(theirs)
            ledger.write_bytes(key, b"to go on from")
            return True

    alone.board.push = Takeover()
    run_job(alone, JOB)
    assert ledger.trial(SPEC.trial_id) == theirs
    assert ledger.read_bytes(key) == b"to go on from"


def test_a_damaged_checkpoint_is_started_over_not_held_against_the_trial(alone: Slot) -> None:
    alone.ledger.write_trial(TrialRecord(spec=SPEC, state=TrialState.RUNNING))
    alone.ledger.write_bytes(f"checkpoints/{SPEC.trial_id}/last.safetensors", b"torn")
    run_job(alone, JOB)
    record = alone.ledger.trial(SPEC.trial_id)
    assert record is not None
    assert (record.state, record.attempts) == (TrialState.FINISHED, 2)


def test_an_error_that_another_worker_caused_is_left_to_that_one(slot: Slot) -> None:
    def breaks(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        raise RuntimeError("Connection closed by peer")

    slot.warm.module.patch_embed.register_forward_pre_hook(breaks)
    with pytest.raises(RuntimeError, match="closed by peer"):
        run_job(slot, JOB)
    assert slot.ledger.trial(SPEC.trial_id) is None


def test_a_slot_whose_node_is_about_to_go_hands_its_trial_back_with_a_checkpoint(
    alone: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.config.finetune.num_reports = 2
    notices = iter([None, "in two minutes"])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(notices))
    slot = replace(alone, is_warned=True)
    assert not slot.must_leave()
    run_job(slot, JOB)
    assert slot.board.hand_back.calls == [("slot-0", JOB)]
    assert slot.board.finish.calls == []
    record = slot.ledger.trial(SPEC.trial_id)
    assert record is not None
    assert (record.state, len(record.reports)) == (TrialState.RUNNING, 1)
    assert next_job(slot) is None
    run_job(replace(alone, is_warned=False), JOB)  # another slot goes on from there
    record = slot.ledger.trial(SPEC.trial_id)
    assert record is not None
    assert (record.state, len(record.reports)) == (TrialState.FINISHED, 2)
    assert alone.board.finish.calls == [("slot-0", JOB, Settled())]
