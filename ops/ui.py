"""MLflow's page of a tracking database, opened where the sweeps are: on the training runs of their experiment.

python ops/ui.py [DATABASE] [EXPERIMENT]

DATABASE and EXPERIMENT are MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME (or MLFLOW_EXPERIMENT_ID's) unless given, or
sqlite:///mlflow.db and unfreeze. Without `workflowType` in its address the page shows any experiment as one of
generative models.
"""

import subprocess
import sys
import time
import urllib.request
import webbrowser

from mlflow import MlflowClient

from unfreeze.errors import ConfigError
from unfreeze.load import load_config
from unfreeze.tracking.server import check_schema, find_experiment

HOST, PORT = "127.0.0.1", 5000


def main() -> None:
    given = dict(zip(("uri", "experiment"), sys.argv[1:], strict=False))
    try:
        tracking = load_config({"tracking": given}).tracking
    except ConfigError as error:
        sys.exit(f"error: {error}")
    assert tracking.uri is not None
    uri, experiment = tracking.uri, tracking.experiment
    if (problem := check_schema(uri)) is not None:  # the client would change its tables
        sys.exit(f"error: {problem}")
    found = find_experiment(MlflowClient(uri), experiment)
    if found is None:
        sys.exit(f"error: {uri} has no experiment {experiment!r}; run a sweep there first, or name another")
    place = f"#/experiments/{found.experiment_id}/runs?workflowType=machine_learning"
    if uri.startswith(("http://", "https://")):
        show(f"{uri.rstrip('/')}/{place}")
        return
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", HOST]
    server = subprocess.Popen([*command, "--port", str(PORT), "--workers", "1"])
    try:
        while server.poll() is None and not answers():
            time.sleep(0.2)
        if server.poll() is None:
            show(f"http://{HOST}:{PORT}/{place}")
        sys.exit(server.wait())
    except KeyboardInterrupt:
        server.wait()


def answers() -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{PORT}/health", timeout=5):
            return True
    except OSError:
        return False


def show(address: str) -> None:
    print(f"\n{address}\n", flush=True)
    webbrowser.open(address)


if __name__ == "__main__":
    main()
