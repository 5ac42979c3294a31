"""What must hold after a sweep in the cluster, undisturbed or not; a RehearsalError says what does not."""

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kuberay
from deployment import MLFLOW, Deployment, Job, local_options
from images import ROOT
from podman import RehearsalError

from unfreeze.storage.ledger import Ledger

sys.path.insert(0, str(ROOT / "ops"))
from chaos import comparable

_LOCAL_S = 420.0


def run_locally(entrypoint: list[str], folder: Path) -> Any:
    """The same sweep by a Ray of this machine's own, in ``folder``: what of its ledger must not depend on the place."""
    options = [*local_options(entrypoint), f"storage={folder}/runs", "tracking.uri=null"]
    own = {"HOME": str(folder), "RAY_TMPDIR": str(folder), "PYTHONPATH": str(ROOT / "platform")}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")} | own
    try:
        done = subprocess.run(
            [sys.executable, str(ROOT / "sweeps/vit_components.py"), *options],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LOCAL_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RehearsalError(f"the local sweep has not ended after {_LOCAL_S:.0f} s") from error
    if done.returncode:
        raise RehearsalError(f"the local sweep failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    name = next(word.partition("=")[2] for word in options if word.startswith("sweep.name="))
    return comparable(Ledger(f"{folder}/runs", name))


def check_ledger(deployment: Deployment, sweep: str, expected: Any) -> str:
    """The ledger on S3 is the local run's: specs, states, every report's numbers, the answer, the exported model."""
    ledger = deployment.ledger(sweep)
    found = comparable(ledger)
    if found != expected:
        raise RehearsalError(f"{ledger.url('')} differs from the local run's: {_first_difference(found, expected)}")
    return f"{len(found[0])} trials and the answer equal"


def _first_difference(found: Any, expected: Any) -> str:
    pairs = [*zip(found[0], expected[0], strict=False), (found[1], expected[1])]
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    return f"{len(found[0])} trials against {len(expected[0])}; {differing[0][0]} against {differing[0][1]}"[:1000]


def check_tracking(deployment: Deployment, sweep: str) -> str:
    """In PostgreSQL: one run for the sweep, its pre-pass and each trial, complete and ended."""
    expected = {"sweep", "pre-pass", *(trial.spec.trial_id for trial in deployment.ledger(sweep).trials())}
    rows = deployment.query(
        "SELECT k.value, r.status, d.value IS NOT NULL FROM tags s "
        "JOIN tags k ON k.run_uuid = s.run_uuid AND k.key = 'unfreeze.run' "
        "JOIN runs r ON r.run_uuid = s.run_uuid "
        "LEFT JOIN tags d ON d.run_uuid = s.run_uuid AND d.key = 'unfreeze.digest' "
        f"WHERE s.key = 'unfreeze.sweep' AND s.value = '{sweep}'"
    )
    incomplete = [row for row in rows if row[1] == "RUNNING" or row[2] != "t"]
    if sorted(row[0] for row in rows) != sorted(expected) or incomplete:
        raise RehearsalError(f"MLflow's runs of {sweep} in PostgreSQL are {rows}, but expected {sorted(expected)}")
    return f"{len(rows)} runs, each once"


# Run in a worker, whose image has what a user of the model has; the model brings the code that loads it. The download
# goes through MLflow: a moto that checks keys answers 500 to presigned addresses, and each file would be tried for a
# minute.
_LOAD = """
import os, sys
os.environ['MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD'] = 'false'
import mlflow
mlflow.set_tracking_uri('http://mlflow:5000')
model = mlflow.pyfunc.load_model('models:/' + sys.argv[1] + '@champion')
found = model.predict(model.input_example)
print(found['class'][0], round(float(found['probability'][0]), 2))
"""


def check_model(deployment: Deployment, sweep: str) -> str:
    """The registered model loads by MLflow's name for it, and answers to its own example."""
    done = deployment.stage.execute(deployment.workers[0], "python", "-c", _LOAD, f"unfreeze-{sweep}")
    if done.returncode:
        raise RehearsalError(f"models:/unfreeze-{sweep}@champion cannot be loaded:\n{done.stderr[-2000:]}")
    return f"its example is {done.stdout.strip().splitlines()[-1]}"


def check_metrics(deployment: Deployment, job: Job) -> str:
    """Every number of a sweep that ops/monitoring asks for is exported by the head while the sweep runs."""
    texts = [(ROOT / "ops/monitoring" / name).read_text() for name in ("dashboard.json", "alerts.yaml")]
    asked = {name for text in texts for name in re.findall(r"\bray_unfreeze_\w+", text)}
    url = f"http://{deployment.stage.address(deployment.head)}:{kuberay.METRICS_PORT}/metrics"

    def exported() -> bool:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = re.findall(r'(?m)^(ray_unfreeze_\w+)\{.*sweep="(.*?)"', answer.read().decode())
        return asked <= {name for name, sweep in found if sweep == job.sweep}

    job.wait_until(exported, "metrics of its own")
    return f"{len(asked)} metrics"


def check_refusals(deployment: Deployment) -> str:
    """Without its token the cluster neither lists jobs nor answers; MLflow refuses a host it was not told of."""
    if (code := status(f"{deployment.dashboard}/api/jobs/")) != 401:
        raise RehearsalError(f"the dashboard answers {code} to a request without a token, and 401 was expected")
    address = f"{kuberay.head_service(deployment.cluster)}:6379"
    ask, bare = ["ray", "health-check", "--address", address], ["env", "--unset=RAY_AUTH_TOKEN"]
    codes = [deployment.stage.execute(deployment.workers[0], *command).returncode for command in (ask, [*bare, *ask])]
    if codes[0] or not codes[1]:
        raise RehearsalError(f"the GCS: `ray health-check` ends with {codes[0]} with the token and {codes[1]} without")
    url = f"http://{deployment.stage.address(MLFLOW)}:5000/api/2.0/mlflow/experiments/search?max_results=1"
    if (code := status(url)) != 403:
        raise RehearsalError(f"MLflow answers {code} to a Host that --allowed-hosts does not list")
    return "dashboard 401, GCS no, MLflow 403"


def status(url: str, headers: Mapping[str, str] | None = None) -> int:
    """What a server answers to a request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers or {})), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
