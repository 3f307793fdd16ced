"""What MCP clients are told of without having asked for it then and there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.mcp import endpoint, exchange
from api.mcp.asked import META, TASKS
from tests.asking import Worker
from tests.mcp_clients import Session, Stateless, Stream, error_of
from tests.requirements import requirement
from tests.serving import Api

pytestmark = pytest.mark.anyio


@pytest.fixture
def api(emptied_api: Api) -> Api:
    """An API without servers, which the tests of this module share."""
    return emptied_api


TOOLS = {"toolsListChanged": True}
SUBSCRIPTION = META + "subscriptionId"


async def told(stream: Stream) -> dict[str, Any]:
    event = await stream.next()
    assert event is not None
    assert isinstance(event.data, dict)
    return event.data


@requirement("mcp:subscriptions")
async def test_who_listens_is_told_what_is_honoured_and_then_of_changes_alone(api: Api) -> None:
    await api.serve()
    await api.serve("hers", tenants=["globex"])
    async with api.client(await api.key()) as http:
        client = Stateless(http)
        wanted = {"notifications": {**TOOLS, "nonsense": True, "resourceSubscriptions": []}}
        async with client.stream("subscriptions/listen", wanted) as stream:
            first = await told(stream)
            assert first["method"] == "notifications/subscriptions/acknowledged"
            id_ = first["params"]["_meta"][SUBSCRIPTION]
            assert first["params"]["notifications"] == TOOLS
            await api.http.delete("/v1/servers/hers")  # what this tenant never saw
            await api.serve("other")
            second = await told(stream)
            assert second["method"] == "notifications/tools/list_changed"
            assert second["params"]["_meta"] == {SUBSCRIPTION: id_}
            names = [it["name"] for it in (await client.result("tools/list"))["tools"]]
            assert "other_echo" in names
            await api.http.put("/v1/tenants/acme", json={"tools": {"deny": ["other/*"]}})
            assert (await told(stream))["method"] == "notifications/tools/list_changed"
            api.app.state.operations.room.dismiss()  # as the process does when it is told to stop
            (last,) = await stream.rest()
            assert last["id"] == id_
            assert last["result"] == {"resultType": "complete", "_meta": {SUBSCRIPTION: id_}}
    api.app.state.operations.room.dismissal.clear()
    await api.http.put("/v1/tenants/acme", json={})


@requirement("mcp:subscriptions", "mcp:task-changes")
async def test_who_listens_to_tasks_is_told_what_becomes_of_them(api: Api) -> None:
    await api.serve()
    run = await api.run("acme")
    call = await api.submit(run)
    worker = Worker(api.database, api.redis, run["id"])
    async with api.client(await api.key()) as http:
        client = Stateless(http, capabilities={"extensions": {TASKS: {}}})
        wanted = {"notifications": {"taskIds": [call["id"], "nobodys"]}}
        async with client.stream("subscriptions/listen", wanted) as stream:
            first = await told(stream)
            assert first["params"]["notifications"] == {"taskIds": [call["id"]]}
            now = await told(stream)
            assert (now["method"], now["params"]["status"]) == ("notifications/tasks", "working")
            await worker.end(await worker.claim())
            while now["params"]["status"] != "completed":
                now = await told(stream)
            assert now["params"]["_meta"][SUBSCRIPTION] == first["params"]["_meta"][SUBSCRIPTION]
        client.capabilities = {}
        refused = await client.ask("subscriptions/listen", wanted)
    assert (refused.status_code, error_of(refused)["code"]) == (400, -32021)


@requirement("mcp:subscriptions", "mcp:streams")
async def test_to_listen_takes_a_filter_and_a_stream(shared_api: Api) -> None:
    async with shared_api.client(await shared_api.key()) as http:
        client = Stateless(http)
        for wrong in ({}, {"notifications": []}):
            refused = await client.ask("subscriptions/listen", wrong)
            assert error_of(refused)["code"] == -32602
        refused = await client.ask(
            "subscriptions/listen", {"notifications": TOOLS}, accept="application/json"
        )
        assert error_of(refused)["code"] == -32600


@requirement("mcp:door", "mcp:streams")
async def test_a_stream_ends_when_its_key_is_revoked(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "HEARTBEAT_EVERY_S", 0.01)
    monkeypatch.setattr(endpoint, "PATIENCE_S", 0.01)
    made = await api.http.post("/v1/keys", json={"name": "k", "role": "tenant", "tenant": "acme"})
    async with api.client(made.json()["key"]) as http:
        session = await Session.start(http)
        client = Stateless(http)
        async with (
            client.stream("subscriptions/listen", {"notifications": TOOLS}) as listening,
            session.listen() as stream,
        ):
            await told(listening)
            await stream.next()
            await api.http.delete(f"/v1/keys/{made.json()['id']}")
            api.app.state.keyring.forget()
            assert await asyncio.gather(listening.rest(), stream.rest()) == [[], []]
