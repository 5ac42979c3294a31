"""What stays in a slot's process from one trial to the next: model, data, caches, and its place in the group."""

import os
import threading
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from unfreeze.config import Config
from unfreeze.data.sets.catalog import Dataset, load_train_val
from unfreeze.finetune.parallel import Worker
from unfreeze.finetune.prefix import PrefixCache, open_cache
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import build_base, input_size
from unfreeze.records import data_facts_from_dict
from unfreeze.slots.board import HEARTBEAT_S
from unfreeze.slots.writer import Writer
from unfreeze.storage.ledger import Ledger

# How long the leader waits on the board before the other ranks hear from it again; far below any collective's timeout.
POLL_S = 20.0


@dataclass(slots=True)
class Slot:
    """One worker of a slot. Rank 0 is its leader: it alone speaks to the board and writes to the ledger."""

    slot_id: str
    worker: Worker
    board: Any
    ledger: Ledger
    config: Config
    warm: WarmModel
    data: Dataset
    prefixes: PrefixCache | None
    writer: Writer
    held: dict[str, Any] | None = None  # the job in hand, as the board gave it
    is_warned: bool = False  # whether Ray Train looks out for nodes that are about to go
    is_leaving: bool = False

    @property
    def is_leader(self) -> bool:
        return self.worker.rank == 0

    def agree(self, value: Any) -> Any:
        """The leader's value, on every worker."""
        if self.worker.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def must_leave(self) -> bool:
        """Whether a node of the slot's is about to go, as its cloud or an operator has announced. Every worker asks,
        or none does."""
        if self.is_warned and not self.is_leaving:
            self.is_leaving = ray.train.get_preemption_info() is not None
        return self.is_leaving

    def join(self) -> None:
        """Tell the board that the workers are up, and give signs of life: a long epoch is no dead slot."""

        def beat() -> None:
            pause = threading.Event()
            while not pause.wait(HEARTBEAT_S):
                self.board.heartbeat.remote(self.slot_id, self.held)

        own = ray.get_runtime_context().get_node_id()
        nodes = [own] * self.worker.world_size
        if self.worker.world_size > 1:
            dist.all_gather_object(nodes, own)
        if self.is_leader:
            ray.get(self.board.join.remote(self.slot_id, nodes))
            threading.Thread(target=beat, daemon=True).start()

    def await_jobs(self) -> None:
        """Until the pre-pass is over, beside which a slot may warm up, and the ledger has what it found of the data.

        Raises:
            DataError: this node's images are other ones.
        """
        while not self.agree(ray.get(self.board.await_opening.remote(POLL_S)) if self.is_leader else None):
            pass
        self.data.check(data_facts_from_dict(self.ledger.read_json("facts.json")["data"]))


def warm_up(slot_id: str, board: Any, ledger: Ledger, config: Config) -> Slot:
    """Load model and data, once for all trials. Runs in a Ray Train worker."""
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
    data = load_train_val(config.data, image_size=input_size(config.model))
    base = build_base(config, num_classes=len(data.classes))
    return Slot(
        slot_id=slot_id,
        worker=Worker(rank=context.get_world_rank(), world_size=context.get_world_size()),
        board=board,
        ledger=ledger,
        config=config,
        warm=WarmModel(base, device, shard=config.finetune.shard),
        data=data,
        prefixes=open_cache(config),
        writer=Writer(),
        is_warned=os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0",
    )
