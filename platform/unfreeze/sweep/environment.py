"""Where a sweep ran, who started it, and from which commit."""

import contextlib
import getpass
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray

from unfreeze.config import redact
from unfreeze.report.streams import in_notebook
from unfreeze.storage.lease import submitted_job

_GIT_TIMEOUT_S = 5.0


def describe_environment() -> dict[str, Any]:
    """Versions, machine and origin, for whoever reads the numbers later."""
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
        "source": _describe_source(),
    }


def _describe_source() -> dict[str, str]:
    """The command, its user, its job and its commit; what is not known is left out."""
    source = {"user": _user(), "job": submitted_job() or "", **_command(), **_commit()}
    if ray.is_initialized():
        source["ray_job"] = ray.get_runtime_context().get_job_id()
        source["dashboard"] = ray._private.worker.get_dashboard_url() or ""  # there is no public call
    return {key: value for key, value in source.items() if value}


def _command() -> dict[str, str]:
    if in_notebook():
        return {"kind": "notebook"}
    script = Path(sys.argv[0])
    with contextlib.suppress(ValueError):  # not below the working directory, whose folders are nobody's business
        script = script.resolve().relative_to(Path.cwd())
        return {"name": str(script), "command": redact(shlex.join(["python", str(script), *sys.argv[1:]]))}
    words = [script.name]  # a user's own, that calls the library
    if script.parent.name == "sweeps":
        words = ["unfreeze", "sweep" if script.stem == "vit_components" else script.stem]  # as command.py calls it
    return {"name": script.name, "command": redact(shlex.join([*words, *sys.argv[1:]]))}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return ""


def _commit() -> dict[str, str]:
    """Of the checkout that the package lies in; nothing where it is installed or travels with a job."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_TIMEOUT_S).stdout

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if git("ls-files", "--", Path(__file__).name):  # else a package that is installed below somebody's checkout
            dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
            found = {"commit": git("rev-parse", "HEAD").strip(), "branch": git("branch", "--show-current").strip()}
            return {**found, "dirty": str(dirty).lower()}
    return {}
