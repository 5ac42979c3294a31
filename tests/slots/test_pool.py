"""The pool, with Train runs that are put in their place and a board that is called directly."""

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
        self.nodes: list[str] = []
        self.died = self.closed = False
        self._useful, self._is_gone = useful, is_gone

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: getattr(self, f"_{name}")(*arguments))

    def _expect(self, slots: list[str]) -> None:
        self.expected.append(list(slots))
        self.died = False

    def _is_new(self) -> bool:
        return self.died

    def _lose_all_but(self, nodes: list[str]) -> None:
        self.nodes = nodes

    def _lose(self, slot_id: str, reason: str) -> bool:
        if self._is_gone:
            raise RayActorError
        self.lost.append(reason)
        self._useful -= 1
        return self._useful >= 0

    def _close(self) -> None:
        if self._is_gone:
            raise RayActorError
        self.closed = True


class FakeRun:
    """The future of a Train run; ``reason``: why it ended, or that its keeper died; None while it goes on."""

    reason: str | Exception | None = None


class FakeRay:
    """Keeper and clock of a pool; futures are seen through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[tuple[str, FakeRun]] = []
        self.killed: list[Any] = []
        self.waited = 0
        self.now = 0.0
        self.run = SimpleNamespace(remote=self._run)
        monkeypatch.setattr(module, "beside_driver", lambda *_, **__: self)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        self.room = 2
        self.nodes = [{"NodeID": "here", "Alive": True}]
        monkeypatch.setattr(ray, "nodes", lambda: self.nodes)
        monkeypatch.setattr(ray, "get", self._get)
        monkeypatch.setattr(ray, "wait", self._wait)
        monkeypatch.setattr(ray, "kill", self.killed.append)

    def _run(self, _: Config, arguments: dict[str, Any]) -> FakeRun:
        self.runs.append((arguments["slot_id"], FakeRun()))
        return self.runs[-1][1]

    def _get(self, answer: Any, timeout: float | None = None) -> Any:
        answer = getattr(answer, "reason", answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _wait(self, runs: list[FakeRun], num_returns: int, timeout: float) -> tuple[list[FakeRun], list[FakeRun]]:
        assert runs
        assert num_returns == len(runs)
        self.waited += timeout > 0
        return [run for run in runs if run.reason], [run for run in runs if not run.reason]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return FakeRay(monkeypatch)


@pytest.fixture
def make_pool(fake: FakeRay) -> Callable[..., tuple[SlotPool, FakeBoard]]:
    def make(**kind: Any) -> tuple[SlotPool, FakeBoard]:
        board = FakeBoard(**kind)
        pool = SlotPool(Config(), None, board, num_slots=2, num_early=1, room=lambda: fake.room)  # type: ignore[arg-type]
        return pool, board

    return make


MakePool = Callable[..., tuple[SlotPool, FakeBoard]]


def test_a_slot_that_gets_something_done_is_started_again_and_one_that_does_not_is_given_up(
    make_pool: MakePool, fake: FakeRay
) -> None:
    pool, board = make_pool(useful=2)
    with pool:
        pool.open()
        for reason in ("RuntimeError: worker group failed", RayActorError(), "it went home"):
            fake.runs[-1][1].reason = reason
            pool.look()
            pool.look()
        assert [slot for slot, _ in fake.runs] == ["slot-0", "slot-1", "slot-1", "slot-1"]
        board.died, fake.now = True, 100.0
        pool.look()
        fake.now = 200.0
        pool.look()
    assert [reason.partition(":")[0] for reason in board.lost] == ["RuntimeError", "RayActorError", "it went home"]
    assert board.expected == [["slot-0", "slot-1"], ["slot-0"]]


def test_a_pool_whose_slots_are_all_given_up_still_looks_and_closes(make_pool: MakePool, fake: FakeRay) -> None:
    pool, board = make_pool()
    with pool:
        pool.open()
        for _, run in list(fake.runs):
            run.reason = "ImportError: no torch"
        pool.look()
        pool.look()
        pool.close()
    assert len(fake.runs) == 2
    assert board.closed


def test_a_board_made_anew_is_opened_once_the_slots_have_spoken(make_pool: MakePool, fake: FakeRay) -> None:
    pool, board = make_pool()
    with pool:
        pool.open()
        pool.look()
        board.died = True
        for now, num_opened in ((1.0, 1), (5.0, 1), (10.0, 1), (15.0, 2), (20.0, 2)):
            fake.now = now
            pool.look()
            assert len(board.expected) == num_opened, now
        assert board.expected == [["slot-0", "slot-1"]] * 2


def test_slots_go_home_when_the_sweep_is_over_and_are_not_waited_for_after_an_error(
    make_pool: MakePool, fake: FakeRay
) -> None:
    pool, board = make_pool()
    with pool:
        pool.open()
        pool.close()
        assert board.closed
        assert (fake.waited, fake.killed) == (1, [fake])
    pool, board = make_pool()
    with pytest.raises(KeyboardInterrupt), pool:
        raise KeyboardInterrupt
    assert not board.closed
    assert fake.waited == 1
    assert fake.killed == [fake, fake]


def test_slots_beside_the_pre_pass_warm_up_and_get_no_job_before_it_is_over(make_pool: MakePool, fake: FakeRay) -> None:
    pool, board = make_pool()
    with pool:
        assert fake.runs == []
        pool.warm_up()
        assert [slot for slot, _ in fake.runs] == ["slot-0"]
        assert board.expected == []
        pool.open()
        assert [slot for slot, _ in fake.runs] == ["slot-0", "slot-1"]
        assert board.expected == [["slot-0", "slot-1"]]


def test_a_cluster_that_is_gone_is_said_while_it_runs_and_not_when_it_closes(
    make_pool: MakePool, fake: FakeRay
) -> None:
    pool, _ = make_pool(is_gone=True)
    with pool:
        pool.open()
        fake.runs[0][1].reason = "ActorDiedError: "
        with pytest.raises(RayActorError):
            pool.look()
        pool.close()


def test_slots_come_with_nodes_and_jobs_leave_with_them(make_pool: MakePool, fake: FakeRay) -> None:
    pool, board = make_pool()
    with pool:
        pool.open()
        pool.look()
        assert board.nodes == ["here"]
        fake.nodes, fake.room, fake.now = [*fake.nodes, {"NodeID": "there", "Alive": True}], 4, 10.0
        pool.look()
        assert board.expected[-1] == ["slot-0", "slot-1", "slot-2", "slot-3"]
        fake.nodes[1]["Alive"], fake.room, fake.now = False, 2, 20.0
        pool.look()
        fake.now = 30.0
        pool.look()
    assert board.nodes == ["here"]
    assert [slot for slot, _ in fake.runs] == ["slot-0", "slot-1", "slot-2", "slot-3"]


@pytest.mark.parametrize(
    ("reason", "slots"),
    [
        ("ImportError: no torch", ["slot-0"]),  # would meet it again
        ("WorkerGroupStartupTimeoutError: no node", ["slot-0", "slot-2"]),
    ],
)
def test_a_slot_that_was_given_up_is_replaced_if_all_it_lacked_was_a_node(
    reason: str, slots: list[str], make_pool: MakePool, fake: FakeRay
) -> None:
    pool, _ = make_pool()
    with pool:
        pool.open()
        fake.runs[1][1].reason = reason
        fake.now = 10.0
        pool.look()
        fake.now = 20.0
        pool.look()
        pool._look_at_board()
        assert pool._slot_ids == slots
    assert len(fake.runs) == 1 + len(slots)
