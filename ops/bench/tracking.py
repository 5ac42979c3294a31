"""What MLflow costs a sweep: requests a trial, CPU of the driver, and how long after the last trial the view is whole.

The same stream of trials, each with ten reports of six numbers, goes to an `mlflow server` process by our mirror and by
Ray's MLflowLoggerCallback, and by the mirror to SQLite. Trials end at a steady pace; CPU is that of this process with
the mirror less that of the same feed without it.
"""

import argparse
import contextlib
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import requests.adapters
from figures.record import figure, hand_in, make_parser

from unfreeze.config import Config, TrackingConfig
from unfreeze.records import (
    COMPONENTS,
    DataFacts,
    ModelFacts,
    PlasticityRow,
    PlasticityTable,
    TrialRecord,
    TrialReport,
    TrialSpec,
    TrialState,
    to_dict,
)
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.gather import read_evidence
from unfreeze.tracking.mirror import MlflowMirror
from unfreeze.tracking.server import connect

NUM_BLOCKS, NUM_REPORTS = 6, 10


class Requests:
    """Counts what goes over HTTP while it is entered."""

    def __enter__(self) -> "Requests":
        self.count = 0
        send = requests.adapters.HTTPAdapter.send

        def counted(adapter: Any, *arguments: Any, **rest: Any) -> Any:
            self.count += 1
            return send(adapter, *arguments, **rest)

        self._patch = mock.patch.object(requests.adapters.HTTPAdapter, "send", counted)
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()


def make_trial(index: int) -> TrialRecord:
    """One of many runs of 31 selections, whose accuracy rises with what they train."""
    rng = random.Random(index)
    names = [name for name in COMPONENTS if rng.random() < 0.5] or ["mha"]
    accuracy = 0.7 + 0.03 * len(names) + rng.gauss(0, 0.01)
    now = round(1000 * time.time())
    reports = tuple(
        TrialReport(
            images_seen=1000 * step,
            train_loss=1 / step,
            val_loss=1.2 / step,
            val_accuracy=accuracy * step / NUM_REPORTS,
            seconds=2.0 * step,
            timestamp_ms=now - 2000 * (NUM_REPORTS - step),
            usage={"cpu_utilization_percentage": 97.0, "system_memory_usage_percentage": 40.0},
        )
        for step in range(1, NUM_REPORTS + 1)
    )
    spec = TrialSpec(index=index, selection="+".join(names), learning_rate=0.01, seed=index, origin="search")
    return TrialRecord(spec=spec, state=TrialState.FINISHED, reports=reports, trainable_parameters=1000 * len(names))


def make_ledger(folder: str) -> Ledger:
    """A sweep whose pre-pass is done, of the embedded model's shape."""
    rng = random.Random(0)
    rows = []
    for name in COMPONENTS:
        values = [3 + rng.gauss(0, 0.5) for _ in range(NUM_BLOCKS)]
        for block, value in [*enumerate(values), (None, sum(values) / NUM_BLOCKS)]:
            rows.append(
                PlasticityRow(
                    mode="reference",
                    block=block,
                    component=name,
                    mean=value,
                    sd=0.1,
                    num_pairs=512,
                    low=value - 0.1,
                    high=value + 0.1,
                )
            )
    sizes = {f"{block}.{name}": 10_000 for block in range(NUM_BLOCKS) for name in COMPONENTS}
    model = ModelFacts(
        name="unfreeze_tiny",
        digest="a" * 64,
        num_blocks=NUM_BLOCKS,
        parameters={**sizes, "embed": 10_000, "head": 1000},
        image_size=32,
        create_kwargs={},
        num_tokens=17,
        width=64,
    )
    classes = tuple("0123456789")
    data = DataFacts(
        name="digits", digest="b" * 64, classes=classes, num_train=1000, num_val=200, num_test=300, num_source=500
    )
    table = PlasticityTable(
        rows=tuple(rows), skipped_pairs=0, seconds=1.0, model_digest=model.digest, data_digest=data.digest
    )
    ledger = Ledger(folder, "bench")
    ledger.claim(Config())
    ledger.write_json("facts.json", {"model": to_dict(model), "data": to_dict(data)})
    ledger.write_json("plasticity.json", to_dict(table))
    return ledger


