"""The images, built from ops/docker as they are; only what their FROM lines name is made here, without a registry."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from podman import RehearsalError, podman, run

ROOT = Path(__file__).resolve().parents[2]
# Debian's release → the Python it ships; an image of another version cannot be made from it.
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
LABEL = "unfreeze.rehearsal"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def bases(dockerfile: str) -> list[str]:
    """Images of other people's that a Dockerfile starts from, in order, its ARG defaults filled in."""
    values = dict(re.findall(r"(?m)^ARG (\w+)=(\S+)", dockerfile))
    found: dict[str, None] = {}
    stages: set[str] = set()
    for image, stage in re.findall(r"(?mi)^FROM (?:--\S+ )*(\S+)(?: AS (\S+))?", dockerfile):
        name = re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda match: values[match[1] or match[2]], image)
        if name not in stages:
            found[name] = None
        stages.add(stage)
    return list(found)


def release(image: str) -> str:
    """Debian's release that an image of Docker's library stands on.

    Raises:
        RehearsalError: it is no image that Debian's packages can stand in for.
    """
    match = re.fullmatch(r"python:([\d.]+)-slim-(\w+)", image)
    if match is None or PYTHONS.get(match[2]) != match[1]:
        known = ", ".join(f"python:{version}-slim-{name}" for name, version in PYTHONS.items())
        raise RehearsalError(f"no stand-in can be made for FROM {image}; one can for {known}. Or pull it beforehand")
    return match[2]


def make_base(image: str) -> None:
    """A stand-in for an image of the Docker library that has not been pulled: Debian with its own Python."""
    full_name = f"docker.io/library/{image}"
    if run("image", "exists", full_name).returncode == 0:
        return
    suite = release(image)
    with tempfile.TemporaryDirectory(prefix="rehearse-", dir="/var/tmp") as folder:
        packages = "ca-certificates,python3,python3-pip,python3-venv"
        said = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={packages}", suite, folder],
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode:
            raise RehearsalError(f"debootstrap {suite} failed:\n{said.stdout[-2000:]}{said.stderr}")
        root = Path(folder)
        for mark in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            mark.unlink()  # in the image that is stood in for, pip installs
        for name, target in {"python3": "python3", "python": "python3", "pip": "pip3"}.items():
            (root / "usr/local/bin" / name).symlink_to(f"/usr/bin/{target}")
        if _CERTIFICATES.exists():  # whom this machine trusts, a package index of its own included
            (root / _CERTIFICATES.relative_to("/")).write_bytes(_CERTIFICATES.read_bytes())
        archive = subprocess.Popen(
            ["tar", "--directory", folder, "--exclude=./var/cache/apt/archives/*.deb", "--create", "."],
            stdout=subprocess.PIPE,
        )
        changes = [
            "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            f"ENV SSL_CERT_FILE={_CERTIFICATES}",
            f"LABEL {LABEL}=base",
        ]
        podman(
            "import",
            *(word for change in changes for word in ("--change", change)),
            "-",
            full_name,
            stdin=archive.stdout,
        )
        if archive.wait():
            raise RehearsalError(f"tar of {folder} failed")


def build(image: str, dockerfile: Path, context: Path = ROOT) -> None:
    """Build ``image``; what it prints goes to standard error, since the first time takes minutes."""
    for base in bases(dockerfile.read_text()):
        make_base(base)
    # Docker's format: OCI's has no SHELL, and podman would run `[[ … ]]` by a sh that has none either.
    command = ["podman", "build", "--format", "docker", "--isolation", "chroot", "--network", "host", "--pull=never"]
    command += ["--force-rm", "--label", f"{LABEL}=image", "--tag", image, "--file", str(dockerfile), str(context)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False, env=os.environ)
    if done.returncode:
        raise RehearsalError(f"the build of {image} from {dockerfile.relative_to(ROOT)} failed; its output is above")


def remove_images() -> None:
    """What was built or made here, and the layers that a second build would have used."""
    labelled = podman("images", "--all", "--quiet", "--filter", f"label={LABEL}").split()
    if labelled:
        podman("rmi", "--force", *labelled)
    podman("image", "prune", "--force")
