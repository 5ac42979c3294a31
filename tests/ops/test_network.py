"""Who reaches whom under the network policies, worked out as the API's documentation says: allowed is what a policy of
the sender's lets out and one of the receiver's lets in, and a pod that no policy of a direction selects is open."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from manifests import RENDERED, Object, labels_of, pods, render, selects

DASHBOARD, GCS, MLFLOW, POSTGRES, HTTPS, API = 8265, 6379, 5000, 5432, 443, 6443
ELSEWHERE = {
    "operator": ("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"}),
    "dns": ("kube-system", {"k8s-app": "kube-dns"}),
    "stranger": ("default", {"app.kubernetes.io/name": "mlflow"}),
}
S3, CREDENTIALS = "52.216.1.1", "169.254.169.254"


def ends(objects: list[Object]) -> dict[str, tuple[str, dict[str, str]]]:
    """Name of a first container → (namespace, labels)."""
    ours = {pod["spec"]["containers"][0]["name"]: ("unfreeze", labels_of(pod)) for _, pod in pods(objects)}
    return ours | ELSEWHERE


def fits(peer: Object, namespace: str | None, labels: dict[str, str], address: str | None) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        return (
            address is not None
            and ip_address(address) in ip_network(block["cidr"])
            and not any(ip_address(address) in ip_network(other) for other in block.get("except", []))
        )
    if address is not None:
        return False
    if "namespaceSelector" in peer:
        inside = selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": str(namespace)})
    else:
        inside = namespace == "unfreeze"
    return inside and selects(peer.get("podSelector", {}), labels)


def rules(objects: list[Object], labels: dict[str, str], direction: str) -> Iterator[list[Object]]:
    for spec in (o["spec"] for o in objects if o["kind"] == "NetworkPolicy"):
        if direction in spec["policyTypes"] and selects(spec["podSelector"], labels):
            yield spec.get(direction.lower(), [])


def passes(objects: list[Object], sender: str, receiver: str, port: int) -> bool:
    """``receiver``: a pod's name, or an address outside the cluster."""
    known = ends(objects)
    address = None if receiver in known else receiver
    there = known.get(receiver, (None, {}))
    for direction, own, key, other in (
        ("Egress", known[sender], "to", (*there, address)),
        ("Ingress", there, "from", (*known[sender], None)),
    ):
        if own[0] != "unfreeze":
            continue
        found = list(rules(objects, own[1], direction))
        if found and not any(
            (key not in rule or any(fits(peer, *other) for peer in rule[key]))
            and ("ports" not in rule or any(p["port"] == port for p in rule["ports"]))
            for policy in found
            for rule in policy
        ):
            return False
    return True


NEEDED = [
    *((pod, "dns", 53) for pod in ("ray-head", "ray-worker", "submitter", "mlflow", "gc")),
    ("ray-worker", "ray-head", GCS),
    ("ray-head", "ray-worker", 10_002),
    ("ray-worker", "ray-worker", 23_456),
    ("submitter", "ray-head", DASHBOARD),
    ("operator", "ray-head", DASHBOARD),
    ("ray-head", API_SERVER := "10.96.0.1", HTTPS),
    ("ray-head", API_SERVER, API),
    ("ray-head", S3, HTTPS),
    ("ray-worker", S3, HTTPS),
    ("ray-head", "mlflow", MLFLOW),
    ("mlflow", S3, HTTPS),
    ("gc", "mlflow", MLFLOW),
]
CLOSED = [
    ("stranger", "mlflow", MLFLOW),
    ("stranger", "ray-head", DASHBOARD),
    ("stranger", "ray-head", GCS),
    ("operator", "ray-head", GCS),
    ("operator", "ray-worker", DASHBOARD),
    ("submitter", "ray-head", GCS),
    ("submitter", "mlflow", MLFLOW),
    ("submitter", S3, HTTPS),
    ("mlflow", "ray-head", DASHBOARD),
    ("ray-head", S3, 80),
    ("ray-worker", API_SERVER, API),
    *((pod, CREDENTIALS, port) for pod in ("ray-head", "ray-worker", "mlflow") for port in (80, HTTPS)),
]


@pytest.mark.parametrize("name", RENDERED)
def test_what_is_used_is_open_and_nothing_else(name: str) -> None:
    objects = render(name)
    assert [flow for flow in NEEDED if not passes(objects, *flow)] == []
    assert [flow for flow in CLOSED if passes(objects, *flow)] == []


@pytest.mark.parametrize("name", [name for name in RENDERED if "external" not in name])
def test_the_database_answers_mlflow_and_its_jobs_alone(name: str) -> None:
    objects = render(name)
    for sender in ("mlflow", "upload", "restore", "gc"):
        assert passes(objects, sender, "postgres", POSTGRES)
    for sender in ("upload", "restore"):
        assert passes(objects, sender, S3, HTTPS)
        assert passes(objects, sender, "dns", 53)
    for sender in ("ray-head", "ray-worker", "submitter", "stranger", "operator"):
        assert not passes(objects, sender, "postgres", POSTGRES)
    assert not passes(objects, "postgres", S3, HTTPS)


def test_without_policies_all_is_open() -> None:
    objects = [o for o in render("base") if o["kind"] != "NetworkPolicy"]
    assert all(passes(objects, *flow) for flow in [*NEEDED, *CLOSED])


def test_a_login_is_the_only_way_in_for_people() -> None:
    objects = render("overlays/oidc")
    assert passes(objects, "mlflow-login", "mlflow", MLFLOW)
    assert passes(objects, "mlflow-login", S3, HTTPS)  # an identity provider is somewhere outside too
    assert not passes(objects, "mlflow-login", "postgres", POSTGRES)
    assert not passes(objects, "mlflow-login", "ray-head", DASHBOARD)
    assert not passes(objects, "stranger", "mlflow-login", 4180)


def test_a_database_elsewhere_is_reached() -> None:
    objects = render("overlays/external-services")
    assert passes(objects, "mlflow", "10.1.2.3", POSTGRES)
    assert passes(objects, "gc", "10.1.2.3", POSTGRES)
    assert not passes(objects, "ray-worker", "10.1.2.3", POSTGRES)
