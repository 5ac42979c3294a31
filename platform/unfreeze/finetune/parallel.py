"""The data-parallel workers of a trial: who this one is, how the network runs on all, how their sums become one."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unfreeze.config import FinetuneConfig
from unfreeze.finetune.network import Network
from unfreeze.finetune.shard import is_sharded


@dataclass(frozen=True, slots=True)
class Worker:
    """This process's place among the data-parallel workers of a trial."""

    rank: int = 0
    world_size: int = 1


ALONE = Worker()


def make_network(module: nn.Module, config: FinetuneConfig, *, start: int, worker: Worker) -> nn.Module:
    """The model as it is run: from block ``start``, compiled and spread over workers where asked for."""
    if is_sharded(module):
        module.set_grad_checkpointing(config.activation_checkpointing)  # type: ignore[operator]
        return module
    network: nn.Module = Network(module, start=start, activation_checkpointing=config.activation_checkpointing)
    if config.compile:
        # What was compiled for another selection is of no use and counts against dynamo's limit of variants.
        torch.compiler.reset()
        network = torch.compile(network)  # type: ignore[assignment]
    if worker.world_size > 1:
        network = DistributedDataParallel(network)
    return network


def sum_over_workers(values: Tensor, world_size: int) -> None:
    """Add up a tensor over the workers, in place."""
    if world_size > 1:
        dist.all_reduce(values)
