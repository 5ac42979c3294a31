"""Whether the cluster under a sweep is still there: without its head or its own node a driver would wait for ever, or
be ended by Ray with a stack trace."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray

from unfreeze.errors import InfrastructureError
from unfreeze.report.streams import in_notebook, say
from unfreeze.slots.callback import DriverCallback
from unfreeze.sweep.resources import GOES_ON

_LOOK_S = 2.0
_SILENT_S = 30.0  # of Ray's head, which may be restarting; after 60 s Ray ends the process itself
_LEAVE_S = 10.0  # twice what a connection may take
_UNWIND_S = 20.0  # of the main thread, which may hang in a call to what is gone


class ClusterWatch(DriverCallback):
    """``lost``: what of the cluster is gone for good, None while nothing is. Ends Tune's run with it."""

    lost: str | None = None

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        self.check()

    def check(self) -> None:
        """Raises `InfrastructureError` where the cluster is gone."""
        if self.lost is not None:
            raise InfrastructureError(f"{self.lost}; {GOES_ON}")


@contextlib.contextmanager
def watch_cluster() -> Iterator[ClusterWatch]:
    """Look every few seconds. A command whose main thread does not notice in time is ended here, with exit code 75."""
    watch, done = ClusterWatch(), threading.Event()
    context = ray.get_runtime_context()
    head, node_id = context.gcs_address, context.get_node_id()

    def look() -> None:
        heard = time.monotonic()
        while watch.lost is None and not done.wait(_LOOK_S):
            if not answers(head):
                if time.monotonic() - heard > _SILENT_S:
                    watch.lost = f"Ray's head at {head} has not answered for {_SILENT_S:.0f} s"
                continue
            heard = time.monotonic()
            with contextlib.suppress(ray.exceptions.RayError):  # the head goes down in this moment: the next look tells
                if any(node["NodeID"] == node_id and not node["Alive"] for node in ray.nodes()):
                    watch.lost = "the Ray node that this driver runs on has died"
        if not done.wait(_UNWIND_S) and not in_notebook():
            say(f"error: {watch.lost}; {GOES_ON}")
            os._exit(75)

    thread = threading.Thread(target=look, name="cluster", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join(_LEAVE_S)  # Ray must not be left in the middle of a look; one at a stopped head is not waited for


def answers(address: str) -> bool:
    """Whether something listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True
