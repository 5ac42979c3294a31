"""Podman without a daemon, a registry or the machine's configuration: what it needs, and how it is called."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Command or file → Debian's package; kubectl is in none.
TOOLS = {
    "podman": "podman",
    "runc": "runc",
    "catatonit": "catatonit",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "kubectl": None,
}
_CONFIGURATION = "CONTAINERS_CONF"
# Unless told, podman asks for more than even root may where the machine's own limits are lower.
_LIMITS = {resource.RLIMIT_NOFILE: 65536, resource.RLIMIT_NPROC: 16384}


class RehearsalError(Exception):
    """What stops the rehearsal, in words for who runs it."""


def problems(*, release: str, is_root: bool, missing: list[str]) -> Iterator[str]:
    """What keeps this machine from rehearsing; ``release``: the text of /etc/os-release."""
    if "ID=debian" not in release.splitlines():
        name = next((line for line in release.splitlines() if line.startswith("PRETTY_NAME=")), "PRETTY_NAME=unknown")
        yield f"the images are made with debootstrap on Debian, but this is {name.partition('=')[2]}"
    if not is_root:
        yield "networks, mounts and cgroups need root"
    packages = [package for tool in missing if (package := TOOLS[tool])]
    if packages:
        yield f"missing: apt-get install --no-install-recommends {' '.join(packages)}"
    if "kubectl" in missing:
        yield "missing: kubectl, which renders the overlay"


def check_machine() -> None:
    """Raises RehearsalError that lists every problem."""
    found = Path("/etc/os-release")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    release = found.read_text() if found.exists() else ""
    if lines := list(problems(release=release, is_root=os.geteuid() == 0, missing=missing)):
        raise RehearsalError(
            "this machine cannot rehearse the deployment; nothing was started:\n  " + "\n  ".join(lines)
        )


def configure(folder: Path) -> None:
    """Let every call below use a configuration of this run's, in ``folder``; the machine's own is not read.

    runc and cgroupfs: crun refuses a machine that mounts both versions of cgroups, and there may be no systemd to ask.
    """
    num_files, num_processes = (min(most, _hard(what)) for what, most in _LIMITS.items())
    path = folder / "containers.conf"
    path.write_text(f"""\
[containers]
default_ulimits = ["nofile={num_files}:{num_files}", "nproc={num_processes}:{num_processes}"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
[network]
network_backend = "netavark"
""")
    os.environ[_CONFIGURATION] = str(path)


def _hard(what: int) -> int:
    _, limit = resource.getrlimit(what)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def podman(*arguments: str, **options: Any) -> str:
    """Run one command and return what it printed; ``options``: of `subprocess.run`.

    Raises:
        RehearsalError: it failed; with the last lines of what it said.
    """
    done = run(*arguments, **options)
    if done.returncode:
        said = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-20:])
        raise RehearsalError(f"podman {' '.join(arguments[:4])} … failed with code {done.returncode}:\n  {said}")
    return done.stdout.strip()


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same, whatever its exit code. Raises RehearsalError when a ``timeout`` runs out."""
    assert _CONFIGURATION in os.environ, "configure() first"
    try:
        return subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False, **options)
    except subprocess.TimeoutExpired as error:
        raise RehearsalError(f"podman {' '.join(arguments[:4])} … has not ended after {error.timeout:.0f} s") from error
