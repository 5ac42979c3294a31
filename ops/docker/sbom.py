"""What is in the images, for scanners of vulnerabilities and licences: CycloneDX 1.6 from their locks.

python ops/docker/sbom.py      writes dist/unfreeze.cdx.json and dist/unfreeze-tools.cdx.json

The packages of Debian's base image are not in a lock, and so not here: a scanner reads them from the image.
"""

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

from packaging.markers import Marker

ROOT = Path(__file__).resolve().parents[2]
IMAGES = {"unfreeze": "sweep.lock", "unfreeze-tools": "tools.lock"}


def components(lock: str) -> list[dict[str, Any]]:
    """Every package that a lock pins for Linux and the images' Python."""
    found = []
    for line in re.finditer(r"(?m)^([\w.-]+)==(\S+)(?: ; (.+?))? \\\n((?:    --hash=.+\n)+)", lock):
        name, version, marker, hashes = line.groups()
        if marker and not _applies(marker):
            continue
        purl = f"pkg:pypi/{name}@{version}"
        component: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        licence = _licence(name)
        if licence:
            component["licenses"] = [{"license": {"name": licence}}]
        # Of every file that may be installed under this pin: wheels of all platforms, and the source.
        digests = re.findall(r"sha256:(\w+)", hashes)
        component["properties"] = [{"name": "unfreeze:sha256", "value": digest} for digest in digests]
        found.append(component)
    return found


def _applies(marker: str) -> bool:
    image = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}
    return Marker(marker).evaluate({**image, "python_version": "3.11", "python_full_version": "3.11.9"})


def _licence(name: str) -> str | None:
    """As the installed package declares it."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    short = metadata.get("License-Expression") or metadata.get("License")
    if short and len(short) < 80:
        return short
    trove = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    return " and ".join(trove) or None


def bill(image: str) -> dict[str, Any]:
    lock = (ROOT / "ops/docker" / IMAGES[image]).read_text()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": image}},
        "components": components(lock),
    }


def main() -> None:
    (ROOT / "dist").mkdir(exist_ok=True)
    for image in IMAGES:
        path = ROOT / "dist" / f"{image}.cdx.json"
        content = bill(image)
        path.write_text(json.dumps(content, indent=1) + "\n")
        named = sum("licenses" in component for component in content["components"])
        print(f"{path.relative_to(ROOT)}: {len(content['components'])} packages, the licence of {named}")


if __name__ == "__main__":
    main()
