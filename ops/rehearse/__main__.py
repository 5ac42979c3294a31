"""The Kubernetes deployment, rehearsed on one Debian machine without Kubernetes, a daemon or an image registry.

make rehearse                        builds the images of an overlay from ops/docker as they are
python ops/rehearse --clean          removes them, and the layers that make a second run quick

Needs root, and says which packages are missing. Bases are made with debootstrap, packages come from Debian and PyPI.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from images import ROOT, build, remove_images
from podman import RehearsalError, check_machine, configure
from pods import Object, images

DOCKERFILE = ROOT / "ops/docker/Dockerfile"


def render(overlay: str) -> list[Object]:
    """The objects of an overlay as `kubectl apply -k` would send them."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s/overlays" / overlay)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RehearsalError(f"kubectl kustomize {overlay} failed: {done.stderr.strip()}")
    return list(yaml.safe_load_all(done.stdout))


def build_images(objects: list[Object]) -> None:
    for image in images(objects):
        if image.rpartition("/")[2].startswith("unfreeze"):
            build(image, DOCKERFILE)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overlay", default="dev", help="of k8s/overlays")
    parser.add_argument("--clean", action="store_true", help="remove images and the build's cache, and stop")
    given = parser.parse_args(arguments)
    try:
        check_machine()
        with tempfile.TemporaryDirectory(prefix="rehearse-") as folder:
            configure(Path(folder))
            if given.clean:
                remove_images()
            else:
                rehearse(render(given.overlay))
    except RehearsalError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def rehearse(objects: list[Object]) -> None:
    started = time.monotonic()
    build_images(objects)
    print(f"images built in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
