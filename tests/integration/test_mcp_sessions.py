"""MCP clients of the revisions that have sessions, at one API process or at several."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from api.mcp import endpoint
from registry.calls import Claim
from registry.database import Database
from registry.scopes import Scopes, Verb
from tests.asking import FORM, OSLO, Worker
from tests.mcp_clients import (
    LEGACY,
    Session,
    body_of,
    error_of,
    result_of,
    worker_of,
    working,
)
from tests.requirements import requirement
from tests.serving import Api, problem_of, serving
from tests.waiting import until
from workers.client import PROGRESS_CHANNEL

pytestmark = pytest.mark.anyio


@pytest.fixture
def api(emptied_api: Api) -> Api:
    """An API without servers, which the tests of this module share."""
    return emptied_api


async def reported(worker: Worker, claim: Claim, *, listeners: int = 1) -> None:
    """Report progress as soon as so many listen."""
    channel, body = PROGRESS_CHANNEL + claim.id, json.dumps({"progress": 3})

    async def report() -> bool:
        return await worker.redis.publish(channel, body) >= listeners

    await until(report)


CALL: dict[str, Any] = {"name": "demo_echo", "arguments": {"text": "hi"}}
TOLD = {**CALL, "_meta": {"progressToken": "p"}}


@pytest.fixture(scope="module")
async def replica(
    anyio_backend: str, shared_api: Api, shared_database_url: str, _redis_url: str
) -> AsyncIterator[Api]:
    """Another API process in front of the same record."""
    database = Database(shared_database_url, application="toolfleet tests")
    async with serving(database, _redis_url) as other:
        yield other
    await database.close()


# -- the handshake


@requirement("mcp:revisions")
@pytest.mark.parametrize("revision", LEGACY)
async def test_a_client_is_served_in_the_revision_that_it_asks_for(
    shared_api: Api, revision: str
) -> None:
    async with shared_api.client(await shared_api.key()) as http:
        session = await Session.start(http, revision)
        assert session.revision == revision
        assert session.about["serverInfo"]["name"] == "toolfleet"
        assert session.about["capabilities"]["logging"] == {}
        assert len(session.id) == 32
        assert await session.result("ping") == {}
        assert isinstance((await session.result("tools/list"))["tools"], list)
        unknown = await session.ask("no/such")
        assert (unknown.status_code, error_of(unknown)["code"]) == (200, -32601)
        unknown = await session.ask("server/discover")
        assert error_of(unknown)["code"] == -32601


@requirement("mcp:revisions")
async def test_a_revision_that_is_not_known_becomes_the_latest_that_has_sessions(
    shared_api: Api,
) -> None:
    async with shared_api.client(await shared_api.key()) as http:
        for asked in ("1900-01-01", "2026-07-28"):
            assert (await Session.start(http, asked)).revision == "2025-11-25"
        session = await Session.start(http)
        wrong = await session.post(session.request("ping"), mcp_protocol_version="1900-01-01")
        assert (wrong.status_code, error_of(wrong)["code"]) == (400, -32022)


@requirement("mcp:messages")
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"protocolVersion": 3},
        {"protocolVersion": "2025-11-25", "capabilities": []},
        {"protocolVersion": "2025-11-25", "clientInfo": "me"},
        {"protocolVersion": "2025-11-25", "capabilities": {"experimental": {"x": "y" * 40_000}}},
    ],
)
async def test_a_handshake_that_says_nothing_begins_no_session(
    shared_api: Api, params: Any
) -> None:
    async with shared_api.client(await shared_api.key()) as http:
        body = {"jsonrpc": "2.0", "id": "i", "method": "initialize", "params": params}
        answer = await http.post("/mcp", json=body)
    assert error_of(answer)["code"] == -32602
    assert "mcp-session-id" not in answer.headers


# -- whose a session is, and how long it lives


@requirement("mcp:sessions")
async def test_without_a_session_nothing_is_asked_but_for_one(shared_api: Api) -> None:
    async with shared_api.client(await shared_api.key()) as http:
        session = await Session.start(http)
        for id_, status in (("", 404), ("0" * 32, 404), (session.id.upper(), 404), (None, 400)):
            headers = {"mcp-session-id": id_} if id_ is not None else {}
            body = session.request("ping")
            answers = [
                await http.post("/mcp", json=body, headers=headers),
                await http.get("/mcp", headers=headers),
                await http.delete("/mcp", headers=headers),
            ]
            assert [answer.status_code for answer in answers] == [status] * 3
            assert error_of(answers[0])["code"] == -32600


@requirement("mcp:sessions")
async def test_a_session_is_its_keys_and_its_addresss_alone(api: Api) -> None:
    await api.serve()
    async with api.client(await api.key()) as http:
        session = await Session.start(http)
        session.path = "/mcp/servers/demo"
        assert (await session.ask("ping")).status_code == 404
        session.path = "/mcp"
        assert (await session.ask("ping")).status_code == 200
    for other in (await api.key(), await api.key(tenant="globex"), await api.key("operator", None)):
        async with api.client(other) as session.http:
            assert (await session.ask("ping")).status_code == 404


@requirement("mcp:sessions", "mcp:any-replica")
async def test_a_session_that_was_ended_is_not_there_and_its_calls_are_stopped(
    api: Api, replica: Api
) -> None:
    await api.serve()
    async with api.client(await api.key()) as http:
        session = await Session.start(http)
        worker = await worker_of(api, session.id)
        asking = asyncio.create_task(session.ask("tools/call", CALL))
        claim = await worker.claim()
        assert (await session.end()).status_code == 200
        assert (await session.ask("ping")).status_code == 404
        assert (await session.end()).status_code == 404
        assert await worker.stop_requested(claim)
        async with replica.client(http.headers["authorization"].split()[1]) as session.http:
            assert (await session.ask("ping")).status_code == 404
        await worker.end(claim)
        await asking


@requirement("mcp:sessions", "mcp:run")
async def test_a_session_ends_with_its_run(api: Api) -> None:
    await api.serve()
    run = await api.run("acme")
    await api.serve("other")
    async with api.client(await api.key()) as http:
        session = await Session.start(http, toolfleet_run=run["id"])
        listed = (await session.result("tools/list"))["tools"]
        assert [tool["name"] for tool in listed][:1] == ["demo_echo"]
        assert (await session.end()).status_code == 200
        still = await http.get(f"/v1/runs/{run['id']}")
        assert still.json()["state"] == "open"  # it was not started for the session
        session = await Session.start(http)
        worker = await worker_of(api, session.id)
        await http.post(f"/v1/runs/{worker.run_id}/cancel")
        api.app.state.mcp.sessions.forget()
        assert (await session.ask("ping")).status_code == 404


@requirement("mcp:run")
async def test_a_session_keeps_the_tools_that_it_began_with(api: Api) -> None:
    await api.serve()
    async with api.client(await api.key()) as http:
        session = await Session.start(http)
        before = await session.result("tools/list")
        await api.serve("other")
        assert await session.result("tools/list") == before
        assert len((await (await Session.start(http)).result("tools/list"))["tools"]) == 4


# -- any process


@requirement("mcp:any-replica", "mcp:cancel")
async def test_a_request_is_cancelled_at_another_process(api: Api, replica: Api) -> None:
    await api.serve()
    key = await api.key()
    async with api.client(key) as http, replica.client(key) as elsewhere:
        session = await Session.start(http)
        worker = await worker_of(api, session.id)
        body = session.request("tools/call", CALL)
        asking = asyncio.create_task(session.post(body))
        claim = await worker.claim()
        session.http = elsewhere
        told = await session.tell("notifications/cancelled", {"requestId": body["id"]})
        assert told.status_code == 202
        assert await worker.stop_requested(claim)
        for other in ("none", body["id"] + 1, None, {"x": 1}):
            told = await session.tell("notifications/cancelled", {"requestId": other})
            assert told.status_code == 202
        await worker.end(claim)
        await asking


@requirement("mcp:any-replica", "mcp:messages")
async def test_an_id_is_used_once_in_a_session_at_whatever_process(api: Api, replica: Api) -> None:
    await api.serve()
    key = await api.key()
    async with api.client(key) as http, replica.client(key) as elsewhere, working(api):
        session = await Session.start(http)
        body = session.request("tools/call", CALL)
        assert result_of(await session.post(body))["content"]
        for session.http in (http, elsewhere):
            assert error_of(await session.post(body))["code"] == -32600
        assert result_of(await session.post({**body, "id": str(body["id"])}))["content"]
        other = await Session.start(elsewhere)
        assert result_of(await other.post(body))["content"]


@requirement("mcp:any-replica", "mcp:questions")
async def test_an_answer_may_come_to_another_process_than_the_question_went_out_from(
    api: Api, replica: Api
) -> None:
    await api.serve()
    key = await api.key()
    async with api.client(key) as http, replica.client(key) as elsewhere:
        session = await Session.start(http, capabilities={"elicitation": {}})
        worker = await worker_of(api, session.id)
        async with session.stream(session.request("tools/call", CALL)) as stream:
            claim = await worker.claim()
            (put,) = await worker.ask(claim, FORM)
            event = await stream.next()
            while event is not None and event.data is None:
                event = await stream.next()
            assert event is not None
            question = event.data
            assert question["method"] == "elicitation/create"
            assert question["id"] == f"toolfleet-{claim.id}-{put.number}"
            session.http = elsewhere
            nonsense = await session.post({"jsonrpc": "2.0", "id": "nobodys", "result": {}})
            assert (nonsense.status_code, error_of(nonsense)["code"]) == (400, -32600)
            misfit = {"jsonrpc": "2.0", "id": question["id"], "result": {"action": "perhaps"}}
            assert (await session.post(misfit)).status_code == 400
            answer = await session.post({**misfit, "result": OSLO})
            assert (answer.status_code, answer.content) == (202, b"")
            assert await worker.answered(claim, put)
            await worker.end(claim)
            assert [it["id"] for it in await stream.rest() if it] == [1]


@requirement("mcp:log-level", "mcp:any-replica")
async def test_a_log_level_holds_for_the_whole_session(api: Api) -> None:
    await api.serve()
    async with api.client(await api.key()) as http:
        session = await Session.start(http)
        worker = await worker_of(api, session.id)
        assert error_of(await session.ask("logging/setLevel", {"level": "loud"}))["code"] == -32602
        assert await session.result("logging/setLevel", {"level": "warning"}) == {}
        api.app.state.mcp.sessions.forget()
        async with session.stream(session.request("tools/call", CALL)) as stream:
            claim = await worker.claim()
            for level in ("info", "error"):
                await worker.report(claim, {"log": {"level": level, "data": level}})
            await stream.next()
            logged = await stream.next()
            assert logged is not None
            await worker.end(claim)
            await stream.rest()
    assert logged.data["method"] == "notifications/message"
    assert logged.data["params"] == {"level": "error", "data": "error"}


# -- streams


@requirement("mcp:streams", "mcp:resume")
async def test_a_slow_answer_is_a_stream_that_begins_with_where_to_go_on_from(api: Api) -> None:
    await api.serve()
    async with api.client(await api.key()) as http:
        session = await Session.start(http)
        worker = await worker_of(api, session.id)
        async with session.stream(session.request("tools/call", CALL)) as stream:
            claim = await worker.claim()
            assert stream.answer.headers["content-type"] == "text/event-stream"
            first = await stream.next()
            assert first is not None
            assert (first.id is not None, first.data) == (True, None)
            await worker.end(claim)
            last = await stream.next()
            assert last is not None
            assert last.data["result"]["content"]
            assert first.id != last.id
            assert await stream.next() is None


@requirement("mcp:resume")
async def test_a_long_stream_ends_before_its_call_and_the_client_comes_back_for_the_rest(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = api.app.state.operations
    usual = operations.settings
    at_once = usual.model_copy(update={"mcp_stream": timedelta(0)})
    monkeypatch.setattr(operations, "settings", at_once)
    await api.serve()
    async with api.client(await api.key()) as http:
        session = await Session.start(http)
        worker = await worker_of(api, session.id)
        async with session.stream(session.request("tools/call", CALL)) as stream:
            first = await stream.next()
            assert first is not None
            assert await stream.next() is None
        claim = await worker.claim()
        monkeypatch.setattr(operations, "settings", usual)
        async with session.listen(first.id) as stream:
            await worker.end(claim)
            assert (await stream.rest())[-1]["result"]["content"]


@requirement("mcp:streams")
async def test_older_clients_get_no_event_that_says_nothing(api: Api) -> None:
    await api.serve()
    async with api.client(await api.key()) as http:
        session = await Session.start(http, "2025-06-18")
        worker = await worker_of(api, session.id)
        asking = asyncio.create_task(session.ask("tools/call", TOLD))
        claim = await worker.claim()
        await reported(worker, claim)
        await worker.end(claim)
        answer = await asking
    assert answer.headers["content-type"] == "text/event-stream"
    told = [line for line in answer.text.splitlines() if line.startswith("data:")]
    assert [json.loads(line[5:]).get("method") for line in told] == ["notifications/progress", None]


@requirement("mcp:resume", "mcp:any-replica", "mcp:cancel")
async def test_a_client_that_lost_a_stream_gets_its_answer_at_another_process(
    api: Api, replica: Api
) -> None:
    await api.serve()
    key = await api.key()
    async with api.client(key) as http, replica.client(key) as elsewhere:
        session = await Session.start(http)
        worker = await worker_of(api, session.id)
        async with session.stream(session.request("tools/call", TOLD)) as stream:
            claim = await worker.claim()
            lost = await stream.next()
        assert lost is not None
        assert not await worker.stop_requested(claim)
        session.http = elsewhere
        async with session.listen(lost.id) as stream:
            first = await stream.next()
            assert first is not None
            assert first.data is None
            await reported(worker, claim, listeners=2)  # the first process still listens
            told = await stream.next()
            assert told is not None
            assert told.data["params"] == {"progressToken": "p", "progress": 3}
            await worker.end(claim)
            (answer,) = await stream.rest()
        assert (answer["id"], answer["result"]["content"][0]["text"]) == (1, "done")
        session.http = http
        async with session.listen(lost.id) as stream:
            assert (await stream.rest())[-1] == answer  # as often as it asks
        for wrong, status in (("nonsense", 400), (lost.id + "x", 200)):
            answered = await http.get(
                "/mcp", headers={**session.headers, "last-event-id": str(wrong)}
            )
            assert answered.status_code == status


@requirement("mcp:revisions", "mcp:streams")
async def test_batches_are_answered_as_one_by_the_first_revision_alone(api: Api) -> None:
    await api.serve()
    async with api.client(await api.key()) as http, working(api):
        session = await Session.start(http, "2025-03-26")
        batch = [
            session.request("tools/call", CALL),
            {"jsonrpc": "2.0", "method": "notifications/x"},
            session.request("ping"),
            session.request("no/such"),
        ]
        answers = {it["id"]: it for it in body_of(await session.post(batch))}
        assert answers[1]["result"]["content"]
        assert answers[2]["result"] == {}
        assert answers[3]["error"]["code"] == -32601
        told = await session.post(batch[1:2])
        assert (told.status_code, told.content) == (202, b"")
        session = await Session.start(http, "2025-06-18")
        refused = await session.post([session.request("ping")])
        assert (refused.status_code, error_of(refused)["code"]) == (400, -32600)


@requirement("mcp:streams")
async def test_a_batch_that_takes_long_is_streamed_answer_by_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "PATIENCE_S", 0)
    await api.serve()
    async with api.client(await api.key()) as http:
        session = await Session.start(http, "2025-03-26")
        worker = await worker_of(api, session.id)
        batch = [session.request("tools/call", CALL), session.request("ping")]
        async with session.stream(batch) as stream:
            claim = await worker.claim()
            first = await stream.next()
            await worker.end(claim)
            rest = await stream.rest()
    assert first is not None
    assert first.data["id"] == 2
    assert [it["id"] for it in rest] == [1]


# -- what happens meanwhile


@requirement("mcp:subscriptions")
async def test_a_session_is_told_when_the_fleet_has_other_tools(api: Api) -> None:
    await api.serve()
    async with api.client(await api.key()) as http:
        session = await Session.start(http)
        async with session.listen() as stream:
            first = await stream.next()
            assert first is not None
            assert first.data is None
            async with session.listen() as newer:
                assert await stream.rest() == []  # one message never comes on two streams
                await newer.next()
                await api.serve("other")
                told = await newer.next()
                assert told is not None
                assert told.data["method"] == "notifications/tools/list_changed"
                await session.end()
                assert await newer.rest() == []


@requirement("mcp:door")
async def test_a_narrowed_key_has_sessions_and_cancels_if_its_verbs_say_so(api: Api) -> None:
    await api.serve()
    async with api.client(await api.key(scopes=Scopes(verbs=(Verb.RUNS_READ,)))) as http:
        body = {"jsonrpc": "2.0", "id": 1, "method": "initialize"}
        refused = await http.post("/mcp", json=body)
        assert error_of(refused)["data"]["code"] == "out_of_scope"
    verbs = (Verb.RUNS_WRITE, Verb.CALLS_WRITE)
    async with api.client(await api.key(scopes=Scopes(verbs=verbs))) as http:
        session = await Session.start(http)
        for method in ("tools/list", "tasks/get"):
            assert error_of(await session.ask(method))["data"]["code"] == "out_of_scope"
        told = await session.tell("notifications/cancelled", {"requestId": 1})
        assert problem_of(told)["code"] == "out_of_scope"
        assert problem_of(await http.get("/mcp", headers=session.headers))["code"] == "out_of_scope"
