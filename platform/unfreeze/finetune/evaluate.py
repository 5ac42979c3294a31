"""Evaluation with exact counts: every image once over all workers, sums divided once."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfreeze.data.pixels.batches import eval_batches
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.part import Part
from unfreeze.finetune.parallel import sum_over_workers


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Counts over a whole part."""

    correct: int
    count: int
    loss: float  # mean cross-entropy

    @property
    def accuracy(self) -> float:
        return self.correct / self.count


def evaluate(
    module: nn.Module,
    part: Part,
    spec: InputSpec,
    *,
    batch_size: int,
    autocast: torch.autocast,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Evaluation:
    """Accuracy and mean loss of ``module`` on the images of ``part``; leaves the module in evaluation mode."""
    batches = eval_batches(part, spec, batch_size=batch_size, device=device, rank=rank, world_size=world_size)
    return evaluate_batches(module, batches, autocast=autocast, device=device, world_size=world_size)


@torch.no_grad()
def evaluate_batches(
    module: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    autocast: torch.autocast,
    device: torch.device,
    world_size: int = 1,
) -> Evaluation:
    """The same over (inputs, labels) of this worker, summed over all workers."""
    module.eval()
    # correct, count, loss: float64 sums, exact up to 2^53 images
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for inputs, labels in batches:
        with autocast:
            logits = module(inputs)
        losses = F.cross_entropy(logits.float(), labels, reduction="sum")
        # The count is made on the device: from the host it would wait for it.
        count = torch.full_like(losses, len(labels))
        sums += torch.stack([(logits.argmax(1) == labels).sum(), count, losses]).double()
    sum_over_workers(sums, world_size)
    correct, total, loss = sums.tolist()
    return Evaluation(correct=int(correct), count=int(total), loss=loss / total)
