"""Which components of a pretrained Vision Transformer to unfreeze, measured."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unfreeze.library import Plasticity, measure, unfreeze

__all__ = ["Plasticity", "load", "measure", "sweep", "unfreeze"]


class _Package(ModuleType):
    """`unfreeze.load` is the function, also after an import of load.py, which Python would put in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "load":
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """`unfreeze.measure` and the like on first use: importing the package costs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "sweep":
        return importlib.import_module("unfreeze.sweep")  # a package that can be called
    from unfreeze import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
