"""What an overlay describes, on its stage: S3, PostgreSQL, MLflow, a Ray cluster and the sweep's job."""

import base64
import json
import os
import re
import secrets
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import kuberay
from images import ROOT
from podman import RehearsalError
from pods import Object
from stage import NAMESPACE, Stage, answers, full_names

from unfreeze.records import TrialState
from unfreeze.storage.ledger import Ledger

S3_IMAGE = "unfreeze-rehearsal-s3"
MLFLOW, POSTGRES, S3 = "mlflow-0", "postgres-0", "s3-0"
_S3_PORT = 9000
_CLUSTER = "sweep"
_JOB_S = 420.0
# The manifests' own sweep, made small by the options of ops/chaos.py. Not its slots: the head's memory is for as many.
SMALL = {
    "data.max_train_images": "100",
    "finetune.epochs": "8",
    "search.num_trials": "4",
    "search.start_learning_rates": "[0.1]",
    "search.confirm_top": "1",
    "search.confirm_seeds": "1",
}
# Of an entrypoint, what has no counterpart where there is no cluster.
_CLUSTERS_OWN = ("cluster", "cluster.", "storage", "tracking.", "sweep.takeover")


def documented_secrets(readme: str, s3: dict[str, str]) -> dict[str, dict[str, str]]:
    """The secrets that the README's own commands create, by `kubectl --dry-run`; ``s3``: what is written to s3.env."""
    lines = re.findall(r"(?m)^    ((?=password=|kubectl create secret generic )(?:.*\\\n)*.*)", readme)
    if not lines:
        raise RehearsalError("k8s/README.md has no `kubectl create secret generic …` to follow")
    wrapped = 'kubectl() { command kubectl "$@" --dry-run=client --output=json; }'
    with tempfile.TemporaryDirectory(prefix="rehearse-") as folder:
        (Path(folder) / "s3.env").write_text("".join(f"{name}={value}\n" for name, value in s3.items()))
        script = "\n".join(["set -euo pipefail", wrapped, *lines])
        done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RehearsalError(f"the README's commands for secrets fail: {done.stderr.strip()}")
    found, decoder, text = {}, json.JSONDecoder(), done.stdout.strip()
    while text:
        secret, end = decoder.raw_decode(text)
        found[secret["metadata"]["name"]] = {
            key: base64.b64decode(value).decode() for key, value in secret["data"].items()
        }
        text = text[end:].strip()
    return found


def with_options(entrypoint: str, options: dict[str, str]) -> list[str]:
    """The words of an entrypoint, options set or added; Hydra takes each group once."""
    words = [word for word in entrypoint.split() if word.partition("=")[0] not in options]
    return [*words, *(f"{name}={value}" for name, value in options.items())]


def local_options(words: list[str]) -> list[str]:
    """Of an entrypoint's words, the options that mean the same sweep without a cluster, S3 and MLflow."""
    options = [word for word in words if "=" in word]
    return [word for word in options if not any(_is_of(word.partition("=")[0], own) for own in _CLUSTERS_OWN)]


def _is_of(name: str, own: str) -> bool:
    return name.startswith(own) if own.endswith(".") else name == own


