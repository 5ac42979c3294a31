"""What the KubeRay operator makes of a RayCluster and a RayJob, written out, since there is no operator here.

Each function names the one in KubeRay 1.7 (ray-operator/controllers/ray) whose doing it repeats. Not repeated: the
autoscaler's container, which asks the Kubernetes API for pods; the metrics port; owner references.
"""

import copy
from typing import Any

from pods import Object, to_bytes, to_cpus

TOKEN_KEY = "auth_token"
DASHBOARD_PORT = 8265
AGENT_PORT = 52365
_GCS_PORT = 6379
_SHELL = ["/bin/bash", "-c", "--"]  # utils.GetContainerCommand
METRICS_PORT = 8080


def head_service(cluster: str) -> str:
    """utils.GenerateHeadServiceName; CheckName's limit of 50 characters is far."""
    return f"{cluster}-head-svc"


def head_template(spec: Object, *, cluster: str) -> Object:
    """common.DefaultHeadPodTemplate and BuildPod; ``spec``: of the RayCluster."""
    group = spec["headGroupSpec"]
    params = {"dashboard-host": "0.0.0.0", **group.get("rayStartParams", {})}
    if spec.get("enableInTreeAutoscaling"):
        params["no-monitor"] = "true"
    template = _pod(spec, group, params, cluster=cluster, group_name="headgroup", node_type="head")
    container = template["spec"]["containers"][0]
    _set(container, "RAY_ADDRESS", f"127.0.0.1:{_GCS_PORT}")
    return template


def worker_template(spec: Object, group: Object, *, cluster: str, namespace: str) -> Object:
    """common.DefaultWorkerPodTemplate and BuildPod: the head is waited for before Ray starts."""
    address = f"{head_service(cluster)}.{namespace}.svc.cluster.local"
    params = {"address": f"{address}:{_GCS_PORT}", **group.get("rayStartParams", {})}
    template = _pod(spec, group, params, cluster=cluster, group_name=group["groupName"], node_type="worker")
    pod = template["spec"]
    container = pod["containers"][0]
    waiting = {
        "name": "wait-gcs-ready",
        "image": container["image"],
        "command": _SHELL,
        "args": [f"until ray health-check --address {address}:{_GCS_PORT}; do sleep 5; done"],
        "securityContext": container.get("securityContext", {}),
        "env": [*container["env"], {"name": "FQ_RAY_IP", "value": address}],
        "envFrom": container.get("envFrom", []),
        "volumeMounts": container["volumeMounts"],
        # 200m and 256Mi in KubeRay, hard-coded: importing Ray there takes a minute of one core's fifth.
        "resources": {"limits": {"cpu": "200m", "memory": "256Mi"}},
    }
    pod["initContainers"] = [*pod.get("initContainers", []), waiting]
    _set(container, "FQ_RAY_IP", address)
    _set(container, "RAY_IP", head_service(cluster))
    _set(container, "RAY_ADDRESS", f"{address}:{_GCS_PORT}")
    return template


