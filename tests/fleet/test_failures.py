"""What a fleet does when its parts die: nothing is lost, and nothing happens twice."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator

import psutil
import pytest
from redis.asyncio import Redis

from tests.fleet.driver import Fleet, Journal, living
from tests.requirements import requirement
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def fleet(own_fleet: Fleet) -> Fleet:
    await own_fleet.serve(
        own_fleet.sleeper("twin", pool={"min_idle": 1, "max_size": 2}),
        own_fleet.sleeper("solo", pool={"min_idle": 1, "max_size": 1}),
    )
    return own_fleet


@pytest.fixture(autouse=True)
async def whole_again(fleet: Fleet) -> AsyncIterator[None]:
    """Each test leaves the next one every worker and an API that has found Postgres again."""
    yield
    await until(lambda: answers(fleet, "/v1/servers"))
    await fleet.local.wait_ready(["twin", "solo"])


async def flush(fleet: Fleet) -> None:
    async with Redis.from_url(fleet.local.redis_url) as redis:
        await redis.flushall()


async def kill_worker_of(journal: Journal, token: str) -> set[psutil.Process]:
    """Kill -9 the worker that runs a call; return its children."""
    await journal.saw("started", token)
    worker = psutil.Process(journal.sessions(token)[0].worker_pid)
    children = set(worker.children(recursive=True))
    worker.send_signal(signal.SIGKILL)
    return children


# -- kill -9


@requirement("fleet:kill-9")
async def test_a_read_call_whose_worker_is_killed_finishes_elsewhere(fleet: Fleet) -> None:
    run, journal = await fleet.run(), fleet.journal("twin")
    call_id = await fleet.submit(run, "twin_sleep", seconds=1.5, token="read")
    await kill_worker_of(journal, "read")
    call = await fleet.ended(call_id)
    assert (call["state"], call["attempts"]) == ("succeeded", 2)
    assert len(set(journal.sessions("read"))) == 2


@requirement("fleet:kill-9")
async def test_a_write_call_whose_worker_is_killed_ends_unknown_and_happened_at_most_once(
    fleet: Fleet,
) -> None:
    run, journal = await fleet.run(), fleet.journal("twin")
    call_id = await fleet.submit(run, "twin_write", seconds=60, token="write")
    children = await kill_worker_of(journal, "write")
    call = await fleet.ended(call_id)
    assert (call["state"], call["error"]["code"]) == ("outcome_unknown", "outcome_unknown")
    assert Counter(journal.events("write"))["effect"] == 1
    await until(lambda: not living(children))


@requirement("fleet:kill-9")
async def test_calls_that_only_waited_in_a_killed_worker_are_not_lost(fleet: Fleet) -> None:
    run, journal = await fleet.run(), fleet.journal("solo")
    blocking = await fleet.submit(run, "solo_sleep", seconds=60, token="blocks")
    waiting = [await fleet.submit(run, "solo_echo", text="x") for _ in range(5)]
    await kill_worker_of(journal, "blocks")
    # It is a read: the next worker has it.
    await until(lambda: len(journal.sessions("blocks")) == 2)
    await fleet.cancel(blocking)
    assert {(await fleet.ended(it))["state"] for it in waiting} == {"succeeded"}


# -- Redis


@requirement("fleet:redis-emptied")
async def test_calls_queued_when_redis_is_emptied_all_run_once(fleet: Fleet) -> None:
    run, journal = await fleet.run(), fleet.journal("solo")
    tokens = [f"flushed-{n}" for n in range(100)]
    async with fleet.without("worker:solo"):
        ids = await asyncio.gather(*(fleet.submit(run, "solo_write", token=it) for it in tokens))
        await flush(fleet)
    ended = await asyncio.gather(*(fleet.ended(call_id) for call_id in ids))
    assert Counter(call["state"] for call in ended) == {"succeeded": 100}
    effects = Counter(it["token"] for it in journal.entries() if it["event"] == "effect")
    assert {effects[token] for token in tokens} == {1}


@requirement("fleet:redis-emptied")
async def test_calls_under_way_when_redis_is_emptied_all_end_and_happen_once(
    fleet: Fleet,
) -> None:
    run, journal = await fleet.run(), fleet.journal("twin")
    tokens = [f"busy-{n}" for n in range(40)]
    ids = await asyncio.gather(
        *(fleet.submit(run, "twin_write", token=it, seconds=0.1) for it in tokens)
    )
    await journal.saw("started", tokens[0])
    await flush(fleet)
    ended = await asyncio.gather(*(fleet.ended(call_id) for call_id in ids))
    assert Counter(call["state"] for call in ended) == {"succeeded": 40}
    effects = Counter(it["token"] for it in journal.entries() if it["event"] == "effect")
    assert {effects[token] for token in tokens} == {1}


@requirement("fleet:redis-away")
async def test_a_call_submitted_while_redis_is_away_runs_once_redis_is_back(fleet: Fleet) -> None:
    run = await fleet.run()
    async with fleet.without("redis"):
        call_id = await fleet.submit(run, "twin_write", token="no-redis")
    assert (await fleet.ended(call_id))["state"] == "succeeded"
    assert fleet.journal("twin").events("no-redis") == ["effect", "started", "finished"]


@requirement("fleet:redis-away", "stop:reaches-the-server")
async def test_a_stop_reaches_the_server_although_redis_is_away(fleet: Fleet) -> None:
    run, journal = await fleet.run(), fleet.journal("twin")
    call_id = await fleet.submit(run, "twin_sleep", seconds=60, token="stop-without-redis")
    await journal.saw("started", "stop-without-redis")
    async with fleet.without("redis"):
        assert await fleet.cancel(call_id) == "stop_requested"
        await journal.saw("cancelled", "stop-without-redis")
        assert (await fleet.ended(call_id))["state"] == "stopped"


# -- shutdown


@requirement("fleet:drain")
async def test_a_worker_that_is_told_to_end_lets_its_call_finish_and_leaves_nothing(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "toolfleet.supervisor")
    run, journal = await fleet.run(), fleet.journal("solo")
    worker = fleet.worker("solo")
    running = await fleet.submit(run, "solo_sleep", seconds=2, token="drained")
    await journal.saw("started", "drained")
    waiting = await fleet.submit(run, "solo_write", token="waits-in-the-worker")
    children = set(worker.children(recursive=True))
    worker.terminate()
    queued = await fleet.submit(run, "solo_write", token="stays-in-the-queue")
    call = await fleet.ended(running)
    assert (call["state"], call["attempts"]) == ("succeeded", 1)
    for call_id in (waiting, queued):
        call = await fleet.ended(call_id)
        assert (call["state"], call["attempts"]) == ("succeeded", 1)
    assert "worker:solo ended with status 0" in caplog.text
    assert living({worker} | children) == set()
    assert journal.events("drained") == ["started", "finished"]


@requirement("fleet:cold-shutdown")
async def test_a_cold_shutdown_cancels_the_running_call_at_the_server(fleet: Fleet) -> None:
    run, journal = await fleet.run(), fleet.journal("solo")
    worker = fleet.worker("solo")
    call_id = await fleet.submit(run, "solo_write", seconds=60, token="cold")
    await journal.saw("started", "cold")
    children = set(worker.children(recursive=True))
    worker.send_signal(signal.SIGQUIT)
    call = await fleet.ended(call_id)
    assert (call["state"], call["error"]["details"]["cause"]) == ("outcome_unknown", "worker_lost")
    assert journal.events("cold") == ["effect", "started", "cancelled"]
    await until(lambda: not living({worker} | children))


@requirement("fleet:cold-shutdown")
async def test_a_read_that_a_cold_shutdown_cancelled_runs_in_the_next_worker(fleet: Fleet) -> None:
    run, journal = await fleet.run(), fleet.journal("solo")
    call_id = await fleet.submit(run, "solo_sleep", seconds=1, token="cold-read")
    await journal.saw("started", "cold-read")
    fleet.worker("solo").send_signal(signal.SIGQUIT)
    call = await fleet.ended(call_id)
    assert (call["state"], call["attempts"]) == ("succeeded", 2)
    assert journal.events("cold-read") == ["started", "cancelled", "started", "finished"]


# -- Postgres


@requirement("fleet:postgres-restarts")
async def test_a_call_that_ends_while_postgres_is_away_is_recorded_when_it_is_back(
    fleet: Fleet,
) -> None:
    run, journal = await fleet.run(), fleet.journal("twin")
    call_id = await fleet.submit(run, "twin_write", seconds=0.5, token="no-postgres")
    await journal.saw("started", "no-postgres")
    async with fleet.without("postgres"):
        await journal.saw("finished", "no-postgres")
        refused = await fleet.http.get(f"/v1/calls/{call_id}")
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    await until(lambda: answers(fleet, f"/v1/calls/{call_id}"))
    assert (await fleet.ended(call_id))["state"] == "succeeded"
    assert Counter(journal.events("no-postgres"))["effect"] == 1


async def answers(fleet: Fleet, path: str) -> bool:
    # A connection of before the restart costs one answer each.
    return all([(await fleet.http.get(path)).is_success for _ in range(8)])
