"""What a platform team asks of manifests, as rules. Each holds on every rendered folder and finds what is planted."""

import re
from collections.abc import Callable, Iterator

import pytest
from manifests import RENDERED, Object, containers, label, labels_of, mappings, only, pods, render, selects, to_bytes

Rule = Callable[[list[Object]], Iterator[str]]

_PASSWORD_IN_URI = re.compile(r"://[^/\s:@]*:[^/\s@$]+@")
_SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|API_KEY", re.IGNORECASE)


def runs_unprivileged(objects: list[Object]) -> Iterator[str]:
    """Pod Security's level `restricted`, and no container that goes its own way."""
    for where, pod in pods(objects):
        spec = pod["spec"]
        context = spec.get("securityContext", {})
        if not (context.get("runAsNonRoot") is True and context.get("runAsUser", 0) > 0):
            yield f"{where} may run as root"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{where} has no seccomp profile"
        shared = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
        shared += [volume["name"] for volume in spec.get("volumes", []) if "hostPath" in volume]
        yield from (f"{where} shares {name} with its node" for name in shared)
        for container in containers(pod):
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
                yield f"{where}: {container['name']} may gain privileges"
            if own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{where}: {container['name']} has capabilities"
            if {"runAsUser", "runAsNonRoot", "seccompProfile"} & own.keys():
                yield f"{where}: {container['name']} has a user or profile of its own"


def is_bounded(objects: list[Object]) -> Iterator[str]:
    """Requests equal limits, so no pod is evicted for what another takes."""
    for where, pod in pods(objects):
        for container in containers(pod):
            resources = container.get("resources", {})
            missing = {"cpu", "memory", "ephemeral-storage"} - resources.get("limits", {}).keys()
            yield from (f"{where}: {container['name']} has no limit of {name}" for name in sorted(missing))
            if resources.get("requests") != resources.get("limits"):
                yield f"{where}: {container['name']} asks for less than its limit"


def is_pinned(objects: list[Object]) -> Iterator[str]:
    """Every image by a tag that says a version, or by digest."""
    for where, pod in pods(objects):
        for container in containers(pod):
            name, _, tag = container["image"].rpartition("/")[2].partition(":")
            if "@sha256:" not in container["image"] and (not re.search(r"\d", tag) or tag == "latest"):
                yield f"{where}: {name} is not pinned, but has tag {tag!r}"


def holds_no_secret(objects: list[Object]) -> Iterator[str]:
    """Secrets are made by hand, outside these files, and named in them."""
    yield from (f"{label(o)} holds a secret" for o in objects if o["kind"] == "Secret")
    for obj in objects:
        for node in mappings(obj):
            if "value" in node and _SECRET_NAME.search(str(node.get("name", ""))):
                yield f"{label(obj)}: {node['name']} is written out"
            for text in (v for value in node.values() for v in (value if isinstance(value, list) else [value])):
                if isinstance(text, str) and _PASSWORD_IN_URI.search(text):
                    yield f"{label(obj)}: a password stands in {text!r}"


def asks_kubernetes_nothing(objects: list[Object]) -> Iterator[str]:
    """No pod but the Ray head, whose autoscaler needs it, gets a token for the Kubernetes API, or service variables."""
    for where, pod in pods(objects):
        spec = pod["spec"]
        is_head = spec["containers"][0]["name"] == "ray-head"
        if not is_head and spec.get("automountServiceAccountToken") is not False:
            yield f"{where} is given a token for the Kubernetes API"
        if spec.get("enableServiceLinks") is not False:
            yield f"{where} has variables named after services"


def is_watched(objects: list[Object]) -> Iterator[str]:
    """What lasts says when it is ready and when it hangs."""
    for obj in objects:
        if obj["kind"] in ("Deployment", "StatefulSet", "RayCluster"):
            for _, pod in pods([obj]):
                for container in pod["spec"]["containers"]:
                    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                        if not {"httpGet", "exec"} & container.get(probe, {}).keys():
                            yield f"{label(obj)}: {container['name']} has no {probe}"
                        if "wget" in str(container.get(probe)):
                            yield f"{label(obj)}: {container['name']} probes by wget"


def ends(objects: list[Object]) -> Iterator[str]:
    """A job that hangs gives its GPUs back."""
    for obj in objects:
        for node in mappings(obj):
            job = node if node.get("kind") == "RayJob" else node.get("jobTemplate")
            if job is not None and not {"activeDeadlineSeconds", "backoffLimit"} <= job["spec"].keys():
                yield f"{label(obj)} may run or be tried again for ever"


