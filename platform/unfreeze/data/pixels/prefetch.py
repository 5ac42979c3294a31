"""The next batch made ready while the last one is in use, by a thread and, on a GPU, a stream of its own."""

import functools
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
T = TypeVar("T")
_END = object()


def ahead(items: Generator[T]) -> Generator[T]:
    """The same items, each made by a thread while the caller uses the one before.

    Closing it (a consumer that stops early) waits for the item in the making, then closes ``items``.
    """
    with closing(items), ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        pending = thread.submit(next, items, _END)
        while (item := pending.result()) is not _END:
            pending = thread.submit(next, items, _END)
            yield item  # type: ignore[misc]


def on_side_stream(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """The same batches, copied to the GPU and augmented beside what the caller computes."""
    with closing(ahead(_launched(batches, device))) as ready:
        for batch, made in ready:
            current = torch.cuda.current_stream(device)
            current.wait_event(made)
            for tensor in batch:
                # Its memory belongs to the side stream, which must not write the next batch there before this is used.
                tensor.record_stream(current)
            yield batch


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all pipelines: the allocator keeps freed memory apart by stream."""
    return torch.cuda.Stream(device)


def _launched(batches: Generator[Batch], device: torch.device) -> Generator[tuple[Batch, torch.cuda.Event]]:
    """Each batch with the event after its last kernel; runs in the thread of `ahead`."""
    stream = _side_stream(device)
    with closing(batches):
        while True:
            with torch.cuda.stream(stream):  # entered anew each time: the current stream belongs to the thread
                batch = next(batches, None)
                if batch is None:
                    return
                made = stream.record_event()
            yield batch, made


def prefetched(batches: Generator[Batch], device: torch.device, *, streams: bool) -> Generator[Batch]:
    """``batches`` by the means that ``device`` has; ``streams``: they are decoded from files."""
    if device.type == "cuda":
        return on_side_stream(batches, device)
    # What is in memory already costs the CPU's cores the same whenever it is gathered.
    return ahead(batches) if streams else batches
