"""What Tune's callbacks here have in common."""

from typing import Any

from ray import tune


class DriverCallback(tune.Callback):
    """A callback that holds what stays in the driver: threads, a search, handles, futures.

    Tune pickles its callbacks for a restore that we never do; a plain one goes in this one's place.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return (tune.Callback, ())
