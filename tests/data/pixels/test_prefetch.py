"""The next item made while the last is used: order, errors, an early stop."""

import threading
from collections.abc import Generator

import pytest
import torch

from unfreeze.data.pixels.prefetch import ahead, on_side_stream, prefetched


class Source:
    """Counts what was made, and in which thread; knows whether it was closed."""

    def __init__(self, count: int, *, fail_at: int | None = None) -> None:
        self.count, self.fail_at = count, fail_at
        self.made: list[int] = []
        self.threads: set[int] = set()
        self.closed = False

    def items(self) -> Generator[int]:
        try:
            for number in range(self.count):
                if number == self.fail_at:
                    raise RuntimeError("broken")
                self.threads.add(threading.get_ident())
                self.made.append(number)
                yield number
        finally:
            self.closed = True


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_item_comes_once_and_in_order(count: int) -> None:
    source = Source(count)
    assert list(ahead(source.items())) == list(range(count))
    assert source.closed
    assert threading.get_ident() not in source.threads


def test_one_item_is_made_ahead_and_no_more() -> None:
    source = Source(9)
    items = ahead(source.items())
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert source.made in ([0, 1], [0, 1, 2])


def test_a_consumer_that_stops_leaves_no_thread_and_an_open_source_neither() -> None:
    before, source = threading.active_count(), Source(9)
    items = ahead(source.items())
    next(items)
    assert threading.active_count() == before + 1
    items.close()
    assert threading.active_count() == before
    assert source.closed


def test_an_error_comes_after_what_was_made_before_it() -> None:
    before, items = threading.active_count(), ahead(Source(9, fail_at=3).items())
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="broken"):
        next(items)
    assert threading.active_count() == before


def test_on_a_cpu_what_is_in_memory_is_taken_as_it_comes() -> None:
    batches = (batch for batch in [(torch.zeros(1), torch.zeros(1))])
    assert prefetched(batches, torch.device("cpu"), streams=False) is batches


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_side_stream_gives_the_same_numbers() -> None:
    """Each batch is overwritten in place by the consumer while the next one is made."""
    device = torch.device("cuda")

    def batches() -> Generator[tuple[torch.Tensor, torch.Tensor]]:
        for number in range(50):
            host = torch.full((1 << 20,), float(number)).pin_memory()
            yield host.to(device, non_blocking=True) * 2, torch.tensor([number], device=device)

    sums = []
    for number, (images, labels) in enumerate(on_side_stream(batches(), device)):
        torch.cuda._sleep(1_000_000)
        sums.append(images.add_(1).sum() / (1 << 20))
        assert labels.item() == number
    assert [value.item() for value in sums] == [2.0 * number + 1 for number in range(50)]
