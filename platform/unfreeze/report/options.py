"""Every option with its default, its meaning and what it may be.

Types, choices and ranges are read from the annotations of config.py, through the JSON schema that pydantic makes of
them; nothing is typed twice.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from unfreeze.config import Config

_BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "null": "null", "boolean": "true | false"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    name: str  # finetune.epochs
    default: str  # as on the command line
    meaning: str
    allowed: str  # number > 0

    @property
    def section(self) -> str | None:
        """The first part of its name; None for an option of no section."""
        return self.name.partition(".")[0] if "." in self.name else None

    def is_called(self, name: str) -> bool:
        """Whether whole parts of its name say so: ``finetune``, ``finetune.epochs``, ``epochs``."""
        return f".{name}." in f".{self.name}."


def list_options() -> list[Option]:
    """All of them, in the order of config.py."""
    return list(_options_below(Config()))


def _options_below(section: Any, prefix: str = "") -> Iterator[Option]:
    hints = get_type_hints(type(section), include_extras=True)
    for field in fields(section):
        value, name = getattr(section, field.name), f"{prefix}{field.name}"
        if is_dataclass(value):
            yield from _options_below(value, f"{name}.")
        else:
            allowed = describe_type(TypeAdapter(hints[field.name]).json_schema())
            yield Option(name=name, default=as_yaml(value), meaning=field.metadata["help"], allowed=allowed)


def describe_type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words: ``whole number ≥ 1 | null``."""
    rest = dict(schema)
    kind = rest.pop("type", None)
    if "anyOf" in rest:
        text = " | ".join(describe_type(member) for member in rest.pop("anyOf"))
    elif "enum" in rest:
        text = " | ".join(rest.pop("enum"))
    elif "const" in rest:
        text = rest.pop("const")
    elif kind == "array":
        few = f", at least {rest.pop('minItems')}" if "minItems" in rest else ""
        text = f"list of {_in_brackets(rest.pop('items'))}{few}"
    elif kind == "object":
        keys, values = rest.pop("propertyNames", {"type": "string"}), rest.pop("additionalProperties")
        text = f"mapping of {_in_brackets(keys)} to {_in_brackets({} if values is True else values)}"
    elif kind is None:
        text = "anything"
    else:
        bounds = " and ".join(f"{sign} {rest.pop(key):g}" for key, sign in _BOUNDS.items() if key in rest)
        like = f"like {rest.pop('pattern')}" if "pattern" in rest else ""
        text = " ".join(part for part in (_TYPES[kind], bounds, like) if part)
    assert not rest, f"a constraint without words: {rest}"
    return text


def _in_brackets(schema: Mapping[str, Any]) -> str:
    text = describe_type(schema)
    return f"({text})" if " | " in text else text


def as_yaml(value: Any) -> str:
    """A default as it is typed on the command line: ``null``, ``[all, none]``."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    return value if isinstance(value, str) else json.dumps(value)
