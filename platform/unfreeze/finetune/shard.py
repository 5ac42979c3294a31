"""FSDP2: each worker holds its share of every parameter and puts a block together only while it runs.

For models that do not fit one worker. Every function here is a collective: all workers call it, in the same order.
A sharded model must be run as timm has it, ``module(images)`` with every block through its own ``forward``: those are
what PyTorch hooks the gathering to.
"""

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard_model(module: nn.Module, device: torch.device) -> None:
    """Turn the parameters of ``module`` into this worker's shares, on ``device``; it may be on the CPU before.

    Block after block, so that the device never holds more than one in full. Trained and frozen parameters may share a
    block, and which are which may change from trial to trial: gradients are summed up for the trained ones alone.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in module.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    # The root would otherwise stay gathered after a forward pass without a backward one: its parameters then are other
    # objects than the optimizer's.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def share(full: Tensor, like: Tensor) -> Tensor:
    """This worker's share of a full tensor that all workers have, laid out as ``like``; plain where that is plain."""
    if not isinstance(like, DTensor):
        return full.to(like.device)
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gather(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full tensors, on every worker."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in values.items()}


def sync_gradients(module: nn.Module, *, now: bool) -> None:
    """Whether the next backward pass averages gradients over the workers; false until a batch's last micro-batch.

    Until then each worker keeps the trained parameters' gradients in full.
    """
    assert isinstance(module, FSDPModule)
    module.set_requires_gradient_sync(now)


def in_step(
    batches: Iterable[tuple[Tensor, Tensor]], *, num_images: int, batch_size: int, image_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """As many batches on every worker, though their shares of ``num_images`` differ by one image.

    A worker that is through goes on with empty batches: the others wait for its shares of the blocks.
    """
    most = math.ceil(math.ceil(num_images / dist.get_world_size()) / batch_size)
    done = 0
    for batch in batches:
        yield batch
        done += 1
    for _ in range(most - done):
        yield torch.empty(0, 3, image_size, image_size, device=device), torch.empty(0, dtype=torch.long, device=device)
