"""The dashboard and the alerts ask for numbers that exist: the sweep's own and Ray's, by what declares them."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from manifests import ROOT, only, pods, render

from unfreeze.records import TrialState
from unfreeze.sweep.metrics import COUNTERS, GAUGES

MONITORING = ROOT / "ops/monitoring"
OWN = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS}
REPORTER = Path(ray.__file__).with_name("dashboard") / "modules/reporter/reporter_agent.py"
OF_RAY = {f"ray_{name}" for name in re.findall(r'"(node_\w+)"', REPORTER.read_text())}
# Of kube-state-metrics and the kubelet: not to be had here, and stable parts of their interfaces.
OF_KUBERNETES = {
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
    "kube_cronjob_status_last_successful_time",
}
TAGS = {name: {"sweep", *tags} for name, (_, tags) in {**GAUGES, **COUNTERS}.items()}


def dashboard() -> dict[str, Any]:
    return json.loads((MONITORING / "dashboard.json").read_text())


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]["groups"]
    return group["rules"]


QUERIES = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
QUERIES += [variable["query"]["query"] for variable in dashboard()["templating"]["list"] if "refId" in str(variable)]
QUERIES += [rule["expr"] for rule in alerts()]


def unknown(query: str) -> set[str]:
    """Names in a query that nothing exports."""
    names = set(re.findall(r"\b(?:ray|kube|kubelet)_\w+", query))
    return (names or {query}) - OWN - OF_RAY - OF_KUBERNETES


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_names_what_exists(query: str) -> None:
    assert not unknown(query)
    for name, selector in re.findall(r"ray_(unfreeze_\w+?)(?:_total)?(?:\{(.*?)\})", query):
        assert set(re.findall(r"(\w+)=?[=!]~?", selector)) <= TAGS[name]
        states = {s for _, text in re.findall(r'state(=|!=|=~)"(.*?)"', selector) for s in text.split("|")}
        assert states <= {*TrialState, "busy", "idle"}


def test_a_name_that_nothing_exports_is_found() -> None:
    assert unknown('sum(ray_unfreeze_trails{state="running"})') == {"ray_unfreeze_trails"}
    assert unknown("ray_unfreeze_images") == {"ray_unfreeze_images"}  # a counter's name ends in _total
    assert unknown("up")


def test_every_number_of_the_sweep_is_shown() -> None:
    assert {name for query in QUERIES for name in re.findall(r"ray_unfreeze_\w+", query)} == OWN


def test_every_alert_says_where_to_read_on() -> None:
    runbook = (ROOT / "ops/README.md").read_text()
    for rule in alerts():
        file, _, heading = rule["annotations"]["runbook"].partition(": ")
        assert file == "ops/README.md"
        assert f"### {heading}\n" in runbook, rule["alert"]


def test_prometheus_finds_ray_s_pods() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(MONITORING)], capture_output=True, text=True, check=True)
    objects = list(yaml.safe_load_all(done.stdout))
    assert only(objects, "PodMonitor")["spec"]["selector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    assert {o["metadata"]["namespace"] for o in objects} == {"unfreeze"}
    (dashboards,) = (o for o in objects if o["kind"] == "ConfigMap")
    assert json.loads(dashboards["data"]["dashboard.json"]) == dashboard()


def test_logs_leave_the_pods_by_the_volume_they_are_written_to() -> None:
    for where, pod in pods(render("overlays/logs")):
        by_name = {container["name"]: container for container in pod["spec"]["containers"]}
        if "ray-head" in by_name or "ray-worker" in by_name:
            mounts = [m for m in by_name["logs"]["volumeMounts"] if m["name"] == "ray-logs"]
            assert mounts == [{"name": "ray-logs", "mountPath": "/tmp/ray", "readOnly": True}], where
    settings = yaml.safe_load((ROOT / "k8s/overlays/logs/fluent-bit.yaml").read_text())["pipeline"]
    (source,), (sink,) = settings["inputs"], settings["outputs"]
    assert all(path.startswith("/tmp/ray/session_latest/logs/") for path in source["path"].split(","))
    assert (source["tag"], sink["store_dir"]) == (sink["match"], "/parts")
