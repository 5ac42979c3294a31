import threading

import pytest

from unfreeze.slots.writer import Writer


def test_writes_happen_in_order_and_are_done_after_a_flush() -> None:
    writer, done = Writer(), []
    for number in range(5):
        writer.submit(lambda number=number: done.append(number))
    writer.flush()
    assert done == [0, 1, 2, 3, 4]


def test_the_caller_goes_on_while_one_write_runs_and_waits_before_a_second() -> None:
    writer, may_end, order = Writer(), threading.Event(), []

    def slow() -> None:
        assert may_end.wait(30)
        order.append("slow")

    writer.submit(slow)
    order.append("goes on")
    threading.Timer(0.05, may_end.set).start()
    writer.submit(lambda: order.append("second"))
    assert order[:2] == ["goes on", "slow"]
    writer.flush()
    assert order == ["goes on", "slow", "second"]


@pytest.mark.parametrize("ask", ["submit", "flush"])
def test_an_error_surfaces_at_the_next_call_once(ask: str) -> None:
    writer = Writer()

    def fail() -> None:
        raise OSError("disk full")

    writer.submit(fail)
    with pytest.raises(OSError, match="disk full"):
        writer.flush() if ask == "flush" else writer.submit(lambda: None)
    writer.flush()
