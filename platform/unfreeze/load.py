"""The configuration's door: YAML and command line come in, a checked `Config` goes out; below nobody sees OmegaConf."""

import contextlib
import difflib
import functools
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from unfreeze.checks import contradictions
from unfreeze.config import Config, DataConfig, Mode, RivalScore, TrackingConfig
from unfreeze.errors import ConfigError

_SQLITE = "sqlite:///"


def load_config(
    raw: DictConfig | Mapping[str, Any], found: Sequence[str] = (), typed: Collection[str] | None = None
) -> Config:
    """Turn a composed configuration into a checked `Config`.

    ``found``: problems of the command line itself. ``typed``: the options that somebody gave, by dotted name, where
    others come from an experiment's file; None: all that differ from their defaults.

    Raises:
        ConfigError: lists every unknown key, wrong type and value out of range at once.
    """
    try:
        plain = OmegaConf.to_container(raw, resolve=True) if isinstance(raw, DictConfig) else dict(raw)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration cannot be resolved: {error}") from error
    assert isinstance(plain, dict)
    problems = [*found]
    unsound: set[Any] = set()
    try:
        config = _validate(plain)
    except ValidationError as error:
        problems += dict.fromkeys(_describe(item) for item in error.errors())
        unsound = {item["loc"][0] for item in error.errors()}
        config = _validate({key: value for key, value in plain.items() if key not in unsound})
    problems += [text for sections, text in contradictions(config, typed) if not unsound.intersection(sections)]
    if problems:
        listing = "\n".join(f"  {line}" for line in problems)
        raise ConfigError(f"the configuration has problems, nothing was started:\n{listing}")
    return _resolved(_with_prior(config))


@functools.cache
def text_options() -> frozenset[str]:
    """The dotted names of the options that hold any text: names, paths, addresses."""
    return frozenset(_options_of((str, str | None), Config))


@functools.cache
def text_list_options() -> frozenset[str]:
    """The same of lists of such texts: selections, places of a probe."""
    return frozenset(_options_of((list[str],), Config))


def _options_of(kinds: tuple[Any, ...], section: Any, prefix: str = "") -> Iterator[str]:
    for name, kind in get_type_hints(section).items():
        if is_dataclass(kind):
            yield from _options_of(kinds, kind, f"{prefix}{name}.")
        elif kind in kinds:
            yield f"{prefix}{name}"


def _validate(plain: dict[Any, Any]) -> Config:
    # Through JSON, because strict mode takes a list for a tuple and an int for a float from JSON alone.
    return _adapter().validate_json(json.dumps(plain))


@functools.cache
def _adapter() -> TypeAdapter[Config]:
    """Built once: that takes as long as a hundred validations."""
    return TypeAdapter(Config)


def _describe(item: Any) -> str:
    """One validation problem as one line, with the key, the value and the way out."""
    # A union's member shows up in the location as a type label ("literal['auto']"); it is no key of ours.
    path = [str(part) for part in item["loc"] if re.fullmatch(r"\w+", str(part)) and part not in ("int", "str")]
    name = ".".join(path) or "configuration"
    if item["type"] == "unexpected_keyword_argument":
        known = _keys_at(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        where = ".".join(path[:-1])
        hint = (
            f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"{where or 'there'} has {', '.join(known)}"
        )
        return f"{name}: unknown option; {hint}"
    if item["type"] == "value_error":
        return f"{name}: {item['ctx']['error']}"
    if item["type"] == "string_too_short":
        return f"{name}: must not be empty, but got ''; an unset shell variable, perhaps"
    return f"{name}: {item['msg'][0].lower()}{item['msg'][1:]}, but got {item['input']!r}"


def _keys_at(path: list[str]) -> list[str]:
    """The option names of the section at ``path``."""
    section: Any = Config
    for part in path:
        section = get_type_hints(section).get(part) if is_dataclass(section) else None
    return [f.name for f in fields(section)] if is_dataclass(section) else []


def _with_prior(config: Config) -> Config:
    """The pre-pass measures what the prior is made of, asked for or not."""
    needed = "reference" if config.search.prior.score == "reversed" else config.search.prior.score
    measured: list[tuple[list[Any], Any]] = [
        (config.plasticity.modes, Mode),
        (config.plasticity.scores, RivalScore),
    ]
    for names, known in measured:
        if needed in get_args(known) and needed not in names:
            names.append(needed)
    return config


def _resolved(config: Config) -> Config:
    """What the surroundings decide: the tracking server, local paths made absolute.

    Ray's workers and Tune's trials run in other folders than the command.
    """
    config.tracking = _tracking(config.tracking)
    if not inside_job():  # where `open_storage` refuses a relative one
        config.storage = _absolute_path("storage", config.storage)
    own = config.data.cache_dir == DataConfig().cache_dir
    config.data.cache_dir = _usual_cache() if own else _absolute_path("data.cache_dir", config.data.cache_dir)
    places = ("path", "train", "val", "test", "source_path")
    for section, name in (*(("data", place) for place in places), ("model", "weights")):
        value = getattr(getattr(config, section), name)
        if value is not None and value != "random":
            setattr(getattr(config, section), name, _absolute_path(f"{section}.{name}", value))
    return config


def inside_job() -> bool:
    """Whether `ray job submit` has started this process: in a temporary copy of what was submitted."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _tracking(tracking: TrackingConfig) -> TrackingConfig:
    uri, experiment = tracking.uri, tracking.experiment
    if experiment == "auto":
        by_number = "auto" if os.environ.get("MLFLOW_EXPERIMENT_ID") else "unfreeze"  # whose name MLflow alone knows
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or by_number
    if uri == "auto":
        # Inside a job a database in the current folder would be gone with it.
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (None if inside_job() else f"{_SQLITE}mlflow.db")
    if uri is not None and uri.startswith(_SQLITE):
        uri = _SQLITE + _absolute_path("tracking.uri", uri.removeprefix(_SQLITE))
    try:
        return TrackingConfig(uri=uri, experiment=experiment)
    except ValueError as error:
        raise ConfigError(f"MLFLOW_TRACKING_URI: {error}; tracking.uri=… comes before it, null: off") from error


def _usual_cache() -> str:
    """``~/.cache/unfreeze``; where there is no home that can be written, a folder beside the temporary ones."""
    usual = DataConfig().cache_dir
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: a user id without a home
        folder = Path(usual).expanduser().absolute()
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            return str(folder)
    return str(Path(tempfile.gettempdir(), f"unfreeze-{os.getuid()}"))


def _absolute_path(name: str, location: str) -> str:
    try:
        return location if "://" in location else str(Path(location).expanduser().absolute())
    except RuntimeError as error:
        raise ConfigError(f"{name}={location}: this user has no home folder; give an absolute path") from error
