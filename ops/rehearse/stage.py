"""Pods on a network of their own, found by the names of their services, asked by their own probes."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from podman import RehearsalError, podman, run
from pods import PROBES, Object, Pod, Secrets, to_pod

NETWORK = "unfreeze-rehearsal"
NAMESPACE = "unfreeze"
_START_S = 300.0  # two cores, shared, and an MLflow that migrates a database
_ASK_S = 1.0


class Stage:
    """What is up. Without a way out: the network has no route to the world, as under a policy that denies it."""

    def __init__(self, objects: list[Object], secrets: Secrets, folder: Path) -> None:
        self.objects, self.secrets = objects, secrets
        self.left_out: set[str] = set()
        self._folder = folder
        self._volumes: set[str] = set()
        self._pods: set[str] = set()

    def __enter__(self) -> "Stage":
        if run("network", "exists", NETWORK).returncode == 0:
            raise RehearsalError(
                f"network {NETWORK!r} is there: another rehearsal runs, or one was killed; then "
                f"`podman network rm --force {NETWORK}`"
            )
        podman("network", "create", "--internal", NETWORK)
        return self

    def __exit__(self, *_: object) -> None:
        for name in sorted(self._pods):
            run("pod", "rm", "--force", "--time", "0", name)
        for name in sorted(self._volumes):
            run("volume", "rm", "--force", name)
        run("network", "rm", "--force", NETWORK)

    def one(self, kind: str, name: str | None = None) -> Object:
        """The object of that kind, and name where there are several."""
        found = [o for o in self.objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
        if len(found) != 1:
            raise RehearsalError(f"the overlay has {len(found)} objects {kind} {name or ''}, and one is needed")
        return found[0]

    def play(self, template: Object, name: str, *, aliases: tuple[str, ...] = (), claims: Any = ()) -> None:
        """Start the pod; its init containers have ended well when this returns.

        Raises:
            RehearsalError: podman cannot start it, or an init container fails; with what it said.
        """
        pod = to_pod(template, name=name, namespace=NAMESPACE, secrets=self.secrets, claims=claims)
        self.left_out |= pod.left_out
        self._make_volumes(pod)
        names = [*aliases, *service_names(self.objects, pod.manifest["metadata"]["labels"])]
        path = self._folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(pod.manifest))
        path.chmod(0o600)  # secrets, filled in
        self._pods.add(name)
        network = ",".join([f"alias={alias}" for alias in names])
        try:
            podman("kube", "play", "--network", f"{NETWORK}:{network}", str(path))
        except RehearsalError as error:
            raise RehearsalError(f"pod {name} does not start: {error}\n{self.logs(name)}") from error

    def play_workload(self, kind: str, name: str) -> None:
        """The first pod of a Deployment or StatefulSet, until it is ready."""
        workload = self.one(kind, name)
        template = workload["spec"]["template"]
        self.play(template, f"{name}-0", claims=workload["spec"].get("volumeClaimTemplates", ()))
        self.wait_ready(template, f"{name}-0")

    def _make_volumes(self, pod: Pod) -> None:
        for volume in pod.volumes:
            if run("volume", "exists", volume.name).returncode == 0:
                continue  # a claim outlives its pod
            options = []
            if volume.memory_bytes is not None:
                options = ["--opt", "type=tmpfs", "--opt", "device=tmpfs"]
                options += ["--opt", f"o=size={volume.memory_bytes},mode=1777"]
            podman("volume", "create", *options, volume.name)
            self._volumes.add(volume.name)

    def remove(self, name: str, *, grace_s: int = 0) -> None:
        """End a pod; 0 s: as a node that dies takes it along."""
        podman("pod", "rm", "--force", "--time", str(grace_s), name)
        self._pods.discard(name)

    def forget(self, claim: str) -> None:
        """Destroy a volume and what is on it."""
        podman("volume", "rm", claim)
        self._volumes.discard(claim)

    def address(self, name: str) -> str:
        """The pod's, which this machine reaches too."""
        infra = json.loads(podman("pod", "inspect", name))["InfraContainerID"]
        networks = json.loads(podman("inspect", infra))[0]["NetworkSettings"]["Networks"]
        return networks[NETWORK]["IPAddress"]

    def execute(self, name: str, *command: str, container: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command in a container of the pod: the first, unless named."""
        return run("exec", container or self.containers(name)[0], *command)

    def containers(self, name: str) -> list[str]:
        """Podman's names of the pod's containers, init containers and the one that holds the network left out."""
        infra = json.loads(podman("pod", "inspect", name))
        own = [one for one in infra["Containers"] if one["Id"] != infra["InfraContainerID"]]
        return [one["Name"] for one in own]

    def logs(self, name: str, lines: int = 30) -> str:
        """The last lines of each of the pod's containers."""
        found = run("ps", "--all", "--filter", f"pod={name}", "--format", "{{.Names}}").stdout.split()
        said = [(one, run("logs", "--tail", str(lines), one)) for one in found if not one.endswith("-infra")]
        return "\n".join(f"--- {one}\n{done.stdout}{done.stderr}" for one, done in said)

    def is_running(self, name: str) -> bool:
        states = run("pod", "inspect", name, "--format", "{{range .Containers}}{{.Name}} {{.State}}\n{{end}}").stdout
        return all(line.endswith("running") for line in states.splitlines() if line.strip())

    def wait_ready(self, template: Object, name: str, timeout_s: float = _START_S) -> None:
        """Until every probe of the first container, as rendered, has answered once."""
        container = template["spec"]["containers"][0]
        for kind in PROBES:
            if kind in container:
                probe = container[kind]
                self.wait(lambda probe=probe: self._ask(probe, container, name), name, kind, timeout_s)

    def wait(self, condition: Callable[[], Any], name: str, what: str, timeout_s: float) -> Any:
        """Until it is true; raises RehearsalError with the pod's last lines when it never is or the pod has ended."""
        until = time.monotonic() + timeout_s
        while not (found := condition()):
            if time.monotonic() > until or not self.is_running(name):
                raise RehearsalError(f"pod {name}: no {what} within {timeout_s:.0f} s\n{self.logs(name)}")
            time.sleep(_ASK_S)
        return found

    def _ask(self, probe: Object, container: Object, name: str) -> bool:
        if "exec" in probe:
            return self.execute(name, *probe["exec"]["command"]).returncode == 0
        http = probe["httpGet"]
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", []) if "name" in port}
        port = ports.get(http["port"], http["port"])
        return answers(f"http://{self.address(name)}:{port}{http['path']}", headers=_headers(http))


def _headers(http: Object) -> dict[str, str]:
    return {header["name"]: header["value"] for header in http.get("httpHeaders", [])}


def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """As a kubelet judges a probe: any status from 200 to 399."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers or {})), timeout=5).close()
    except (OSError, urllib.error.HTTPError):
        return False
    return True


def service_names(objects: list[Object], labels: Mapping[str, str]) -> Iterator[str]:
    """Names under which the services that select such a pod are found."""
    for service in objects:
        if service["kind"] == "Service" and service["spec"]["selector"].items() <= labels.items():
            yield from full_names(service["metadata"]["name"])


def full_names(service: str) -> tuple[str, ...]:
    """Short and long, as Kubernetes' DNS knows a service."""
    name = f"{service}.{NAMESPACE}"
    return service, name, f"{name}.svc", f"{name}.svc.cluster.local"
