"""The names of timm's models, read from its sources: to import it takes seconds, and most names are right."""

import difflib
import functools
import importlib.util
import re
import sys
from pathlib import Path

from unfreeze.config import ModelConfig

_OWN = ModelConfig().name  # the embedded one, which registers itself


def unknown_name(name: str) -> str | None:
    """What to say of a name that timm cannot know; None of one that it may: by itself, by a user's own registration."""
    if "timm" in sys.modules or ":" in name or name == _OWN:
        return None
    architecture = name.partition(".")[0]
    # Names of before stand in its tables of renamed ones, as text.
    known = re.search(rf"def {re.escape(architecture)}\(|['\"]{re.escape(architecture)}['\"]", _sources())
    return None if known else say_unknown(name)


def say_unknown(name: str) -> str:
    """That timm knows no such model, and which it knows that are called alike."""
    names = [_OWN, *re.findall(r"^@register_model\s+def (\w+)", _sources(), re.MULTILINE)]
    family = [known for known in names if known.startswith(f"{name.split('_')[0]}_")]
    near = difflib.get_close_matches(name, family or names, n=5, cutoff=0.4)
    return f"timm knows no model {name!r}" + (f"; did you mean {', '.join(near)}?" if near else "")


@functools.cache
def _sources() -> str:
    found = importlib.util.find_spec("timm")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0], "models")
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
