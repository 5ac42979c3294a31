"""The configuration's door: YAML and command line come in, a checked `Config` goes out; below nobody sees OmegaConf."""

import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from unfreeze.checks import contradictions
from unfreeze.config import Config, Mode, RivalScore
from unfreeze.errors import ConfigError


def load_config(raw: DictConfig | Mapping[str, Any], found: Sequence[str] = ()) -> Config:
    """Turn a composed configuration into a checked `Config`. ``found``: problems of the command line itself.

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
    problems += [text for sections, text in contradictions(config) if not unsound.intersection(sections)]
    if problems:
        listing = "\n".join(f"  {line}" for line in problems)
        raise ConfigError(f"the configuration has problems, nothing was started:\n{listing}")
    return _absolute(_with_prior(config))


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
    return TypeAdapter(Config).validate_json(json.dumps(plain))


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


def _absolute(config: Config) -> Config:
    """Local paths made absolute: Ray's workers and Tune's trials run in other folders than the command."""
    config.storage = _absolute_path(config.storage)
    config.data.cache_dir = _absolute_path(config.data.cache_dir)
    places = ("path", "train", "val", "test", "source_path")
    for section, name in (*((config.data, place) for place in places), (config.model, "weights")):
        value = getattr(section, name)
        if value is not None and value != "random":
            setattr(section, name, _absolute_path(value))
    scheme = "sqlite:///"
    if config.tracking.uri is not None and config.tracking.uri.startswith(scheme):
        config.tracking.uri = scheme + _absolute_path(config.tracking.uri.removeprefix(scheme))
    return config


def _absolute_path(location: str) -> str:
    return location if "://" in location else str(Path(location).expanduser().absolute())
