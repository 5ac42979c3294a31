"""The pool: starts the slots as Ray Train runs and notices when one is gone for good."""

import contextlib
import logging
import tempfile
import threading
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from unfreeze.config import Config
from unfreeze.records import DataFacts
from unfreeze.slots.board import HEARTBEAT_S
from unfreeze.storage.ledger import Ledger

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 30.0


def run_slot(arguments: dict[str, Any]) -> None:
    """`serve`, imported where it runs: the driver needs neither timm nor the data floor."""
    from unfreeze.slots.worker import serve

    serve(arguments)


class SlotPool:
    """``num_slots`` worker groups around one board; a context manager.

    Each `TorchTrainer.fit` blocks, so each has a thread of its own here; the work itself is in Ray's processes.
    """

    def __init__(self, config: Config, ledger: Ledger, board: Any, *, num_slots: int, facts: DataFacts) -> None:
        self._config = config
        self._board = board
        self._slot_ids = [f"slot-{number}" for number in range(num_slots)]
        self._ledger = ledger
        self._facts = facts
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()

    def __enter__(self) -> "SlotPool":
        ray.get(self._board.expect.remote(self._slot_ids))
        for slot_id in self._slot_ids:
            thread = threading.Thread(target=self._keep, args=(slot_id,), name=slot_id, daemon=True)
            thread.start()
            self._threads.append(thread)
        threading.Thread(target=self._watch_board, name="board", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closed.set()
        with contextlib.suppress(ray.exceptions.RayError):  # the cluster is gone, and with it the slots
            ray.get(self._board.close.remote(), timeout=_CLOSE_TIMEOUT_S)
        if kind is None:  # after an error nobody waits: leaving the cluster ends the slots
            for thread in self._threads:
                thread.join(_CLOSE_TIMEOUT_S)

    def _watch_board(self) -> None:
        """A board that died was made anew by Ray, empty: once the slots have told what they hold, open it."""
        while not self._closed.wait(HEARTBEAT_S):
            with contextlib.suppress(ray.exceptions.RayError):  # seen to by whoever waits for an answer
                if ray.get(self._board.is_new.remote()):
                    logger.warning("the board died and was made anew; trials go on")
                    if not self._closed.wait(2 * HEARTBEAT_S):
                        ray.get(self._board.expect.remote(self._slot_ids))

    def _keep(self, slot_id: str) -> None:
        """Keep one slot up until it goes home, or its workers are restarted again and again for nothing."""
        while True:
            try:
                self._run(slot_id)
                reason = "it went home"
            except Exception as error:  # whatever was raised where, the slot is gone and its job must go elsewhere
                reason = f"{type(error).__name__}: {error}"
            if self._closed.is_set():  # Ray may be shut down by now, and any call would start it again
                return
            logger.warning("%s went down: %s", slot_id, reason)
            try:
                if not ray.get(self._board.lose.remote(slot_id, reason)):
                    self._slot_ids.remove(slot_id)
                    return
            except ray.exceptions.RayError:  # the cluster is gone; the trials see to it
                return

    def _run(self, slot_id: str) -> None:
        """One Train run of a slot."""
        cluster = self._config.cluster
        arguments = {
            "slot_id": slot_id,
            "board": self._board,
            "ledger": self._ledger,
            "config": self._config,
            "facts": self._facts,
        }
        resources = {"CPU": cluster.cpus_per_worker}
        if cluster.gpus:
            resources["GPU"] = cluster.gpus
        # Train wants a place for its own state; we report it no checkpoints, so a local folder does on any cluster.
        with tempfile.TemporaryDirectory(prefix="unfreeze-train-", ignore_cleanup_errors=True) as folder:
            trainer = TorchTrainer(
                run_slot,
                train_loop_config=arguments,
                scaling_config=ScalingConfig(
                    num_workers=cluster.workers_per_trial,
                    use_gpu=cluster.gpus > 0,
                    resources_per_worker=resources,
                ),
                run_config=RunConfig(
                    name=f"{self._config.sweep.name}-{slot_id}",
                    storage_path=folder,
                    # The defaults retry controller and preemption failures for ever.
                    failure_config=FailureConfig(
                        max_failures=cluster.max_slot_failures,
                        controller_failure_limit=cluster.max_slot_failures,
                        max_preemption_failures=100,
                    ),
                ),
            )
            trainer.fit()
