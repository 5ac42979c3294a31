"""Where a sweep ran."""

import contextlib
import importlib.metadata
import os
import platform
import sys
from typing import Any


def describe_environment() -> dict[str, Any]:
    """Versions and machine, for whoever reads the numbers later."""
    packages = ("unfreeze", "torch", "torchvision", "timm", "ray", "optuna", "mlflow", "numpy")
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a job ships the package uninstalled
            versions[name] = importlib.metadata.version(name)
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "versions": versions,
    }