def is_ranked(objects: list[Object]) -> Iterator[str]:
    """Who goes first where a node is full: a Ray head last, a worker before everything else."""
    values = {o["metadata"]["name"]: o["value"] for o in objects if o["kind"] == "PriorityClass"}
    ranks: dict[str, set[int]] = {}
    for where, pod in pods(objects):
        name = pod["spec"]["containers"][0]["name"]
        priority = pod["spec"].get("priorityClassName")
        if priority not in values:
            yield f"{where}: {name} has priority {priority}, which is not defined"
        else:
            ranks.setdefault(name, set()).add(values[priority])
    if ranks.get("ray-head") and ranks.get("ray-worker"):
        others = set().union(*(found for name, found in ranks.items() if name != "ray-head"))
        if min(ranks["ray-head"]) <= max(others):
            yield "a Ray head is no more than another pod"
        if min(others) < max(ranks["ray-worker"]):
            yield "a Ray worker is more than another pod"


def is_left_alone(objects: list[Object]) -> Iterator[str]:
    """Autoscalers of nodes leave Ray's pods where they are, and a drain waits for what there is one of."""
    budgets = [o["spec"] for o in objects if o["kind"] == "PodDisruptionBudget"]
    for where, pod in pods(objects):
        name = pod["spec"]["containers"][0]["name"]
        if name in ("ray-head", "ray-worker"):
            notes = pod.get("metadata", {}).get("annotations", {})
            if notes.get("cluster-autoscaler.kubernetes.io/safe-to-evict") != "false":
                yield f"{where}: {name} is moved by the cluster autoscaler"
            if notes.get("karpenter.sh/do-not-disrupt") != "true":
                yield f"{where}: {name} is moved by Karpenter"
        if name in ("ray-head", "mlflow", "postgres"):
            labels = labels_of(pod)
            if not any(b["maxUnavailable"] == 0 and selects(b["selector"], labels) for b in budgets):
                yield f"{where}: {name} has no disruption budget"


def is_at_home(objects: list[Object]) -> Iterator[str]:
    """Everything lies in one namespace, which lets in nothing that Pod Security's `restricted` refuses."""
    spaces = {o["metadata"]["name"]: o["metadata"].get("labels", {}) for o in objects if o["kind"] == "Namespace"}
    for name, labels in spaces.items():
        if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"namespace {name} does not enforce `restricted`"
    for obj in objects:
        space = obj["metadata"].get("namespace")
        if obj["kind"] not in ("Namespace", "PriorityClass") and space not in spaces:
            yield f"{label(obj)} lies in namespace {space}"


def is_isolated(objects: list[Object]) -> Iterator[str]:
    """Every pod is closed in both directions, and each has a policy of its own that opens what it uses."""
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy"]
    closed = [p for p in policies if p["podSelector"] == {} and not p.get("ingress") and not p.get("egress")]
    directions = {direction for policy in closed for direction in policy["policyTypes"]}
    for where, pod in pods(objects):
        yield from (f"{where} is open to {direction}" for direction in sorted({"Ingress", "Egress"} - directions))
        if not any(p["podSelector"] and selects(p["podSelector"], labels_of(pod)) for p in policies):
            yield f"{where} reaches nothing: no policy names it"


def writes_where_it_may(objects: list[Object]) -> Iterator[str]:
    """An image is never written to; what is written has a size, and all of it fits into what the pod may take."""
    for where, pod in pods(objects):
        for container in containers(pod):
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield f"{where}: {container['name']} may write to its image"
        folders = {v["name"]: v["emptyDir"] for v in pod["spec"].get("volumes", []) if "emptyDir" in v}
        yield from (f"{where}: {name} has no limit" for name, folder in folders.items() if "sizeLimit" not in folder)
        sizes = [to_bytes(folder.get("sizeLimit", "0")) for folder in folders.values()]
        room = [
            c.get("resources", {}).get("limits", {}).get("ephemeral-storage", "0") for c in pod["spec"]["containers"]
        ]
        if sum(sizes) > sum(map(to_bytes, room)):
            yield f"{where} is evicted before its folders are full"


def pod_of(objects: list[Object], kind: str) -> Object:
    """The first pod of the only object of this kind."""
    return next(pod for _, pod in pods([only(objects, kind)]))


def first(objects: list[Object], kind: str) -> Object:
    return pod_of(objects, kind)["spec"]["containers"][0]


