"""The sweep from beginning to end. `run.py` is the main path; from Python the package itself is called."""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unfreeze.config import Config
    from unfreeze.records import Recommendation


class _Sweep(ModuleType):
    """A function of this name would be gone with the first import of a module below: so the package is the function."""

    def __call__(self, config: "Config | Mapping[str, Any]") -> "Recommendation":
        """Run a sweep as the command does, or go on with it: the same ledger, report and exported model.

        ``config``: a `Config`, or options as nested mappings, ``{"sweep": {"name": "birds"}}``. A Ray that this process
        runs already is used and left running; else one is started or joined for the time of the sweep.

        Raises:
            UnfreezeError: what must be mended, before anything starts wherever that can be known.
            InfrastructureError: cluster or store broke down under it; called again, it goes on.
            SweepInterrupted: likewise.
        """
        from unfreeze.config import config_to_dict
        from unfreeze.load import load_config
        from unfreeze.sweep.run import run_sweep

        found = run_sweep(load_config(config if isinstance(config, Mapping) else config_to_dict(config)))
        assert found.recommendation is not None  # else `run_sweep` has raised
        return found.recommendation


sys.modules[__name__].__class__ = _Sweep
