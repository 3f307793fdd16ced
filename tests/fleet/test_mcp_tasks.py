"""Tasks of MCP clients in a whole fleet whose processes are killed under them."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import httpx2
import psutil
import pytest

from tests.asking import KNOWS_TASKS, text_of
from tests.fleet.driver import Fleet
from tests.mcp_clients import Stateless
from tests.requirements import requirement
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(180)]

ENDED = {"completed", "failed", "cancelled"}


@pytest.fixture(scope="module")
async def fleet(own_fleet: Fleet) -> Fleet:
    definition = own_fleet.echo("echo")
    tools = {**definition["tools"], "sleep": {"delivery": "read", "task": "always"}}
    await own_fleet.serve({**definition, "tools": tools})
    return own_fleet


@pytest.fixture
def client(fleet: Fleet) -> Stateless:
    return Stateless(fleet.http, capabilities=KNOWS_TASKS, headers={"toolfleet-tenant": "acme"})


async def started(client: Stateless, **arguments: Any) -> str:
    params = {"name": "echo_sleep", "arguments": arguments}
    made = await client.result("tools/call", params)
    assert (made["resultType"], made["status"]) == ("task", "working"), made
    return str(made["taskId"])


def kill(*pids: int | None) -> None:
    for pid in pids:
        assert pid is not None
        psutil.Process(pid).send_signal(signal.SIGKILL)


async def ended(client: Stateless, task_id: str) -> dict[str, Any]:
    """Return a task once it has ended, asked of whichever API process there is."""

    async def look() -> dict[str, Any] | None:
        try:
            task = await client.result("tasks/get", {"taskId": task_id})
        except httpx2.TransportError:
            return None
        return task if task["status"] in ENDED else None

    return await until(look, within_s=60, every_s=0.2)


@requirement("mcp:tasks-survive")
async def test_a_task_whose_api_and_worker_are_killed_is_fetched_from_another_process(
    fleet: Fleet, client: Stateless
) -> None:
    task_id = await started(client, seconds=3, token="both")
    await fleet.journal("echo").saw("started", "both")
    api = fleet.local.children["api"].program.pid
    kill(api, fleet.worker("echo").pid)
    task = await ended(client, task_id)
    assert task["status"] == "completed", task
    assert text_of(task["result"]) == "both"
    assert fleet.local.children["api"].program.pid != api
    assert fleet.journal("echo").events("both").count("started") == 2


@requirement("mcp:tasks-survive")
async def test_a_task_is_fetched_from_a_replica_while_the_api_that_made_it_is_gone(
    fleet: Fleet, client: Stateless
) -> None:
    async with fleet.replica() as http:
        task_id = await started(client, seconds=3, token="replica")
        await fleet.journal("echo").saw("started", "replica")
        kill(fleet.local.children["api"].program.pid, fleet.worker("echo").pid)
        async with fleet.without("api"):
            task = await ended(replace(client, http=http), task_id)
    assert task["status"] == "completed", task
    assert text_of(task["result"]) == "replica"


@requirement("mcp:tasks-survive")
async def test_a_task_that_is_cancelled_after_its_api_was_killed_stops(
    fleet: Fleet, client: Stateless
) -> None:
    task_id = await started(client, seconds=60, token="cancelled")
    await fleet.journal("echo").saw("started", "cancelled")
    kill(fleet.local.children["api"].program.pid)

    async def cancelled() -> bool:
        try:
            answer = await client.result("tasks/cancel", {"taskId": task_id})
        except httpx2.TransportError:
            return False
        return answer == {"resultType": "complete"}

    await until(cancelled, within_s=60, every_s=0.2)
    assert (await ended(client, task_id))["status"] == "cancelled"
    await fleet.journal("echo").saw("cancelled", "cancelled")
