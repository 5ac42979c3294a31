"""What MLflow costs a sweep: requests a trial, CPU, how long after the last trial the view is whole, and what it costs
while it fails.

The same stream of trials, each with ten reports of six numbers, goes to an `mlflow server` process by our mirror and by
Ray's MLflowLoggerCallback, and at the same time by the mirror to SQLite. Trials end at a steady pace; CPU is that of a
mirror's thread until the last of them. The report of so many trials is timed. Then the server fails in each way of the
outage matrix while trials end: the slow-down is the mirror's CPU, as if the sweep lacked all of it, and the time that
telling the mirror takes.
"""

import argparse
import dataclasses
import itertools
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import requests.adapters
from figures.record import figure, hand_in, make_parser

from unfreeze.config import TrackingConfig
from unfreeze.records import COMPONENTS, TrialRecord, to_dict
from unfreeze.report.page import html_report
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.gather import read_evidence
from unfreeze.tracking.mirror import MlflowMirror
from unfreeze.tracking.server import connect

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "fixtures"))

import finished_sweep as fixture
from faulty_proxy import OUTAGES, Fault, FaultyProxy
from mlflow_runs import serve

NUM_REPORTS = 10
LATE_S = 5.0  # a call


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
    return fixture.make_trial(
        index, "+".join(names), accuracy, seed=index, parameters=1000 * len(names), num_reports=NUM_REPORTS
    )


def feed(ledger: Ledger, num_trials: int, every_s: float, mirror: MlflowMirror) -> dict[str, float]:
    """What of a second the mirror takes while the trials end, one ``every_s``: of a core, and of the sweep's time."""
    assert mirror._thread is not None
    assert mirror._thread.ident is not None
    clock = time.pthread_getcpuclockid(mirror._thread.ident)
    started, waited = time.perf_counter(), 0.0
    for index in range(num_trials):
        ledger.write_trial(make_trial(index))
        before = time.perf_counter()
        mirror.notify()
        waited += time.perf_counter() - before
        time.sleep(max(0.0, started + (index + 1) * every_s - time.perf_counter()))
    seconds = time.perf_counter() - started
    return {"cpu_share": time.clock_gettime(clock) / seconds, "waited_share": waited / seconds}


def open_mirror(uri: str, folder: str) -> tuple[MlflowMirror, Ledger]:
    """A mirror of a sweep whose pre-pass is done. It has synced once: the first time imports MLflow and makes the
    experiment, once a sweep, however long."""
    name = Path(folder).name
    evidence = fixture.make_evidence((), with_final=False)
    model = dataclasses.replace(evidence.model, num_tokens=17, width=64)  # without them no trial has a share of FLOPs
    ledger = fixture.make_ledger(Path(folder), dataclasses.replace(evidence, model=model))
    mirror = MlflowMirror(TrackingConfig(uri=uri, experiment=name), ledger, read_evidence)
    mirror.sync()
    return mirror, ledger


def measure_ours(uri: str, folder: str, arguments: argparse.Namespace) -> dict[str, float]:
    mirror, ledger = open_mirror(uri, folder)
    mirror.__enter__()
    found = feed(ledger, arguments.trials, arguments.every_s, mirror)
    began = time.perf_counter()
    mirror.close(timeout_s=3600)
    catch_up_s = time.perf_counter() - began
    client = connect(uri)
    experiment = client.get_experiment_by_name(Path(folder).name)
    runs = client.search_runs([experiment.experiment_id], "tags.unfreeze.state = 'finished'", max_results=50_000)
    assert len(runs) == arguments.trials, f"{len(runs)} of {arguments.trials} trials are in MLflow"
    return {**found, "catch_up_s": catch_up_s}


def measure_outage(fault: Fault, server: str, folder: str, arguments: argparse.Namespace) -> float:
    """The slow-down while every request meets the fault."""
    with FaultyProxy(server, late_s=LATE_S) as proxy:
        mirror, ledger = open_mirror(proxy.url, folder)
        proxy.plan(itertools.repeat(fault))
        mirror.__enter__()
        found = feed(ledger, arguments.outage_trials, arguments.outage_every_s, mirror)
        proxy.plan(())
        mirror.close(timeout_s=3600)
    return found["cpu_share"] + found["waited_share"]


def measure_report(folder: str) -> dict[str, float]:
    """Seconds from the ledger to the page, what takes a while to import included, and its size."""
    began = time.perf_counter()
    page = html_report(read_evidence(Ledger(folder, "demo"))).encode()
    return {"seconds": time.perf_counter() - began, "mib": len(page) / 2**20}


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


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--every-s", type=float, default=0.5, help="seconds from the end of a trial to the next one's")
    parser.add_argument("--their-trials", type=int, default=3)
    parser.add_argument("--outage-trials", type=int, default=10, help="for each fault; 0: no outages")
    parser.add_argument("--outage-every-s", type=float, default=0.5)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="unfreeze-bench-") as folder:
        home = Path(folder, "server")
        home.mkdir()
        connect(f"sqlite:///{home}/mlflow.db")
        with serve(home) as server:
            theirs = measure_theirs(server, arguments.their_trials)
            places = {"server": server, "sqlite": f"sqlite:///{folder}/own.db"}
            with Requests() as sent, ThreadPoolExecutor() as pool:  # a database is not asked by HTTP
                runs = {
                    name: pool.submit(measure_ours, uri, f"{folder}/{name}-sweep", arguments)
                    for name, uri in places.items()
                }
            results.append(figure("requests", sent.count / arguments.trials, theirs, "requests/trial"))
            for name, run in runs.items():
                found = run.result()
                results += [
                    figure(f"cpu_{name}", found["cpu_share"], None, "share of a core"),
                    figure(f"catch_up_{name}", found["catch_up_s"], None, "s"),
                ]
            page = measure_report(f"{folder}/server-sweep")
            results += [figure("report", page["seconds"], None, "s"), figure("report_size", page["mib"], None, "MiB")]
            for fault in OUTAGES if arguments.outage_trials else ():
                name = f"slow_down_{fault.replace(' ', '_')}"
                results.append(
                    figure(name, measure_outage(fault, server, f"{folder}/{name}", arguments), None, "share")
                )
    settings = {
        "trials": arguments.trials,
        "every_s": arguments.every_s,
        "reports": NUM_REPORTS,
        "outage_trials": arguments.outage_trials,
        "outage_every_s": arguments.outage_every_s,
        "load": os.getloadavg(),  # of the whole machine, over the last 1, 5 and 15 minutes
    }
    hand_in("tracking", results, arguments, **settings)


if __name__ == "__main__":
    main()
