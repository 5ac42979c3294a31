"""The ledger: a sweep's append-only record, and the only truth. Optuna's study and MLflow's runs are views of it."""

import json
from dataclasses import replace
from typing import Any

from unfreeze.config import FREE_OPTIONS, FREE_SECTIONS, Config, changed_keys, config_to_dict, redact
from unfreeze.errors import InfrastructureError, StorageError, SweepMismatchError
from unfreeze.records import TestResult, TrialRecord, TrialState, to_dict, trial_record_from_dict
from unfreeze.storage.base import Storage, open_storage
from unfreeze.storage.patience import patiently

# Until November 2026 what Ray Tune had lost was recorded as the trial's failure.
_LOST_BY_TUNE = "Tune lost the trial; see Ray's logs"


class Ledger:
    """Objects of one sweep below ``{storage}/{sweep}/``.

    ``lease/<number>.json``, ``config.json``, ``environment.json``, ``facts.json``, ``plasticity.json``,
    ``learned.json``, ``trials/<id>.json``, ``checkpoints/<id>/…``, ``test.json``, ``final.json``, ``report.html``,
    ``export/…``, ``mlflow.json`` (which MLflow runs are ours).
    Each trial has one writer at a time, the slot that runs it, so no object is ever written by two.
    """

    def __init__(self, location: str, sweep: str, *, lease: int | None = None) -> None:
        """``lease``: the driver's, see `storage.lease`; once there is a higher one nothing is written. None: always."""
        self.lease = lease
        self.location = location
        self.sweep = sweep
        self.storage: Storage = open_storage(location)

    def neighbours(self) -> list[str]:
        """The sweeps that have begun in this storage, by name."""
        keys = patiently(self.storage.keys)
        return [key.partition("/")[0] for key in keys if key.count("/") == 1 and key.endswith("/config.json")]

    def is_claimed(self, config: Config) -> bool:
        """Whether the sweep has begun, with this configuration.

        Raises:
            SweepMismatchError: the name is taken by another configuration; says which keys differ.
        """
        current = _shown(config_to_dict(config))
        stored = self.read_json("config.json")
        if stored is None:
            return False
        if current["cluster"]["gpus_per_worker"] == "auto":  # settled on what there is, when Ray is joined
            current["cluster"]["gpus_per_worker"] = stored["cluster"]["gpus_per_worker"]
        differing = changed_keys(_comparable(stored), _comparable(current))
        if differing:
            listing = "\n".join(f"  {line}" for line in differing)
            raise SweepMismatchError(
                f"sweep {self.sweep!r} in {self.url('')} was started with another configuration:\n{listing}\n"
                f"give this one a new sweep.name, or delete the folder to start over"
            )
        return True

    def claim(self, config: Config) -> None:
        """Take the sweep's name for this configuration: once all that can be checked beforehand has been.

        Raises:
            SweepMismatchError: as `is_claimed`.
        """
        self.is_claimed(config)
        self.write_json("config.json", _shown(config_to_dict(config)))

    def trials(self) -> list[TrialRecord]:
        """Every trial's record, by index."""
        keys = [key for key in self._keys("trials/") if key.endswith(".json")]
        records = [self._read_trial(key.removeprefix(self._key(""))) for key in keys]
        return sorted(records, key=lambda record: record.spec.index)

    def trial(self, trial_id: str) -> TrialRecord | None:
        try:
            return self._read_trial(f"trials/{trial_id}.json")
        except KeyError:
            return None

    def write_trial(self, record: TrialRecord) -> None:
        record = replace(record, lease=self.lease or record.lease)
        self.write_json(f"trials/{record.spec.trial_id}.json", to_dict(record))

    def tests(self) -> dict[str, TestResult]:
        """Trial → its result on the test images; empty unless ``search.select_on`` is test."""
        return {trial_id: TestResult(**raw) for trial_id, raw in (self.read_json("test.json") or {}).items()}

    def write_tests(self, results: dict[str, TestResult]) -> None:
        self.write_json("test.json", {trial_id: to_dict(result) for trial_id, result in results.items()})

    def read_json(self, key: str) -> Any:
        """The parsed object, or None when there is none."""
        try:
            return self._parse(key, self.read_bytes(key))
        except KeyError:
            return None

    def write_json(self, key: str, value: Any) -> None:
        self.write_bytes(key, _json(value))

    def create_json(self, key: str, value: Any) -> bool:
        """Write an object that must not be there yet; False where it is."""
        return patiently(lambda: self.storage.create(self._key(key), _json(value)))

    def read_bytes(self, key: str) -> bytes:
        return patiently(lambda: self.storage.read(self._key(key)))

    def write_bytes(self, key: str, data: bytes) -> None:
        self._check_lease()
        patiently(lambda: self.storage.write(self._key(key), data))

    def delete(self, key: str) -> None:
        self._check_lease()
        patiently(lambda: self.storage.delete(self._key(key)))

    def url(self, key: str) -> str:
        return self.storage.url(self._key(key))

    def highest_lease(self) -> int:
        """Number of the last driver that took the sweep; 0 before the first."""
        numbers = (key.rpartition("/")[2].removesuffix(".json") for key in self._keys("lease/"))
        return max(map(int, numbers), default=0)

    def _check_lease(self) -> None:
        if self.lease is not None and (highest := self.highest_lease()) > self.lease:
            raise InfrastructureError(
                f"another driver has taken sweep {self.sweep!r} over ({self.url(f'lease/{highest:05d}.json')} says "
                f"which); this one writes nothing more"
            )

    def _read_trial(self, key: str) -> TrialRecord:
        raw = self._parse(key, self.read_bytes(key))
        try:
            record = trial_record_from_dict(raw)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"{self.url(key)} is no trial's record ({error!r}); restore it, or delete it and the trial runs again"
            ) from error
        if record.error == _LOST_BY_TUNE:
            return replace(record, state=TrialState.RUNNING, error=None)
        return record

    def _keys(self, prefix: str) -> list[str]:
        return patiently(lambda: self.storage.keys(self._key(prefix)))

    def _key(self, key: str) -> str:
        return f"{self.sweep}/{key}"

    def _parse(self, key: str, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError as error:
            raise StorageError(f"{self.url(key)} is not JSON ({error}); restore it or delete it to redo it") from error


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def _shown(value: Any) -> Any:
    """Settings without the passwords of their addresses: whoever may read results need not be able to write them."""
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in FREE_SECTIONS}
    for section, free in FREE_OPTIONS.items():
        kept[section] = {key: value for key, value in config[section].items() if key not in free}
    if config["search"].get("max_memory_gib") is not None:  # what fits depends on what a worker is
        kept["cluster"] = {key: config["cluster"][key] for key in ("workers_per_trial", "gpus_per_worker")}
        kept["finetune"] = config["finetune"]
    elif config["search"].get("max_flops_share", 1.0) < 1 or config["search"].get("objective") == "pareto":
        kept["finetune"]["prefix_cache_gib"] = config["finetune"]["prefix_cache_gib"]  # what is cached costs no FLOPs
    return kept
