"""The pool: starts the slots as Ray Train runs and notices when one is gone for good."""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unfreeze.config import Config
from unfreeze.slots.board import HEARTBEAT_S
from unfreeze.slots.callback import DriverCallback
from unfreeze.storage.ledger import Ledger

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 30.0
_NO_WORKERS = "WorkerGroupStartupTimeoutError"  # of Ray Train: no node in ``cluster.start_timeout_s``


class SlotPool(DriverCallback):
    """``num_slots`` worker groups around one board, and more when there is ``room``; a context manager, and a callback
    by which Tune lets it look after them.

    ``num_early`` of them may warm up while plasticity is measured; the others start once there are jobs, since what an
    actor of the pre-pass takes must be left to it. A slot whose node has gone waits for another in Ray Train,
    with its job in other hands meanwhile.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        board: Any,
        *,
        num_slots: int,
        num_early: int,
        room: Callable[[], int],
    ) -> None:
        self._config = config
        self._board = board
        self._arguments = {"board": board, "ledger": ledger, "config": config}
        self._slot_ids = [f"slot-{number}" for number in range(num_slots)]
        self._num_early = num_early
        self._num_started = num_slots  # the next one's number: none is used twice
        self._num_useless = 0  # given up, and not for lack of a node
        self._room = room
        self._runs: dict[Any, str] = {}  # the future of a Train run → its slot
        self._next_look = 0.0
        self._new_since: float | None = None

    def __enter__(self) -> "SlotPool":
        # What Train reads of the environment, it reads where `fit` is called.
        environment = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
        most = self._config.cluster.max_slots
        most = max(len(self._slot_ids), self._config.search.concurrency if most == "auto" else most)
        self._keeper = beside_driver(Keeper, environment, max_concurrency=most)  # a thread for each slot
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def warm_up(self) -> None:
        """The actors of the pre-pass have their places: what is left is for slots."""
        for slot_id in self._slot_ids[: self._num_early]:
            self._start(slot_id)

    def open(self) -> None:
        """Model and data are known to be good, and `facts.json` is in the ledger: from now on jobs are handed out."""
        ray.get(self._board.expect.remote(self._slot_ids))
        started = set(self._runs.values())
        for slot_id in self._slot_ids:
            if slot_id not in started:
                self._start(slot_id)

    def close(self) -> None:
        """There are no more jobs: send every slot home, so that what it took is free."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._board.close.remote(), timeout=_CLOSE_TIMEOUT_S)
            self._ended(_CLOSE_TIMEOUT_S)
        self._end()

    def _end(self) -> None:
        keeper, self._keeper = self._keeper, None  # once: Ray does not know an actor that was killed any more
        with contextlib.suppress(ray.exceptions.RayError):  # the cluster is gone, and with it the slots
            if keeper is not None:
                ray.kill(keeper)  # and with it the slots that are left

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        self.look()

    def look(self) -> None:
        """Start slots again that went down over their work; open a board that died and was made anew.

        Raises:
            RayError: the cluster is gone.
        """
        for run in self._ended(wait_s=0):
            try:
                reason = ray.get(run)
            except ray.exceptions.RayActorError as error:  # the keeper, of whom there will be another
                reason = f"{type(error).__name__}: {error}"
            self._see_to(self._runs.pop(run), reason)
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + HEARTBEAT_S
            self._look_at_board()
            self._look_at_nodes()

    def _ended(self, wait_s: float) -> list[Any]:
        runs = list(self._runs)
        return ray.wait(runs, num_returns=len(runs), timeout=wait_s)[0] if runs else []

    def _see_to(self, slot_id: str, reason: str) -> None:
        logger.warning("%s went down: %s", slot_id, reason)
        if ray.get(self._board.lose.remote(slot_id, reason)):
            self._start(slot_id)
        else:
            self._slot_ids.remove(slot_id)
            self._num_useless += _NO_WORKERS not in reason

    def _look_at_board(self) -> None:
        """A board that died was made anew by Ray, empty: once the slots have told what they hold, open it."""
        if not ray.get(self._board.is_new.remote()):
            self._new_since = None
        elif self._new_since is None:
            logger.warning("the board died and was made anew; trials go on")
            self._new_since = time.monotonic()
        elif time.monotonic() - self._new_since >= 2 * HEARTBEAT_S:
            ray.get(self._board.expect.remote(self._slot_ids))

    def _look_at_nodes(self) -> None:
        """Take the jobs of nodes that are gone; where nodes have come, start slots."""
        try:
            alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
            room = self._room()
        except ray.exceptions.RayError:  # the head restarts, perhaps; whether it is gone for good is watched elsewhere
            return
        ray.get(self._board.lose_all_but.remote(alive))
        missing = room - self._num_useless - len(self._slot_ids)
        if missing <= 0 or self._new_since is not None:
            return
        logger.info("room for %d more slots", missing)
        fresh = [f"slot-{self._num_started + number}" for number in range(missing)]
        self._num_started += missing
        self._slot_ids += fresh
        ray.get(self._board.expect.remote(self._slot_ids))
        for slot_id in fresh:
            self._start(slot_id)

    def _start(self, slot_id: str) -> None:
        run = self._keeper.run.remote(self._config, {**self._arguments, "slot_id": slot_id})
        self._runs[run] = slot_id


def beside_driver(actor: type, *arguments: Any, **options: Any) -> Any:
    """An actor that takes no resources, on this node, where it is made anew should it die.

    Without a strategy what asks for nothing is placed anywhere (ray#23343), and is lost with a worker's node.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options |= {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
    return ray.remote(**options)(actor).remote(*arguments)


class Keeper:
    """An actor whose threads wait for the slots' Train runs.

    In the driver they would still be inside Ray at `ray.shutdown`, and whichever comes back then ends the process with
    exit code 1 (core_worker_process.cc: "The core worker has already been shutdown").
    """

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)

    def run(self, config: Config, arguments: dict[str, Any]) -> str:
        """One Train run of a slot, from its start to its end; returns why it ended."""
        # Here, since the driver needs no torch.
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        cluster = config.cluster
        resources = {"CPU": cluster.cpus_per_worker}
        if cluster.gpus:
            resources["GPU"] = cluster.gpus
        try:
            # Train wants a place for its own state; we report it no checkpoints, so a local folder does anywhere.
            with tempfile.TemporaryDirectory(prefix="unfreeze-train-", ignore_cleanup_errors=True) as folder:
                TorchTrainer(
                    run_slot,
                    train_loop_config=arguments,
                    scaling_config=ScalingConfig(
                        num_workers=cluster.workers_per_trial,
                        use_gpu=cluster.gpus > 0,
                        resources_per_worker=resources,
                        label_selector=cluster.labels or None,
                    ),
                    run_config=RunConfig(
                        name=f"{config.sweep.name}-{arguments['slot_id']}",
                        storage_path=folder,
                        # The defaults retry controller and preemption failures for ever.
                        failure_config=FailureConfig(
                            max_failures=cluster.max_slot_failures,
                            controller_failure_limit=cluster.max_slot_failures,
                            max_preemption_failures=100,
                        ),
                    ),
                ).fit()
        except Exception as error:  # whatever was raised where, the slot is gone and its job must go elsewhere
            cause = getattr(error, "controller_failure", error)  # of Train's ControllerError, which names no type
            return f"{type(cause).__name__}: {cause}"
        return "it went home"


def run_slot(arguments: dict[str, Any]) -> None:
    """`serve`, imported where it runs: neither driver nor keeper needs timm or the data floor."""
    from unfreeze.slots.worker import serve

    serve(arguments)
