"""MCP clients of 2026-07-28: each request stands for itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.mcp import listing
from api.mcp.asked import META, TASKS
from registry.scopes import Scopes, Verb
from tests.asking import Worker
from tests.mcp_clients import NEWEST, Stateless, error_of, result_of, working
from tests.requirements import requirement
from tests.serving import ECHO, Api, problem_of
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def api(emptied_api: Api) -> Api:
    """An API without servers, which the tests of this module share."""
    return emptied_api


OWN = ["call_status", "call_result"]


async def names(client: Stateless) -> list[str]:
    """Return the tools that a client is shown, without our own."""
    listed = [tool["name"] for tool in (await client.result("tools/list"))["tools"]]
    return [name for name in listed if name not in OWN]


@requirement("mcp:revisions")
async def test_a_client_discovers_what_the_fleet_speaks_and_can_do(shared_api: Api) -> None:
    async with shared_api.client(await shared_api.key()) as http:
        found = await Stateless(http).result("server/discover")
    assert found["resultType"] == "complete"
    assert found["supportedVersions"][0] == NEWEST
    assert found["capabilities"]["tools"] == {"listChanged": True}
    assert found["_meta"][META + "serverInfo"]["name"] == "toolfleet"
    assert (found["ttlMs"] >= 0, found["cacheScope"]) == (True, "private")


@requirement("mcp:revisions", "mcp:headers")
@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        (lambda body, headers: headers.pop("mcp-protocol-version"), 400, -32020),
        (lambda body, headers: headers.update({"mcp-protocol-version": "2025-11-25"}), 400, -32020),
        (lambda body, headers: headers.update({"mcp-method": "ping"}), 400, -32020),
        (lambda body, headers: headers.pop("mcp-method"), 400, -32020),
        (lambda body, headers: body["params"].pop("_meta"), 400, -32602),
        (lambda body, headers: body["params"]["_meta"].pop(META + "protocolVersion"), 400, -32602),
        (
            lambda body, headers: body["params"]["_meta"].pop(META + "clientCapabilities"),
            400,
            -32602,
        ),
        (
            lambda body, headers: body["params"]["_meta"].update({META + "clientInfo": 3}),
            400,
            -32602,
        ),
        (
            lambda body, headers: body["params"]["_meta"].update({META + "logLevel": "loud"}),
            200,
            -32602,
        ),
    ],
)
async def test_a_request_that_does_not_say_who_asks_and_how_is_refused_under_its_id(
    shared_api: Api, change: Any, status: int, code: int
) -> None:
    async with shared_api.client(await shared_api.key()) as http:
        body, headers = Stateless(http).request("tools/list")
        change(body, headers)
        answer = await http.post("/mcp", json=body, headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert answer.json()["id"] == body["id"]


@requirement("mcp:revisions")
async def test_a_revision_that_is_not_spoken_is_answered_with_those_that_are(
    shared_api: Api,
) -> None:
    async with shared_api.client(await shared_api.key()) as http:
        body, headers = Stateless(http).request("server/discover")
        body["params"]["_meta"][META + "protocolVersion"] = "1900-01-01"
        headers["mcp-protocol-version"] = "1900-01-01"
        answer = await http.post("/mcp", json=body, headers=headers)
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (400, -32022)
    assert error["data"]["requested"] == "1900-01-01"
    assert NEWEST in error["data"]["supported"]


@requirement("mcp:revisions")
@pytest.mark.parametrize(
    "method", ["initialize", "ping", "logging/setLevel", "resources/subscribe", "no/such"]
)
async def test_a_method_that_is_not_there_is_not_found(shared_api: Api, method: str) -> None:
    async with shared_api.client(await shared_api.key()) as http:
        answer = await Stateless(http).ask(method)
    assert (answer.status_code, error_of(answer)["code"]) == (404, -32601)


@requirement("mcp:messages", "mcp:revisions")
async def test_notifications_are_taken_and_responses_and_batches_are_not(shared_api: Api) -> None:
    async with shared_api.client(await shared_api.key()) as http:
        client = Stateless(http)
        _, headers = client.request("tools/list")
        told = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        taken = await http.post("/mcp", json=told, headers=headers)
        assert (taken.status_code, taken.content) == (202, b"")
        for wrong in ({"jsonrpc": "2.0", "id": 1, "result": {}}, [client.request("ping")[0]]):
            answer = await http.post("/mcp", json=wrong, headers=headers)
            assert (answer.status_code, error_of(answer)["code"]) == (400, -32600)


# -- runs


@requirement("mcp:run", "mcp:lists")
async def test_lists_are_current_though_calls_belong_to_a_run_that_stands(api: Api) -> None:
    await api.serve()
    made = await api.http.post("/v1/keys", json={"name": "k", "role": "tenant", "tenant": "acme"})
    key = made.json()
    async with api.client(key["key"]) as http:
        client = Stateless(http)
        assert await names(client) == ["demo_echo"]
        await names(client)
        assert await _runs(api, key) == 1
        await api.serve("other")
        assert await names(client) == ["demo_echo", "other_echo"]
        assert await _runs(api, key) == 2


@requirement("mcp:run")
async def test_a_header_names_the_run_whose_tools_are_meant(api: Api) -> None:
    await api.serve()
    run = await api.run("acme")
    await api.serve("other")
    async with api.client(await api.key()) as http:
        pinned = Stateless(http, headers={"toolfleet-run": run["id"]})
        assert await names(pinned) == ["demo_echo"]
    async with api.client(await api.key(tenant="globex")) as http:
        other = Stateless(http, headers={"toolfleet-run": run["id"]})
        assert error_of(await other.ask("tools/list"))["data"]["code"] == "unknown_run"


@requirement("mcp:run")
async def test_an_operator_asks_for_any_tenant_and_a_tenant_for_itself_alone(api: Api) -> None:
    await api.serve("hers", tenants=["acme"])
    for_acme = {"toolfleet-tenant": "acme"}
    assert await names(Stateless(api.http)) == []
    assert await names(Stateless(api.http, headers=for_acme)) == ["hers_echo"]
    async with api.client(await api.key(tenant="globex")) as http:
        refused = await Stateless(http, headers=for_acme).ask("tools/list")
    assert error_of(refused)["data"]["code"] == "forbidden"


@requirement("mcp:run")
async def test_two_tools_stand_for_all_where_a_header_asks_for_it(api: Api) -> None:
    await api.serve()
    async with api.client(await api.key()) as http:
        client = Stateless(http, headers={"toolfleet-exposure": "search"})
        shown = await names(client)
        assert {"find_tools", "call_tool"} <= set(shown)
        assert "demo_echo" not in shown
        client.headers["toolfleet-exposure"] = "some"
        assert error_of(await client.ask("tools/list"))["code"] == -32602


# -- lists


@requirement("mcp:lists")
async def test_one_servers_tools_are_listed_without_their_prefix(api: Api) -> None:
    await api.serve()
    await api.serve("other", ECHO, {**ECHO, "name": "more"})
    async with api.client(await api.key()) as http:
        one = Stateless(http, path="/mcp/servers/other")
        listed = await one.result("tools/list")
        whole = {
            tool["name"]: tool for tool in (await Stateless(http).result("tools/list"))["tools"]
        }
        nobody = await Stateless(http, path="/mcp/servers/nobody").ask("tools/list")
    assert listed["tools"][:-2] == [
        {**whole["other_echo"], "name": "echo"},
        {**whole["other_more"], "name": "more"},
    ]
    assert error_of(nobody)["data"]["code"] == "unknown_server"


@requirement("mcp:lists")
@pytest.mark.parametrize("path", ["/mcp", "/mcp/servers/long"])
async def test_long_lists_come_in_pages(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(listing, "PAGE", 2)
    await api.serve("long", *({**ECHO, "name": f"t{number}"} for number in range(5)))
    prefix = "long_" if path == "/mcp" else ""
    async with api.client(await api.key()) as http:
        client, seen, cursor = Stateless(http, path=path), [], None
        while True:
            page = await client.result("tools/list", {"cursor": cursor} if cursor else None)
            seen += [tool["name"] for tool in page["tools"]]
            assert page["cacheScope"] == "private"
            if (cursor := page.get("nextCursor")) is None:
                break
        for wrong in ("x", 3, "W10", "WyJ4IiwyXQ"):
            refused = await client.ask("tools/list", {"cursor": wrong})
            assert error_of(refused)["code"] == -32602
    assert seen[-2:] == OWN
    assert seen[:-2] == [f"{prefix}t{n}" for n in range(5)]


@requirement("mcp:lists", "mcp:bounded-wait")
async def test_a_client_that_knows_no_tasks_is_shown_how_to_ask_for_calls(api: Api) -> None:
    await api.serve()
    async with api.client(await api.key()) as http:
        for path in ("/mcp", "/mcp/servers/demo"):
            client = Stateless(http, path=path)
            listed = (await client.result("tools/list"))["tools"]
            assert [tool["name"] for tool in listed][1:] == OWN
            client.capabilities = {"extensions": {TASKS: {}}}
            assert len((await client.result("tools/list"))["tools"]) == 1


# -- calls


@requirement("mcp:headers")
async def test_headers_repeat_the_arguments_that_a_tool_marks(api: Api) -> None:
    marked = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "At"}}}
    await api.serve("marked", {**ECHO, "inputSchema": marked})
    for path, name in (("/mcp", "marked_echo"), ("/mcp/servers/marked", "echo")):
        async with api.client(await api.key()) as http:
            client = Stateless(http, path=path)
            call = {"name": name, "arguments": {"region": "eu"}}
            for wrong in ({}, {"mcp_param_at": "us"}, {"mcp_param_at": "=?base64?ZXU?="}):
                answer = await client.ask("tools/call", call, **wrong)
                assert (answer.status_code, error_of(answer)["code"]) == (400, -32020)
            wrong = await client.ask("tools/call", {"name": name}, mcp_name="other")
            assert error_of(wrong)["code"] == -32020


@requirement("mcp:streams", "mcp:run")
async def test_a_call_that_ends_soon_is_answered_with_json(api: Api) -> None:
    await api.serve()
    async with api.client(await api.key()) as http, working(api):
        client = Stateless(http)
        call = {"name": "demo_echo", "arguments": {"text": "hi"}}
        answer = await client.ask("tools/call", call)
        assert answer.headers["content-type"] == "application/json"
        assert result_of(answer)["content"] == [{"type": "text", "text": "hi"}]
        for accept in ("text/event-stream", "text/event-stream, application/json"):
            streamed = await client.ask("tools/call", call, accept=accept)
            assert streamed.headers["content-type"] == "text/event-stream"
            assert result_of(streamed)["resultType"] == "complete"
        nothing = await client.ask("tools/call", call, accept="text/html")
        assert nothing.status_code == 406


@requirement("mcp:cancel")
async def test_a_client_that_closes_the_stream_stops_its_call(api: Api) -> None:
    await api.serve()
    run = await api.run("acme")
    worker = Worker(api.database, api.redis, run["id"])
    async with api.client(await api.key()) as http:
        client = Stateless(http, headers={"toolfleet-run": run["id"]})
        call = {"name": "demo_echo", "arguments": {"text": "hi"}}
        body, headers = client.request("tools/call", call)
        asking = asyncio.create_task(http.post("/mcp", json=body, headers=headers))
        claim = await worker.claim()
        asking.cancel()
        await asyncio.wait([asking])
    await until(lambda: worker.stop_requested(claim))


# -- the door


@requirement("mcp:door")
async def test_a_narrowed_key_asks_what_its_verbs_are_for(api: Api) -> None:
    await api.serve()
    reads = Scopes(verbs=(Verb.RUNS_READ, Verb.RUNS_WRITE))
    async with api.client(await api.key(scopes=reads)) as http:
        client = Stateless(http)
        assert "demo_echo" in await names(client)
        call = await client.ask("tools/call", {"name": "demo_echo", "arguments": {"text": "x"}})
        assert error_of(call)["data"]["code"] == "out_of_scope"
    run = await api.run("acme")
    async with api.client(await api.key(scopes=Scopes(verbs=(Verb.RUNS_READ,)))) as http:
        started = await Stateless(http).ask("tools/list")
        assert error_of(started)["data"]["code"] == "out_of_scope"
        assert "demo_echo" in await names(Stateless(http, headers={"toolfleet-run": run["id"]}))


@requirement("mcp:door")
async def test_a_key_that_is_narrowed_to_servers_is_shown_theirs_alone(api: Api) -> None:
    await api.serve()
    await api.serve("other")
    async with api.client(await api.key(scopes=Scopes(servers=("other",)))) as http:
        assert "demo_echo" not in await names(Stateless(http))
        refused = await Stateless(http, path="/mcp/servers/demo").ask("tools/list")
    assert error_of(refused)["data"]["code"] == "out_of_scope"


@requirement("mcp:door")
@pytest.mark.parametrize("path", ["/mcp", "/mcp/servers/demo"])
async def test_the_endpoint_is_behind_the_door_of_all_routes(shared_api: Api, path: str) -> None:
    async with shared_api.client(None) as nobody:
        for method in ("POST", "GET", "DELETE", "PUT"):
            answer = await nobody.request(method, path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    for role in ("approver", "auditor"):
        async with shared_api.client(await shared_api.key(role)) as other:
            assert problem_of(await Stateless(other, path).ask("ping"))["code"] == "forbidden"
    async with shared_api.client(await shared_api.key()) as http:
        client = Stateless(http, path)
        for header, wrong in (("host", "evil.example"), ("origin", "http://evil.example")):
            assert (await client.ask("server/discover", **{header: wrong})).status_code == 403
        assert (await client.ask("tools/list", content_type="text/plain")).status_code == 415
        large = await client.ask("tools/list", {"x": "y" * 2_100_000})
        assert problem_of(large)["code"] == "request_too_large"
        put = await http.put(path, json={})
        assert (put.status_code, "POST" in put.headers["allow"]) == (405, True)
        got = await http.get(path, headers={"mcp-protocol-version": NEWEST})
        assert (got.status_code, got.headers["allow"]) == (405, "POST")


async def _runs(api: Api, key: dict[str, Any]) -> int:
    """Return how many runs a key has started."""
    rows = await api.database.statement(
        "SELECT count(*) AS runs FROM runs WHERE actor = %(actor)s", actor=f"key:{key['id']}"
    )
    return int(rows[0]["runs"])
