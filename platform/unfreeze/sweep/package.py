"""Which `unfreeze` the workers import: this process's, whatever is installed where they run."""

import contextlib
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

import unfreeze
from unfreeze.errors import ClusterError

PACKAGE = Path(unfreeze.__file__).resolve().parent
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by `ray job submit`, and so called


@contextlib.contextmanager
def on_path() -> Iterator[None]:
    """For the start of a Ray here: all its processes will find the package where this one did.

    A path, and no copy as for a cluster: the first task waited 0.5 to 0.9 s for its worker, with a copy 1.9 to 2.6 s.
    """
    before = os.environ.get("PYTHONPATH")
    root = str(PACKAGE.parent)
    if root != sysconfig.get_path("purelib"):  # where it is found anyway, and what is beside it must shadow nothing
        os.environ["PYTHONPATH"] = root if not before else f"{root}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH", None)
        if before is not None:
            os.environ["PYTHONPATH"] = before


def travelling() -> dict[str, Any]:
    """The runtime environment of a job on a cluster: the package goes with it, and what the job brings besides."""
    own = json.loads(os.environ.get(_JOB, "{}")).get("runtime_env") or {}
    brought = own.get("py_modules") or []
    if brought:
        os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # two lists are a conflict to Ray, unless told
    return {"py_modules": [str(PACKAGE), *brought]}


def check_workers() -> None:
    """For a Ray that is there already: that its workers import the code that this process runs.

    Raises:
        ClusterError: they do not; names both places.
    """

    def look(digest_of: Any) -> tuple[str, str] | None:  # nested, so that it goes to the worker by value
        import importlib.util
        from pathlib import Path

        found = importlib.util.find_spec("unfreeze")
        return (found.origin, digest_of(Path(found.origin).parent)) if found and found.origin else None

    def digest_of(folder: Path) -> str:
        files = sorted(folder.rglob("*.py"))
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    found = ray.get(ray.remote(num_cpus=0)(look).remote(digest_of))
    if found is None or found[1] != digest_of(PACKAGE):
        where = "do not find unfreeze" if found is None else f"import another unfreeze, {found[0]}"
        raise ClusterError(
            f"Ray is running already, and its workers {where}, not {PACKAGE}: call ray.shutdown() before, or "
            f"ray.init(runtime_env={{'py_modules': [{str(PACKAGE)!r}]}})"
        )
