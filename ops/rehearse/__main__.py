"""The Kubernetes deployment, rehearsed on one Debian machine with podman in Kubernetes' place.

make rehearse                              everything in the table that it prints at the end
python ops/rehearse --built                the same with the images of the last time
python ops/rehearse --drills head storage  of the drills these alone; none without a name
python ops/rehearse --clean                removes the images, and the layers that make a second run quick

Images are built from ops/docker as they are, on bases made with debootstrap; an overlay is rendered and its pods are
played: S3 (moto), PostgreSQL, MLflow with its init container, a Ray head without CPUs and two workers as KubeRay would
make them, the submitter with the RayJob's entrypoint and options that make the sweep small. The sweep's ledger must
equal that of the same sweep run here without any of it, and so must the ledger of every sweep that a drill disturbs
(drills.py). Needs root, and says which packages are missing. Nothing but images is left when it ends.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from checks import check_ledger, check_metrics, check_model, check_refusals, check_tracking, run_locally
from deployment import S3_IMAGE, Deployment
from drills import DRILLS, OLDER_MLFLOW
from images import ROOT, build, remove_images
from podman import RehearsalError, check_machine, configure
from pods import Object, images

DOCKERS = ROOT / "ops/docker"
STAND_INS = ROOT / "ops/rehearse/stand_ins"
SWEEP = "rehearsal"
NOT_REHEARSED = """\
Not rehearsed: KubeRay itself (what it adds to a pod is written out in ops/rehearse/kuberay.py, after its source), its
retry and its autoscaler; the API server with its admission and quotas; the scheduler; network policies (pods have no
way out, but reach one another freely); kubelet's probes after a pod is ready; volumes of a cloud; GPUs.
S3 is moto's and keeps objects in memory; PostgreSQL is Debian's, whatever tag the manifests name."""


@dataclass(slots=True)
class Table:
    rows: list[tuple[str, str, float]] = field(default_factory=list)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; what is appended to the list it gives is said beside it."""
        said: list[str] = []
        print(f"… {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            yield said
        except RehearsalError:
            said[:] = ["FAILED"]
            raise
        finally:
            self.rows.append((name, ", ".join(said), time.monotonic() - started))

    def __str__(self) -> str:
        rows = [(name, f"{seconds:.0f} s", said) for name, said, seconds in self.rows]
        rows.append(("in all", f"{sum(seconds for _, _, seconds in self.rows):.0f} s", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        return "\n".join(
            f"{name:<{widths[0]}}  {seconds:>{widths[1]}}  {said}".rstrip() for name, seconds, said in rows
        )


def render(overlay: str) -> list[Object]:
    """The objects of an overlay as `kubectl apply -k` would send them."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s/overlays" / overlay)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RehearsalError(f"kubectl kustomize {overlay} failed: {done.stderr.strip()}")
    return list(yaml.safe_load_all(done.stdout))


def dockerfile(name: str) -> Path | None:
    """Of an image of ours: ops/docker/Dockerfile makes `unfreeze`, X.Dockerfile beside it `unfreeze-X`."""
    if name == "unfreeze":
        return DOCKERS / "Dockerfile"
    path = DOCKERS / f"{name.removeprefix('unfreeze-')}.Dockerfile"
    return path if path.exists() else None


def build_images(objects: list[Object]) -> str:
    """The overlay's images, and those that the rehearsal adds."""
    names = images(objects)
    for image in names:
        name = image.rpartition("/")[2].partition(":")[0]
        if path := dockerfile(name):
            build(image, path)
        elif name == "postgres":
            build(image, STAND_INS / "postgres/Dockerfile", STAND_INS / "postgres")
        else:
            raise RehearsalError(f"the overlay names an image that is made by nothing here: {image}")
    build(S3_IMAGE, STAND_INS / "s3/Dockerfile")
    build(OLDER_MLFLOW, STAND_INS / "mlflow/Dockerfile")
    return ", ".join(names)


def rehearse(objects: list[Object], table: Table, folder: Path, drills: list[str]) -> None:
    """Every step, each on those before it; raises RehearsalError where one fails."""
    deployment = Deployment(objects, folder)
    with deployment.stage:
        with table.step("S3 starts"):
            deployment.start_storage()
        with table.step("MLflow and PostgreSQL start"):
            deployment.start_tracking()
        with table.step("a head without CPUs and two workers start"):
            deployment.start_cluster()
        with table.step("the sweep, here and without any of it") as said:
            expected = run_locally(deployment.entrypoint("local"), folder)
            said.append(f"{len(expected[0])} trials")
        with table.step("without a token, or under another name") as said:
            said.append(check_refusals(deployment))
        with table.step("the sweep, in the cluster") as said:
            job = deployment.submit(SWEEP)
            said.append(check_metrics(deployment, job))
            job.wait_end()
            said.append(check_sweep(deployment, SWEEP, expected))
        with table.step("its model, from the registry") as said:
            said.append(check_model(deployment, SWEEP))
        for name in drills:
            title, drill = DRILLS[name]
            with table.step(f"drill: {title}") as said:
                said += [drill(deployment, name), check_sweep(deployment, name, expected)]
        left_out = ", ".join(sorted(deployment.stage.left_out))
    print(f"{table}\n\n{NOT_REHEARSED}\nFields of pods that podman was not given: {left_out}.")


def check_sweep(deployment: Deployment, sweep: str, expected: object) -> str:
    return f"{check_ledger(deployment, sweep, expected)}; MLflow: {check_tracking(deployment, sweep)}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overlay", default="cpu-dev", help="of k8s/overlays")
    parser.add_argument("--built", action="store_true", help="take the images as they are from the last time")
    parser.add_argument("--drills", nargs="*", choices=DRILLS, default=list(DRILLS), help=", ".join(DRILLS))
    parser.add_argument("--clean", action="store_true", help="remove images and the build's cache, and stop")
    given = parser.parse_args(arguments)
    table = Table()
    try:
        check_machine()
        with tempfile.TemporaryDirectory(prefix="rehearse-") as folder:
            configure(Path(folder))
            if given.clean:
                remove_images()
                return 0
            objects = render(given.overlay)
            if not given.built:
                with table.step("images are built") as said:
                    said.append(build_images(objects))
            rehearse(objects, table, Path(folder), given.drills)
            return 0
    except RehearsalError as error:
        print(*([f"{table}\n"] if table.rows else []), error, sep="\n", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
