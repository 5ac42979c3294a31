"""Pods on a network of their own, found by the names of their services, asked by their own probes."""

import contextlib
import copy
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from podman import RehearsalError, podman, run
from pods import PROBES, Named, Object, Pod, to_pod

NETWORK = "unfreeze-rehearsal"
NAMESPACE = "unfreeze"
_START_S = 300.0  # two cores, shared, and an MLflow that migrates a database
_ASK_S = 1.0


class Stage:
    """What is up. Without a way out: the network has no route to the world, as under a policy that denies it."""

    def __init__(self, objects: list[Object], secrets: Named, folder: Path) -> None:
        self.objects, self.secrets = objects, secrets
        self.left_out: set[str] = set()
        self._folder = folder
        self._config_maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
        self._pods: dict[str, Pod] = {}

    def __enter__(self) -> "Stage":
        if run("network", "exists", NETWORK).returncode == 0:
            raise RehearsalError(
                f"network {NETWORK!r} is there: another rehearsal runs, or one was killed; then "
                f"`podman network rm --force {NETWORK}`"
            )
        podman("network", "create", "--internal", NETWORK)
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._pods):
            self.remove(name)
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
        pod = to_pod(
            template,
            name=name,
            namespace=NAMESPACE,
            secrets=self.secrets,
            folder=self._folder,
            config_maps=self._config_maps,
            claims=claims,
        )
        self.left_out |= pod.left_out
        self._pods[name] = pod
        make_volumes(pod)
        names = [*aliases, *service_names(self.objects, pod.manifest["metadata"]["labels"])]
        path = self._folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(pod.manifest))
        path.chmod(0o600)  # secrets, filled in
        network = ",".join([f"alias={alias}" for alias in names])
        try:
            podman("kube", "play", "--network", f"{NETWORK}:{network}", str(path))
        except RehearsalError as error:
            raise RehearsalError(f"pod {name} does not start: {error}\n{self.logs(name)}") from error

    def play_workload(self, kind: str, name: str, image: str | None = None) -> None:
        """The first pod of a Deployment or StatefulSet, until it is ready; ``image``: for all of its containers."""
        workload = self.one(kind, name)
        template = copy.deepcopy(workload["spec"]["template"])
        if image is not None:
            for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]:
                container["image"] = image
        self.play(template, f"{name}-0", claims=workload["spec"].get("volumeClaimTemplates", ()))
        self.wait_ready(template, f"{name}-0")

    def run_job(self, cron_job: str, timeout_s: float = _START_S) -> str:
        """One run of a CronJob, as `kubectl create job --from=…` starts it, to its end; what it said.

        Raises:
            RehearsalError: it fails, or takes too long.
        """
        template = self.one("CronJob", cron_job)["spec"]["jobTemplate"]["spec"]["template"]
        return self.run_to_end(template, f"{cron_job}-1", timeout_s)

    def run_to_end(self, template: Object, name: str, timeout_s: float = _START_S) -> str:
        """Play a pod of one container, besides init containers, that ends by itself; what it said. Raises likewise."""
        self.play(template, name)
        (container,) = self.containers(name)
        done = run("wait", container, timeout=timeout_s)
        said = self.logs(name)
        self.remove(name)
        if done.stdout.strip() != "0":
            raise RehearsalError(f"pod {name} ended with code {done.stdout.strip()}\n{said}")
        return said

    def remove(self, name: str, *, grace_s: int = 0) -> None:
        """End a pod; 0 s: as a node that dies takes it along."""
        run("pod", "rm", "--force", "--time", str(grace_s), name)
        for volume in self._pods.pop(name).volumes:
            if volume.memory_bytes is not None:
                subprocess.run(["umount", str(volume.path)], check=True)
            if not volume.is_claim:
                shutil.rmtree(volume.path)

    def destroy(self, claim: str) -> None:
        """A claim's volume and what is on it."""
        shutil.rmtree(self._folder / claim)

    @contextlib.contextmanager
    def cut_off(self, name: str) -> Iterator[None]:
        """Nothing reaches the pod meanwhile, nor does its name resolve; what it holds in memory stays."""
        infra = json.loads(podman("pod", "inspect", name))["InfraContainerID"]
        aliases = json.loads(podman("inspect", infra))[0]["NetworkSettings"]["Networks"][NETWORK]["Aliases"]
        podman("network", "disconnect", NETWORK, infra)
        yield
        podman("network", "connect", *(f"--alias={alias}" for alias in aliases), NETWORK, infra)

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


def make_volumes(pod: Pod) -> None:
    """Empty ones, but for a claim that is there and a config map's files; writable for all, as an emptyDir is."""
    for volume in pod.volumes:
        volume.path.mkdir(exist_ok=volume.is_claim)
        volume.path.chmod(0o777)
        if volume.memory_bytes is not None:
            options = f"size={volume.memory_bytes},mode=1777"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(volume.path)], check=True)
        for file, text in (volume.files or {}).items():
            (volume.path / file).write_text(text)


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
