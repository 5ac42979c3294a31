"""Slots that fit a cluster, and how Ray is started or joined; no Ray is."""

import errno
import os
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.tune.execution import class_cache

from unfreeze.config import ACCELERATOR_LABEL, ClusterConfig, Config, PlasticityConfig
from unfreeze.errors import ClusterError, InfrastructureError, ModelError, StorageError
from unfreeze.sweep import resources
from unfreeze.sweep.machine import count_cpus
from unfreeze.sweep.package import PACKAGE
from unfreeze.sweep.resources import (
    count_slots,
    no_trial_is_to_blame,
    plain_errors,
    ray_cluster,
    room_for_slots,
    settle_gpus,
    slots_beside_pre_pass,
    worker_resources,
)

Cluster = Callable[..., None]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """(what the cluster has, what an autoscaler may make of it)."""

    def build(there: dict[str, float], ceiling: dict[str, float] | None = None) -> None:
        monkeypatch.setattr(ray, "cluster_resources", lambda: there)
        monkeypatch.setattr(ray._private.state.state, "get_max_resources_from_cluster_config", lambda: ceiling)

    return build


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, float]]]:
    """The placement groups that are asked for and not given back."""
    held: list[list[dict[str, float]]] = []

    def ask(
        bundles: list[dict[str, float]], bundle_label_selector: list[dict[str, str]] | None
    ) -> list[dict[str, float]]:
        assert bundle_label_selector is None
        held.append(bundles)
        return bundles

    monkeypatch.setattr(resources, "placement_group", ask)
    monkeypatch.setattr(resources, "remove_placement_group", held.remove)
    monkeypatch.setattr(resources, "_LOOK_S", 0.001)
    return held


# --- slots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "there", "fitting"),
    [
        ({}, {"CPU": 2.0}, 2),
        ({}, {"CPU": 2.0, "memory": 1e9, "node:10.0.0.1": 1.0}, 2),
        ({"workers_per_trial": 3}, {"CPU": 8.0}, 2),
        ({"cpus_per_worker": 1.5}, {"CPU": 4.0}, 2),
        ({"cpus_per_worker": 0.1}, {"CPU": 1.0}, 10),  # 1 / 0.1 is 10 although 0.1 is no binary fraction
        ({"cpus_per_worker": 0.1, "workers_per_trial": 3}, {"CPU": 3.0}, 10),  # 0.1 × 3 is a little more than 0.3
        ({"gpus_per_worker": 1.0}, {"CPU": 16.0, "GPU": 4.0}, 4),
        ({"gpus_per_worker": 1.0}, {"CPU": 3.0, "GPU": 4.0}, 3),  # the scarcer of the two
        ({"gpus_per_worker": 0.25}, {"CPU": 16.0, "GPU": 2.0}, 8),
        ({"gpus_per_worker": 0.5, "workers_per_trial": 2}, {"CPU": 16.0, "GPU": 3.0}, 3),
        ({"gpus_per_worker": 0.0}, {"CPU": 2.0, "GPU": 8.0}, 2),  # GPUs that nobody asked for
    ],
)
def test_as_many_slots_as_fit(options: dict[str, Any], there: dict[str, float], fitting: int, cluster: Cluster) -> None:
    cluster(there)
    assert count_slots(ClusterConfig(**options), concurrency=100) == fitting
    assert count_slots(ClusterConfig(**options, num_slots=fitting), concurrency=100) == fitting
    with pytest.raises(ClusterError, match=rf"^{fitting + 1} slot\(s\)"):
        count_slots(ClusterConfig(**options, num_slots=fitting + 1), concurrency=100)


