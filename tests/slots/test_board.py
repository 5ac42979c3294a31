"""The board as a plain object: one event loop, no Ray."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from unfreeze.slots.board import Board
from unfreeze.slots.outcome import Deadly, Interrupted, Lost, Settled

SECONDS_LONG = 60.0  # a wait that a test never sits out
Story = Callable[[Board], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="unfreeze.slots.board")


def play(story: Story, *, heartbeat_timeout_s: float = SECONDS_LONG, is_open: bool = True) -> None:
    """Run a story against a fresh board, and close the board so that nothing is left running. ``is_open``: told
    which slots there are.
    """

    async def told() -> None:
        board = Board(heartbeat_timeout_s)
        if is_open:
            await board.expect(["slot-0", "a", "b"])
        try:
            await story(board)
        finally:
            await board.close()
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(told(), 10))


def job(name: str, attempt: int = 1) -> dict[str, Any]:
    return {"job": {"job_id": name, "trial": {"of": name}, "attempt": attempt}}


def held(name: str, attempt: int = 1) -> dict[str, Any]:
    """A job as a slot has it in hand."""
    return job(name, attempt)["job"]


def report(number: int) -> dict[str, Any]:
    return {"images_seen": 100 * number, "val_accuracy": 0.1 * number}


NOTHING = {"job": None}


async def submit(board: Board, *names: str, follower: str = "f") -> None:
    for name in names:
        await board.submit(name, {"of": name}, follower)


async def start(board: Board, name: str = "job", slot: str = "slot-0") -> None:
    """A job, running on a slot."""
    await board.join(slot)
    await submit(board, name)
    assert await board.take(slot, 0) == job(name)


# --- order and waiting ------------------------------------------------------------------------------------------------


def test_jobs_are_taken_in_the_order_they_came() -> None:
    async def story(board: Board) -> None:
        await board.join("a")
        await board.join("b")
        await submit(board, "one", "two", "three")
        assert [await board.take("a", 0), await board.take("b", 0)] == [job("one"), job("two")]
        assert await board.status() == {"slots": ["a", "b"], "queued": ["three"], "running": ["one", "two"]}
        await board.finish("a", held("one", 1), Settled())
        assert await board.take("a", 0) == job("three")
        await board.finish("b", held("two", 1), Settled())
        assert await board.take("b", 0) == NOTHING

    play(story)


def test_a_waiting_slot_gets_a_job_as_soon_as_there_is_one() -> None:
    async def story(board: Board) -> None:
        await board.join("a")
        waiting = asyncio.create_task(board.take("a", SECONDS_LONG))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await submit(board, "one")
        assert await asyncio.wait_for(waiting, 1) == job("one")

    play(story)


def test_one_job_goes_to_one_of_two_waiting_slots() -> None:
    async def story(board: Board) -> None:
        for slot in ("a", "b"):
            await board.join(slot)
        waiting = [asyncio.create_task(board.take(slot, 0.2)) for slot in ("a", "b")]
        await asyncio.sleep(0.01)
        await submit(board, "one")
        answers = await asyncio.gather(*waiting)
        assert sorted(answers, key=str) == sorted([job("one"), NOTHING], key=str)

    play(story)


def test_who_runs_what() -> None:
    async def story(board: Board) -> None:
        await submit(board, "job", "other")
        await board.take("slot-0", 0)
        assert await board.holders() == {"job": "slot-0"}
        await board.finish("slot-0", held("job", 1), Settled())
        assert await board.holders() == {}

    play(story)


def test_a_follower_hears_as_soon_as_there_is_news() -> None:
    async def story(board: Board) -> None:
        await start(board)
        waiting = asyncio.create_task(board.follow("job", 0, SECONDS_LONG))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert await board.push("slot-0", held("job", 1), [report(1)])
        assert await asyncio.wait_for(waiting, 1) == {"reports": [report(1)], "outcome": None}
        waiting = asyncio.create_task(board.follow("job", 1, SECONDS_LONG))
        await asyncio.sleep(0.01)
        await board.finish("slot-0", held("job", 1), Settled())
        assert await asyncio.wait_for(waiting, 1) == {"reports": [], "outcome": Settled()}

    play(story)


def test_without_news_both_are_empty() -> None:
    async def story(board: Board) -> None:
        await start(board)
        await board.join("b")
        assert await board.follow("job", 0, 0.01) == {"reports": [], "outcome": None}
        assert await board.take("b", 0.01) == NOTHING

    play(story)


# --- slots that die ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["join", "lose"])
def test_a_lost_slots_job_is_first_in_line(how: str) -> None:
    async def story(board: Board) -> None:
        await board.expect(["slot-0", "b"])
        await board.join("b")
        await start(board, "one")
        await submit(board, "two")
        await (board.join("slot-0") if how == "join" else board.lose("slot-0", "its node died"))
        assert (await board.status())["queued"] == ["one", "two"]
        assert await board.take("b", 0) == job("one", attempt=2)

    play(story)


def test_a_silent_slots_job_goes_to_another() -> None:
    async def story(board: Board) -> None:
        await start(board)
        await board.join("b")
        assert await asyncio.wait_for(board.take("b", SECONDS_LONG), 5) == job("job", attempt=2)

    play(story, heartbeat_timeout_s=0.08)


@pytest.mark.parametrize("sign", ["heartbeat", "push"])
def test_a_slot_that_gives_signs_of_life_keeps_its_job(sign: str) -> None:
    async def story(board: Board) -> None:
        await start(board)
        await board.join("b")
        for number in range(12):
            await asyncio.sleep(0.03)
            if sign == "heartbeat":
                await board.heartbeat("slot-0")
            else:
                assert await board.push("slot-0", held("job", 1), [report(k) for k in range(number)])
        assert await board.take("b", 0) == NOTHING

    play(story, heartbeat_timeout_s=0.2)


def test_a_slot_that_comes_back_late_cannot_touch_the_run_that_replaced_it() -> None:
    async def story(board: Board) -> None:
        await start(board)
        await board.join("b")
        await board.push("slot-0", held("job", 1), [report(1)])
        await board.lose("slot-0", "taken for dead")
        await board.join("slot-0")
        assert await board.take("b", 0) == job("job", attempt=2)
        assert not await board.push("slot-0", held("job", 1), [report(1), report(7)])
        await board.finish("slot-0", held("job", 1), Lost("late"))
        assert await board.follow("job", 0, 0) == {"reports": [report(1)], "outcome": None}
        assert await board.push("b", held("job", 2), [report(1), report(2)])
        await board.finish("b", held("job", 2), Settled())
        assert (await board.follow("job", 2, 0))["outcome"] == Settled()

    play(story)


def test_the_same_slot_in_an_earlier_attempt_is_stale_too() -> None:
    async def story(board: Board) -> None:
        await start(board)
        await board.join("slot-0")  # restarted, and takes its own job again
        assert await board.take("slot-0", 0) == job("job", attempt=2)
        assert not await board.push("slot-0", held("job", 1), [report(1)])
        await board.finish("slot-0", held("job", 1), Lost("late"))
        assert await board.push("slot-0", held("job", 2), [report(1)])
        assert await board.follow("job", 0, 0) == {"reports": [report(1)], "outcome": None}

    play(story)


def test_a_finished_job_stays_finished() -> None:
    async def story(board: Board) -> None:
        await start(board)
        await board.finish("slot-0", held("job", 1), Settled())
        await board.finish("slot-0", held("job", 1), Lost("late"))
        await board.join("slot-0")
        assert await board.take("slot-0", 0) == NOTHING
        assert (await board.follow("job", 0, 0))["outcome"] == Settled()

    play(story)


def test_a_job_that_kills_three_slots_without_a_report_is_deadly() -> None:
    async def story(board: Board) -> None:
        await submit(board, "poison", "good")
        await board.join("a")
        for attempt in (1, 2, 3):
            assert await board.take("a", 0) == job("poison", attempt)
            assert (await board.follow("poison", 0, 0))["outcome"] is None
            await board.join("a")
        assert (await board.follow("poison", 0, 0))["outcome"] == Deadly(
            "killed its worker three times in a row without a report; the last time: its worker group was restarted"
        )
        assert await board.take("a", 0) == job("good")

    play(story)


def test_a_job_that_comes_on_between_deaths_is_none_of_their_causes() -> None:
    async def story(board: Board) -> None:
        await submit(board, "long")
        await board.join("a")
        for attempt in range(1, 10):
            assert await board.take("a", 0) == job("long", attempt)
            if attempt % 3 == 0:
                assert await board.push("a", held("long", attempt), [report(k) for k in range(attempt)])
            await board.join("a")
        assert (await board.follow("long", 9, 0))["outcome"] is None

    play(story)


def test_a_slot_that_goes_down_over_a_job_says_why() -> None:
    async def story(board: Board) -> None:
        await submit(board, "poison")
        await board.join("a")
        for attempt in (1, 2, 3):
            assert await board.take("a", 0) == job("poison", attempt)
            await board.drop("a", held("poison", attempt), f"AcceleratorError: illegal access {attempt}")
            await board.drop("a", held("poison", attempt), "the same again")  # Ray may call twice
            await board.join("a")
        outcome = (await board.follow("poison", 0, 0))["outcome"]
        assert isinstance(outcome, Deadly)
        assert outcome.error.endswith("the last time: AcceleratorError: illegal access 3")

    play(story)


def test_a_late_slot_drops_nothing() -> None:
    async def story(board: Board) -> None:
        await start(board)
        await board.join("b")
        await board.lose("slot-0", "taken for dead")
        assert await board.take("b", 0) == job("job", attempt=2)
        await board.drop("slot-0", held("job", 1), "too late")
        assert await board.push("b", held("job", 2), [report(1)])

    play(story)


@pytest.mark.parametrize("useful", ["report", "finish", "poison", "nothing"])
def test_a_slot_is_started_again_as_long_as_it_gets_something_done(useful: str) -> None:
    async def story(board: Board) -> None:
        await board.expect(["slot-0"])
        await start(board)
        if useful == "report":
            await board.push("slot-0", held("job", 1), [report(1)])
        elif useful == "finish":
            await board.finish("slot-0", held("job", 1), Settled())
        elif useful == "poison":  # the job's doing
            for attempt in (2, 3):
                await board.join("slot-0")
                assert await board.take("slot-0", 0) == job("job", attempt)
        assert await board.lose("slot-0", "restarted too often") is (useful != "nothing")
        await submit(board, "next")
        outcome = (await board.follow("next", 0, 0))["outcome"]
        assert outcome == (Lost("no slot is left: restarted too often") if useful == "nothing" else None)
        if useful != "nothing":
            await board.join("slot-0")
            assert not await board.lose("slot-0", "this time it did nothing")

    play(story)


def test_when_no_slot_is_left_waiting_jobs_are_lost() -> None:
    async def story(board: Board) -> None:
        await board.expect(["a", "b"])
        await start(board, "running", slot="a")
        await submit(board, "waiting")
        await board.lose("b", "never came up")
        assert (await board.follow("waiting", 0, 0))["outcome"] is None
        await board.lose("a", "the node died")
        for name in ("running", "waiting"):
            assert (await board.follow(name, 0, 0))["outcome"] == Lost("no slot is left: the node died")
        await submit(board, "later")
        assert (await board.follow("later", 0, 0))["outcome"] == Lost("no slot is left: the node died")

    play(story)


def test_before_the_first_slot_is_up_jobs_wait() -> None:
    async def story(board: Board) -> None:
        await board.expect(["a"])
        await submit(board, "one")
        assert (await board.follow("one", 0, 0))["outcome"] is None
        await board.join("a")
        assert await board.take("a", 0) == job("one")

    play(story)


# --- followers --------------------------------------------------------------------------------------------------------


def test_the_last_followers_leaving_ends_a_running_job_at_its_next_report() -> None:
    async def story(board: Board) -> None:
        await start(board)
        await submit(board, "job", follower="g")
        await board.leave("job", "f")
        assert await board.push("slot-0", held("job", 1), [report(1)])
        await board.leave("job", "g")
        assert not await board.push("slot-0", held("job", 1), [report(1), report(2)])
        await board.finish("slot-0", held("job", 1), Interrupted())
        assert (await board.follow("job", 2, 0))["outcome"] == Interrupted()

    play(story)


def test_a_queued_job_that_nobody_follows_never_starts() -> None:
    async def story(board: Board) -> None:
        await submit(board, "one", "two")
        await board.leave("one", "f")
        assert (await board.follow("one", 0, 0))["outcome"] == Interrupted()
        await board.join("a")
        assert await board.take("a", 0) == job("two")

    play(story)


def test_a_cancelled_job_whose_slot_dies_is_interrupted_not_queued() -> None:
    async def story(board: Board) -> None:
        await start(board)
        await board.leave("job", "f")
        await board.join("slot-0")
        assert (await board.follow("job", 0, 0))["outcome"] == Interrupted()
        assert await board.take("slot-0", 0) == NOTHING

    play(story)


def test_leaving_a_finished_job_changes_nothing() -> None:
    async def story(board: Board) -> None:
        await start(board)
        await board.finish("slot-0", held("job", 1), Settled())
        for _ in range(2):
            await board.leave("job", "f")
        assert (await board.follow("job", 0, 0))["outcome"] == Settled()

    play(story)


def test_a_job_submitted_twice_runs_once() -> None:
    async def story(board: Board) -> None:
        await submit(board, "one")
        await submit(board, "one", follower="g")
        for slot in ("a", "b"):
            await board.join(slot)
        assert await board.take("a", 0) == job("one")
        assert await board.take("b", 0) == NOTHING

    play(story)


@pytest.mark.parametrize("running", [False, True])
def test_a_follower_that_comes_after_the_last_has_left_gets_its_job(running: bool) -> None:
    """Tune moves a trial from one actor to another: leaving may be heard before submitting."""

    async def story(board: Board) -> None:
        await board.join("slot-0")
        await submit(board, "job")
        if running:
            await board.take("slot-0", 0)
        await board.leave("job", "f")
        await submit(board, "job", follower="g")
        if not running:
            assert (await board.take("slot-0", 0))["job"] is not None
        assert await board.push("slot-0", held("job", 1), [report(1)])

    play(story)


@pytest.mark.parametrize("seen_before", [0, 1, 2])
def test_a_resumed_jobs_follower_sees_every_report_once(seen_before: int) -> None:
    """The second attempt resumes from its checkpoint and pushes all reports so far, old ones included."""

    async def story(board: Board) -> None:
        await board.join("b")
        await start(board)
        seen: list[dict[str, Any]] = []
        for number in range(1, 3):
            await board.push("slot-0", held("job", 1), [report(k) for k in range(1, number + 1)])
            if number <= seen_before:
                seen += (await board.follow("job", len(seen), 0))["reports"]
        await board.join("slot-0")
        assert await board.take("b", 0) == job("job", attempt=2)
        for number in range(2, 6):  # from the checkpoint of the first report
            await board.push("b", held("job", 2), [report(k) for k in range(1, number + 1)])
            seen += (await board.follow("job", len(seen), 0))["reports"]
        await board.finish("b", held("job", 2), Settled())
        assert await board.follow("job", len(seen), 0) == {"reports": [], "outcome": Settled()}
        assert seen == [report(k) for k in range(1, 6)]

    play(story)


# --- a board made anew ------------------------------------------------------------------------------------------------


def test_a_new_board_hands_out_nothing_before_it_is_told_its_slots() -> None:
    async def story(board: Board) -> None:
        assert await board.is_new()
        await submit(board, "one")
        assert await board.take("a", 0) == NOTHING
        waiting = asyncio.create_task(board.take("a", SECONDS_LONG))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert not await board.await_opening(0)
        opening = asyncio.create_task(board.await_opening(SECONDS_LONG))
        await board.expect(["a"])
        assert await asyncio.wait_for(opening, 1)
        assert not await board.is_new()
        assert await asyncio.wait_for(waiting, 1) == job("one")

    play(story, is_open=False)


@pytest.mark.parametrize("sign", ["heartbeat", "push", "submit, heartbeat", "finish"])
def test_a_running_job_goes_on_under_a_new_board(sign: str) -> None:
    """Its slot tells of it, before or after its follower has submitted it again; nobody else gets it."""

    async def story(board: Board) -> None:
        if "submit" in sign:
            await submit(board, "long")
        else:
            assert await board.follow("long", 1, 0) is None
        if "heartbeat" in sign:
            await board.heartbeat("slot-0", held("long", 2))
        elif sign == "push":
            assert await board.push("slot-0", held("long", 2), [report(1), report(2)])
        else:
            await board.finish("slot-0", held("long", 2), Settled())
        await submit(board, "long")
        await board.expect(["slot-0", "b"])
        assert await board.take("b", 0) == NOTHING
        if sign != "finish":
            assert await board.push("slot-0", held("long", 2), [report(k) for k in (1, 2, 3)])
            assert (await board.follow("long", 1, 0)) == {"reports": [report(2), report(3)], "outcome": None}
            await board.finish("slot-0", held("long", 2), Settled())
        assert (await board.follow("long", 3, 0)) == {"reports": [], "outcome": Settled()}

    play(story, is_open=False)


def test_a_running_job_whose_slot_died_with_the_board_is_taken_by_another() -> None:
    async def story(board: Board) -> None:
        await submit(board, "long")
        await board.expect(["slot-0", "b"])
        assert await board.take("b", 0) == job("long", 1)
        assert not await board.push("slot-0", held("long", 2), [report(1)])  # it was only silent: too late
        assert await board.push("b", held("long", 1), [report(1)])

    play(story, is_open=False)


def test_leaving_what_a_new_board_never_heard_of_changes_nothing() -> None:
    async def story(board: Board) -> None:
        await board.leave("gone", "f")
        assert await board.status() == {"slots": [], "queued": [], "running": []}

    play(story, is_open=False)


def test_a_slot_that_did_not_hear_the_answer_is_given_the_same_job() -> None:
    """Ray repeats a call, or its first answer went to a process that had died."""

    async def story(board: Board) -> None:
        await start(board)
        await submit(board, "other")
        assert await board.take("slot-0", 0) == job("job")
        assert (await board.status())["queued"] == ["other"]

    play(story)


def test_a_board_that_stood_still_does_not_take_its_slots_for_dead() -> None:
    async def story(board: Board) -> None:
        await start(board)
        time.sleep(0.5)  # stopped, and its slots with nobody to speak to
        await asyncio.sleep(0.03)
        await board.heartbeat("slot-0", held("job"))
        await asyncio.sleep(0.1)
        assert await board.push("slot-0", held("job"), [report(1)])

    play(story, heartbeat_timeout_s=0.3)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_closing_sends_slots_home() -> None:
    async def story(board: Board) -> None:
        for slot in ("a", "b"):
            await board.join(slot)
        waiting = asyncio.create_task(board.take("a", SECONDS_LONG))
        await asyncio.sleep(0.01)
        await board.close()
        assert await asyncio.wait_for(waiting, 1) == {"closed": True}
        await submit(board, "late")
        assert await board.take("b", SECONDS_LONG) == {"closed": True}

    play(story)


# --- nodes that come and go -------------------------------------------------------------------------------------------


def test_the_job_of_a_node_that_is_gone_is_taken_at_once() -> None:
    async def story(board: Board) -> None:
        await board.join("a", ["node-1"])
        await board.join("b", ["node-2", "node-3"])
        await submit(board, "one", "two")
        await board.take("a", 0)
        await board.take("b", 0)
        await board.lose_all_but(["node-1", "node-2", "node-3"])
        assert (await board.status())["running"] == ["one", "two"]
        await board.lose_all_but(["node-1", "node-2"])
        assert (await board.status())["queued"] == ["two"]
        assert not await board.push("b", held("two"), [report(1)])
        await board.finish("a", held("one"), Settled())
        assert await board.take("a", 0) == job("two", 2)

    play(story)


def test_a_slot_that_leaves_hands_its_job_back_and_nothing_is_held_against_it() -> None:
    async def story(board: Board) -> None:
        await start(board)
        for attempt in range(1, 6):  # more often than a job may take its slots down
            await board.hand_back("slot-0", held("job", attempt))
            await board.hand_back("slot-0")
            assert await board.lose("slot-0", "it went home")  # to be started again
            await board.join("slot-0", ["elsewhere"])
            assert await board.take("slot-0", 0) == job("job", attempt + 1)
        assert await board.push("slot-0", held("job", 6), [report(1)])

    play(story)


def test_a_cancelled_job_that_is_handed_back_is_over() -> None:
    async def story(board: Board) -> None:
        await start(board)
        await board.leave("job", "f")
        await board.hand_back("slot-0", held("job"))
        assert await board.follow("job", 0, 0) == {"reports": [], "outcome": Interrupted()}
        assert (await board.status())["queued"] == []

    play(story)
