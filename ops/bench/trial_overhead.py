"""What a trial costs beyond its training: warm slots against the documented Tune → TorchTrainer per trial.

Empty trials on both sides, two CPU workers per trial, Tune driving one trial at a time, in one run. Start-up of the
cluster is outside both clocks; the warm side's slot is up before its first trial, as it is in a sweep. The last line of
output is one JSON object.

    python ops/bench/trial_overhead.py [--warm-trials 20] [--cold-trials 2] [--save]
"""

import logging
import os
import tempfile
import time
from typing import Any

import ray
import ray.train
from figures.record import figure, hand_in, make_parser
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from unfreeze.records import TrialSpec, to_dict
from unfreeze.slots.board import Board
from unfreeze.slots.outcome import Settled
from unfreeze.slots.trial import SlotTrial

NUM_WORKERS = 2


def empty_slot(arguments: dict[str, Any]) -> None:
    """A slot whose trials do nothing: the same board, the same messages, the same broadcast to the other rank."""
    import torch.distributed as dist

    board, slot_id = arguments["board"], "slot-0"
    rank = ray.train.get_context().get_world_rank()
    if rank == 0:
        ray.get(board.join.remote(slot_id))
    while True:
        box = [ray.get(board.take.remote(slot_id, 20.0)) if rank == 0 else None]
        dist.broadcast_object_list(box, src=0)
        answer: dict[str, Any] = box[0]  # type: ignore[assignment]
        if answer.get("closed"):
            return
        job = answer["job"]
        if job is None or rank > 0:
            continue
        report = {"images_seen": 1, "val_accuracy": 0.5}
        ray.get(board.push.remote(slot_id, job, [report]))
        ray.get(board.finish.remote(slot_id, job, Settled()))


def fit_trainer(train_loop: Any, arguments: dict[str, Any], folder: str, name: str) -> None:
    TorchTrainer(
        train_loop,
        train_loop_config=arguments,
        scaling_config=ScalingConfig(num_workers=NUM_WORKERS, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(name=name, storage_path=folder, failure_config=FailureConfig(controller_failure_limit=0)),
    ).fit()


def tune_trials(trainable: Any, space: dict[str, Any], num_trials: int, folder: str, *, reuse: bool) -> float:
    """Seconds per trial of ``num_trials`` trials, one at a time."""
    ends: list[float] = []

    class Clock(tune.Callback):
        def on_trial_complete(self, **_: Any) -> None:
            ends.append(time.perf_counter())

        def __reduce__(self) -> tuple[Any, ...]:
            return (tune.Callback, ())

    started = time.perf_counter()
    tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(num_samples=num_trials, max_concurrent_trials=1, reuse_actors=reuse),
        run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[Clock()]),
    ).fit()
    assert len(ends) == num_trials, f"{len(ends)} of {num_trials} trials ended"
    print(
        f"{num_trials} trials, first after {ends[0] - started:.2f} s, last after {ends[-1] - started:.2f} s", flush=True
    )
    return (ends[-1] - started) / num_trials


def measure_warm(num_trials: int, folder: str) -> float:
    import threading

    board = ray.remote(num_cpus=0)(Board).remote(3600.0)
    ray.get(board.expect.remote(["slot-0"]))
    slot = threading.Thread(target=fit_trainer, args=(empty_slot, {"board": board}, folder, "slot-0"), daemon=True)
    slot.start()
    while not ray.get(board.status.remote())["slots"]:
        time.sleep(0.1)
    spec = TrialSpec(index=0, selection="mha", learning_rate=0.1, seed=0, origin="bench")
    space = {"trial": {**to_dict(spec), "index": tune.sample_from(_next_index)}}
    trainable = tune.with_resources(
        tune.with_parameters(SlotTrial, board=board), {"CPU": 0, "node:__internal_head__": 0.001}
    )
    seconds = tune_trials(trainable, space, num_trials, folder, reuse=True)
    ray.get(board.close.remote())
    slot.join(60)
    return seconds


_indices = iter(range(10**6))


def _next_index(_: Any) -> int:
    return next(_indices)


def empty_loop(_: dict[str, Any]) -> None:
    """Trains nothing."""


def measure_cold(num_trials: int, folder: str) -> float:
    def trial(config: dict[str, Any]) -> None:
        fit_trainer(empty_loop, {}, folder, f"cold-{config['number']}")
        tune.report({"val_accuracy": 0.5})

    space = {"number": tune.sample_from(_next_index)}
    trainable = tune.with_resources(trial, {"CPU": 0, "node:__internal_head__": 0.001})
    return tune_trials(trainable, space, num_trials, folder, reuse=False)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--warm-trials", type=int, default=20)
    parser.add_argument("--cold-trials", type=int, default=2)
    arguments = parser.parse_args()
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="unfreeze-bench-", ignore_cleanup_errors=True) as folder:
        warm = measure_warm(arguments.warm_trials, folder)
        cold = measure_cold(arguments.cold_trials, folder)
    ray.shutdown()
    counts = {"warm_trials": arguments.warm_trials, "cold_trials": arguments.cold_trials}
    result = figure("trial_overhead", warm, cold, "s/trial", **counts, workers_per_trial=NUM_WORKERS)
    hand_in("trial_overhead", [result], arguments)


if __name__ == "__main__":
    main()
