"""A Ray head that the tests share, and the environment of a command on it or on its own."""

import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pytest
from processes import Patience, Processes
from ray._private.authentication_test_utils import reset_auth_token_state

NICENESS = "0"  # Ray's default of 15 leaves its workers 3 % of a core that anything else wants: minutes become hours


@dataclass(frozen=True)
class Head:
    """A running Ray head and the variables that let a client in."""

    address: str
    variables: dict[str, str]


@pytest.fixture(scope="session")
def head(patience: Patience) -> Iterator[Head]:
    """One for the session: a start costs 10 s of both cores, and only a test that kills Ray needs its own.

    With a token, as ops/cluster/up.sh has it. Client and head are one machine, so this process takes the token as well.
    """
    folder = Path(tempfile.mkdtemp(prefix="unfreeze-ray-"))  # short: a socket's path has 107 bytes at most
    (folder / "token").write_text(secrets.token_hex(32))
    (folder / "token").chmod(0o600)
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--port=0", "--num-cpus=2"]
    command += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
    # The two ports that `ray start` does not choose by itself; another head on this machine may have them.
    command += [f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
    own = {
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": NICENESS,
        "RAY_worker_maximum_startup_concurrency": "8",  # as a sweep's own Ray has it
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    with pytest.MonkeyPatch.context() as patch, Processes(patience) as started, (folder / "log").open("wb") as log:
        for name, value in variables.items():
            patch.setenv(name, value)
        reset_auth_token_state()  # Ray reads them once, at the latest when a test file imports it
        process = started.start(command, cwd=folder, log=log, env=clean_environment() | variables | own)

        def address() -> str | None:
            said = (folder / "log").read_text()
            assert process.poll() is None, said
            match = re.search(r"ray start --address='([^']+)'", said)
            return match and match[1]

        yield Head(patience.wait(address, 60, "Ray head"), variables)
    shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


@pytest.fixture(scope="session")
def environment() -> Iterator[Callable[..., dict[str, str]]]:
    """(home, head to join or none) → the variables of a command."""
    folders: list[str] = []

    def make(home: Path, head: Head | None = None) -> dict[str, str]:
        folders.append(tempfile.mkdtemp(prefix="unfreeze-ray-"))  # for a Ray of its own
        # Token and cache of the test's own; matplotlib's font list is a machine's and takes seconds to make.
        fonts = os.environ.get("MPLCONFIGDIR", matplotlib.get_cachedir())
        own = {"HOME": str(home), "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": fonts}
        of_ray = {"RAY_TMPDIR": folders[-1], "RAY_worker_niceness": NICENESS}
        joined = {} if head is None else {**head.variables, "RAY_ADDRESS": head.address}
        return clean_environment() | own | of_ray | joined

    yield make
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
