"""The tree of MLflow runs of one sweep, found again by tags and written so that writing twice changes nothing."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModel
    from mlflow.entities.model_registry import ModelVersion

SWEEP = "sweep"
PREPASS = "pre-pass"
_KEY = "unfreeze.run"  # SWEEP, PREPASS or a trial's id
_DIGEST = "unfreeze.digest"  # of the record the run was written from: a run that carries it is complete
_SHA256 = "unfreeze.sha256"  # of the exported file, on its model version
_SETTLED = "unfreeze.settled"  # finished trials that the sweep's run has a point for in its charts
_PARENT = "mlflow.parentRunId"
# `log_batch` takes 1,000 metrics, 100 params and 100 tags, and 1,000 in all.
_METRICS_PER_BATCH, _OTHERS_PER_BATCH = 800, 100
_MAX_PARAM, _MAX_TAG, _MAX_DESCRIPTION = 500, 4000, 5000
_RUNNING = "RUNNING"

MetricRow = tuple[str, float, int, int]  # key, value, timestamp in ms, step: the same row twice is one row


@dataclass(kw_only=True, slots=True)
class _Run:
    run_id: str
    start_ms: int
    status: str
    digest: str | None
    settled: int = 0


class RunTree:
    """One sweep's runs in one experiment: the sweep's own, with the pre-pass and the trials nested below it.

    ``identity`` are the tags that tell this sweep from every other one; ``unfreeze.sweep`` is among them.
    """

    def __init__(self, client: "MlflowClient", experiment_id: str, identity: Mapping[str, str]) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._identity = {key: value[:_MAX_TAG] for key, value in identity.items()}
        self._runs = self._find()
        self._uploads: dict[tuple[str, str], str] = {}

    def _find(self) -> dict[str, _Run]:
        """Every run of this sweep by key. Of two with one key, the older counts."""
        # The name's characters are checked by the configuration, so it needs no quoting; a path would.
        query = f"tags.\"unfreeze.sweep\" = '{self._identity['unfreeze.sweep']}'"
        runs: dict[str, _Run] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                query,
                max_results=1000,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            for run in page:
                tags = run.data.tags
                if _KEY in tags and all(tags.get(key) == value for key, value in self._identity.items()):
                    runs[tags[_KEY]] = _Run(
                        run_id=run.info.run_id,
                        start_ms=run.info.start_time,
                        status=run.info.status,
                        digest=tags.get(_DIGEST),
                        settled=int(tags.get(_SETTLED, 0)),
                    )
            token = page.token
            if not token:
                return runs

    def ensure(self, key: str, *, name: str, start_ms: int | None) -> None:
        """Create the run unless it exists, started now unless told when; below the sweep's own unless it is that."""
        if key in self._runs:
            return
        tags = {**self._identity, _KEY: key}
        if key != SWEEP:
            tags[_PARENT] = self._runs[SWEEP].run_id
        info = self._client.create_run(self._experiment_id, start_time=start_ms, tags=tags, run_name=name).info
        self._runs[key] = _Run(run_id=info.run_id, start_ms=info.start_time, status=info.status, digest=None)
        if key == SWEEP:  # somebody has deleted the one that was here: what lay below it is below the new one now
            for below in self._runs.values():
                if below.run_id != info.run_id:
                    self._client.set_tag(below.run_id, _PARENT, info.run_id)

    def is_written(self, key: str, digest: str) -> bool:
        run = self._runs.get(key)
        return run is not None and run.digest == digest and (key == SWEEP or run.status != _RUNNING)

    def start_ms(self, key: str) -> int:
        """When the run began: fixed in MLflow, so it can stamp what has no time of its own."""
        return self._runs[key].start_ms

    def write(
        self,
        key: str,
        *,
        params: Mapping[str, str] | None = None,
        metrics: Sequence[MetricRow] = (),
        tags: Mapping[str, str | None] | None = None,
        digest: str | None = None,
    ) -> None:
        """Add to a run in as few calls as the limits allow; ``digest`` goes last, as the mark of completeness."""
        from mlflow.entities import Metric, Param, RunTag

        run = self._runs[key]
        rows = [Metric(name, value, timestamp, step) for name, value, timestamp, step in metrics]
        pairs = [Param(name, _cut(value, _MAX_PARAM)) for name, value in (params or {}).items()]
        marks = [RunTag(name, _cut(value, _MAX_TAG)) for name, value in (tags or {}).items() if value is not None]
        if digest is not None:
            marks.append(RunTag(_DIGEST, digest))
        while rows or pairs or marks:
            last = len(rows) <= _METRICS_PER_BATCH and len(pairs) <= _OTHERS_PER_BATCH
            self._client.log_batch(
                run.run_id,
                metrics=rows[:_METRICS_PER_BATCH],
                params=pairs[:_OTHERS_PER_BATCH],
                tags=marks[:_OTHERS_PER_BATCH] if last else [],
            )
            rows, pairs = rows[_METRICS_PER_BATCH:], pairs[_OTHERS_PER_BATCH:]
            marks = marks[_OTHERS_PER_BATCH:] if last else marks
        if digest is not None:
            run.digest = digest

    @property
    def settled(self) -> int:
        """How many finished trials the sweep's charts have a point for."""
        return self._runs[SWEEP].settled

    def write_settled(self, num_finished: int, metrics: Sequence[MetricRow]) -> None:
        """Points of the sweep's charts up to ``num_finished``."""
        self.write(SWEEP, metrics=metrics, tags={_SETTLED: str(num_finished)})
        self._runs[SWEEP].settled = num_finished

    def log_datasets(self, key: str, inputs: "list[DatasetInput]") -> None:
        """Say which data a run used. A name and digest that it has already stays one."""
        self._client.log_inputs(self._runs[key].run_id, inputs)

    def upload(self, key: str, path: str, content: bytes) -> None:
        """Put an artifact, unless this process has put the same content there before."""
        digest = hashlib.sha256(content).hexdigest()
        if self._uploads.get((key, path)) == digest:
            return
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory(prefix="unfreeze-") as temporary:
            local = Path(temporary) / name
            local.write_bytes(content)
            self._client.log_artifact(self._runs[key].run_id, str(local), folder or None)
        self._uploads[key, path] = digest

    def set_status(self, key: str, status: str, *, end_ms: int | None = None) -> None:
        run = self._runs[key]
        if run.status == status:
            return
        if status == _RUNNING:
            self._client.update_run(run.run_id, status=status)
        else:
            self._client.set_terminated(run.run_id, status=status, end_time=end_ms)
        run.status = status

    def registered_version(self, name: str, digest: str) -> str | None:
        """The version of the registered model with this digest; creates the model without versions if need be."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        token = None
        while True:
            page = self._client.search_model_versions(f"name='{name}'", page_token=token)
            for version in page:
                if version.tags.get(_SHA256) == digest:
                    return str(version.version)
            token = page.token
            if not token:
                return None

    @property
    def sweep_run_id(self) -> str:
        return self._runs[SWEEP].run_id

    def find_or_create_model(
        self, name: str, digest: str, *, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> "LoggedModel":
        """The logged model of this digest: one whose upload broke off is taken up again."""
        query = f"tags.`{_SHA256}` = '{digest}' AND source_run_id = '{self.sweep_run_id}'"
        found = self._client.search_logged_models([self._experiment_id], filter_string=query)
        if found:
            return found[0]
        return self._client.create_logged_model(
            self._experiment_id,
            name=name,
            source_run_id=self.sweep_run_id,
            tags={**tags, _SHA256: digest},
            params=dict(params),
            model_type="image-classification",
        )

    def finish_model(
        self, model: "LoggedModel", folder: Path, metrics: Sequence[tuple[MetricRow, tuple[str, str]]]
    ) -> None:
        """Upload a logged model's folder and link it to the sweep's run. ``metrics``: each with its data set's name
        and digest."""
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

        self._client.log_model_artifacts(model.model_id, str(folder))
        rows = [
            Metric(*row, model_id=model.model_id, dataset_name=name, dataset_digest=digest, run_id=self.sweep_run_id)
            for row, (name, digest) in metrics
        ]
        self._client.log_batch(self.sweep_run_id, metrics=rows)
        self._client.log_outputs(self.sweep_run_id, [LoggedModelOutput(model.model_id, step=0)])
        if model.status != LoggedModelStatus.READY:
            self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)

    def add_version(
        self, name: str, model: "LoggedModel", *, digest: str, tags: Mapping[str, str], description: str
    ) -> str:
        """Make a logged model the next version of a registered model; returns its number."""
        version = self._client.create_model_version(
            name,
            model.artifact_location,  # of a `models:/` address a database asks the process's MLflow, not this client's
            run_id=self.sweep_run_id,
            tags={**tags, _SHA256: digest},
            description=_cut(description, _MAX_DESCRIPTION),
            await_creation_for=0,
            model_id=model.model_id,
        )
        return str(version.version)

    def version_called(self, name: str, alias: str) -> "ModelVersion | None":
        registered = self._client.get_registered_model(name)
        return self._client.get_model_version_by_alias(name, alias) if alias in registered.aliases else None

    def call_version(self, name: str, alias: str, version: str) -> None:
        self._client.set_registered_model_alias(name, alias, version)


def _cut(value: str, limit: int) -> str:
    return value if len(value) <= limit else f"{value[: limit - 1]}…"
