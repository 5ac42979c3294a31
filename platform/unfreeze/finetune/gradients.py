"""Gradients of one batch, in as many micro-batches as the device's memory asks for."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unfreeze.finetune.memory import MicroBatch, is_out_of_memory
from unfreeze.finetune.recipe import Targets
from unfreeze.finetune.shard import is_sharded, sync_gradients


def batch_gradients(
    network: nn.Module,
    inputs: Tensor,
    targets: Targets,
    *,
    micro: MicroBatch,
    begin: Callable[[slice], None],
    smoothing: float,
    autocast: torch.autocast,
) -> Tensor:
    """Gradients of the batch's mean loss; returns the sum of its losses, on the device.

    ``begin`` is told which of the inputs go through the network next.

    Where the device has no memory for ``micro`` images the same batch is done again in smaller pieces.

    Raises:
        DeviceMemoryError: smaller pieces are not to be had.
    """
    while True:
        try:
            return _accumulate(
                network, inputs, targets, micro=micro.size, begin=begin, smoothing=smoothing, autocast=autocast
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # whose frames would keep the activations alive
        network.zero_grad(set_to_none=True)
        micro.halve(failure)


def _accumulate(
    network: nn.Module,
    inputs: Tensor,
    targets: Targets,
    *,
    micro: int,
    begin: Callable[[slice], None],
    smoothing: float,
    autocast: torch.autocast,
) -> Tensor:
    """``micro`` images at a time. Workers average their gradients once, in the last micro-batch."""
    total = torch.zeros((), device=inputs.device)
    for start in range(0, len(inputs), micro):
        part = slice(start, start + micro)
        begin(part)
        is_last = start + micro >= len(inputs)
        if isinstance(network, DistributedDataParallel):
            network.require_backward_grad_sync = is_last
        elif is_sharded(network):
            sync_gradients(network, now=is_last)
        with autocast:
            logits = network(inputs[part])
        losses = targets.loss_sum(logits, part, smoothing=smoothing)
        (losses / len(inputs)).backward()
        total += losses.detach()
    return total