def test_slots_are_counted_on_nodes_of_the_kinds_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(kind: str | None, *, is_alive: bool = True) -> dict[str, Any]:
        labels = {} if kind is None else {ACCELERATOR_LABEL: kind}
        return {"Alive": is_alive, "Labels": labels, "Resources": {"CPU": 8.0, "GPU": 4.0}}

    nodes = [node("A100"), node("H100"), node("T4"), node(None), node("A100", is_alive=False)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    for kinds, num_slots in ((["A100"], 4), (["A100", "H100"], 8)):
        config = ClusterConfig(gpus_per_worker=1.0, accelerators=kinds)
        assert count_slots(config, concurrency=100) == num_slots
    config = ClusterConfig(gpus_per_worker=1.0, accelerators=["L4"])
    with pytest.raises(ClusterError, match=r"need 1 CPU, 1 GPU with L4, the cluster has .* have A100, H100, T4"):
        count_slots(config, concurrency=100)
    assert worker_resources(config)["label_selector"] == {ACCELERATOR_LABEL: "in(L4)"}


def test_auto_starts_no_more_than_trials_in_flight_and_a_number_is_kept(cluster: Cluster) -> None:
    cluster({"CPU": 8.0})
    assert count_slots(ClusterConfig(), concurrency=3) == 3
    assert count_slots(ClusterConfig(num_slots=5), concurrency=3) == 5
    assert count_slots(ClusterConfig(num_slots=5), concurrency=8) == 5


@pytest.mark.parametrize(
    ("options", "num_actors", "there", "num_slots"),
    [
        ({}, 1, {"CPU": 2.0}, 1),
        ({}, 1, {"CPU": 1.0}, 0),
        ({}, 3, {"CPU": 2.0}, 0),
        ({"gpus_per_worker": 1.0}, 2, {"CPU": 16.0, "GPU": 8.0}, 6),
        ({"workers_per_trial": 2}, 1, {"CPU": 4.0}, 1),
        ({"cpus_per_worker": 0.1}, 1, {"CPU": 1.0}, 9),
    ],
)
def test_slots_that_warm_up_early_leave_the_pre_pass_its_room(
    options: dict[str, Any], num_actors: int, there: dict[str, float], num_slots: int, cluster: Cluster
) -> None:
    cluster(there)
    config = Config(cluster=ClusterConfig(**options), plasticity=PlasticityConfig(num_actors=num_actors))
    assert slots_beside_pre_pass(config) == num_slots


def test_slots_stay_between_the_least_and_the_most(cluster: Cluster) -> None:
    cluster({"CPU": 4.0})
    assert count_slots(ClusterConfig(min_slots=4), concurrency=100) == 4
    assert count_slots(ClusterConfig(max_slots=2), concurrency=100) == 2
    with pytest.raises(ClusterError, match=r"^5 slot\(s\) of 1 worker\(s\) need 5 CPU, the cluster has 4 CPU"):
        count_slots(ClusterConfig(min_slots=5), concurrency=100)
    assert room_for_slots(ClusterConfig(), concurrency=100) == 4
    assert room_for_slots(ClusterConfig(max_slots=8), concurrency=2) == 5  # one waits for a node
    cluster({"CPU": 64.0})
    assert room_for_slots(ClusterConfig(), concurrency=10) == 10
    assert room_for_slots(ClusterConfig(max_slots=8), concurrency=2) == 8
    assert room_for_slots(ClusterConfig(num_slots=3), concurrency=10) == 3


def test_what_an_autoscaler_may_add_counts(cluster: Cluster) -> None:
    cluster({"CPU": 1.0}, {"CPU": 16.0, "GPU": 4.0})
    config = ClusterConfig(gpus_per_worker=1.0)
    assert count_slots(config, concurrency=100) == 4
    cluster({"CPU": 8.0, "GPU": 6.0}, {"CPU": 16.0, "GPU": 4.0})  # nodes that joined by hand
    assert count_slots(config, concurrency=100) == 6
    with pytest.raises(ClusterError, match=r"the cluster has 16 CPU, 6 GPU"):
        count_slots(ClusterConfig(gpus_per_worker=1.0, num_slots=7), concurrency=100)


@pytest.mark.parametrize("there", [{}, {"CPU": 0.5}])
def test_auto_needs_room_for_one(there: dict[str, float], cluster: Cluster) -> None:
    cluster(there)
    have = there.get("CPU", 0)
    with pytest.raises(ClusterError, match=rf"^1 slot\(s\) of 1 worker\(s\) need 1 CPU, the cluster has {have:g} CPU;"):
        count_slots(ClusterConfig(), concurrency=4)


JOINED = {"address": "head:6379", "gpus_per_worker": 1.0, "cpus_per_worker": 4.0}
GROWN = {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(("options", "groups", "slots"), [({}, 1, 6), ({"num_slots": 2, "gpus_per_worker": 0.5}, 2, 2)])
def test_a_cluster_without_workers_is_asked_for_some_and_waited_for(
    options: dict[str, Any],
    groups: int,
    slots: int,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As KubeRay starts it: a head of 0 CPUs, workers when something asks for them."""
    looks = iter([{"node:10.0.0.1": 1.0}] * 4)
    demands: list[int] = []

    def look() -> dict[str, float]:
        demands.append(len(asked))
        return next(looks, GROWN)

    monkeypatch.setattr(ray, "cluster_resources", look)
    monkeypatch.setattr(ray._private.state.state, "get_max_resources_from_cluster_config", lambda: None)
    config = ClusterConfig(**{**JOINED, **options})
    assert count_slots(config, concurrency=6) == slots
    assert demands[-1] == groups
    assert not asked
    said = capsys.readouterr().err
    assert said.startswith(
        f"waiting up to 600 s for workers: {groups} slot(s) of 1 worker(s) need {4 * groups} CPU, 1 GPU"
    )
    assert said.endswith("the cluster has 0 CPU, 0 GPU\n")


def test_workers_that_never_come_are_an_error(cluster: Cluster, asked: list[Any]) -> None:
    cluster({"node:10.0.0.1": 1.0})
    with pytest.raises(
        ClusterError, match=r"^1 slot\(s\) of 2 worker\(s\) need 8 CPU, 2 GPU, the cluster has 0 CPU, 0 GPU"
    ):
        count_slots(ClusterConfig(**JOINED, workers_per_trial=2, start_timeout_s=0.01), concurrency=6)
    assert not asked


def test_whether_there_are_gpus_is_seen_when_a_worker_has_come(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([{}, {}, {}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: next(looks, GROWN))
    monkeypatch.setattr(ray._private.state.state, "get_max_resources_from_cluster_config", lambda: None)
    config = Config(cluster=ClusterConfig(address="head:6379"))
    assert settle_gpus(config).cluster.gpus_per_worker == 1.0
    assert not asked


def test_the_error_says_what_was_asked_for_and_what_there_is(cluster: Cluster) -> None:
    cluster({"CPU": 2.0, "GPU": 1.0})
    with pytest.raises(ClusterError) as caught:
        count_slots(
            ClusterConfig(num_slots=50, workers_per_trial=2, cpus_per_worker=0.5, gpus_per_worker=0.25), concurrency=4
        )
    assert str(caught.value) == (
        "50 slot(s) of 2 worker(s) need 50 CPU, 25 GPU, the cluster has 2 CPU, 1 GPU; lower cluster.num_slots, "
        "cluster.workers_per_trial or the resources per worker"
    )


@pytest.mark.parametrize(
    ("there", "ceiling", "settled", "says"),
    [
        ({"CPU": 2.0}, None, 0.0, "on the CPU: the cluster has no GPU"),
        ({"CPU": 2.0, "GPU": 1.0}, None, 1.0, "one for each worker: the cluster has 1 GPU"),
        ({"CPU": 1.0}, {"CPU": 16.0, "GPU": 4.0}, 1.0, "one for each worker: the cluster has 4 GPUs"),
    ],
)
def test_the_default_takes_the_gpus_that_are_there(
    there: dict[str, float],
    ceiling: dict[str, float] | None,
    settled: float,
    says: str,
    cluster: Cluster,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster(there, ceiling)
    config = settle_gpus(Config())
    assert worker_resources(config.cluster) == {"num_cpus": 1.0, "num_gpus": settled, "label_selector": None}
    assert capsys.readouterr().err == f"{says} (cluster.gpus_per_worker=auto)\n"
    assert settle_gpus(config) == config
    assert capsys.readouterr().err == ""


def test_a_worker_s_resources_are_ray_s_options() -> None:
    config = ClusterConfig(cpus_per_worker=0.5, gpus_per_worker=0.25)
    assert worker_resources(config) == {"num_cpus": 0.5, "num_gpus": 0.25, "label_selector": None}


# --- started or joined ------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `ray.init` was called with; an empty dict for `ray.shutdown`."""
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name[:4] != "RAY_"})
    monkeypatch.setattr(resources, "check_address", lambda address: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: made.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: made.append({}))
    node = SimpleNamespace(get_sockets_dir_path=lambda: "/ray/session_of_nobody/sockets")
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    return made


def test_without_an_address_ray_is_started_here_and_ended(calls: list[dict[str, Any]]) -> None:
    with ray_cluster(ClusterConfig(start_timeout_s=7.0)):
        assert os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "7.0"
        assert os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "1"  # Ray's processes inherit it
    assert len(calls) == 2
    assert calls[0]["address"] == "local"
    assert calls[0]["num_cpus"] == count_cpus()
    assert "runtime_env" not in calls[0]
    assert calls[1] == {}


def test_a_ray_that_does_not_come_up_in_time_is_one_sentence(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because")  # as Ray does

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ClusterError, match=r"started here: The current node timed out .* run the same command"):
        ray_cluster(ClusterConfig()).__enter__()


@pytest.mark.parametrize(
    ("option", "variable", "joined"),
    [("head:6379", None, "head:6379"), (None, "job:6379", "job:6379"), ("head:6379", "job:6379", "head:6379")],
)
def test_an_address_is_joined_and_the_package_travels(
    option: str | None, variable: str | None, joined: str, calls: list[dict[str, Any]]
) -> None:
    if variable:
        os.environ["RAY_ADDRESS"] = variable
    with ray_cluster(ClusterConfig(address=option)):
        assert len(calls) == 1
    assert calls[0]["address"] == joined
    hiding = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
    assert calls[0]["runtime_env"] == {"py_modules": [str(PACKAGE)], "env_vars": hiding}
    assert "num_cpus" not in calls[0]
    assert calls[1] == {}


def test_ray_is_ended_when_the_sweep_fails(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(ModelError), ray_cluster(ClusterConfig()):
        raise ModelError("broken")
    assert calls[1] == {}


@pytest.mark.parametrize("error", [ConnectionError("refused"), RuntimeError("no token"), ValueError("no port")])
def test_a_cluster_that_does_not_answer_is_named(
    error: Exception, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(ClusterError, match=rf"no Ray cluster answers at 'head:6379': {error}; check cluster\.address"),
        ray_cluster(ClusterConfig(address="head:6379")),
    ):
        raise AssertionError("not joined")
    assert calls == []


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_of_ours_is_unwrapped_and_another_is_not() -> None:
    for cause, seen in ((ModelError("broken"), ModelError), (KeyError("k"), ray.exceptions.RayTaskError)):
        with pytest.raises(seen) as caught, plain_errors():
            raise ray.exceptions.RayTaskError("finalize", "where it was", cause).as_instanceof_cause()
        assert (caught.value is cause) == isinstance(cause, ModelError)


def test_tune_hands_no_credentials_to_its_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be in a log of Ray's and on a command line, see tests/integration/test_secrets.py."""
    monkeypatch.setattr(os, "environ", {**os.environ, "AWS_SECRET_ACCESS_KEY": "canary"})
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", {"AWS_SECRET_ACCESS_KEY", "RAY_CHDIR_TO_TRIAL_DIR"})
    resources._set_variables(ClusterConfig())
    assert {"RAY_CHDIR_TO_TRIAL_DIR"} == class_cache.ENV_VARS_TO_PROPAGATE


@pytest.mark.parametrize("options", [{}, {"num_slots": 2}, {"min_slots": 2, "max_slots": 8}])
def test_gpus_are_settled_whatever_is_said_of_slots(options: dict[str, Any], cluster: Cluster) -> None:
    cluster({"CPU": 4.0, "GPU": 4.0})
    settled = settle_gpus(Config(cluster=ClusterConfig(**options)))
    assert settled.cluster == ClusterConfig(**options, gpus_per_worker=1.0)


# --- whose fault ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ray.exceptions.LocalRayletDiedError(), ray.exceptions.RayActorError()])
def test_a_ray_that_breaks_down_is_a_sentence_before_and_after_the_sweep_has_begun(error: Exception) -> None:
    for has_begun in (False, True):
        with pytest.raises(InfrastructureError, match=r"Ray broke down: .*run the same command"):  # noqa: SIM117
            with no_trial_is_to_blame(has_begun=has_begun):
                raise error


def test_a_store_that_fails_is_the_users_to_mend_until_the_sweep_has_begun() -> None:
    with pytest.raises(StorageError), no_trial_is_to_blame(has_begun=False):
        raise StorageError("cannot read s3://birds")
    with pytest.raises(InfrastructureError, match=r"s3://birds; .*run the same command"), no_trial_is_to_blame():
        raise StorageError("cannot read s3://birds")


@pytest.mark.parametrize(("name", "place"), [("/cache/images", "/cache/images"), (None, "RAY_TMPDIR")])
def test_a_full_disk_in_a_sweep_is_a_sentence_and_no_mistake_of_the_users(name: str | None, place: str) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", *([name] if name else []))
    with pytest.raises(InfrastructureError, match=rf"No space left .*{place}.*run the same command"):  # noqa: SIM117
        with no_trial_is_to_blame():
            raise full
    for error, has_begun in ((full, False), (OSError(errno.EACCES, "Permission denied"), True)):
        with pytest.raises(OSError, match=re.escape(str(error))), no_trial_is_to_blame(has_begun=has_begun):
            raise error
