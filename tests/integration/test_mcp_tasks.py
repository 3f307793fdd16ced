"""Calls as tasks: what clients that know the Tasks extension observe, on any process."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from api.mcp.asked import FLEET_ERROR, INVALID_PARAMS, MISSING_CAPABILITY, TASKS
from api.mcp.task_changes import NOTIFICATION, TaskChanges
from api.mcp.tasks import cancel_task, get_task, update_task
from registry.errors import Code, FleetError
from registry.tenants import Actor, Role
from tests.asking import (
    ELICITS,
    KNOWS_TASKS,
    LEGACY,
    OSLO,
    Caller,
    Worker,
    caller,
    impatient,
    refused,
    said,
    text_of,
)
from tests.requirements import requirement
from tests.serving import Api
from tests.waiting import until

pytestmark = pytest.mark.anyio

RULES: dict[str, dict[str, Any]] = {
    "slow": {},
    "always": {"task": "always"},
    "never": {"task": "never"},
    "required": {"task": "required"},
    "gated": {"approval": True},
}
OF_A_TASK = {
    "resultType",
    "taskId",
    "status",
    "createdAt",
    "lastUpdatedAt",
    "ttlMs",
    "pollIntervalMs",
    "statusMessage",
}


@pytest.fixture(scope="module")
async def served(shared_api: Api) -> Api:
    listed = [{"name": name, "inputSchema": {"type": "object"}} for name in RULES]
    await shared_api.serve("demo", *listed, tools=RULES)
    return shared_api


@pytest.fixture
async def acme(served: Api) -> tuple[Caller, Worker]:
    """A client that knows tasks and answers forms, of an API that gives it a task at once."""
    client, worker = await caller(served)
    client = client.but(capabilities={**KNOWS_TASKS, **ELICITS})
    return impatient(client, task_after=timedelta(0)), worker


async def started(client: Caller, tool: str = "demo_slow", **params: Any) -> str:
    """Return the id of a task that a call becomes."""
    answer = await client.call(tool, arguments={}, **params)
    assert (answer["resultType"], answer["status"]) == ("task", "working"), answer
    return str(answer["taskId"])


async def got(client: Caller, task_id: str) -> dict[str, Any]:
    """Return a task as it is."""
    return await client.ask(get_task, "tasks/get", taskId=task_id)


@requirement("passage:uris")
async def test_a_link_in_a_tasks_result_is_one_that_can_be_read(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    task_id = await started(client)
    link = {"type": "resource_link", "name": "a page", "uri": "test://page"}
    await worker.end(await worker.claim(), result={"content": [link]})
    task = await got(client, task_id)
    assert task["result"]["content"] == [{**link, "uri": "toolfleet://demo/test://page"}]


# -- when a call becomes a task


@requirement("mcp:tasks")
async def test_a_slow_call_becomes_a_task_that_is_there_at_once(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    made = await client.call("demo_slow", arguments={})
    assert set(made) == OF_A_TASK
    assert await got(client, made["taskId"]) == {**made, "resultType": "complete"}
    assert (await worker.claim()).id == made["taskId"]


@requirement("mcp:tasks")
async def test_a_call_that_ends_in_time_is_no_task(acme: tuple[Caller, Worker]) -> None:
    client, worker = acme
    patient = impatient(client, task_after=timedelta(minutes=1))
    async with patient.calling("demo_slow", arguments={}) as calling:
        await worker.end(await worker.claim())
        assert text_of(await calling) == "done"


@requirement("mcp:tasks")
async def test_a_call_that_waits_for_approval_is_a_task_that_says_so(
    acme: tuple[Caller, Worker],
) -> None:
    patient = impatient(acme[0], task_after=timedelta(minutes=1))
    task = await got(patient, await started(patient, "demo_gated"))
    assert (task["status"], "approval" in task["statusMessage"]) == ("working", True)


@requirement("mcp:tasks")
async def test_only_what_a_request_declares_itself_counts(acme: tuple[Caller, Worker]) -> None:
    client, worker = acme
    session = impatient(client, mcp_wait=timedelta(0)).but(revision=LEGACY)
    assert "taskId" not in await session.call("demo_slow", arguments={})
    meta = {"io.modelcontextprotocol/clientCapabilities": KNOWS_TASKS}
    assert await started(session, _meta=meta)
    ignorant = client.but(capabilities={}, operations=session.operations)
    assert (await ignorant.call("demo_always", arguments={}))["resultType"] == "complete"
    assert await worker.count() == 3


@requirement("mcp:task-rule")
async def test_an_operator_says_which_tools_are_tasks(acme: tuple[Caller, Worker]) -> None:
    client, worker = acme
    patient = impatient(client, task_after=timedelta(minutes=1))
    assert await started(patient, "demo_always")
    assert await started(patient, "demo_required")
    hasty = impatient(client, mcp_wait=timedelta(0))
    assert (await hasty.call("demo_never", arguments={}))["resultType"] == "complete"
    before = await worker.count()
    with refused(MISSING_CAPABILITY) as errors:
        await client.but(capabilities={}).call("demo_required", arguments={})
    assert errors[0].data == {"requiredCapabilities": {"extensions": {TASKS: {}}}}
    assert await worker.count() == before


@requirement("mcp:tasks")
async def test_questions_are_answered_before_the_call_becomes_a_task(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    patient = impatient(client, task_after=timedelta(minutes=1))
    async with patient.calling("demo_slow", arguments={}) as calling:
        claim = await worker.claim()
        await worker.ask(claim)
        asked = await calling
    assert (asked["resultType"], "taskId" in asked) == ("input_required", False)
    made = await client.call(
        "demo_slow", arguments={}, inputResponses={"q1": OSLO}, requestState=asked["requestState"]
    )
    assert (made["resultType"], made["taskId"]) == ("task", claim.id)
    assert set(made) <= OF_A_TASK


# -- states


@requirement("mcp:tasks-are-rows")
async def test_a_task_ends_as_its_call_does(acme: tuple[Caller, Worker]) -> None:
    client, worker = acme
    lost = FleetError(Code.SESSION_LOST, "the connection closed").as_dict()
    wrong = FleetError(Code.INVALID_ARGUMENTS, "not that").as_dict()
    ends: list[dict[str, Any]] = [
        {"result": said("ok", structuredContent={"n": 1.5})},
        {"result": said("no", isError=True)},
        {"error": lost},
        {"error": wrong},
    ]
    tasks = []
    for end in ends:
        task_id = await started(client)
        await worker.end(await worker.claim(), **end)
        tasks.append(await got(client, task_id))
    assert [it["status"] for it in tasks] == ["completed", "completed", "failed", "completed"]
    for end, task in zip(ends[:2], tasks[:2], strict=True):
        assert task["result"] == {**end["result"], "resultType": "complete"}
    assert (tasks[2]["error"]["code"], tasks[2]["error"]["data"]) == (FLEET_ERROR, lost)
    assert "result" not in tasks[2]
    assert tasks[3]["result"]["isError"]


@requirement("mcp:tasks-are-rows", "mcp:questions")
async def test_what_a_task_asks_is_answered_by_an_update(acme: tuple[Caller, Worker]) -> None:
    client, worker = acme
    task_id = await started(client, "demo_always")
    claim = await worker.claim()
    one, two = await worker.ask(claim, *worker.forms(2))
    task = await got(client, task_id)
    assert (task["status"], set(task["inputRequests"])) == ("input_required", {one.key, two.key})
    for given, left in (({"nobody": OSLO}, {one.key, two.key}), ({one.key: OSLO}, {two.key})):
        acknowledged = await client.ask(
            update_task, "tasks/update", taskId=task_id, inputResponses=given
        )
        assert acknowledged == {"resultType": "complete"}
        assert set((await got(client, task_id))["inputRequests"]) == left
    await client.ask(
        update_task, "tasks/update", taskId=task_id, inputResponses={two.key: OSLO, one.key: OSLO}
    )
    assert (await got(client, task_id))["status"] == "working"
    await worker.end(claim)
    await client.ask(update_task, "tasks/update", taskId=task_id, inputResponses={one.key: OSLO})
    assert (await got(client, task_id))["status"] == "completed"


@requirement("mcp:tasks-are-rows")
async def test_a_cancelled_task_stops_and_one_that_has_ended_stays(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    running = await started(client)
    claim = await worker.claim()
    waiting = await started(client)
    for task_id in (running, waiting, waiting):
        acknowledged = await client.ask(cancel_task, "tasks/cancel", taskId=task_id)
        assert acknowledged == {"resultType": "complete"}
    assert await worker.stop_requested(claim)
    assert (await got(client, running))["statusMessage"] == "The call is being stopped."
    assert (await got(client, waiting))["status"] == "cancelled"
    await worker.end(claim)
    await client.ask(cancel_task, "tasks/cancel", taskId=running)
    assert (await got(client, running))["status"] == "completed"


@requirement("mcp:tasks-are-rows")
async def test_a_task_exists_for_its_tenant_and_for_clients_that_know_tasks(
    served: Api, acme: tuple[Caller, Worker]
) -> None:
    client, _ = acme
    task_id = await started(client)
    foreign = client.but(actor=Actor("1", "an agent", Role.TENANT, "globex"))
    methods = {"tasks/get": get_task, "tasks/update": update_task, "tasks/cancel": cancel_task}
    for method, handler in methods.items():
        with refused(MISSING_CAPABILITY):
            await client.but(capabilities={}).ask(handler, method, taskId=task_id)
        for asking, wrong in ((foreign, task_id), (client, "0" * 36), (client, "x")):
            with pytest.raises(FleetError) as caught:
                await asking.ask(handler, method, taskId=wrong, inputResponses={"q1": OSLO})
            assert caught.value.code is Code.UNKNOWN_CALL
        with refused(INVALID_PARAMS):
            await client.ask(handler, method, taskId=7)
    for wrong in (None, {"q1": 1}):
        with refused(INVALID_PARAMS):
            await client.ask(update_task, "tasks/update", taskId=task_id, inputResponses=wrong)
    assert (await got(client, task_id))["status"] == "working"


# -- changes


@requirement("mcp:task-changes")
async def test_a_subscriber_is_told_of_each_change_to_the_end(
    acme: tuple[Caller, Worker],
) -> None:
    client, worker = acme
    one, two = await started(client), await started(client, "demo_always")
    listen, changes = client.asked("subscriptions/listen", {}), TaskChanges()
    subscription = await changes.subscribe(listen, {"taskIds": [one, "nobody's", two, one]})
    assert subscription is not None
    assert subscription.honoured == {"taskIds": [one, two]}
    told: dict[str, list[str]] = {one: [], two: []}

    async def tell(method: str, task: dict[str, Any]) -> None:
        assert method == NOTIFICATION
        told[task["taskId"]].append(task["status"])

    listening = asyncio.create_task(subscription.watch(tell))
    await until(lambda: all(told.values()))
    claims = {claim.id: claim for claim in [await worker.claim(), await worker.claim()]}
    await worker.ask(claims[one])
    await until(lambda: told[one][-1] == "input_required")
    await worker.end(claims[two])
    await client.operations.stop_call(client.actor, one)
    await worker.end(claims[one], error={"code": "stopped", "message": "stopped"})
    await asyncio.wait_for(listening, 20)
    assert (told[one][-1], told[two][-1]) == ("failed", "completed")


@requirement("mcp:task-changes")
async def test_a_subscription_to_tasks_needs_a_client_that_knows_them(
    acme: tuple[Caller, Worker],
) -> None:
    client, changes = acme[0], TaskChanges()
    asked = client.asked("subscriptions/listen", {})
    assert await changes.subscribe(asked, {"toolsListChanged": True}) is None
    with refused(INVALID_PARAMS):
        await changes.subscribe(asked, {"taskIds": "all"})
    ignorant = client.but(capabilities={}).asked("subscriptions/listen", {})
    with refused(MISSING_CAPABILITY):
        await changes.subscribe(ignorant, {"taskIds": []})