Plant = Callable[[list[Object]], object]
# Each rule with the mistakes that it must find, made in base.
PLANTED: list[tuple[Rule, Plant]] = [
    (runs_unprivileged, lambda o: pod_of(o, "Deployment")["spec"]["securityContext"].pop("runAsNonRoot")),
    (runs_unprivileged, lambda o: pod_of(o, "RayCluster")["spec"]["securityContext"].update(runAsUser=0)),
    (runs_unprivileged, lambda o: pod_of(o, "RayJob")["spec"]["securityContext"].pop("seccompProfile")),
    (runs_unprivileged, lambda o: pod_of(o, "StatefulSet")["spec"].update(hostNetwork=True)),
    (
        runs_unprivileged,
        lambda o: pod_of(o, "RayJob")["spec"].setdefault("volumes", []).append({"name": "root", "hostPath": {}}),
    ),
    (runs_unprivileged, lambda o: first(o, "RayCluster")["securityContext"].update(allowPrivilegeEscalation=True)),
    (runs_unprivileged, lambda o: first(o, "RayJob")["securityContext"]["capabilities"].update(add=["SYS_PTRACE"])),
    (runs_unprivileged, lambda o: first(o, "Deployment")["securityContext"].update(runAsUser=0)),
    (is_bounded, lambda o: first(o, "Deployment").pop("resources")),
    (is_bounded, lambda o: first(o, "RayCluster")["resources"]["limits"].pop("memory")),
    (is_bounded, lambda o: first(o, "RayCluster")["resources"]["requests"].update(memory="1Gi")),
    (is_pinned, lambda o: first(o, "Deployment").update(image="unfreeze")),
    (is_pinned, lambda o: first(o, "RayJob").update(image="registry:5000/unfreeze:latest")),
    (is_pinned, lambda o: first(o, "StatefulSet").update(image="postgres:alpine")),
    (holds_no_secret, lambda o: o.append({"kind": "Secret", "metadata": {"name": "s3"}})),
    (
        holds_no_secret,
        lambda o: first(o, "Deployment")["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}),
    ),
    (holds_no_secret, lambda o: first(o, "Deployment")["args"].append("--uri=postgresql://mlflow:abc@postgres/mlflow")),
    (asks_kubernetes_nothing, lambda o: pod_of(o, "Deployment")["spec"].pop("automountServiceAccountToken")),
    (asks_kubernetes_nothing, lambda o: pod_of(o, "Deployment")["spec"].update(enableServiceLinks=True)),
    (is_watched, lambda o: first(o, "RayCluster").pop("livenessProbe")),
    (is_watched, lambda o: first(o, "StatefulSet").pop("startupProbe")),
    (is_watched, lambda o: first(o, "RayCluster").update(readinessProbe={"exec": {"command": ["wget", "-q", "x"]}})),
    (ends, lambda o: only(o, "RayJob")["spec"].pop("activeDeadlineSeconds")),
    (ends, lambda o: only(o, "RayJob")["spec"].pop("backoffLimit")),
    (ends, lambda o: only(o, "CronJob", "mlflow-gc")["spec"]["jobTemplate"]["spec"].pop("activeDeadlineSeconds")),
    (is_ranked, lambda o: pod_of(o, "Deployment")["spec"].pop("priorityClassName")),
    (is_ranked, lambda o: only(o, "PriorityClass", "unfreeze-head").update(value=1)),
    (is_ranked, lambda o: only(o, "PriorityClass", "unfreeze-worker").update(value=2500)),
    (is_left_alone, lambda o: pod_of(o, "RayCluster")["metadata"].pop("annotations")),
    (is_left_alone, lambda o: only(o, "PodDisruptionBudget", "postgres")["spec"].update(maxUnavailable=1)),
    (is_left_alone, lambda o: o.remove(only(o, "PodDisruptionBudget", "ray-head"))),
    (is_isolated, lambda o: o.remove(only(o, "NetworkPolicy", "default-deny"))),
    (is_isolated, lambda o: only(o, "NetworkPolicy", "default-deny")["spec"].update(policyTypes=["Ingress"])),
    (is_isolated, lambda o: only(o, "NetworkPolicy", "default-deny")["spec"].update(egress=[{}])),
    (
        is_isolated,
        lambda o: only(o, "NetworkPolicy", "default-deny")["spec"].update(podSelector={"matchLabels": {"a": "b"}}),
    ),
    (is_isolated, lambda o: pod_of(o, "Deployment")["metadata"].update(labels={})),
    (is_bounded, lambda o: first(o, "RayCluster")["resources"]["limits"].pop("ephemeral-storage")),
    (writes_where_it_may, lambda o: first(o, "StatefulSet")["securityContext"].pop("readOnlyRootFilesystem")),
    (writes_where_it_may, lambda o: pod_of(o, "Deployment")["spec"]["volumes"][0]["emptyDir"].clear()),
    (
        writes_where_it_may,
        lambda o: pod_of(o, "RayCluster")["spec"]["volumes"][0]["emptyDir"].update(sizeLimit="1Ti"),
    ),
    (is_at_home, lambda o: only(o, "Deployment")["metadata"].pop("namespace")),
    (is_at_home, lambda o: only(o, "Namespace")["metadata"]["labels"].clear()),
]
RULES = list(dict.fromkeys(rule for rule, _ in PLANTED))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", RENDERED)
def test_every_folder_keeps_the_rule(name: str, rule: Rule) -> None:
    assert list(rule(render(name))) == []


@pytest.mark.parametrize(("rule", "plant"), PLANTED)
def test_a_planted_mistake_is_found(rule: Rule, plant: Plant) -> None:
    objects = render("base")
    plant(objects)
    assert list(rule(objects))


def test_all_pods_are_looked_at() -> None:
    found = [where for where, _ in pods(render("base"))]
    assert found.count("RayCluster/unfreeze") == 2  # head and worker
    assert found.count("RayJob/sweep") == 3  # and the submitter
    assert {"Deployment/mlflow", "StatefulSet/postgres"} <= set(found)
