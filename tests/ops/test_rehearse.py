"""What the rehearsal makes of Dockerfiles, templates and a RayCluster before podman sees any of it."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import moto.settings
import pytest
from moto.core.authorization import ActionAuthenticatorMixin
from scripts import load_script

FOLDER = Path(__file__).parents[2] / "ops/rehearse"
SECRETS = {"login": {"user": "me", "password": "p$(x)"}, "unfreeze": {"auth_token": "t0"}}
META = {"name": "a-0", "namespace": "unfreeze", "labels": {"ray.io/cluster": "a"}}
RAY = {
    "enableInTreeAutoscaling": True,
    "authOptions": {"mode": "token"},
    "headGroupSpec": {
        "rayStartParams": {"num-cpus": "0"},
        "template": {
            "spec": {
                "containers": [
                    {"name": "ray-head", "image": "i:1", "resources": {"limits": {"cpu": "2", "memory": "8Gi"}}}
                ]
            }
        },
    },
}
GROUP = {
    "groupName": "cpu",
    "rayStartParams": {},
    "template": {
        "metadata": {"labels": {"own": "yes"}},
        "spec": {
            "tolerations": [{"operator": "Exists"}],
            "containers": [
                {
                    "name": "ray-worker",
                    "image": "i:1",
                    "envFrom": [{"secretRef": {"name": "login"}}],
                    "resources": {"limits": {"cpu": "1500m", "memory": "3Gi", "nvidia.com/gpu": "1"}},
                }
            ],
        },
    },
}


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[None]:
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in ("podman", "pods", "kuberay", "images", "stage", "keys"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def pods() -> ModuleType:
    return load_script("rehearse/pods")


@pytest.fixture(scope="module")
def kuberay() -> ModuleType:
    return load_script("rehearse/kuberay")


@pytest.fixture(scope="module")
def images() -> ModuleType:
    return load_script("rehearse/images")


def test_the_bases_of_the_dockerfiles_can_be_made(images: ModuleType) -> None:
    found = [
        base for path in (FOLDER.parent / "docker").glob("*Dockerfile*") for base in images.bases(path.read_text())
    ]
    found += [base for path in FOLDER.glob("stand_ins/*/Dockerfile") for base in images.bases(path.read_text())]
    assert {images.release(base) for base in found} == {"bookworm"}


def test_a_stage_is_no_base(images: ModuleType) -> None:
    text = (
        "ARG V=3.11\nFROM --platform=x python:${V}-slim-bookworm AS build\nFROM build\nFROM python:$V-slim-bookworm\n"
    )
    assert images.bases(text) == ["python:3.11-slim-bookworm"]


@pytest.mark.parametrize("name", ["python:3.12-slim-bookworm", "alpine:3", "python:3.11"])
def test_another_base_is_refused_by_name(images: ModuleType, name: str) -> None:
    with pytest.raises(images.RehearsalError, match=f"FROM {name}"):
        images.release(name)


def test_what_a_machine_lacks_is_said_at_once() -> None:
    podman = load_script("rehearse/podman")
    debian = "PRETTY_NAME=x\nID=debian\n"
    assert list(podman.problems(release=debian, is_root=True, missing=[])) == []
    found = list(
        podman.problems(release='ID=fedora\nPRETTY_NAME="Fedora 43"', is_root=False, missing=["runc", "kubectl"])
    )
    assert ["Fedora 43" in found[0], "root" in found[1], "apt-get install" in found[2], "kubectl" in found[3]] == [
        True
    ] * 4
    assert found[2].endswith(" runc")


def test_the_environment_is_that_of_kubernetes(pods: ModuleType) -> None:
    container = {
        "envFrom": [{"prefix": "DB_", "secretRef": {"name": "login"}}],
        "env": [
            {"name": "DB_user", "value": "you"},
            {"name": "URI", "value": "$(DB_user):$(DB_password)@$(LATER) $$(URI)"},
            {"name": "LATER", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "CLUSTER", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['ray.io/cluster']"}}},
        ],
    }
    assert pods.environment(container, META, SECRETS) == {
        "DB_user": "you",  # env wins over envFrom
        "DB_password": "p$(x)",  # a secret is taken as it is
        "URI": "you:p$(x)@$(LATER) $(URI)",
        "LATER": "unfreeze",
        "CLUSTER": "a",
    }


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ({"secretKeyRef": {"name": "none", "key": "x"}}, "no secret 'none'"),
        ({"secretKeyRef": {"name": "login", "key": "x"}}, "no key 'x'"),
        ({"fieldRef": {"fieldPath": "status.podIP"}}, "podIP"),
    ],
)
def test_what_cannot_be_looked_up_is_named(pods: ModuleType, source: Any, what: str) -> None:
    with pytest.raises(pods.RehearsalError, match=what):
        pods.environment({"env": [{"name": "A", "valueFrom": source}]}, META, SECRETS)


def test_a_template_becomes_a_pod(pods: ModuleType, tmp_path: Path) -> None:
    context = {"runAsUser": 999}
    main = {"name": "main", "image": "i", "args": ["--a=$(B)"]}
    template = {
        "metadata": {"labels": {"app": "db"}},
        "spec": {
            "serviceAccountName": "s",
            "securityContext": context,
            "volumes": [
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
                {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
                {"name": "scripts", "configMap": {"name": "s"}},
            ],
            "initContainers": [
                {"name": "init", "image": "i", "command": ["up", "$(URI)"], "env": [{"name": "URI", "value": "u"}]}
            ],
            "containers": [{**main, "ports": [{"containerPort": 80}], "livenessProbe": {}, "lifecycle": {}}],
        },
    }
    claims = [{"metadata": {"name": "data"}}]
    given = {"config_maps": {"s": {"a.py": "pass"}}, "folder": tmp_path}
    pod = pods.to_pod(template, name="db-0", namespace="unfreeze", secrets={}, claims=claims, **given)
    spec = pod.manifest["spec"]
    assert pod.manifest["metadata"] == {"name": "db-0", "namespace": "unfreeze", "labels": {"app": "db"}}
    assert (spec["hostname"], spec["securityContext"], spec["restartPolicy"]) == ("db-0", context, "Never")
    assert spec["initContainers"][0]["command"] == ["up", "u"]
    assert spec["containers"] == [{**main, "env": [], "imagePullPolicy": "Never"}]
    assert pod.left_out == {"serviceAccountName", "lifecycle"}
    shm, tmp, scripts, data = pod.volumes
    assert (shm.name, shm.memory_bytes) == ("shm-db-0", 2**30)
    assert (tmp.path, tmp.is_claim) == (tmp_path / "tmp-db-0", False)
    assert scripts.files == {"a.py": "pass"}
    assert (data.path, data.is_claim) == (tmp_path / "data-db-0", True)
    assert spec["volumes"][3] == {"name": "data", "hostPath": {"path": str(data.path), "type": "Directory"}}


def test_a_volume_that_cannot_be_made_is_named(pods: ModuleType, tmp_path: Path) -> None:
    template = {"spec": {"containers": [], "volumes": [{"name": "v", "nfs": {}}]}}
    with pytest.raises(pods.RehearsalError, match="'v' of pod 'p' is a nfs"):
        pods.to_pod(template, name="p", namespace="n", secrets={}, folder=tmp_path)


@pytest.mark.parametrize(("text", "bytes_"), [("3Gi", 3 * 2**30), ("256Mi", 2**28), ("1G", 10**9), ("512", 512)])
def test_memory_is_read(pods: ModuleType, text: str, bytes_: int) -> None:
    assert pods.to_bytes(text) == bytes_


@pytest.mark.parametrize(("text", "cores"), [("500m", 1), ("1", 1), ("1500m", 2), (2, 2)])
def test_cores_are_rounded_up(pods: ModuleType, text: Any, cores: int) -> None:
    assert pods.to_cpus(text) == cores


def started_with(container: Any) -> list[str]:
    assert container["command"] == ["/bin/bash", "-c", "--"]
    _, _, command = container["args"][0].partition("; ")
    return shlex.split(command)


def test_the_head_starts_ray_as_kuberay_says(kuberay: ModuleType, pods: ModuleType) -> None:
    template = kuberay.head_template(RAY, cluster="unfreeze")
    (container,) = template["spec"]["containers"]
    command = started_with(container)
    assert command[:3] == ["ray", "start", "--head"]
    assert {"--num-cpus=0", "--dashboard-host=0.0.0.0", "--no-monitor", "--block", f"--memory={8 * 2**30}"} <= set(
        command
    )
    assert {"name": "shared-mem", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert template["spec"]["restartPolicy"] == "Never"
    found = pods.environment(container, META | {"labels": template["metadata"]["labels"]}, SECRETS)
    assert (found["RAY_AUTH_MODE"], found["RAY_AUTH_TOKEN"]) == ("token", "t0")
    assert found["RAY_ADDRESS"] == "127.0.0.1:6379"
    assert "headGroupSpec" in RAY
    assert "env" not in RAY["headGroupSpec"]["template"]["spec"]["containers"][0]  # the given one is left as it was


def test_a_worker_waits_for_the_head_and_joins_it(kuberay: ModuleType, pods: ModuleType) -> None:
    template = kuberay.worker_template(RAY, GROUP, cluster="unfreeze", namespace="ns")
    (container,) = template["spec"]["containers"]
    address = "unfreeze-head-svc.ns.svc.cluster.local"
    command = started_with(container)
    assert "--head" not in command
    assert {f"--address={address}:6379", "--num-cpus=2", "--num-gpus=1"} <= set(command)
    (waiting,) = template["spec"]["initContainers"]
    assert f"ray health-check --address {address}:6379" in waiting["args"][0]
    found = pods.environment(waiting, META, SECRETS)
    assert (found["RAY_AUTH_TOKEN"], found["user"]) == ("t0", "me")
    labels = template["metadata"]["labels"]
    assert (labels["own"], labels["ray.io/group"], labels["ray.io/node-type"]) == ("yes", "cpu", "worker")


def test_the_submitter_submits_the_entrypoint_once(kuberay: ModuleType) -> None:
    job = {"spec": {"rayClusterSpec": RAY, "submitterPodTemplate": {"spec": {"containers": [{"name": "submitter"}]}}}}
    template = kuberay.submitter_template(job, cluster="unfreeze", job_id="j1", entrypoint="python a.py b=c")
    (container,) = template["spec"]["containers"]
    (text,) = container["args"]
    assert "--submission-id j1 -- python a.py b=c ; fi ; ray job logs" in text
    assert "if ! ray job status --address http://unfreeze-head-svc:8265 j1" in text
    assert [v["name"] for v in container["env"]][-2:] == ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN"]


@pytest.fixture(scope="module")
def deployment() -> ModuleType:
    return load_script("rehearse/deployment")


def test_options_of_the_entrypoint_are_set_once(deployment: ModuleType) -> None:
    words = deployment.with_options("python a.py experiment=demo search.concurrency=1", {"search.concurrency": "2"})
    assert words == ["python", "a.py", "experiment=demo", "search.concurrency=2"]


def test_the_local_run_has_every_option_but_the_cluster_s(deployment: ModuleType) -> None:
    given = "python a.py experiment=demo cluster=gpu cluster.gpus_per_worker=0 storage=s3://b tracking.uri=u search.x=1"
    assert deployment.local_options(given.split()) == ["experiment=demo", "search.x=1"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_secrets_are_those_that_the_runbook_creates() -> None:
    text = (FOLDER.parents[1] / "k8s/README.md").read_text()
    found = load_script("rehearse/keys").documented_secrets(text, {"AWS_ACCESS_KEY_ID": "a"})
    assert found["unfreeze-s3"] == {"AWS_ACCESS_KEY_ID": "a"}
    postgres = found["unfreeze-postgres"]
    assert postgres["uri"] == f"postgresql+psycopg2://mlflow:{postgres['password']}@postgres:5432/mlflow"


def test_each_key_opens_its_own_folders_until_it_is_switched_off(
    s3_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = load_script("rehearse/keys")
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", float(keys.NUM_OPEN))
    monkeypatch.setattr(ActionAuthenticatorMixin, "request_count", 0)
    url = os.environ["AWS_ENDPOINT_URL"]
    made = keys.Keys(url)
    first, other, second = (made.make(f"unfreeze-s3{name}", url) for name in ("", "-artifacts", ""))
    folders = ("sweeps", "mlflow", "backups")
    assert [made.opens(folder, url, first) for folder in folders] == [True, False, False]
    assert [made.opens(folder, url, other) for folder in folders] == [False, True, True]
    made.remove("unfreeze-s3", url, first)
    assert not made.opens("sweeps", url, first)
    assert made.opens("sweeps", url, second)
    assert not made.opens("sweeps", url, second | {"AWS_SECRET_ACCESS_KEY": "another"})
