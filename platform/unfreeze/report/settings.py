"""Nested settings as flat text, fit to be shown to others."""

import json
from collections.abc import Mapping
from typing import Any

from unfreeze.config import redact


def flatten(settings: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """``{"search": {"space": "depth"}}`` → ``{"search.space": "depth"}``; lists and empty mappings as JSON."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, prefix=f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = redact(value if isinstance(value, str) else json.dumps(value))
    return flat
