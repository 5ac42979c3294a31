"""Two workers that share a model's parameters against one that has them all. This file is also the workers' script."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unfreeze.components.freeze import unfreeze_only
from unfreeze.components.selection import parse_selection
from unfreeze.config import ModelConfig
from unfreeze.data.pixels.batches import eval_batches
from unfreeze.data.pixels.decode import make_array
from unfreeze.data.pixels.part import Part
from unfreeze.finetune.shard import gather, in_step, shard_model, share, sync_gradients
from unfreeze.models.build import BaseModel, build_model

CPU = torch.device("cpu")
# One after another on the same model, each from the base weights; odd shapes: 5 classes over 2 workers.
TRIALS = ["mha", "none", "all", "ln1@1+fc2@0", "embed"]
NUM_VAL = 13  # over 2 workers in batches of 6: two batches and one


def build() -> BaseModel:
    kwargs = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 16}
    config = ModelConfig(name="unfreeze_tiny", weights="random", kwargs=kwargs)
    return build_model(config, num_classes=5, cache_dir=Path("unused"))


def run_trials(rank: int, world_size: int) -> tuple[list[list[float]], dict[str, Tensor]]:
    """Losses of 4 steps and the validation's of each trial; the last one's weights and momentum, in full."""
    base = build()
    module: Any = base.module
    full = {name: value.detach().clone() for name, value in module.named_parameters()}
    if world_size > 1:
        shard_model(module, CPU)
    originals = {name: value.detach().clone() for name, value in module.named_parameters()}
    part = make_part(NUM_VAL)
    losses: list[list[float]] = []
    tensors: dict[str, Tensor] = {}
    for index, selection in enumerate(TRIALS):
        parameters: dict[str, Tensor] = dict(module.named_parameters())
        with torch.no_grad():
            for name, value in parameters.items():
                # Either way back: the shares that were kept, or full tensors that all workers have.
                value.copy_(originals[name] if index % 2 else share(full[name], value))
        names = unfreeze_only(module, parse_selection(selection, num_blocks=2), train_head=True)
        kind: Any = torch.optim.AdamW if index == 3 else torch.optim.SGD
        # SGD's fused kernel has no rule for shares (torch 2.15), AdamW's has.
        options = {"fused": True} if index == 3 else {"momentum": 0.9}
        optimizer = kind([parameters[name] for name in names], lr=0.05, **options)
        losses.append([train_step(module, optimizer, step, rank, world_size) for step in range(4)])
        losses[-1].append(validate(module, part, base, rank, world_size))
        assert all(dict(module.named_parameters())[name] is value for name, value in parameters.items())
        state = optimizer.state_dict()["state"]
        momentum = {f"{names[i]}.{key}": value for i, entry in state.items() for key, value in entry.items()}
        tensors = gather(dict(module.named_parameters()) | momentum)
        # A restored optimizer goes on as the one that was saved.
        again = kind([parameters[name] for name in names], lr=0.05, **options)
        shares = {
            i: {key: share(tensors[f"{names[i]}.{key}"], value) for key, value in entry.items()}
            for i, entry in state.items()
        }
        again.load_state_dict({"state": shares, "param_groups": optimizer.state_dict()["param_groups"]})
        losses[-1] += [train_step(module, again, 4, rank, world_size), validate(module, part, base, rank, world_size)]
        tensors = gather(dict(module.named_parameters()))
    return losses, {name: value.detach().clone() for name, value in tensors.items()}


def make_part(count: int) -> Part:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Part(make_array(images, rng.integers(0, 5, count)), np.arange(count))


def train_step(module: nn.Module, optimizer: torch.optim.Optimizer, step: int, rank: int, world_size: int) -> float:
    """8 images over the workers, 2 per micro-batch."""
    generator = torch.Generator().manual_seed(step)
    images, labels = torch.randn(8, 3, 32, 32, generator=generator), torch.randint(0, 5, (8,), generator=generator)
    images, labels = images.chunk(world_size)[rank], labels.chunk(world_size)[rank]
    module.train()
    total = torch.zeros(())
    for start in range(0, len(labels), 2):
        if world_size > 1:
            sync_gradients(module, now=start + 2 >= len(labels))
        loss = F.cross_entropy(module(images[start : start + 2]), labels[start : start + 2], reduction="sum")
        (loss / len(labels)).backward()
        total += loss.detach()
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)
    assert all(parameter.grad is None for parameter in frozen)
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if world_size > 1:
        dist.all_reduce(total)
    return total.item() / 8


@torch.no_grad()
def validate(module: nn.Module, part: Part, base: BaseModel, rank: int, world_size: int) -> float:
    module.eval()
    batches: Any = eval_batches(part, base.spec, batch_size=6, device=CPU, rank=rank, world_size=world_size)
    if world_size > 1:
        size = base.spec.image_size
        batches = in_step(batches, num_images=len(part), batch_size=6, image_size=size, device=CPU)
    sums = torch.zeros(2, dtype=torch.float64)
    for images, labels in batches:
        sums += torch.tensor([F.cross_entropy(module(images), labels, reduction="sum"), len(labels)])
    if world_size > 1:
        dist.all_reduce(sums)
    assert sums[1] == NUM_VAL
    return (sums[0] / sums[1]).item()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, module_processes: Any) -> Path:
    """Where the two workers have left their results."""
    folder = tmp_path_factory.mktemp("workers")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = []
    for rank in range(2):
        with (folder / f"{rank}.log").open("wb") as log:
            command = [sys.executable, __file__, str(rank), str(folder)]
            workers.append(module_processes.start(command, cwd=folder, log=log, env=environment))
    codes = [module_processes.wait(worker, 300) for worker in workers]
    assert codes == [0, 0], "\n".join((folder / f"{rank}.log").read_text() for rank in range(2))
    return folder


@pytest.fixture(scope="module")
def alone() -> tuple[list[list[float]], dict[str, Tensor]]:
    return run_trials(0, 1)


@pytest.mark.parametrize("index", range(len(TRIALS)))
def test_two_workers_with_half_a_model_each_lose_what_one_does(
    index: int, folder: Path, alone: tuple[list[list[float]], dict[str, Tensor]]
) -> None:
    for rank in range(2):
        found = json.loads((folder / f"{rank}.json").read_text())
        assert found["losses"][index] == pytest.approx(alone[0][index], rel=1e-5)


def test_gathered_weights_are_those_of_one_worker(
    folder: Path, alone: tuple[list[list[float]], dict[str, Tensor]]
) -> None:
    gathered = load_file(folder / "0.safetensors")
    assert gathered.keys() == alone[1].keys()
    for name, value in gathered.items():
        torch.testing.assert_close(value, alone[1][name], atol=1e-5, rtol=1e-4)


def test_each_worker_holds_half_of_the_parameters(folder: Path) -> None:
    held = [json.loads((folder / f"{rank}.json").read_text())["held"] for rank in range(2)]
    total = sum(parameter.numel() for parameter in build().module.parameters())
    assert sum(held) == total
    assert max(held) < 0.56 * total  # what has one row, the class token, is one worker's


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    losses, tensors = run_trials(rank, 2)
    module = build().module
    shard_model(module, CPU)
    held = sum(value.to_local().numel() for value in module.parameters() if isinstance(value, DTensor))
    (folder / f"{rank}.json").write_text(json.dumps({"losses": losses, "held": held}))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
