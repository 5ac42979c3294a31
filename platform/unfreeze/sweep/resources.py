"""Ray: started here or joined, and how many slots its resources hold."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray
from ray._private import services
from ray.tune import TuneError
from ray.tune.execution import class_cache
from ray.util.client import ray as client
from ray.util.placement_group import placement_group, remove_placement_group

from unfreeze.config import ACCELERATOR_LABEL, ClusterConfig, Config
from unfreeze.errors import ClusterError, InfrastructureError, StorageError, UnfreezeError
from unfreeze.report.streams import say, stage
from unfreeze.storage.folder import FULL
from unfreeze.sweep.address import check_address
from unfreeze.sweep.machine import check_train, count_cpus, provide_token, ray_folder
from unfreeze.sweep.package import check_workers, on_path, travelling
from unfreeze.sweep.reaper import children, ending_with_driver

GOES_ON = "nothing that finished is lost and no trial is blamed: run the same command and it goes on"

# What asked for no GPU sees none: since 2.60 Ray leaves all of them in sight.
_HIDING = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
_LOOK_S = 1.0


@contextlib.contextmanager
def ray_cluster(config: ClusterConfig) -> Iterator[None]:
    """Join the cluster of ``cluster.address`` or RAY_ADDRESS (as `ray job submit` sets it), else start Ray here.

    A Ray that this process has started or joined before, in a notebook say, is used as it is and left running.

    Raises:
        ClusterError: the cluster cannot be reached, Ray cannot be started, or its workers run other code.
    """
    check_train()
    _set_variables(config)
    if ray.is_initialized():
        if client.is_connected():
            raise ClusterError(
                "this process is connected by Ray Client (ray://), which cannot run a sweep; join host:port"
            )
        check_workers()
        yield
        return
    address = _address(config)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        if address == "local":
            others = children()  # of a notebook, say
            _start()
            sockets = ray._private.worker._global_node.get_sockets_dir_path()
            stack.enter_context(ending_with_driver(others, sockets, f"error: ended by others or by Ray; {GOES_ON}"))
        else:
            _join(address)
        # What raylets say of workers that died is in their logs. Whatever log_to_driver says, a thread of Ray's prints
        # it to standard output too, amid our answer, and until Ray is shut down (worker.py: listen_error_messages).
        stack.callback(setattr, ray._private.worker, "print_to_stdstream", ray._private.worker.print_to_stdstream)
        ray._private.worker.print_to_stdstream = _nowhere
        stack.callback(ray.shutdown)
        if threading.current_thread() is threading.main_thread():  # where alone Ray takes SIGTERM for itself
            signal.signal(signal.SIGTERM, on_sigterm)
        try:
            yield
        except (ClusterError, InfrastructureError):
            say(f"what Ray and its workers said is in {ray._private.worker._global_node.get_logs_dir_path()}")
            raise


def _address(config: ClusterConfig) -> str:
    """Which Ray to join; "local": one is started here."""
    if config.address in (None, "auto"):
        return os.environ.get("RAY_ADDRESS") or config.address or "local"
    return config.address


def _set_variables(config: ClusterConfig) -> None:
    # Ctrl-C unwinds the command wherever it is, and Tune has no say in it.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # Tune writes its own state to a folder we never read: the ledger is the truth…
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    # …so nobody misses the result files it then cannot find, and which trials have ended is ours to say.
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
    # Tune hands these to its trials, by way of a log of Ray's and a command line that `ps` shows; ours read no bucket.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(_CREDENTIALS)
    # How long a slot may wait for its workers, which an autoscaler may have to boot first.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(config.start_timeout_s))


def _start() -> None:
    # Board, trials, controllers and workers are about a dozen processes, most of them asleep; on two cores Ray takes
    # that for a runaway and says so.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    # One process per slot that waits for a cloud to announce a preemption; none will be here.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.update(_HIDING)
    provide_token()
    folder, num_cpus = ray_folder(), count_cpus()
    if num_cpus == 1:
        say("one CPU to use here: one slot, one trial at a time")
    try:
        with stage("starting Ray"), on_path():
            ray.init(address="local", include_dashboard=False, num_cpus=num_cpus, _temp_dir=folder, **_QUIET)
    except Exception as error:  # a plain one of Ray's where a busy machine takes too long (node.py)
        raise ClusterError(
            f"Ray cannot be started here: {_first_line(error).rstrip('.')}; where the machine is only busy, which Ray "
            f"bears for 30 s, run the same command again"
        ) from error


def _join(address: str) -> None:
    """The package travels with the job: workers need the dependencies, not an installed `unfreeze`."""
    if address == "auto":
        address = _found_here()
    check_address(address)
    try:
        with stage(f"joining Ray at {address}"):
            ray.init(address=address, runtime_env={**travelling(), "env_vars": _HIDING}, **_QUIET)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address!r}: {_first_line(error)}; check cluster.address, RAY_ADDRESS and the "
            f"token (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH), or leave cluster.address out to start Ray here"
        ) from error


def _found_here() -> str:
    """What "auto" is to Ray: the address of one on this machine, of which it would not ask whether it still answers."""
    try:
        return services.canonicalize_bootstrap_address("auto")  # there is no public call
    except ConnectionError as error:
        raise ClusterError(
            "cluster.address or RAY_ADDRESS is auto, but no Ray runs on this machine: give host:port of a head, or "
            "leave both out to start Ray here"
        ) from error


def _nowhere(*_: Any, **__: Any) -> None:
    pass


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def worker_resources(config: ClusterConfig) -> dict[str, Any]:
    """What one worker takes, and where, in the words of `ray.remote` options."""
    return {"num_cpus": config.cpus_per_worker, "num_gpus": config.gpus, "label_selector": config.labels or None}


def count_slots(config: ClusterConfig, *, concurrency: int) -> int:
    """How many slots to start: the configured number, or as many as fit, see `room_for_slots`.

    A cluster without room for the least is asked to grow and waited for. KubeRay's autoscaler tells nobody how far it
    may (in Ray 2.60 nothing reports its limit), so what grew gets a slot for every trial in flight: one that finds no
    node in ``start_timeout_s`` is given up.

    Raises:
        ClusterError: more workers than the cluster will have; says what was asked for and what there is.
    """
    wanted = config.min_slots if config.num_slots == "auto" else config.num_slots
    before = _fitting(config)
    least = wanted if config.num_slots == "auto" else 1
    fitting = before if before >= least else _await_room(config, wanted)
    if fitting < wanted:
        number = "min_slots" if config.min_slots > 1 else "num_slots"
        raise ClusterError(
            f"{_shortage(config, wanted)}; lower cluster.{number}, cluster.workers_per_trial or the resources per "
            f"worker"
        )
    if config.num_slots != "auto":
        return config.num_slots
    return room_for_slots(config, concurrency=concurrency) if before >= least else _most_slots(config, concurrency)


def room_for_slots(config: ClusterConfig, *, concurrency: int) -> int:
    """How many slots there should be by what the cluster has now, or an autoscaler may add.

    With ``max_slots`` one more than fit: while it waits for its workers, an autoscaler sees what is missing.
    """
    if config.num_slots != "auto":
        return config.num_slots
    waiting = 0 if config.max_slots == "auto" else 1
    return min(_fitting(config) + waiting, _most_slots(config, concurrency))


def slots_beside_pre_pass(config: Config) -> int:
    """How many slots fit beside the actors of the pre-pass, which must not wait for what slots hold."""
    return max(0, _fitting(config.cluster, num_others=config.plasticity.num_actors))


def _most_slots(config: ClusterConfig, concurrency: int) -> int:
    return concurrency if config.max_slots == "auto" else config.max_slots


def _fitting(config: ClusterConfig, num_others: int = 0) -> int:
    """Slots that the cluster has or may get room for, beside so many single workers."""
    have, share = _resources(config), num_others / config.workers_per_trial
    # A hair above the quotient, so that 1 / 0.1 is 10 slots and not 9.
    return min(int(have[name] / need - share + 1e-9) for name, need in _needs(config).items())


def _needs(config: ClusterConfig) -> dict[str, float]:
    """What one slot takes."""
    each = {"CPU": config.cpus_per_worker, "GPU": config.gpus}
    return {name: need * config.workers_per_trial for name, need in each.items() if need}


def _shortage(config: ClusterConfig, wanted: int) -> str:
    have, needs = _resources(config), _needs(config)
    asked = ", ".join(f"{wanted * need:g} {name}" for name, need in needs.items())
    there = ", ".join(f"{have[name]:g} {name}" for name in needs)
    where = f" with {' or '.join(config.accelerators)}" if config.accelerators else ""
    kinds = sorted({kind for node in _nodes() if (kind := node["Labels"].get(ACCELERATOR_LABEL))}) if where else []
    other = f" (its nodes have {', '.join(kinds) or 'no label ' + ACCELERATOR_LABEL})" if where else ""
    return (
        f"{wanted} slot(s) of {config.workers_per_trial} worker(s) need {asked}{where}, the cluster has {there}{other}"
    )


def _await_room(config: ClusterConfig, wanted: int) -> int:
    """Slots that fit once ``wanted`` do, or after ``start_timeout_s``: workers may be booting, or come when asked."""
    if _address(config) == "local":  # nobody joins a Ray that was started here
        return _fitting(config)
    say(f"waiting up to {config.start_timeout_s:g} s for workers: {_shortage(config, wanted)}")
    bundle = {"CPU": config.cpus_per_worker} | ({"GPU": config.gpus} if config.gpus else {})
    # One group for each slot: an autoscaler adds nothing for a group beyond its limit. They go with this process, where
    # ray.autoscaler.sdk.request_resources would hold the nodes of a driver that was killed.
    num_workers, labels = config.workers_per_trial, config.labels
    where = [labels] * num_workers if labels else None
    groups = [placement_group([bundle] * num_workers, bundle_label_selector=where) for _ in range(wanted)]
    give_up = time.monotonic() + config.start_timeout_s
    try:
        while (fitting := _fitting(config)) < wanted and time.monotonic() < give_up:
            time.sleep(_LOOK_S)
        return fitting
    finally:
        for group in groups:
            remove_placement_group(group)


def settle_gpus(config: Config) -> Config:
    """The same with a number for ``cluster.gpus_per_worker=auto``, by what the joined cluster has; says which."""
    if config.cluster.gpus_per_worker != "auto":
        return config
    alone = replace(config.cluster, gpus_per_worker=0.0)
    if not _fitting(alone):  # who looks before the first worker has come sees no GPU
        _await_room(alone, 1)
    num_gpus = _resources(config.cluster)["GPU"]
    found = f"{num_gpus:g} GPU{'' if num_gpus == 1 else 's'}" if num_gpus else "no GPU"
    use = "one for each worker" if num_gpus else "on the CPU"
    say(f"{use}: the cluster has {found} (cluster.gpus_per_worker=auto)")
    return replace(config, cluster=replace(config.cluster, gpus_per_worker=1.0 if num_gpus else 0.0))


def _resources(config: ClusterConfig) -> dict[str, float]:
    """CPUs and GPUs that the cluster has or may get; of ``config.accelerators``, if they are named, that it has."""
    if config.accelerators:
        nodes = [n["Resources"] for n in _nodes() if n["Labels"].get(ACCELERATOR_LABEL) in config.accelerators]
        return {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    have = ray.cluster_resources()
    # What an autoscaler may still add; Ray Train reads it the same way, there is no public call. None without one.
    ceiling = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return {name: max(have.get(name, 0), ceiling.get(name, 0)) for name in ("CPU", "GPU")}


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """An error of ours that was raised in a Ray process, as itself instead of wrapped in Ray's traceback."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UnfreezeError):
            raise error.cause from None
        raise


@contextlib.contextmanager
def no_trial_is_to_blame(*, has_begun: bool = True) -> Iterator[None]:
    """What Ray or, once a sweep ``has_begun``, the store cannot do, in one sentence with the way on.

    Raises:
        InfrastructureError: instead of `StorageError`, what Ray raises of its own, and a disk that is full.
    """
    try:
        yield
    except ray.exceptions.RayTaskError:  # an error of the program that ran, none of Ray's
        raise
    except (StorageError, TuneError, ray.exceptions.RayError) as error:
        if isinstance(error, StorageError) and not has_begun:  # the place of images, say: for the user to mend
            raise
        reason = str(error) if isinstance(error, StorageError) else f"Ray broke down: {type(error).__name__}: {error}"
        raise InfrastructureError(f"{reason.splitlines()[0]}; {GOES_ON}") from error
    except OSError as error:
        if not has_begun or error.errno not in FULL:
            raise
        place = error.filename or "where Ray keeps its session, RAY_TMPDIR or /tmp"  # of what is open no name is told
        raise InfrastructureError(f"{error.strerror}: {place}; make room there; {GOES_ON}") from error
