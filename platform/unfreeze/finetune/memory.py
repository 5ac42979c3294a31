"""Out of memory on the device: the same batch again, in smaller pieces."""

import logging

import torch

from unfreeze.errors import DeviceMemoryError

logger = logging.getLogger(__name__)


class MicroBatch:
    """Images per forward pass of one worker: ``size``, halved when they do not fit, until one does not."""

    def __init__(self, size: int, *, batch_size: int, world_size: int = 1) -> None:
        self.size = size
        self._batch_size = batch_size
        self._world_size = world_size

    def halve(self, error: RuntimeError) -> None:
        """Make the pieces smaller after ``error``.

        Raises:
            DeviceMemoryError: smaller pieces are not to be had, or not without the other workers, which wait in a
                collective and could not be told.
        """
        if self._world_size > 1 or self.size == 1:
            raise DeviceMemoryError(
                f"out of memory with finetune.batch_size={self._batch_size} in micro-batches of {self.size} images on "
                f"each of {self._world_size} worker(s): "
                + (
                    "one image alone does not fit; set finetune.activation_checkpointing=true or take a smaller model"
                    if self.size == 1
                    else f"set finetune.micro_batch_size={self.size // 2}, which changes rounding and dropout alone"
                )
            ) from error
        self.size = -(-self.size // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # blocks of the old size would stand in the way of the new
        logger.warning(
            "out of memory: micro-batches of %d images from now on, the batch of %d is the same",
            self.size,
            self._batch_size,
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's allocator, or the host's, had no more to give."""
    # The host allocator's error has no class of its own: "DefaultCPUAllocator: can't allocate memory: …".
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
