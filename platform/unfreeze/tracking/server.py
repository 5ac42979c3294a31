"""The connection to MLflow: quiet, bounded in time, imported only when used."""

import importlib.metadata
import logging
import os
import re
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.config import redact
from unfreeze.tracking.describe import EXPERIMENT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

# MLflow's own defaults (120 s, 7 retries with back-off) keep a dead server's caller for several minutes. 30 s, because
# a server answers the upload of a model only when it has stored it.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# MLflow shows an experiment that does not say what it is as one of generative models.
_ABOUT = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": EXPERIMENT}
_SQLITE = "sqlite:///"
_PROBE_TIMEOUT_S = 5.0
_OWN_PAGE = "http://127.0.0.1:5000"  # where `make ui` shows a database


class ExperimentDeletedError(Exception):
    """The experiment is in MLflow's bin, where runs can be neither found nor made."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer to be told: MLflow's own client would repeat a POST as a GET there."""

    def redirect_request(self, *_: Any) -> None:
        return None


def check_reachable(uri: str) -> str | None:
    """What is wrong when no MLflow answers at an http(s) tracking URI within 5 s; None when one does or for a database.

    A refusal (401, 403) is an answer: credentials are MLflow's affair, and none are sent here.
    """
    if not uri.startswith(("http://", "https://")):
        return None
    scheme, _, rest = uri.partition("://")
    host = rest.rpartition("@")[2].rstrip("/")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only whether someone is there
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))
    name = f"MLflow at {redact(uri)}{_proxy_of(scheme, host)}"
    try:
        with opener.open(f"{scheme}://{host}/health", timeout=_PROBE_TIMEOUT_S) as answer:
            if answer.read(100).lstrip().startswith(b"<"):
                return f"{name} answers with a page that is not MLflow's: a login or a gateway, perhaps"
            return None
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (301, 302, 303, 307, 308):
            target = redact(error.headers.get("Location", "nowhere").removesuffix("/health"))
            return f"{name} redirects to {target}: give that as tracking.uri, unless it is a login page"
        proxied = "through the proxy" in name and error.code in (403, 407)
        return f"{name} answers {error.code} {error.reason}" if error.code >= 500 or proxied else None
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError; the others: no URL, or no HTTP
        return f"{name} does not answer ({getattr(error, 'reason', error)})"


