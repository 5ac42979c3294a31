"""The watch over a cluster that is not there: no Ray, what it would say is put in its place."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from unfreeze.errors import InfrastructureError
from unfreeze.sweep import watch
from unfreeze.sweep.watch import answers, watch_cluster


@pytest.fixture
def head() -> Iterator[socket.socket]:
    """Something that listens, as Ray's head does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def nodes(head: socket.socket, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray says of the cluster's nodes; the driver runs on the first."""
    found = [{"NodeID": "own", "Alive": True}, {"NodeID": "other", "Alive": False}]
    address = f"127.0.0.1:{head.getsockname()[1]}"
    context = SimpleNamespace(gcs_address=address, get_node_id=lambda: "own")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "nodes", lambda: found)
    monkeypatch.setattr(watch, "_LOOK_S", 0.01)
    monkeypatch.setattr(watch, "_SILENT_S", 0.1)
    return found


def wait_for_loss(seen: watch.ClusterWatch) -> None:
    deadline = time.monotonic() + 10
    while seen.lost is None and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_cluster_that_is_there_is_let_alone(nodes: list[dict[str, Any]]) -> None:
    with watch_cluster() as seen:
        time.sleep(0.3)
        seen.on_step_begin(0, [])
    assert seen.lost is None


def test_a_head_that_is_silent_ends_tunes_run_with_a_sentence(nodes: list[dict[str, Any]], head: socket.socket) -> None:
    with watch_cluster() as seen:
        head.close()
        wait_for_loss(seen)
        with pytest.raises(InfrastructureError, match=r"head at 127.* not answered .*run the same command"):
            seen.on_step_begin(0, [])


def test_the_drivers_own_node_is_missed_and_no_other(nodes: list[dict[str, Any]]) -> None:
    with watch_cluster() as seen:
        time.sleep(0.1)
        assert seen.lost is None
        nodes[0]["Alive"] = False
        wait_for_loss(seen)
        with pytest.raises(InfrastructureError, match="the Ray node that this driver runs on has died"):
            seen.check()


def test_a_main_thread_that_hangs_is_not_waited_for(
    nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, codes = threading.Event(), []

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(watch, "_UNWIND_S", 0.1)
    nodes[0]["Alive"] = False
    with watch_cluster():
        assert ended.wait(10)
    assert codes == [75]
    assert "run the same command and it goes on" in capsys.readouterr().err


def test_who_listens_answers(head: socket.socket) -> None:
    port = head.getsockname()[1]
    assert answers(f"127.0.0.1:{port}")
    head.close()
    assert not answers(f"127.0.0.1:{port}")
    assert not answers("no-such-host.invalid:6379")
