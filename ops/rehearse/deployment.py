"""What an overlay describes, on its stage: S3, PostgreSQL, MLflow, a Ray cluster and the sweep's job."""

import json
import os
import re
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kuberay
from images import ROOT
from keys import FOLDERS, NUM_OPEN, REGION, Keys, documented_secrets
from podman import RehearsalError, podman
from pods import Object
from stage import NAMESPACE, Stage, answers, full_names

from unfreeze.records import TrialState
from unfreeze.storage.ledger import Ledger

S3_IMAGE = "unfreeze-rehearsal-s3"
MLFLOW, POSTGRES, S3 = "mlflow-0", "postgres-0", "s3-0"
_S3_PORT = 9000
_CLUSTER = "sweep"
_JOB_S = 420.0
_TRAINS = "ray::RayTrainWorker"
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
        self.secrets = self._documented_secrets()
        self.stage = Stage(objects, self.secrets, folder)
        self._job = next(o for o in objects if o["kind"] == "RayJob")
        self._spec: Object = self._job["spec"]["rayClusterSpec"]
        self._num_clusters = self._num_jobs = self._num_workers = 0
        self.cluster = ""
        self.workers: list[str] = []

    # --- S3 and secrets ---

    def start_storage(self) -> None:
        """S3, the bucket that the manifests name, and a key for each secret that wants one."""
        open_requests = {"name": "INITIAL_NO_AUTH_ACTION_COUNT", "value": str(NUM_OPEN)}
        template = {"spec": {"containers": [{"name": "s3", "image": f"localhost/{S3_IMAGE}", "env": [open_requests]}]}}
        self.stage.play(template, S3, aliases=full_names("s3"))
        self.stage.wait(lambda: answers(f"{self.s3_url}/moto-api/"), S3, "answer", 120.0)
        self.keys = Keys(self.s3_url)
        for secret in FOLDERS:
            self.secrets[secret] |= self.keys.make(secret, self.s3_url)
        self.use_storage()

    @property
    def s3_url(self) -> str:
        return f"http://{self.stage.address(S3)}:{_S3_PORT}"

    def use_storage(self) -> None:
        """Let this process reach the same S3, by address: the name is the pods'."""
        os.environ.update(self.keys.admin | {"AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL": self.s3_url})

    def _documented_secrets(self) -> dict[str, dict[str, str]]:
        place = {"AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL": f"http://s3:{_S3_PORT}"}
        return documented_secrets((ROOT / "k8s/README.md").read_text(), place)

    def ledger(self, sweep: str) -> Ledger:
        (storage,) = re.findall(r"storage=(\S+)", self._job["spec"]["entrypoint"])
        return Ledger(storage, sweep)

    # --- MLflow and its database ---

    def start_tracking(self) -> None:
        self.start_database()
        self.start_mlflow()

    def start_database(self) -> None:
        self.stage.play_workload("StatefulSet", "postgres")

    def destroy_database(self) -> None:
        """The pod, and the volume with all that was on it."""
        self.stage.remove(POSTGRES)
        self.stage.destroy(f"data-{POSTGRES}")

    def start_mlflow(self, image: str | None = None) -> None:
        """MLflow, which migrates its database first; ``image``: in place of the rendered one."""
        self.stage.play_workload("Deployment", "mlflow", image)

    def stop_mlflow(self) -> None:
        self.stage.remove(MLFLOW, grace_s=10)

    def change_password(self) -> tuple[str, str]:
        """PostgreSQL's and, in the secret, MLflow's; the old and the new one."""
        old, new = self.secrets["unfreeze-postgres"], self._documented_secrets()["unfreeze-postgres"]
        self.query(f"ALTER USER mlflow PASSWORD '{new['password']}'")
        self.secrets["unfreeze-postgres"] = new
        return old["password"], new["password"]

    def takes_password(self, password: str) -> bool:
        """Whether PostgreSQL does, of one who comes by network."""
        uri = f"postgresql://mlflow:{password}@postgres/mlflow"
        return self.stage.execute(POSTGRES, "psql", uri, "--command", "SELECT 1").returncode == 0

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

    def busy_worker(self) -> str:
        """The one that trains, by its process."""
        for name in self.workers:
            (container,) = self.stage.containers(name)
            if _TRAINS in podman("top", container, "args"):
                return name
        raise RehearsalError(f"none of {', '.join(self.workers)} trains")

    def remove_worker(self, name: str) -> None:
        self.stage.remove(name)
        self.workers.remove(name)

    def remove_cluster(self, *, grace_s: int = 0) -> None:
        """The head, then the workers, which KubeRay takes away with it."""
        self.stage.remove(self.head, grace_s=grace_s)
        for name in list(self.workers):
            self.remove_worker(name)

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
