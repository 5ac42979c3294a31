import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unfreeze.config import FinetuneConfig, ModelConfig
from unfreeze.data.sets.catalog import Dataset
from unfreeze.errors import CheckpointError
from unfreeze.finetune.checkpoint import Checkpoint, optimizer_tensors, restore
from unfreeze.finetune.loop import finetune
from unfreeze.finetune.optim import make_optimizer
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import build_model, parameter_dict
from unfreeze.records import TrialSpec

MakeCheckpoint = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def make_checkpoint(
    data: Dataset,
    make_warm: Callable[..., WarmModel],
    make_spec: Callable[..., TrialSpec],
    make_config: Callable[..., FinetuneConfig],
) -> MakeCheckpoint:
    """(selection, configuration) → the checkpoint after the second report."""

    def make(selection: str = "mha", **settings: object) -> Checkpoint:
        loop = finetune(
            make_warm(),
            data,
            make_spec(selection, stop_below=((48, 0.25), (96, 0.5))),
            make_config(**settings),
            augment="none",
        )
        next(loop)
        return next(loop).checkpoint

    return make


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw"}, {"ema_decay": 0.9, "layer_decay": 0.5}])
@pytest.mark.parametrize("selection", ["mha", "all", "none", "embed+fc2@1"])
def test_round_trip(settings: dict[str, object], selection: str, make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint(selection, **settings)
    assert bool(checkpoint.ema) == ("ema_decay" in settings)
    read = Checkpoint.from_bytes(checkpoint.to_bytes(), base_digest=checkpoint.base_digest)
    assert (read.spec, read.base_digest, read.step) == (checkpoint.spec, checkpoint.base_digest, checkpoint.step)
    assert read.reports == ()  # they are in the trial's record
    kinds = ("parameters", "optimizer", "ema")
    for before, after in ((getattr(checkpoint, kind), getattr(read, kind)) for kind in kinds):
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert after[name].dtype == value.dtype
            assert torch.equal(after[name], value)
    assert read.to_bytes() == checkpoint.to_bytes()


@pytest.fixture(scope="module")
def deit_tiny() -> WarmModel:
    config = ModelConfig(name="deit_tiny_patch16_224", weights="random", image_size=32)
    return WarmModel(build_model(config, num_classes=12, cache_dir=Path("unused")), torch.device("cpu"))


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 2), ("adamw", 3)])
@pytest.mark.parametrize("selection", ["ln1", "ln1+ln2", "mha", "fc2@0-5", "mha@11", "all"])
def test_it_is_as_large_as_what_is_trained(
    optimizer: Any, copies: int, selection: str, deit_tiny: WarmModel, make_spec: Callable[..., TrialSpec]
) -> None:
    """Parameters, and momentum (or two moments) of each, 4 bytes a number: 2 % more at most."""
    checkpoint = trained_for_a_step(deit_tiny, make_spec(selection), FinetuneConfig(optimizer=optimizer))
    tensors = 4 * sum(value.numel() for value in checkpoint.parameters.values())
    assert tensors * copies < len(checkpoint.to_bytes()) <= 1.02 * tensors * copies
    if selection != "ln1":  # its 29 kB alone: 2.6 %
        assert tensors < len(checkpoint.for_evaluation().to_bytes()) <= 1.02 * tensors


def test_averages_are_a_copy_more(deit_tiny: WarmModel, make_spec: Callable[..., TrialSpec]) -> None:
    """The rule with ``ema_decay``: trained tensors, their optimizer state and their averages, 2 % more at most."""
    checkpoint = trained_for_a_step(deit_tiny, make_spec("mha"), FinetuneConfig())
    tensors = 4 * sum(value.numel() for value in checkpoint.parameters.values())
    averaged = replace(checkpoint, ema=checkpoint.parameters)
    assert 3 * tensors < len(averaged.to_bytes()) <= 1.02 * 3 * tensors


def test_of_a_linear_probe_the_kilobyte_of_names_is_the_larger_part(
    deit_tiny: WarmModel, make_spec: Callable[..., TrialSpec]
) -> None:
    checkpoint = trained_for_a_step(deit_tiny, make_spec("none"), FinetuneConfig())
    tensors = 8 * sum(value.numel() for value in checkpoint.parameters.values())
    assert tensors < len(checkpoint.to_bytes()) <= tensors + 1000


def trained_for_a_step(warm: WarmModel, spec: TrialSpec, config: FinetuneConfig) -> Checkpoint:
    """A trial's checkpoint with full optimizer state; what it learnt does not matter."""
    _, names = warm.prepare(spec.selection, seed=0, train_head=True)
    trained = parameter_dict(warm.module, names)
    optimizer, names = make_optimizer(trained, config, num_blocks=12)
    for value in trained.values():
        value.grad = torch.ones_like(value)
    optimizer.step()
    return Checkpoint(
        spec=spec,
        base_digest=warm.base.facts.digest,
        step=1,
        reports=(),
        parameters=parameter_dict(warm.module, warm.changed),
        optimizer=optimizer_tensors(optimizer, names),
    )


