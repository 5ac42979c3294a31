"""Two data-parallel workers against one, with the same global batches. This file is also the workers' script."""

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from unfreeze.config import FinetuneConfig, ModelConfig
from unfreeze.data.pixels.decode import make_array
from unfreeze.data.pixels.part import Part
from unfreeze.data.sets.catalog import Dataset
from unfreeze.finetune.checkpoint import Checkpoint
from unfreeze.finetune.loop import Diverged, finetune
from unfreeze.finetune.parallel import Worker
from unfreeze.finetune.warm import WarmModel
from unfreeze.models.build import build_model
from unfreeze.records import TrialSpec

NUM_VAL = 19  # odd: the workers' shares differ

# One after another on the same warm model, as a slot runs them; the third diverges.
TRIALS: list[tuple[str, dict[str, Any]]] = [
    ("mha", {}),
    ("all", {"micro_batch_size": 3, "weight_decay": 0.01}),
    ("all", {"clip_norm": 0.0, "num_reports": 8, "learning_rate": 1e30}),
    ("ln2@1+fc2@0", {"optimizer": "adamw", "learning_rate": 0.003}),
    ("none", {}),
    ("fc1", {"train_head": False, "augment": "crop_flip"}),
]


def run_trials(worker: Worker, *, shard: bool = False) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)

    def part(count: int) -> Part:
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return Part(make_array(images, rng.integers(0, 4, count)), np.arange(count))

    data = Dataset(tuple("abcd"), part(45), part(NUM_VAL), num_test=0, digest="", bad_files=())
    kwargs = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 16, "drop_path_rate": 0.2}
    config = ModelConfig(name="unfreeze_tiny", weights="random", kwargs=kwargs)
    base = build_model(config, num_classes=4, cache_dir=Path("unused"))
    warm = WarmModel(base, torch.device("cpu"), shard=shard)
    results = []
    for index, (selection, settings) in enumerate(TRIALS):
        settings = {"epochs": 12 * 8 / 45, "batch_size": 8, "num_reports": 4, "eval_batch_size": 6, **settings}
        augment, rate = settings.pop("augment", "none"), settings.pop("learning_rate", 0.05)
        spec = TrialSpec(index=index, selection=selection, learning_rate=rate, seed=7, origin="search")
        result: dict[str, Any] = {"reports": [], "state": "finished"}
        try:
            checkpoint = None
            for progress in finetune(warm, data, spec, FinetuneConfig(**settings), augment=augment, worker=worker):
                result["reports"] = [asdict(report) for report in progress.reports]
                if len(progress.reports) == 2:
                    checkpoint = Checkpoint.from_bytes(progress.checkpoint.to_bytes(), base_digest=base.facts.digest)
                    checkpoint = replace(checkpoint, reports=progress.reports)
        except Diverged:
            result["state"] = "diverged"
        if shard and result["state"] == "finished":  # taken up again, it goes on as it did
            resumed = finetune(
                warm, data, spec, FinetuneConfig(**settings), augment=augment, worker=worker, resume=checkpoint
            )
            result["resumed"] = [asdict(report) for progress in resumed for report in progress.reports[-1:]]
        results.append(result)
    return results


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, module_processes: Any) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("workers")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = []
    for rank in range(2):
        with (folder / f"{rank}.log").open("wb") as log:
            command = [sys.executable, __file__, str(rank), str(folder)]
            workers.append(module_processes.start(command, cwd=folder, log=log, env=environment))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = run_trials(Worker())
    finally:
        torch.set_num_threads(threads)
    codes = [module_processes.wait(worker, 300) for worker in workers]
    assert codes == [0, 0], "\n".join((folder / f"{rank}.log").read_text() for rank in range(2))
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    return {"alone": alone, **first, **second}


@pytest.mark.parametrize("kind", ["rank", "sharded"])
@pytest.mark.parametrize("index", range(len(TRIALS)))
def test_two_workers_report_what_one_does(index: int, kind: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    """With a copy of the model each (DDP), and with a share of it each (FSDP2)."""
    alone, first, second = (outcomes[name][index] for name in ("alone", f"{kind} 0", f"{kind} 1"))
    assert alone["state"] == first["state"] == second["state"] == ("diverged" if index == 2 else "finished")
    if index == 2:
        return
    assert len(alone["reports"]) == 4
    for one, left, right in zip(alone["reports"], first["reports"], second["reports"], strict=True):
        assert left["images_seen"] == right["images_seen"] == one["images_seen"]
        # A sum over the workers, divided once: not one rank's share of it.
        assert left["val_accuracy"] == right["val_accuracy"] == one["val_accuracy"]
        assert left["val_accuracy"] * NUM_VAL == pytest.approx(round(left["val_accuracy"] * NUM_VAL), abs=1e-9)
        for key in ("train_loss", "val_loss"):
            assert left[key] == right[key]
            assert left[key] == pytest.approx(one[key], rel=1e-5)
    for resumed, whole in zip(first.get("resumed", ()), first["reports"][2:], strict=False):
        assert (resumed["train_loss"], resumed["val_loss"]) == (whole["train_loss"], whole["val_loss"])
    assert kind == "rank" or len(first["resumed"]) == 2


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    worker = Worker(rank=rank, world_size=2)
    results = {f"rank {rank}": run_trials(worker), f"sharded {rank}": run_trials(worker, shard=True)}
    (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
