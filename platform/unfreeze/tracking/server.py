"""The connection to MLflow: quiet, bounded in time, imported only when used."""

import logging
import os
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from unfreeze.report.settings import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's own defaults (120 s, 7 retries with back-off) keep a dead server's caller for several minutes. 30 s, because
# a server answers the upload of a model only when it has stored it.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_SQLITE = "sqlite:///"
_PROBE_TIMEOUT_S = 5.0


def check_reachable(uri: str) -> str | None:
    """A warning when nothing answers at an http(s) tracking URI within 5 s; None when something does or for a database.

    A refusal (401, 403) is an answer: credentials are MLflow's affair, and none are sent here.
    """
    if not uri.startswith(("http://", "https://")):
        return None
    scheme, _, rest = uri.partition("://")
    host = rest.rpartition("@")[2].rstrip("/")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only whether someone is there
    try:
        with urllib.request.urlopen(f"{scheme}://{host}/health", timeout=_PROBE_TIMEOUT_S, context=context):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return None if error.code < 500 else f"MLflow at {redact(uri)} answers {error.code} {error.reason}"
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError; the others: no URL, or no HTTP
        return f"MLflow at {redact(uri)} does not answer ({getattr(error, 'reason', error)})"


def connect(uri: str) -> "MlflowClient":
    """A client for the tracking URI. A fresh SQLite database is created here, in this process alone."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient  # takes about 5 s

    for name in ("mlflow", "alembic"):  # the variable above comes too late where someone imported MLflow before
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))
    path = sqlite_path(uri)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        uri = f"{_SQLITE}{path}"
    return MlflowClient(uri, registry_uri=uri)


def open_experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """The id of the experiment, created when there is none."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        path = sqlite_path(uri)
        # MLflow's default for a database is ./mlruns of whoever happens to write.
        artifacts = None if path is None else (path.parent / "mlartifacts").as_uri()
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another sweep may have been faster
            if experiment is None:
                raise
    return experiment.experiment_id


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a SQLite tracking URI's file; None for any other URI."""
    return Path(uri.removeprefix(_SQLITE)).resolve() if uri.startswith(_SQLITE) else None
