"""A sweep on a cluster whose nodes come, are drained and die: slots follow them, and the ledger is that of calm.

The nodes are labelled as those with cards are; one is of a kind that was not asked for, and nothing is placed there."""

import contextlib
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import Patience, Processes
from ray._private.authentication_test_utils import reset_auth_token_state
from ray.cluster_utils import Cluster

from unfreeze.config import ACCELERATOR_LABEL
from unfreeze.records import TrialRecord
from unfreeze.storage.ledger import Ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SWEEP_S = 600
OPTIONS = (
    *("experiment=demo", "tracking.uri=null", "data.max_train_images=100", "finetune.epochs=60"),
    *("search.num_trials=4", "search.start_learning_rates=[0.1]", "search.confirm_top=0"),
)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs and one node with one, with a token as a cluster has it."""
    (tmp_path / "token").write_text(secrets.token_hex(32))
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    reset_auth_token_state()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    add_node(cluster, "A100")
    yield cluster
    cluster.shutdown()
    monkeypatch.undo()
    reset_auth_token_state()


def add_node(cluster: Cluster, kind: str) -> Any:
    return cluster.add_node(num_cpus=1, labels={ACCELERATOR_LABEL: kind})


def has_work(node: Any) -> bool:
    """Whether a worker of a slot's or of the pre-pass's is there."""
    below = psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
    names = []
    for process in below:
        with contextlib.suppress(psutil.Error):  # gone meanwhile
            names.append(" ".join(process.cmdline()))
    return any(kind in name for name in names for kind in ("RayTrainWorker", "PrePass"))


def comparable(records: list[TrialRecord]) -> list[Any]:
    return [
        (r.spec, r.state, [(p.images_seen, p.train_loss, p.val_loss, p.val_accuracy) for p in r.reports])
        for r in records
    ]


def drain(cluster: Cluster, node: Any) -> None:
    """As a cloud announces that it takes a machine back, in ten minutes."""
    words = ["ray", "drain-node", "--address", cluster.address, "--node-id", node.node_id]
    words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds"]
    subprocess.run([Path(sys.executable).with_name(words[0]), *words[1:], "600"], check=True, capture_output=True)


def test_slots_follow_the_nodes_and_the_ledger_does_not(
    cluster: Cluster,
    processes: Processes,
    patience: Patience,
    environment: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    variables = environment(tmp_path) | token

    def start(name: str) -> tuple[subprocess.Popen[bytes], Ledger]:
        command = [sys.executable, ROOT / "sweeps/vit_components.py", *OPTIONS]
        command += [f"sweep.name={name}", f"storage={tmp_path}/runs", f"cluster.address={cluster.address}"]
        command += ["cluster.max_slots=2", "cluster.heartbeat_timeout_s=600", "cluster.accelerators=[A100,H100]"]
        with (tmp_path / f"{name}.log").open("wb") as log:
            process = processes.start(command, cwd=tmp_path, log=log, env=variables)
        return process, Ledger(str(tmp_path / "runs"), name)

    (first,) = cluster.worker_nodes
    idle = add_node(cluster, "T4")
    calm, expected = start("calm")
    assert processes.wait(calm, SWEEP_S) == 0, (tmp_path / "calm.log").read_text()
    rough, ledger = start("rough")

    def wait(condition: Callable[[list[TrialRecord]], bool], what: str) -> None:
        def found() -> bool:
            assert rough.poll() is None, (tmp_path / "rough.log").read_text()
            assert not has_work(idle)
            return condition(ledger.trials())

        patience.wait(found, SWEEP_S, what)

    wait(lambda trials: any(trial.reports for trial in trials), "first report")
    second = add_node(cluster, "H100")
    wait(lambda trials: any(t.slot == "slot-1" and t.reports for t in trials), "report of the second node's slot")
    drain(cluster, first)
    third = add_node(cluster, "A100")

    def has_left(trials: list[TrialRecord]) -> bool:
        """With its trial handed back, or, where the notice came at the end of one, with none."""
        said = "slot-0 went down: it went home" in (tmp_path / "rough.log").read_text()
        return said or any(trial.attempts == 2 for trial in trials)

    wait(has_left, "slot that leaves the drained node")
    assert "killed" not in (tmp_path / "rough.log").read_text()
    cluster.remove_node(first, allow_graceful=False)
    cluster.remove_node(second, allow_graceful=False)
    assert third in cluster.worker_nodes
    assert processes.wait(rough, SWEEP_S) == 0, (tmp_path / "rough.log").read_text()
    assert comparable(ledger.trials()) == comparable(expected.trials())
    assert all(trial.attempts <= 3 for trial in ledger.trials())