def _pod(
    spec: Object, group: Object, params: dict[str, str], *, cluster: str, group_name: str, node_type: str
) -> Object:
    template = copy.deepcopy(group["template"])
    labels = {
        "ray.io/cluster": cluster,
        "ray.io/group": group_name,
        "ray.io/is-ray-node": "yes",
        "ray.io/node-type": node_type,
    }
    given = template.get("metadata", {})
    template["metadata"] = {**given, "labels": given.get("labels", {}) | labels}
    pod = template["spec"]
    if spec.get("enableInTreeAutoscaling"):
        pod["restartPolicy"] = "Never"  # autoscaler v2: a node that is gone comes back as another
    container = pod["containers"][0]
    limits = container.get("resources", {}).get("limits", {})
    # makeEmptyDirVolume: shared memory may take all that the container may.
    volume = {"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": limits.get("memory", "1Gi")}}
    pod["volumes"] = [*pod.get("volumes", []), volume]
    mount = {"name": "shared-mem", "mountPath": "/dev/shm"}
    container["volumeMounts"] = [*container.get("volumeMounts", []), mount]
    command = _start_command(params, limits, is_head=node_type == "head")
    container["command"] = _SHELL
    container["args"] = [f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {command}"]
    container["env"] = list(container.get("env", []))
    if spec.get("authOptions", {}).get("mode") == "token":
        add_token(container, spec, cluster)
    for name, value in {
        "RAY_CLUSTER_NAME": cluster,
        "RAY_NODE_TYPE_NAME": group_name,
        "KUBERAY_GEN_RAY_START_CMD": command,
        "RAY_PORT": str(_GCS_PORT),
        "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
        "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
    }.items():
        _set(container, name, value)
    container["env"].append({"name": "RAY_CLUSTER_NAMESPACE", **_field("metadata.namespace")})
    container["env"].append({"name": "RAY_CLOUD_INSTANCE_ID", **_field("metadata.name")})
    return template


def _field(path: str) -> Object:
    return {"valueFrom": {"fieldRef": {"fieldPath": path}}}


def add_token(container: Object, spec: Object, cluster: str) -> None:
    """common.SetContainerTokenAuthEnvVars: a secret named after the cluster, unless authOptions names one."""
    secret = spec["authOptions"].get("secretName", cluster)
    container["env"] = [
        *container.get("env", []),
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret, "key": TOKEN_KEY}}},
    ]


def _set(container: Object, name: str, value: str) -> None:
    """Unless the template says otherwise; a `$(…)` in a generated value is the shell's."""
    if all(variable["name"] != name for variable in container["env"]):
        container["env"].append({"name": name, "value": value.replace("$", "$$")})


def _start_command(params: dict[str, str], limits: Object, *, is_head: bool) -> str:
    """common.setMissingRayStartParams and generateRayStartCommand."""
    gpus = [int(value) for key, value in limits.items() if key.endswith("gpu") and int(value)]
    found: dict[str, Any] = {
        "metrics-export-port": METRICS_PORT,
        "dashboard-agent-listen-port": AGENT_PORT,
        **({"num-cpus": to_cpus(limits["cpu"])} if "cpu" in limits else {}),
        **({"memory": to_bytes(limits["memory"])} if "memory" in limits else {}),
        **({"num-gpus": gpus[0]} if gpus else {}),
        **params,
        "block": "true",
    }
    flags = []
    for name, value in sorted(found.items()):
        if str(value).lower() not in ("true", "false") or name in ("include-dashboard", "log-color"):
            flags.append(f"--{name}={value}")
        elif str(value).lower() == "true":
            flags.append(f"--{name}")
    return " ".join(["ray start", *(["--head"] if is_head else []), *flags])


def submitter_template(job: Object, *, cluster: str, job_id: str, entrypoint: str) -> Object:
    """getSubmitterTemplate and common.BuildJobSubmitCommand in K8sJobMode; ``job``: the RayJob.

    A submitter that starts again finds its job by ``job_id`` and follows it instead of submitting a second.
    """
    template = copy.deepcopy(job["spec"]["submitterPodTemplate"])
    container = template["spec"]["containers"][0]
    address = f"http://{head_service(cluster)}:{DASHBOARD_PORT}"
    healthy = f"import urllib.request; urllib.request.urlopen('{address}/api/gcs_healthz', timeout=5)"
    container["command"] = ["/bin/bash", "-ce", "--"]
    container["args"] = [
        f'until python3 -c "{healthy}" >/dev/null 2>&1 ; do sleep 2 ; done ; '
        f"if ! ray job status --address {address} {job_id} >/dev/null 2>&1 ; then "
        f"ray job submit --address {address} --no-wait --submission-id {job_id} -- {entrypoint} ; fi ; "
        f"ray job logs --address {address} --follow {job_id}"
    ]
    container["env"] = [
        *container.get("env", []),
        {"name": "PYTHONUNBUFFERED", "value": "1"},
        {"name": "RAY_DASHBOARD_ADDRESS", "value": address},
        {"name": "RAY_JOB_SUBMISSION_ID", "value": job_id},
    ]
    spec = job["spec"]["rayClusterSpec"]
    if spec.get("authOptions", {}).get("mode") == "token":
        add_token(container, spec, cluster)
    return template
