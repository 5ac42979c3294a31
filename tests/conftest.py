"""What the whole suite needs: where its files lie, how it is spread over processes, and an S3 server."""

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import faulty_proxy  # noqa: F401
from hypothesis import HealthCheck, settings
from moto_server import moto_server
from processes import module_processes, patience, processes  # noqa: F401
from small_disk import small_disk  # noqa: F401
from xdist.scheduler import LoadFileScheduling

_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2 * 2**30  # about four times what the suite leaves there

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core per worker; two threads each would wait for one another

# A busy machine is slow, not wrong. On top of the profile that Hypothesis itself takes where CI is set.
settings.register_profile("unfreeze", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unfreeze")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Temporary files in memory, if there is room: the ledger's fsync took three files 60 to 170 s on a disk."""
    if config.option.basetemp or hasattr(config, "workerinput"):  # a worker is told its part of the folder
        return
    if not os.access(_MEMORY, os.W_OK | os.X_OK) or shutil.disk_usage(_MEMORY).free < _ROOM_BYTES:
        return
    folder = tempfile.mkdtemp(prefix="unfreeze-tests-", dir=_MEMORY)
    config.add_cleanup(functools.partial(shutil.rmtree, folder, ignore_errors=True))
    config.option.basetemp = f"{folder}/files"


class RayOnOneWorker(LoadFileScheduling):
    """A file is one worker's, and so is the folder of all tests that need Ray: they share a head."""

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if nodeid.startswith("tests/integration/") else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return RayOnOneWorker(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/integration/"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server of the test run's own."""
    with moto_server() as address:
        yield address


@pytest.fixture
def s3_environment(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user would export to reach it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