class Deployment:
    """Everything that an overlay describes, brought up piece by piece; each piece can be lost and brought up again."""

    def __init__(self, objects: list[Object], folder: Path) -> None:
        self._s3 = {
            "AWS_ACCESS_KEY_ID": "rehearsal",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://s3:{_S3_PORT}",
        }
        self.secrets = documented_secrets((ROOT / "k8s/README.md").read_text(), self._s3)
        self.stage = Stage(objects, self.secrets, folder)
        self._job = next(o for o in objects if o["kind"] == "RayJob")
        self._spec: Object = self._job["spec"]["rayClusterSpec"]
        self._num_clusters = self._num_jobs = self._num_workers = 0
        self.cluster = ""
        self.workers: list[str] = []

    # --- S3 ---

    def start_storage(self) -> None:
        """S3, and the buckets that the manifests name."""
        template = {"spec": {"containers": [{"name": "s3", "image": f"localhost/{S3_IMAGE}"}]}}
        self.stage.play(template, S3, aliases=full_names("s3"))
        self.stage.wait(lambda: answers(f"{self.s3_url}/moto-api/"), S3, "answer", 120.0)
        self.use_storage()
        buckets = set(re.findall(r"s3://([\w.-]+)", json.dumps(self.stage.objects)))
        for bucket in sorted(buckets):
            boto3.client("s3").create_bucket(Bucket=bucket)

    @property
    def s3_url(self) -> str:
        return f"http://{self.stage.address(S3)}:{_S3_PORT}"

    def use_storage(self) -> None:
        """Let this process reach the same S3, by address: the name is the pods'."""
        os.environ.update(self._s3 | {"AWS_ENDPOINT_URL": self.s3_url})

    def ledger(self, sweep: str) -> Ledger:
        (storage,) = re.findall(r"storage=(\S+)", self._job["spec"]["entrypoint"])
        return Ledger(storage, sweep)

    # --- MLflow and its database ---

    def start_tracking(self) -> None:
        self.stage.play_workload("StatefulSet", "postgres")
        self.stage.play_workload("Deployment", "mlflow")

    def query(self, statement: str) -> list[list[str]]:
        """Rows of the tracking database."""
        done = self.stage.execute(
            POSTGRES, "psql", "--username=mlflow", "--dbname=mlflow", "--csv", "--tuples-only", "--command", statement
        )
        if done.returncode:
            raise RehearsalError(f"psql: {done.stderr.strip()}")
        return [line.split(",") for line in done.stdout.splitlines()]

    # --- Ray ---

    @property
    def head(self) -> str:
        return f"{self.cluster}-head"

    def start_cluster(self, num_workers: int = 2) -> None:
        """A head and workers of a new cluster, as KubeRay makes one for each attempt of a RayJob."""
        self._num_clusters += 1
        self.cluster = f"{_CLUSTER}-{self._num_clusters}"
        self.secrets[self.cluster] = {kuberay.TOKEN_KEY: secrets.token_hex(32)}
        template = kuberay.head_template(self._spec, cluster=self.cluster)
        aliases = full_names(kuberay.head_service(self.cluster))
        self.stage.play(template, self.head, aliases=aliases)
        self.stage.wait_ready(template, self.head)
        self.workers = []
        for _ in range(num_workers):
            self.start_worker()

    def start_worker(self) -> str:
        group = self._spec["workerGroupSpecs"][0]
        self._num_workers += 1
        name = f"{self.cluster}-worker-{self._num_workers}"
        template = kuberay.worker_template(self._spec, group, cluster=self.cluster, namespace=NAMESPACE)
        self.stage.play(template, name)
        self.stage.wait_ready(template, name)
        self.workers.append(name)
        return name

    def stop_workers(self) -> None:
        for name in self.workers:
            self.stage.remove(name)
        self.workers = []

    @property
    def dashboard(self) -> str:
        return f"http://{self.stage.address(self.head)}:{kuberay.DASHBOARD_PORT}"

    @property
    def login(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secrets[self.cluster][kuberay.TOKEN_KEY]}"}

    # --- the sweep ---

    def entrypoint(self, sweep: str) -> list[str]:
        return with_options(self._job["spec"]["entrypoint"], {"sweep.name": sweep, **SMALL})

    def submit(self, sweep: str) -> "Job":
        """The submitter's pod, started."""
        self._num_jobs += 1
        job_id = f"{_CLUSTER}-job-{self._num_jobs}"
        entrypoint = " ".join(self.entrypoint(sweep))
        template = kuberay.submitter_template(self._job, cluster=self.cluster, job_id=job_id, entrypoint=entrypoint)
        name = f"{_CLUSTER}-submitter-{self._num_jobs}"
        self.stage.play(template, name)
        return Job(self, sweep, job_id, name)


class Job:
    """One submission of the sweep."""

    def __init__(self, deployment: Deployment, sweep: str, job_id: str, pod: str) -> None:
        self.sweep, self.pod = sweep, pod
        self._deployment, self._id = deployment, job_id

    def status(self) -> str:
        """Ray's word for it; UNKNOWN while the head does not answer or has not heard of it."""
        request = urllib.request.Request(
            f"{self._deployment.dashboard}/api/jobs/{self._id}", headers=self._deployment.login
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return str(json.load(answer)["status"])
        except (OSError, urllib.error.HTTPError):
            return "UNKNOWN"

    def wait_until(self, condition: Callable[[], Any], what: str) -> None:
        """Until it is true of the running job.

        Raises:
            RehearsalError: the job ended before, or it took too long.
        """
        until = time.monotonic() + _JOB_S
        while not condition():
            status = self.status()
            if status in ("SUCCEEDED", "FAILED", "STOPPED") or time.monotonic() > until:
                raise RehearsalError(f"no {what}: sweep {self.sweep} is {status}\n{self.logs()}")
            time.sleep(1.0)

    def wait_under_way(self) -> None:
        """Until one trial has ended and another has reported: in the middle of the sweep."""
        ledger = self._deployment.ledger(self.sweep)

        def is_under_way() -> bool:
            trials = ledger.trials()
            has_ended = any(trial.state is not TrialState.RUNNING for trial in trials)
            return has_ended and any(trial.state is TrialState.RUNNING and trial.reports for trial in trials)

        self.wait_until(is_under_way, "trial under way")

    def wait_end(self) -> None:
        """Raises RehearsalError, with what the driver said, unless it ends well."""
        until = time.monotonic() + _JOB_S
        while (status := self.status()) not in ("SUCCEEDED", "FAILED", "STOPPED"):
            if time.monotonic() > until:
                break
            time.sleep(1.0)
        if status != "SUCCEEDED":
            raise RehearsalError(f"sweep {self.sweep} is {status} after {_JOB_S:.0f} s at most\n{self.logs()}")
        self.forget()

    def logs(self) -> str:
        return self._deployment.stage.logs(self.pod, 60)

    def forget(self) -> None:
        """Remove the submitter's pod."""
        self._deployment.stage.remove(self.pod)
