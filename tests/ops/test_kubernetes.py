"""The manifests render, every object passes its schema strictly, and what must agree across files agrees."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import sqlalchemy
import yaml
from configuring import composed
from manifests import K8S, RENDERED, ROOT, Object, containers, label, locked, mappings, only, pods, render, to_bytes

from unfreeze.config import Config
from unfreeze.load import load_config

# Beside the repository, not in it: 2 MB of KubeRay's own test data.
CRDS = ROOT.parent / "shared/k8s/crds"
KUBERNETES = "1.32"


def close(schema: Any) -> Any:
    """A CRD's schema with every object closed: the API server drops unknown fields silently, we refuse them."""
    if isinstance(schema, list):
        return [close(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value) for key, value in schema.items()}
    if (
        closed.get("type") == "object"
        and "additionalProperties" not in closed
        and not closed.get("x-kubernetes-preserve-unknown-fields")
    ):
        closed["additionalProperties"] = False
    return closed


@cache
def ray_schema(kind: str) -> Any:
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip(f"KubeRay's schemas are not beside the repository: no {CRDS}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the pure-Python loader takes ten times as long
    crd = yaml.load(path.read_text(), loader)
    (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
    return version["schema"]["openAPIV3Schema"]


@cache
def ray_validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = close(ray_schema(kind))
    schema["properties"]["metadata"] = {"type": "object"}  # ObjectMeta: the API server's, not the CRD's
    return jsonschema.Draft202012Validator(schema)


def ruled(schema: Any, node: Any) -> Iterator[str]:
    """Rules in CEL that the API server would evaluate on this node: those of the fields that it has."""
    yield from (rule["rule"] for rule in schema.get("x-kubernetes-validations", []))
    if isinstance(node, dict):
        for key, value in node.items():
            yield from ruled(schema.get("properties", {}).get(key) or schema.get("additionalProperties") or {}, value)
    elif isinstance(node, list):
        for value in node:
            yield from ruled(schema.get("items", {}), value)


def problems(obj: Object) -> list[str]:
    if obj["apiVersion"] == "ray.io/v1":
        return [f"{e.json_path}: {e.message}" for e in ray_validator(obj["kind"]).iter_errors(obj)]
    try:
        kubernetes_validate.validate(obj, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    return []


def sweep_config(name: str) -> Config:
    """What the RayJob's command asks for."""
    python, script, *overrides = shlex.split(only(render(name), "RayJob")["spec"]["entrypoint"])
    assert (python, script) == ("python", "/opt/unfreeze/sweeps/vit_components.py")
    return load_config(composed(*overrides))


@pytest.mark.parametrize("name", RENDERED)
def test_every_object_passes_its_schema_strictly(name: str) -> None:
    found = {label(o): problems(o) for o in render(name)}
    assert not {k: v for k, v in found.items() if v}
    assert {"RayJob/sweep", "Deployment/mlflow"} <= set(found)


@pytest.mark.parametrize("name", RENDERED)
def test_no_field_is_set_that_a_rule_in_cel_judges(name: str) -> None:
    """Nothing locked evaluates CEL. One that is set one day needs what does (cel-python)."""
    rays = [obj for obj in render(name) if obj["apiVersion"] == "ray.io/v1"]
    assert rays
    assert [rule for obj in rays for rule in ruled(ray_schema(obj["kind"]), obj)] == []


def test_a_field_that_a_rule_in_cel_judges_is_found() -> None:
    job = only(render("base"), "RayJob")
    job["spec"]["deletionStrategy"] = {
        "deletionRules": [{"policy": "DeleteWorkers", "condition": {"jobStatus": "FAILED"}}]
    }
    job["spec"]["rayClusterSpec"]["managedBy"] = "somebody"
    found = list(ruled(ray_schema("RayJob"), job))
    assert any("deletionRules" in rule for rule in found)
    assert any("jobDeploymentStatus" in rule for rule in found)
    assert "self == oldSelf" in found


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("RayCluster", ["spec"]),
        ("RayCluster", ["spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0]),
        ("RayCluster", ["spec", "headGroupSpec", "template", "metadata"]),
        ("RayJob", ["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "securityContext"]),
        ("Deployment", ["spec", "template", "spec", "containers", 0]),
        ("StatefulSet", ["spec", "volumeClaimTemplates", 0, "spec"]),
    ],
)
def test_the_check_refuses_an_unknown_field(kind: str, path: list[str | int]) -> None:
    obj = only(render("base"), kind)
    node: Any = obj
    for key in path:
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
    node["replcas"] = {}
    assert any("replcas" in p for p in problems(obj))


def test_the_check_refuses_a_wrong_type() -> None:
    job = only(render("base"), "RayJob")
    job["spec"]["backoffLimit"] = "two"
    assert any("backoffLimit" in p for p in problems(job))


@pytest.mark.parametrize("name", RENDERED)
def test_ray_is_the_locked_version_everywhere(name: str) -> None:
    version = locked("ray")
    assert only(render(name), "RayJob")["spec"]["rayClusterSpec"]["rayVersion"] == version
    ours = {c["image"] for _, pod in pods(render(name)) for c in containers(pod) if "unfreeze" in c["image"]}
    assert ours
    assert all(re.fullmatch(rf"\S*unfreeze(-tools)?:ray-{re.escape(version)}(-\S+)?", image) for image in ours), ours


@pytest.mark.parametrize("name", [name for name in RENDERED if name != "overlays/kueue"])
def test_the_sweep_runs_on_a_copy_of_the_cluster(name: str) -> None:
    """An overlay that patches the RayCluster and forgets its replacement would run the sweep on base's pods."""
    assert only(render(name), "RayJob")["spec"]["rayClusterSpec"] == only(render(name), "RayCluster")["spec"]


def test_every_secret_is_referenced_by_name_and_documented() -> None:
    readme = (K8S / "README.md").read_text()
    commands = dict(re.findall(r"kubectl create secret generic (\S+) ((?:.*\\\n)*.*)", readme))
    used: set[str] = set()
    for node in (node for name in RENDERED for node in mappings(render(name))):
        if "secretKeyRef" in node:
            secret, key = node["secretKeyRef"]["name"], node["secretKeyRef"]["key"]
            assert f"--from-literal={key}=" in commands[secret]
            used.add(secret)
        elif "secretRef" in node:
            used.add(node["secretRef"]["name"])
    assert used == set(commands)


def test_workload_identity_needs_no_key() -> None:
    objects = render("overlays/workload-identity")
    assert not [node for node in mappings(objects) if "secretRef" in node]
    roles = {
        o["metadata"]["name"]: o["metadata"].get("annotations", {}) for o in objects if o["kind"] == "ServiceAccount"
    }
    for where, pod in pods(objects):
        if pod["spec"]["containers"][0]["name"] in ("ray-head", "ray-worker", "mlflow", "upload", "restore"):
            assert "eks.amazonaws.com/role-arn" in roles[pod["spec"]["serviceAccountName"]], where


def test_a_queued_sweep_has_a_fixed_size() -> None:
    """Kueue lets a job in once, by its size then."""
    job = only(render("overlays/kueue"), "RayJob")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert job["spec"]["suspend"] is True
    assert job["spec"]["shutdownAfterJobFinishes"] is True  # what KubeRay asks of a job that may be suspended


def test_spot_takes_workers_only() -> None:
    cluster = only(render("overlays/spot"), "RayCluster")["spec"]

    def terms(group: Object) -> list[Object]:
        affinity = group["template"]["spec"]["affinity"]["nodeAffinity"]
        return affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]

    (group,) = cluster["workerGroupSpecs"]
    spot = {term["key"] for found in terms(group) for term in found["matchExpressions"]}
    (away,) = terms(cluster["headGroupSpec"])  # one term: all of them hold
    assert {term["key"] for term in away["matchExpressions"]} == spot
    assert {term["operator"] for term in away["matchExpressions"]} == {"NotIn", "DoesNotExist"}


@pytest.mark.parametrize("name", RENDERED)
def test_the_sweep_reaches_mlflow(name: str) -> None:
    """A host that MLflow does not list exactly, port and all, is answered 403."""
    (uri,) = re.findall(r"tracking\.uri=(\S+)", only(render(name), "RayJob")["spec"]["entrypoint"])
    server = only(render(name), "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]
    (allowed,) = (a.removeprefix("--allowed-hosts=") for a in server["args"] if a.startswith("--allowed-hosts="))
    assert urlsplit(uri).netloc in allowed.split(",")
    ports = {
        (o["metadata"]["name"], p["port"]) for o in render(name) if o["kind"] == "Service" for p in o["spec"]["ports"]
    }
    assert (urlsplit(uri).hostname, urlsplit(uri).port) in ports


@pytest.mark.parametrize("name", RENDERED)
def test_the_sweep_asks_for_what_its_workers_have(name: str) -> None:
    """Its command is accepted, every worker is a whole number of slots, and there are as many trials in flight."""
    config = sweep_config(name)
    (group,) = only(render(name), "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    worker = group["template"]["spec"]["containers"][0]
    cpus, gpus = (float(worker["resources"]["limits"].get(key, 0)) for key in ("cpu", "nvidia.com/gpu"))
    assert config.cluster.gpus == gpus
    assert config.cluster.gpus_per_worker != "auto"
    assert config.cluster.cpus_per_worker <= cpus
    assert config.search.concurrency == group["maxReplicas"]
    assert config.cluster.num_slots == "auto"


@pytest.mark.parametrize("name", RENDERED)
def test_a_worker_holds_what_its_sweep_may_keep(name: str) -> None:
    """Decoded images in memory and in the cache, beside what Ray takes."""
    data = sweep_config(name).data
    (group,) = only(render(name), "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    spec = group["template"]["spec"]
    store = int(group["rayStartParams"]["object-store-memory"])
    memory = to_bytes(spec["containers"][0]["resources"]["limits"]["memory"])
    processes = 1.5 * 2**30  # a raylet, its agent, a worker with torch and no data
    assert data.max_decoded_gib * 2**30 + store + processes <= 0.95 * memory  # above it Ray's memory monitor kills
    (home,) = (v["emptyDir"]["sizeLimit"] for v in spec["volumes"] if v["name"] == "home")
    assert data.cache_gib * 2**30 <= to_bytes(home)
    mounted = {m["name"]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
    assert mounted == {"home": "/home/unfreeze", "tmp": "/tmp", "ray-logs": "/tmp/ray"}


@pytest.mark.parametrize("name", RENDERED)
def test_a_head_holds_its_slots(name: str) -> None:
    """As ops/README.md has it measured: 1.2 GiB, and 0.9 GiB for each slot."""
    group = only(render(name), "RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]
    memory = to_bytes(group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"])
    needed = (1.2 + 0.9 * sweep_config(name).search.concurrency) * 2**30
    assert needed + int(group["rayStartParams"]["object-store-memory"]) <= 0.95 * memory


def test_the_documented_database_is_opened_by_what_is_locked() -> None:
    """SQLAlchemy imports the driver with the engine, long before it connects."""
    (uri,) = re.findall(r'--from-literal=uri="(\S+?)"', (K8S / "README.md").read_text())
    engine = sqlalchemy.create_engine(uri.replace("$password", "ab12"))
    assert engine.dialect.driver == "psycopg2"
    assert engine.url.password == "ab12"
    locked("psycopg2-binary")
