"""The pool's threads, with Train runs that are put in their place and a board that is called directly."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from unfreeze.config import Config
from unfreeze.slots import pool as module
from unfreeze.slots.pool import SlotPool


class FakeBoard:
    """``useful``: how often a slot is told to start again. ``died``: it was made anew, and expects nothing yet."""

    def __init__(self, *, useful: int = 0, is_gone: bool = False) -> None:
        self.expected: list[list[str]] = []
        self.lost: list[str] = []
        self.died = False
        self._useful, self._is_gone = useful, is_gone

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: getattr(self, f"_{name}")(*arguments))

    def _expect(self, slots: list[str]) -> None:
        self.expected.append(list(slots))
        self.died = False

    def _is_new(self) -> bool:
        return self.died

    def _lose(self, slot_id: str, reason: str) -> bool:
        if self._is_gone:
            raise RayActorError
        self.lost.append(reason)
        self._useful -= 1
        return self._useful >= 0

    def _close(self) -> None:
        if self._is_gone:
            raise RayActorError


@pytest.fixture
def make_pool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[SlotPool, FakeBoard]]:
    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: answer)
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.02)

    def make(run: Callable[[str], None], **kind: Any) -> tuple[SlotPool, FakeBoard]:
        board = FakeBoard(**kind)
        pool = SlotPool(Config(), None, board, num_slots=1, facts=None)  # type: ignore[arg-type]
        monkeypatch.setattr(pool, "_run", run)
        return pool, board

    return make


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


MakePool = Callable[..., tuple[SlotPool, FakeBoard]]


def test_a_slot_that_gets_something_done_is_started_again_and_one_that_does_not_is_given_up(
    make_pool: MakePool,
) -> None:
    def run(_: str) -> None:
        raise RuntimeError("worker group failed")

    pool, board = make_pool(run, useful=2)
    with pool:
        wait_for(lambda: len(board.lost) == 3)
    assert board.lost == ["RuntimeError: worker group failed"] * 3
    assert board.expected == [["slot-0"]]


def test_where_the_cluster_is_gone_its_threads_end_quietly(make_pool: MakePool) -> None:
    """pytest makes an error of what a thread does not catch."""

    def run(_: str) -> None:
        raise RayActorError

    pool, board = make_pool(run, is_gone=True)
    with pool:
        wait_for(lambda: not any(thread.is_alive() for thread in pool._threads))
    assert board.lost == []


def test_a_board_made_anew_is_opened_for_the_slots_that_are_left(make_pool: MakePool) -> None:
    home = threading.Event()
    pool, board = make_pool(lambda _: home.wait(10) and None)
    with pool:
        board.died = True
        wait_for(lambda: len(board.expected) == 2)
        home.set()
    assert board.expected == [["slot-0"], ["slot-0"]]


def test_a_slot_that_goes_home_when_the_board_closes_is_not_started_again(make_pool: MakePool) -> None:
    closing = threading.Event()
    pool, board = make_pool(lambda _: closing.wait(10) and None, useful=5)
    board._close = closing.set  # type: ignore[method-assign]
    with pool:
        pass
    assert board.lost == []
