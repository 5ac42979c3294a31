"""Writes of a slot's trials, beside the training that goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """One thread that runs one write at a time, in the order they were handed in.

    At most one waits: the next is taken in when the one before is done, so memory holds one snapshot, and a store that
    is slower than training slows training instead of filling it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._pending: Future[None] | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Run ``write`` beside the caller, once the last one is done. Raises what that one raised."""
        self.flush()
        self._pending = self._thread.submit(write)

    def flush(self) -> None:
        """Wait until everything is written. Raises what the last write raised, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