def test_a_snapshot_does_not_change_with_the_model(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint("mha", ema_decay=0.5)
    snapshot = checkpoint.snapshot()
    before = checkpoint.to_bytes()
    for kind in (checkpoint.parameters, checkpoint.optimizer, checkpoint.ema):
        for value in kind.values():
            value.detach().zero_()
    assert snapshot.to_bytes() == before
    assert checkpoint.to_bytes() != before


def test_another_base_model_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    data = make_checkpoint().to_bytes()
    with pytest.raises(CheckpointError, match="base weights"):
        Checkpoint.from_bytes(data, base_digest="0" * 64)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 2000, -1])
def test_cut_bytes_are_refused(length: int, make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoint.from_bytes(checkpoint.to_bytes()[:length], base_digest=checkpoint.base_digest)


@pytest.mark.parametrize("data", [b"no safetensors at all", b"\x00" * 64, b"\xff" * 64])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoint.from_bytes(data, base_digest="")


def test_tensors_without_the_record_are_refused() -> None:
    from safetensors.torch import save

    for metadata in (None, {"format": "pt"}, {"unfreeze": "no json"}):
        with pytest.raises(CheckpointError, match="damaged"):
            Checkpoint.from_bytes(save({"parameter.x": torch.zeros(2)}, metadata=metadata), base_digest="")


@pytest.mark.parametrize(
    "meta", [[], {}, {"base_digest": "d"}, {"base_digest": "d", "step": 1, "reports": [], "spec": {}}]
)
def test_an_incomplete_record_is_refused(meta: object) -> None:
    from safetensors.torch import save

    data = save({"parameter.x": torch.zeros(2)}, metadata={"unfreeze": json.dumps(meta)})
    with pytest.raises(CheckpointError):
        Checkpoint.from_bytes(data, base_digest="d")


def test_a_damaged_byte_in_the_header_is_never_another_error(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint("ln1@0")
    data = checkpoint.to_bytes()
    header_length = int.from_bytes(data[:8], "little")
    escaped: dict[str, int] = {}
    for position in range(8 + header_length):
        damaged = bytearray(data)
        damaged[position] ^= 0x05
        try:
            Checkpoint.from_bytes(bytes(damaged), base_digest=checkpoint.base_digest)
        except CheckpointError:
            pass
        except Exception as error:
            escaped[type(error).__name__] = position
    assert escaped == {}


def test_a_damaged_tensor_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint("ln1@0")
    damaged = bytearray(checkpoint.to_bytes())
    damaged[-100] ^= 0x40
    with pytest.raises(CheckpointError):
        Checkpoint.from_bytes(bytes(damaged), base_digest=checkpoint.base_digest)


# --- putting it back --------------------------------------------------------------------------------------------------


def test_restore_for_export_needs_no_optimizer(
    make_checkpoint: MakeCheckpoint, make_warm: Callable[..., WarmModel]
) -> None:
    checkpoint = replace(make_checkpoint("fc1"), optimizer={})
    warm = make_warm()
    restore(checkpoint, warm.module, None, [])
    own = dict(warm.module.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in checkpoint.parameters.items())


def test_restore_refuses_parameters_the_model_lacks(
    make_checkpoint: MakeCheckpoint, make_warm: Callable[..., WarmModel]
) -> None:
    checkpoint = make_checkpoint("fc1")
    strange = replace(checkpoint, parameters={**checkpoint.parameters, "blocks.9.mlp.fc1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"blocks\.9\.mlp\.fc1\.weight"):
        restore(strange, make_warm().module, None, [])


def test_restore_refuses_another_selections_checkpoint(
    make_checkpoint: MakeCheckpoint,
    make_warm: Callable[..., WarmModel],
    make_config: Callable[..., FinetuneConfig],
) -> None:
    """Its tensors would change what this trial keeps frozen, and no later trial would put them back."""
    warm = make_warm()
    _, names = warm.prepare("fc1", seed=0, train_head=True)
    optimizer, names = make_optimizer(parameter_dict(warm.module, names), make_config(), num_blocks=2)
    with pytest.raises(CheckpointError):
        restore(make_checkpoint("mha"), warm.module, optimizer, names)


def test_restore_refuses_another_number_of_classes(
    make_checkpoint: MakeCheckpoint, make_warm: Callable[..., WarmModel]
) -> None:
    checkpoint = make_checkpoint("fc1")
    wider = {**checkpoint.parameters, "head.weight": torch.zeros(7, 16), "head.bias": torch.zeros(7)}
    with pytest.raises(CheckpointError, match="head"):
        restore(replace(checkpoint, parameters=wider), make_warm().module, None, [])


def test_a_resumed_trial_leaves_the_checkpoint_as_it_was(
    data: Dataset,
    make_checkpoint: MakeCheckpoint,
    make_warm: Callable[..., WarmModel],
    make_config: Callable[..., FinetuneConfig],
) -> None:
    checkpoint = make_checkpoint()
    read = Checkpoint.from_bytes(checkpoint.to_bytes(), base_digest=checkpoint.base_digest)
    list(finetune(make_warm(), data, read.spec, make_config(), augment="none", resume=read))
    again = Checkpoint.from_bytes(checkpoint.to_bytes(), base_digest=checkpoint.base_digest)
    assert read.to_bytes() == again.to_bytes()
