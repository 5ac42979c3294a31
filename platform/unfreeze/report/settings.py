"""Nested settings as flat text, fit to be shown to others."""

import json
import re
from collections.abc import Mapping
from typing import Any


def flatten(settings: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """``{"search": {"space": "depth"}}`` → ``{"search.space": "depth"}``; lists and empty mappings as JSON."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, prefix=f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = redact(value if isinstance(value, str) else json.dumps(value))
    return flat


def redact(text: str) -> str:
    """``http://user:password@host`` without the user and the password."""
    return re.sub(r"://[^/@\s]+@", "://…@", text)