def explain(error: Exception, uri: str) -> str:
    """The first line of what MLflow said, or the way out where MLflow's own words leave it open."""
    said = str(error).strip()
    if "error code 401" in said:
        return (
            f"MLflow at {redact(uri)} refuses the credentials: renew MLFLOW_TRACKING_TOKEN, or "
            f"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if "error code 403" in said:
        return (
            f"MLflow at {redact(uri)} does not let these credentials do it (403): ask whoever runs it for the "
            f"permission, or set others, MLFLOW_TRACKING_TOKEN or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return said.partition("\n")[0] or type(error).__name__


def page_of(uri: str) -> str:
    """MLflow's address in a browser, without user and password."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].rstrip('/')}" if scheme in ("http", "https") else _OWN_PAGE


def _client_version() -> str:
    return importlib.metadata.version("mlflow")


def check_version(uri: str) -> str | None:
    """What is wrong with a server's version; None where nothing is, it does not say, or it is a database."""
    if not uri.startswith(("http://", "https://")):
        return None
    scheme, _, rest = uri.partition("://")
    try:
        place = f"{scheme}://{rest.rpartition('@')[2].rstrip('/')}/version"
        with urllib.request.urlopen(place, timeout=_PROBE_TIMEOUT_S) as answer:
            version = answer.read(100).decode().strip()
    except (OSError, HTTPException, ValueError):
        return None
    if re.fullmatch(r"[012]\..*", version) is None:
        return None
    return (
        f"MLflow at {redact(uri)} is version {version}, and what sweeps write needs 3: on the server, stop it, run "
        f"`pip install mlflow=={_client_version()}` and `mlflow db upgrade DATABASE`"
    )


def _proxy_of(scheme: str, host: str) -> str:
    """A remark on the proxy between here and there; empty: none."""
    proxy = urllib.request.getproxies().get(scheme)
    if not proxy or urllib.request.proxy_bypass(host.partition("/")[0]):
        return ""
    name = host.partition("/")[0].partition(":")[0]
    return f", through the proxy {redact(proxy)} ({scheme.upper()}_PROXY; NO_PROXY={name} goes around it),"


def check_schema(uri: str) -> str | None:
    """What is wrong with a database whose tables are another MLflow's; None for a server, and where there are none yet.

    MLflow's client itself would change some of them at once, under a server of the other version.
    """
    import sqlalchemy
    from alembic.script import ScriptDirectory
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from mlflow.store.db.utils import _get_alembic_config, _get_schema_version

    path = sqlite_path(uri)
    if uri.partition(":")[0].partition("+")[0] not in DATABASE_ENGINES or (path is not None and not path.exists()):
        return None
    engine = sqlalchemy.create_engine(uri if path is None else f"{_SQLITE}{path}", poolclass=sqlalchemy.NullPool)
    found = _get_schema_version(engine)
    script = ScriptDirectory.from_config(_get_alembic_config(""))
    if found in (None, script.get_current_head()):
        return None
    name, version = f"MLflow's database at {redact(uri)}", _client_version()
    if found not in {revision.revision for revision in script.walk_revisions()}:
        return f"{name} is of a newer MLflow than {version} here: install that one, or choose another tracking.uri"
    return (
        f"{name} is of an older MLflow than {version} here: stop what writes to it, make a copy, and run "
        f"`mlflow db upgrade {redact(uri)}`"
    )


def connect(uri: str) -> "MlflowClient":
    """A client for the tracking URI. A fresh SQLite database is created here, in this process alone.

    Raises:
        ConnectionError: the database is another MLflow's, as `check_schema` says.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient  # takes about 5 s

    for name in ("mlflow", "alembic"):  # the variable above comes too late where someone imported MLflow before
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # that an environment of uv's has no pip
    if (problem := check_schema(uri)) is not None:
        raise ConnectionError(problem)
    path = sqlite_path(uri)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        uri = f"{_SQLITE}{path}"
    return MlflowClient(uri, registry_uri=uri)


def find_experiment(client: "MlflowClient", name: str) -> "Experiment | None":
    """``name`` auto: the one whose number is MLFLOW_EXPERIMENT_ID."""
    number = os.environ.get("MLFLOW_EXPERIMENT_ID") if name == "auto" else None
    return client.get_experiment_by_name(name) if number is None else client.get_experiment(number)


def open_experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """The id of the experiment, created when there is none of that name.

    Raises:
        ExperimentDeletedError: with the two ways out.
    """
    from mlflow.exceptions import MlflowException

    experiment = find_experiment(client, name)
    if experiment is None:
        path = sqlite_path(uri)
        # MLflow's default for a database is ./mlruns of whoever happens to write.
        artifacts = None if path is None else (path.parent / "mlartifacts").as_uri()
        try:
            return client.create_experiment(name, artifact_location=artifacts, tags=_ABOUT)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another sweep may have been faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise ExperimentDeletedError(
            f"MLflow's experiment {experiment.name!r} at {redact(uri)} is deleted: bring it back with `mlflow "
            f"experiments restore --experiment-id {experiment.experiment_id}`, or choose another, tracking.experiment=…"
        )
    for key, text in _ABOUT.items():
        if key not in experiment.tags:  # an older one, or made by hand; what somebody has written there stays
            client.set_experiment_tag(experiment.experiment_id, key, text)
    return experiment.experiment_id


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a SQLite tracking URI's file; None for any other URI."""
    return Path(uri.removeprefix(_SQLITE)).resolve() if uri.startswith(_SQLITE) else None