def feed(ledger: Ledger, num_trials: int, every_s: float, mirror: MlflowMirror | None) -> tuple[float, float]:
    """Seconds and this process's CPU seconds while the trials end, one ``every_s``."""
    started, cpu = time.perf_counter(), time.process_time()
    for index in range(num_trials):
        ledger.write_trial(make_trial(index))
        if mirror is not None:
            mirror.notify()
        time.sleep(max(0.0, started + (index + 1) * every_s - time.perf_counter()))
    return time.perf_counter() - started, time.process_time() - cpu


def measure_ours(uri: str, folder: str, arguments: argparse.Namespace) -> dict[str, float]:
    alone_s, alone_cpu = feed(make_ledger(f"{folder}/alone"), arguments.trials, arguments.every_s, None)
    ledger = make_ledger(f"{folder}/ours")
    mirror = MlflowMirror(TrackingConfig(uri=uri, experiment="ours"), ledger, read_evidence)
    mirror.sync()  # the first one imports MLflow and makes the experiment: once a sweep, however long
    with Requests() as sent:
        mirror.__enter__()
        with_s, with_cpu = feed(ledger, arguments.trials, arguments.every_s, mirror)
        began = time.perf_counter()
        mirror.close(timeout_s=3600)
        catch_up_s = time.perf_counter() - began
    client = connect(uri)
    experiment = client.get_experiment_by_name("ours")
    runs = client.search_runs([experiment.experiment_id], "tags.unfreeze.state = 'finished'", max_results=50_000)
    assert len(runs) == arguments.trials, f"{len(runs)} of {arguments.trials} trials are in MLflow"
    return {
        "requests": sent.count / arguments.trials,
        "cpu_share": max(with_cpu - alone_cpu, 0) / with_s,
        "catch_up_s": catch_up_s,
        "slow_down": with_s / alone_s - 1,
    }


def measure_theirs(uri: str, num_trials: int) -> float:
    """Requests a trial of Ray's callback."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    callback = MLflowLoggerCallback(tracking_uri=uri, experiment_name="theirs")
    callback.setup()
    with Requests() as sent:
        for index in range(num_trials):
            record = make_trial(index)
            trial = mock.Mock(config={"selection": record.spec.selection, "learning_rate": 0.01, "seed": index})
            callback.log_trial_start(trial)
            for step, report in enumerate(record.reports, start=1):
                result = {**to_dict(report), "trainable_parameters": record.trainable_parameters}
                callback.log_trial_result(step, trial, {**result, "training_iteration": step})
            callback.log_trial_end(trial)
    return sent.count / num_trials


@contextlib.contextmanager
def mlflow_server(folder: str) -> Iterator[str]:
    """A server process of MLflow's own, on SQLite."""
    connect(f"sqlite:///{folder}/server.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/files"]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--port", str(port), "--workers", "1"]
    with Path(folder, "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    uri = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, Path(folder, "server.log").read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5):
                break
            time.sleep(0.2)
        yield uri
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--every-s", type=float, default=0.5, help="seconds from the end of a trial to the next one's")
    parser.add_argument("--their-trials", type=int, default=3)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="unfreeze-bench-") as folder, mlflow_server(folder) as server:
        theirs = measure_theirs(server, arguments.their_trials)
        places = {"server": server, "sqlite": f"sqlite:///{folder}/own.db"}
        for name, uri in places.items():
            found = measure_ours(uri, f"{folder}/{name}", arguments)
            if name == "server":
                results.append(figure("requests", found["requests"], theirs, "requests/trial"))
            results += [
                figure(f"cpu_{name}", found["cpu_share"], None, "share of a core"),
                figure(f"catch_up_{name}", found["catch_up_s"], None, "s"),
                figure(f"slow_down_{name}", found["slow_down"], None, "share"),
            ]
    settings = {"trials": arguments.trials, "every_s": arguments.every_s, "reports": NUM_REPORTS}
    hand_in("tracking", results, arguments, **settings)


if __name__ == "__main__":
    main()
