"""A stop reaches the server, whichever way it comes, and nothing else is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.fleet.driver import Fleet, script
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

REVOKE = """
import sys
from celery import Celery
Celery(broker=sys.argv[1]).control.revoke(sys.argv[2], terminate=True)
"""


@pytest.fixture(scope="module")
async def fleet(empty_fleet: Fleet) -> AsyncIterator[Fleet]:
    fleet = empty_fleet
    async with fleet.echo_http("web") as web, fleet.echo_http("old", "--legacy") as old:
        await fleet.serve(fleet.echo("local"), web, old)
        yield fleet


async def by_celery(fleet: Fleet, call_id: str) -> None:
    await script(REVOKE, fleet.local.redis_url, call_id)


async def by_flower(fleet: Fleet, call_id: str) -> None:
    answer = await fleet.flower.post(f"/api/task/revoke/{call_id}?terminate=true")
    assert (answer.status_code, answer.json()["message"]) == (
        200,
        f"Call {call_id}: stop requested",
    )
    assert (await fleet.http.get(f"/v1/calls/{call_id}")).json()["stop_requested_at"] is not None


async def by_api(fleet: Fleet, call_id: str) -> None:
    assert await fleet.cancel(call_id) == "stop_requested"


WAYS = [by_celery, by_flower, by_api]


async def stopped_beside_a_neighbour(
    fleet: Fleet, server: str, way: Callable[[Fleet, str], Awaitable[None]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Stop one of two calls that run in one worker; return both at their end."""
    run, journal = await fleet.run(), fleet.journal(server)
    doomed, neighbour = f"doomed-{way.__name__}", f"neighbour-{way.__name__}"
    doomed_id = await fleet.submit(run, f"{server}_sleep", seconds=60, token=doomed)
    neighbour_id = await fleet.submit(run, f"{server}_sleep", seconds=1.5, token=neighbour)
    await journal.saw("started", doomed, neighbour)
    await way(fleet, doomed_id)
    ended = await fleet.ended(doomed_id), await fleet.ended(neighbour_id)
    await journal.saw("cancelled", doomed)
    assert len(set(await fleet.workers_of(doomed_id, neighbour_id))) == 1
    assert journal.events(doomed) == ["started", "cancelled"]
    assert journal.events(neighbour) == ["started", "finished"]
    return ended


@requirement("stop:reaches-the-server")
@pytest.mark.parametrize("way", WAYS, ids=["celery revoke", "flower", "api"])
async def test_a_running_call_is_stopped_at_its_server_and_its_neighbour_finishes(
    fleet: Fleet, way: Callable[[Fleet, str], Awaitable[None]]
) -> None:
    doomed, neighbour = await stopped_beside_a_neighbour(fleet, "local", way)
    assert (doomed["state"], doomed["error"]["code"]) == ("stopped", "stopped")
    assert neighbour["state"] == "succeeded"


@requirement("stop:reaches-the-server")
@pytest.mark.parametrize("server", ["web", "old"], ids=["http 2026-07-28", "legacy http"])
async def test_a_call_over_http_is_stopped_at_its_server_and_its_neighbour_finishes(
    fleet: Fleet, server: str
) -> None:
    doomed, neighbour = await stopped_beside_a_neighbour(fleet, server, by_api)
    assert (doomed["state"], neighbour["state"]) == ("stopped", "succeeded")


@requirement("stop:run")
async def test_cancelling_a_run_stops_all_its_calls_and_no_other_runs(fleet: Fleet) -> None:
    doomed, other = await fleet.run(), await fleet.run()
    journal = fleet.journal("local")
    spared = await fleet.submit(other, "local_sleep", seconds=1.5, token="spared")
    tokens = ["run-0", "run-1"]
    ids = [await fleet.submit(doomed, "local_sleep", seconds=60, token=it) for it in tokens]
    await journal.saw("started", "spared", *tokens)
    answer = await fleet.http.post(f"/v1/runs/{doomed['id']}/cancel")
    assert answer.json()["calls"] == {"stop_requested": 2}
    assert [(await fleet.ended(it))["state"] for it in ids] == ["stopped", "stopped"]
    assert (await fleet.ended(spared))["state"] == "succeeded"
    await journal.saw("cancelled", *tokens)


@requirement("stop:reaches-the-server")
async def test_a_stopped_call_says_how_its_stop_was_shown(fleet: Fleet) -> None:
    run = await fleet.run()
    call_id = await fleet.submit(run, "local_block", seconds=60)
    await fleet.submit(run, "local_sleep", seconds=0, token="beside-block")
    await fleet.journal("local").saw("started", "beside-block")
    await fleet.cancel(call_id)
    call = await fleet.ended(call_id)
    assert call["state"] == "stopped"
    assert call["timings"]["stop"]["rung"] in {"sigterm", "sigkill"}


@requirement("stop:queued-never-runs")
async def test_a_call_stopped_while_every_worker_was_down_never_runs(fleet: Fleet) -> None:
    run = await fleet.run()
    async with fleet.without("worker:local"):
        call_id = await fleet.submit(run, "local_write", token="never")
        assert await fleet.cancel(call_id) == "stopped_before_dispatch"
        later = await fleet.submit(run, "local_write", token="after-never")
    assert (await fleet.ended(later))["state"] == "succeeded"
    call = await fleet.ended(call_id)
    assert (call["state"], call["attempts"]) == ("stopped", 0)
    assert fleet.journal("local").events("never") == []


@requirement("stop:queued-never-runs")
async def test_a_call_of_a_run_cancelled_while_every_worker_was_down_never_runs(
    fleet: Fleet,
) -> None:
    run = await fleet.run()
    async with fleet.without("worker:local"):
        call_id = await fleet.submit(run, "local_write", token="never-in-run")
        await fleet.http.post(f"/v1/runs/{run['id']}/cancel")
        later = await fleet.submit(await fleet.run(), "local_write", token="after-run")
    assert (await fleet.ended(later))["state"] == "succeeded"
    assert (await fleet.ended(call_id))["state"] == "stopped"
    assert fleet.journal("local").events("never-in-run") == []


@requirement("stop:queued-never-runs")
async def test_a_queued_call_that_only_celery_was_told_to_revoke_never_runs(fleet: Fleet) -> None:
    run, journal = await fleet.run(), fleet.journal("local")
    busy = [f"busy-{n}" for n in range(8)]  # every slot of the worker
    ids = [await fleet.submit(run, "local_sleep", seconds=4, token=it) for it in busy]
    await journal.saw("started", *busy[:4])
    queued = await fleet.submit(run, "local_write", token="revoked-in-queue")
    await by_celery(fleet, queued)
    for call_id in ids:
        assert (await fleet.ended(call_id))["state"] == "succeeded"
    assert (await fleet.ended(queued))["state"] == "stopped"
    assert journal.events("revoked-in-queue") == []
