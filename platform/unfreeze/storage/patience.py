"""A fault of the store that may pass is waited for, so long and no longer."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from unfreeze.errors import StorageError

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 120.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0


def patiently(act: Callable[[], T], *, patience_s: float = PATIENCE_S) -> T:
    """What ``act`` returns. Acts are safe to repeat: objects are written whole.

    Raises:
        StorageError: a fault that does not pass by itself, at once; one that might, when ``patience_s`` are over and
            the last try has come to its end.
    """
    until, pause_s = time.monotonic() + patience_s, _FIRST_PAUSE_S
    while True:
        try:
            return act()
        except StorageError as error:
            if not error.may_pass or time.monotonic() + pause_s > until:
                raise
            logger.warning("%s; trying again for %.0f s", error, until - time.monotonic())
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
