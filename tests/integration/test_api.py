"""What HTTP callers observe, over real HTTP, with a real Postgres and Redis.

Where a call has to end, the test takes the worker's part in the ledger itself: it claims the row,
finishes it and gives the hint, as a worker does.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from redis.asyncio import Redis
from starlette.routing import BaseRoute

from api.app import create_app
from compose.embedded import free_port
from registry import calls, catalog, ingest
from registry.database import Database
from registry.settings import Settings
from registry.trace import parent_of
from tests.requirements import requirement
from tests.serving import ECHO, WORKER, Api, problem_of, serving
from tests.shop import document, shop_definition
from tests.waiting import until
from workers.client import PROGRESS_CHANNEL
from workers.signals import Signals

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
NOWHERE = "redis://127.0.0.1:1/0"
JSON = {"content-type": "application/json"}
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """Return every (method, path) that the application has."""

    def walk(routes: list[BaseRoute]) -> list[tuple[str, str]]:
        found = []
        for route in routes:
            found += walk(list(getattr(route, "routes", None) or []))
            found += [(method, route.path) for method in getattr(route, "methods", None) or ()]
        return found

    return walk(list(app.routes))


# -- who may ask ----------------------------------------------------------------------------


@requirement("api:no-route-without-key")
async def test_only_health_answers_without_a_key(api: Api) -> None:
    paths = {path for methods in api.app.openapi()["paths"].items() for path in methods[:1]}
    known = routes_of(api.app) + [("GET", path) for path in paths] + [("POST", p) for p in paths]
    assert ("GET", "/docs") in known
    assert len(paths) > 15
    open_to_all = set()
    async with api.client(None) as nobody:
        for method, path in [*known, ("GET", "/nowhere"), ("GET", "/v1")]:
            answer = await nobody.request(method, path)
            if answer.status_code == 401:
                assert method == "HEAD" or problem_of(answer)["code"] == "unauthenticated"
            else:
                open_to_all.add(path)
    assert open_to_all == {"/healthz", "/readyz"}


@requirement("api:no-route-without-key")
async def test_an_unknown_key_is_refused(api: Api) -> None:
    async with api.client("tf_nobody") as nobody:
        answer = await nobody.get("/v1/servers")
    assert problem_of(answer)["code"] == "unauthenticated"
    assert answer.headers["www-authenticate"] == "Bearer"


@requirement("api:key-expired")
async def test_an_expired_key_says_that_it_is_expired(api: Api) -> None:
    key = await api.key(lifetime=timedelta(seconds=-1))
    async with api.client(key) as late:
        problem = problem_of(await late.get("/v1/servers"))
    assert (problem["code"], problem["status"]) == ("key_expired", 401)
    assert problem["hint"]


@requirement("api:keys")
async def test_a_key_works_from_its_creation_to_its_revocation(api: Api) -> None:
    made = await api.http.post(
        "/v1/keys", json={"name": "new", "role": "tenant", "tenant": "acme", "lifetime_s": 60}
    )
    assert made.status_code == 201
    async with api.client(made.json()["key"]) as tenant:
        assert (await tenant.get("/v1/servers")).status_code == 200
        listed = (await api.http.get("/v1/keys")).json()["keys"]
        assert [it["tenant_id"] for it in listed if it["id"] == made.json()["id"]] == ["acme"]
        assert made.json()["key"] not in str(listed)
        revoked = await api.http.delete(f"/v1/keys/{made.json()['id']}")
        assert revoked.status_code == 204
        assert (await tenant.get("/v1/servers")).status_code == 401
    assert problem_of(await api.http.delete("/v1/keys/feed"))["code"] == "not_found"


@requirement("api:operators-only")
async def test_what_changes_the_fleet_is_refused_to_tenants(api: Api) -> None:
    await api.serve()
    definition = {"name": "x", "transport": "stdio", "command": "true"}
    async with api.client(await api.key()) as tenant:
        answers = [
            await tenant.post("/v1/servers", json=definition),
            await tenant.post("/v1/servers/demo/versions", json=definition),
            await tenant.post("/v1/servers/demo/refresh"),
            await tenant.delete("/v1/servers/demo"),
            await tenant.get("/v1/keys"),
            await tenant.post("/v1/keys", json={"name": "x", "role": "operator"}),
            await tenant.delete("/v1/keys/0000000000000000"),
            await tenant.get("/metrics"),
        ]
    assert [problem_of(answer)["code"] for answer in answers] == ["forbidden"] * len(answers)


@requirement("api:tenants-are-apart")
async def test_another_tenants_objects_do_not_exist(api: Api) -> None:
    await api.serve()
    run = await api.run("globex")
    call = await api.submit(run)
    body = {"tool": "demo_echo", "arguments": {"text": "x"}}
    async with api.client(await api.key(tenant="acme")) as acme:
        runs = [
            await acme.get(f"/v1/runs/{run['id']}"),
            await acme.get(f"/v1/runs/{run['id']}/calls"),
            await acme.post(f"/v1/runs/{run['id']}/calls", json=body),
            await acme.post(f"/v1/runs/{run['id']}/cancel"),
            await acme.post(f"/v1/runs/{run['id']}/close"),
        ]
        ledger = [
            await acme.get(f"/v1/calls/{call['id']}"),
            await acme.get(f"/v1/calls/{call['id']}/events"),
            await acme.post(f"/v1/calls/{call['id']}/cancel"),
        ]
    assert [problem_of(answer)["code"] for answer in runs] == ["unknown_run"] * len(runs)
    assert [problem_of(answer)["code"] for answer in ledger] == ["unknown_call"] * len(ledger)
    unchanged = (await api.http.get(f"/v1/calls/{call['id']}")).json()
    assert (unchanged["state"], unchanged["stop_requested_at"]) == ("queued", None)


@requirement("api:tenants-are-apart")
async def test_a_tenants_key_starts_runs_for_that_tenant_alone(api: Api) -> None:
    async with api.client(await api.key(tenant="acme")) as acme:
        own = await acme.post("/v1/runs", json={})
        other = await acme.post("/v1/runs", json={"tenant": "globex"})
    assert own.json()["tenant"] == "acme"
    assert problem_of(other)["code"] == "forbidden"


@requirement("api:tenants-are-apart")
async def test_a_tenant_sees_the_servers_it_may_use_and_not_how_they_are_run(api: Api) -> None:
    await api.serve("demo", command="secret-command")
    await api.serve("other", tenants=["globex"])
    async with api.client(await api.key(tenant="acme")) as acme:
        listed = await acme.get("/v1/servers")
        hidden = await acme.get("/v1/servers/other")
    assert [server["name"] for server in listed.json()["servers"]] == ["demo"]
    assert "secret-command" not in listed.text
    assert problem_of(hidden)["code"] == "unknown_server"


# -- servers --------------------------------------------------------------------------------


@requirement("api:servers")
async def test_a_server_lives_from_registration_to_removal(api: Api) -> None:
    definition = {"name": "demo", "transport": "stdio", "command": "true", "env": {"K": "hush"}}
    added = await api.http.post("/v1/servers", json=definition)
    assert (added.status_code, added.headers["location"]) == (201, "/v1/servers/demo")
    assert "hush" not in added.text
    twice = await api.http.post("/v1/servers", json=definition)
    assert problem_of(twice)["code"] == "name_collision"
    newer = await api.http.post(
        "/v1/servers/demo/versions", json={**definition, "version": "2", "args": ["-v"]}
    )
    assert (newer.status_code, newer.json()["version"]) == (201, "2")
    assert (await api.http.get("/v1/servers/demo")).json()["version"] == "2"
    assert (await api.http.delete("/v1/servers/demo")).status_code == 204
    assert problem_of(await api.http.get("/v1/servers/demo"))["code"] == "unknown_server"


@requirement("api:servers", "catalog:tried")
async def test_a_registration_can_be_tried_before_it_is_made(api: Api) -> None:
    definition = {"name": "demo", "transport": "stdio", "command": "true"}
    tried = await api.http.post("/v1/servers", params={"dry_run": True}, json=definition)
    assert (tried.status_code, tried.json()["added"]) == (200, False)
    assert (await api.http.get("/v1/servers")).json() == {"servers": []}
    assert (await api.http.post("/v1/servers", json=definition)).status_code == 201
    again = await api.http.post("/v1/servers", params={"dry_run": True}, json=definition)
    assert problem_of(again)["details"] == {"server": "demo", "same": True}


@requirement("api:servers")
async def test_a_bad_definition_names_each_wrong_field(api: Api) -> None:
    bad = {"name": "Demo!", "transport": "stdio", "pool": {"min_idle": -1}}
    problem = problem_of(await api.http.post("/v1/servers", json=bad))
    assert problem["code"] == "invalid_definition"
    paths = [item["path"] for item in problem["details"]["problems"]]
    assert {"name", "pool/min_idle"} <= set(paths)


@requirement("openapi:refusals")
async def test_a_document_is_taken_up_to_its_limit_however_it_is_escaped(api: Api) -> None:
    def body(title: str) -> str:
        long = document(info={"title": title, "version": "1"})
        return json.dumps(shop_definition(openapi={"document": long}))

    taken = await api.http.post("/v1/servers", content=body("\u00e9" * 600_000), headers=JSON)
    refused = await api.http.post("/v1/servers", content=body("e" * 2_000_000), headers=JSON)
    assert taken.status_code == 201
    assert len(taken.text) < 5_000
    (problem,) = problem_of(refused)["details"]["problems"]
    assert problem["path"] == "openapi/document"


@requirement("api:servers")
async def test_a_refresh_is_awaited_until_the_tools_are_listed_anew(api: Api) -> None:
    await api.serve()
    server = await catalog.get_server(api.database, "demo")
    assert (await api.http.post("/v1/servers/demo/refresh")).status_code == 202
    assert (await catalog.get_server(api.database, "demo")).stale
    refresh = asyncio.create_task(
        api.http.post("/v1/servers/demo/refresh", headers={"prefer": "wait=20"})
    )
    more = {**ECHO, "name": "shout"}
    await ingest.ingest(api.database, server.id, server.definition, [ECHO, more])

    async def list_until_answered() -> bool:
        await ingest.ingest(api.database, server.id, server.definition, [ECHO, more])
        return refresh.done()

    await until(list_until_answered)
    answer = await refresh
    assert (answer.status_code, answer.json()["tools"]) == (200, ["echo", "shout"])
    assert answer.headers["preference-applied"] == "wait=20"
    changes = (await api.http.get("/v1/servers/demo/changes")).json()["changes"]
    assert [(it["change"], it["tool"]) for it in changes[0]["changes"]] == [("added", "shout")]


# -- runs and calls -------------------------------------------------------------------------


@requirement("api:runs")
async def test_a_run_shows_its_tools_as_a_model_sees_them(api: Api) -> None:
    await api.serve()
    started = await api.run()
    assert started["run_token"]
    shown = (await api.http.get(f"/v1/runs/{started['id']}")).json()
    assert "run_token" not in shown
    assert shown == {key: value for key, value in started.items() if key != "run_token"}
    assert shown["state"] == "open"
    assert shown["tools"] == [{**ECHO, "name": "demo_echo"}]


@requirement("api:wait")
async def test_a_call_that_ends_within_the_wait_is_answered_with_its_result(api: Api) -> None:
    await api.serve()
    run = await api.run()
    submitting = asyncio.create_task(
        api.http.post(
            f"/v1/runs/{run['id']}/calls",
            json={"tool": "demo_echo", "arguments": {"text": "hi"}},
            headers={"prefer": "respond-async, wait=15"},
        )
    )
    result = await api.work(await api.queued(run))
    answer = await submitting
    body = answer.json()
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=15")
    assert (body["state"], body["is_error"], body["result"]) == ("succeeded", False, result)
    assert (body["server"], body["delivery"], body["attempts"]) == ("demo", "write", 1)
    assert body == (await api.http.get(f"/v1/calls/{body['id']}")).json()


@requirement("api:wait")
async def test_a_call_that_does_not_end_within_the_wait_is_202_with_its_location(
    api: Api,
) -> None:
    await api.serve()
    run = await api.run()
    answer = await api.http.post(
        f"/v1/runs/{run['id']}/calls",
        json={"tool": "demo_echo", "arguments": {"text": "hi"}},
        headers={"prefer": "wait=1"},
    )
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert answer.headers["preference-applied"] == "wait=1"
    assert (await api.http.get(answer.headers["location"])).json() == answer.json()


@requirement("api:wait")
async def test_a_lost_hint_delays_the_answer_and_changes_nothing_else(api: Api) -> None:
    await api.serve()
    call = await api.submit(await api.run())
    waiting = asyncio.create_task(api.http.get(f"/v1/calls/{call['id']}?wait=15"))
    result = await api.work(call["id"], hint=False)
    assert (await waiting).json()["result"] == result


@requirement("api:wait")
async def test_waits_end_at_once_when_the_server_stops(api: Api) -> None:
    await api.serve()
    call = await api.submit(await api.run())
    waiting = asyncio.create_task(api.http.get(f"/v1/calls/{call['id']}?wait=60"))
    room = api.app.state.operations.room
    await until(lambda: call["id"] in room._expected)
    room.dismiss()
    assert (await waiting).json()["state"] == "queued"


@requirement("api:wait")
@pytest.mark.parametrize("wait", ["-1", "soon", "nan"])
async def test_a_wait_that_is_no_number_of_seconds_is_refused(api: Api, wait: str) -> None:
    answer = await api.http.get(f"/v1/calls/{UNKNOWN_ID}?wait={wait}")
    assert problem_of(answer)["code"] == "invalid_request"


@requirement("api:submit-errors")
async def test_an_unknown_tool_is_refused_with_the_nearest_names(api: Api) -> None:
    await api.serve()
    run = await api.run()
    answer = await api.http.post(f"/v1/runs/{run['id']}/calls", json={"tool": "demo_ecko"})
    problem = problem_of(answer)
    assert (problem["code"], problem["retryable"]) == ("unknown_tool", False)
    assert "demo_echo" in problem["hint"]


@requirement("api:submit-errors")
async def test_invalid_arguments_are_refused_with_their_json_path(api: Api) -> None:
    await api.serve()
    run = await api.run()
    answer = await api.http.post(
        f"/v1/runs/{run['id']}/calls",
        json={"tool": "demo_echo", "arguments": {"text": 3, "at": "here"}},
    )
    problem = problem_of(answer)
    assert problem["code"] == "invalid_arguments"
    assert {it["path"] for it in problem["details"]["problems"]} == {"$.text", "$.at"}
    assert (await api.http.get(f"/v1/runs/{run['id']}/calls")).json() == {"calls": []}


@requirement("api:submit-errors")
@pytest.mark.parametrize("run_id", [UNKNOWN_ID, "no-id", "%00"])
async def test_an_unknown_run_takes_no_calls(api: Api, run_id: str) -> None:
    answer = await api.http.post(f"/v1/runs/{run_id}/calls", json={"tool": "demo_echo"})
    assert problem_of(answer)["code"] == "unknown_run"


@requirement("api:submit-errors")
@pytest.mark.parametrize(("verb", "code"), [("close", "run_closed"), ("cancel", "run_cancelled")])
async def test_a_run_that_ended_takes_no_calls(api: Api, verb: str, code: str) -> None:
    await api.serve()
    run = await api.run()
    await api.submit(run)
    assert (await api.http.post(f"/v1/runs/{run['id']}/{verb}")).status_code == 200
    answer = await api.http.post(
        f"/v1/runs/{run['id']}/calls", json={"tool": "demo_echo", "arguments": {"text": "x"}}
    )
    assert problem_of(answer)["code"] == code


@requirement("api:submit-errors")
async def test_a_run_cancelled_behind_this_process_takes_no_calls(api: Api) -> None:
    await api.serve()
    run = await api.run()
    await api.submit(run)
    async with api.database.transaction() as connection:
        await connection.exec_driver_sql("UPDATE runs SET state = 'cancelled'")
    answer = await api.http.post(
        f"/v1/runs/{run['id']}/calls", json={"tool": "demo_echo", "arguments": {"text": "x"}}
    )
    assert problem_of(answer)["code"] == "run_cancelled"


@requirement("api:idempotency")
async def test_submitting_twice_with_one_key_is_one_call(api: Api) -> None:
    await api.serve()
    run = await api.run()
    first = await api.submit(run, idempotency_key="order-7")
    again = await api.http.post(
        f"/v1/runs/{run['id']}/calls",
        json={"tool": "demo_echo", "arguments": {"text": "hi"}},
        headers={"idempotency-key": '"order-7"'},
    )
    assert again.json() == first
    other = await api.http.post(
        f"/v1/runs/{run['id']}/calls",
        json={"tool": "demo_echo", "arguments": {"text": "ho"}, "idempotency_key": "order-7"},
    )
    assert problem_of(other)["code"] == "idempotency_mismatch"
    assert other.status_code == 422


@requirement("api:idempotency")
async def test_a_finished_call_is_answered_again_with_its_result(api: Api) -> None:
    await api.serve()
    run = await api.run()
    first = await api.submit(run, idempotency_key="order-7")
    result = await api.work(first["id"])
    again = await api.http.post(
        f"/v1/runs/{run['id']}/calls",
        json={"tool": "demo_echo", "arguments": {"text": "hi"}, "idempotency_key": "order-7"},
    )
    assert (again.status_code, again.json()["result"]) == (200, result)


@requirement("api:message-is-a-hint")
async def test_the_message_of_a_call_names_it_and_carries_no_arguments(api: Api) -> None:
    await api.serve()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    run = await api.run()
    api.http.headers["traceparent"] = trace
    call = await api.submit(run, "a text of the caller's own")
    await until(lambda: api.redis.llen("mcp.demo"))
    message = json.loads((await api.redis.lrange("mcp.demo", 0, -1))[0])
    assert message["headers"]["id"] == call["id"]
    told = parent_of(message["headers"]["traceparent"])
    assert told is not None
    assert (told.trace_id, told.sampled) == (trace[3:35], True)
    assert told.span_id not in trace
    assert "a text of the caller" not in str(await api.redis.lrange("mcp.demo", 0, -1))


# -- stopping -------------------------------------------------------------------------------


@requirement("api:cancel")
async def test_a_queued_call_is_stopped_before_dispatch_and_never_claimed(api: Api) -> None:
    await api.serve()
    call = await api.submit(await api.run())
    waiting = asyncio.create_task(api.http.get(f"/v1/calls/{call['id']}?wait=15"))
    answer = (await api.http.post(f"/v1/calls/{call['id']}/cancel")).json()
    assert answer["answer"] == "stopped_before_dispatch"
    assert (answer["call"]["state"], answer["call"]["error"]["code"]) == ("stopped", "stopped")
    assert (await waiting).json() == answer["call"]
    assert await calls.claim(api.database, WORKER, [call["id"]]) == [None]


@requirement("api:cancel")
async def test_a_running_call_is_asked_to_stop_in_the_record_and_by_revoke(api: Api) -> None:
    await api.serve()
    call = await api.submit(await api.run())
    await calls.claim(api.database, WORKER, [call["id"]])
    async with api.redis.pubsub(ignore_subscribe_messages=True) as control:
        await control.psubscribe("*celery.pidbox")
        answer = (await api.http.post(f"/v1/calls/{call['id']}/cancel")).json()
        message = await until(lambda: control.get_message(timeout=1))
    assert answer["answer"] == "stop_requested"
    assert answer["call"]["state"] == "running"
    assert answer["call"]["stop_requested_at"] is not None
    body = json.loads(message["data"])["body"]
    assert call["id"] in body or call["id"] in _decoded(body)
    assert await calls.stops_of(api.database, WORKER) == [call["id"]]


def _decoded(body: str) -> str:
    return base64.b64decode(body).decode()


@requirement("api:cancel")
async def test_a_call_that_has_ended_is_too_late_to_stop(api: Api) -> None:
    await api.serve()
    call = await api.submit(await api.run())
    await api.work(call["id"])
    answer = (await api.http.post(f"/v1/calls/{call['id']}/cancel")).json()
    assert (answer["answer"], answer["call"]["state"]) == ("too_late", "succeeded")
    unknown = await api.http.post(f"/v1/calls/{UNKNOWN_ID}/cancel")
    assert problem_of(unknown)["code"] == "unknown_call"


@requirement("api:cancel")
async def test_cancelling_a_run_stops_its_calls(api: Api) -> None:
    await api.serve()
    run = await api.run()
    queued, running, done = [await api.submit(run) for _ in range(3)]
    await calls.claim(api.database, WORKER, [running["id"]])
    await api.work(done["id"])
    answer = (await api.http.post(f"/v1/runs/{run['id']}/cancel")).json()
    assert answer["state"] == "cancelled"
    assert answer["calls"] == {"stopped_before_dispatch": 1, "stop_requested": 1}
    assert (await api.http.get(f"/v1/calls/{queued['id']}")).json()["state"] == "stopped"
    assert await calls.stops_of(api.database, WORKER) == [running["id"]]
    assert (await api.http.get(f"/v1/calls/{done['id']}")).json()["state"] == "succeeded"


# -- events ---------------------------------------------------------------------------------


async def _events(answer: httpx2.Response) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


@requirement("api:events")
async def test_a_call_is_followed_from_its_state_through_progress_to_its_end(api: Api) -> None:
    await api.serve()
    call = await api.submit(await api.run())
    channel = PROGRESS_CHANNEL + call["id"]
    async with api.http.stream("GET", f"/v1/calls/{call['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = _events(answer)
        assert await anext(events) == ("state", call)
        await until(lambda: _listeners(api.redis, channel))
        await Signals(api.redis).progress(call["id"], 1, 3, "a third")
        progress = ("progress", {"progress": 1, "total": 3, "message": "a third"})
        assert await anext(events) == progress
        await api.work(call["id"])
        rest = [event async for event in events]
    assert [name for name, _ in rest] == ["state"]
    assert rest[0][1] == (await api.http.get(f"/v1/calls/{call['id']}")).json()
    assert rest[0][1]["state"] == "succeeded"
    await until(lambda: _no_listeners(api.redis, channel))


@requirement("api:events")
async def test_a_listener_that_leaves_leaves_nothing_behind_and_the_call_goes_on(
    api: Api,
) -> None:
    await api.serve()
    call = await api.submit(await api.run())
    channel = PROGRESS_CHANNEL + call["id"]
    room = api.app.state.operations.room
    async with api.http.stream("GET", f"/v1/calls/{call['id']}/events") as answer:
        events = _events(answer)  # kept: the stream closes with its reader
        await anext(events)
        await until(lambda: _listeners(api.redis, channel))
    await until(lambda: _no_listeners(api.redis, channel))
    await until(lambda: not room._expected)
    assert (await api.http.get(f"/v1/calls/{call['id']}")).json()["state"] == "queued"


async def _listeners(redis: Redis, channel: str) -> bool:
    return bool((await redis.pubsub_numsub(channel))[0][1])


async def _no_listeners(redis: Redis, channel: str) -> bool:
    return not await _listeners(redis, channel)


# -- bad input ------------------------------------------------------------------------------


@requirement("api:problems")
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not valid JSON"),
        (b"", "required"),
        (b"[]", "dictionary"),
        (b'{"tool": "a", "tool": "b"}', "the key 'tool' occurs twice"),
        (b'{"tool": "a", "arguments": {"x": {"y": 1, "y": 2}}}', "the key 'y' occurs twice"),
        (b'{"tool": "a", "arguments": {"x": NaN}}', "NaN is not JSON"),
        (b'{"tool": "a", "arguments": {"x": 1e999}}', "1e999 is too large a number"),
        (b'{"tool": "\xff"}', "not UTF-8"),
        (b'{"tool": "a", "arguments": {"x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}}", "too deep"),
        (b'{"tool": 1}', "body.tool"),
        (b'{"tool": "a", "extra": 1}', "body.extra"),
        (b'{"tool": "a", "arguments": "x"}', "body.arguments"),
        (b'{"tool": "a", "timeout_s": -1}', "body.timeout_s"),
        (b'{"tool": "a", "idempotency_key": "\\u0000"}', "body.idempotency_key"),
    ],
)
async def test_a_malformed_body_is_a_problem_that_says_where(
    api: Api, body: bytes, says: str
) -> None:
    answer = await api.http.post(
        f"/v1/runs/{UNKNOWN_ID}/calls", content=body, headers={"content-type": "application/json"}
    )
    problem = problem_of(answer)
    assert (problem["code"], problem["retryable"]) == ("invalid_request", False)
    assert says in problem["detail"]


@requirement("api:problems")
async def test_unknown_routes_and_wrong_methods_are_problems(api: Api) -> None:
    assert problem_of(await api.http.get("/v1/nothing"))["code"] == "not_found"
    wrong = await api.http.put("/v1/runs")
    assert (problem_of(wrong)["status"], wrong.headers["allow"]) == (405, "POST")


@requirement("api:problems")
async def test_a_body_beyond_the_limit_is_cut_off_while_it_streams(api: Api) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(200):
            sent += 1
            yield b"x" * 100_000

    answer = await api.http.post(
        "/v1/servers", content=endless(), headers={"content-type": "application/json"}
    )
    assert problem_of(answer)["code"] == "request_too_large"


@requirement("api:problems")
async def test_arguments_beyond_the_limit_are_refused(database: Database, redis_url: str) -> None:
    async with serving(database, redis_url, max_arguments_bytes=1000) as api:
        await api.serve()
        run = await api.run()
        answer = await api.http.post(
            f"/v1/runs/{run['id']}/calls",
            json={"tool": "demo_echo", "arguments": {"text": "x" * 1500}},
        )
    assert problem_of(answer)["code"] == "request_too_large"


@requirement("api:problems")
async def test_a_failure_inside_says_nothing_of_the_inside(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    await api.serve()
    run = await api.run()
    async with api.database.transaction() as connection:
        await connection.exec_driver_sql("ALTER TABLE calls RENAME COLUMN is_error TO was_error")
    answer = await api.http.get(f"/v1/calls/{UNKNOWN_ID}")
    problem = problem_of(answer)
    assert (problem["code"], problem["status"]) == ("internal", 500)
    assert "is_error" not in answer.text
    assert run["id"] not in answer.text
    assert (await api.http.get("/healthz")).status_code == 200  # on the same connection


# -- parts that are away --------------------------------------------------------------------


@requirement("api:broker-away")
async def test_a_call_is_taken_and_awaited_while_redis_is_away(database: Database) -> None:
    async with serving(database, NOWHERE) as api:
        ready = await api.http.get("/readyz")
        assert (ready.status_code, ready.json()["broker"]) == (503, "away")
        await api.serve()
        run = await api.run()
        call = await api.submit(run)
        waiting = asyncio.create_task(api.http.get(f"/v1/calls/{call['id']}?wait=15"))
        result = await api.work(call["id"], hint=False)
        assert (await waiting).json()["result"] == result
        stopped = await api.submit(run)
        answer = (await api.http.post(f"/v1/calls/{stopped['id']}/cancel")).json()
        assert answer["answer"] == "stopped_before_dispatch"


@requirement("api:store-away")
async def test_the_api_starts_without_postgres_and_says_so_to_each_caller(
    database: Database, redis_url: str
) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    async with serving(database, redis_url, database_url=nowhere) as api:
        assert (await api.http.get("/healthz")).status_code == 200
        ready = await api.http.get("/readyz")
        assert ready.json() == {"ready": False, "database": "away", "broker": "ok"}
        refused = await api.http.get("/v1/servers")
    problem = problem_of(refused)
    assert (problem["code"], problem["retryable"]) == ("store_unavailable", True)
    assert refused.headers["retry-after"] == "1"


# -- the process ----------------------------------------------------------------------------


@asynccontextmanager
async def process(database_url: str, redis_url: str) -> AsyncIterator[tuple[Process, str]]:
    """Run the API as its own process; yield it and its address."""
    port = free_port()
    environment = {
        **os.environ,
        "TOOLFLEET_DATABASE_URL": database_url,
        "TOOLFLEET_REDIS_URL": redis_url,
        "TOOLFLEET_SECRET_KEY": "a secret of at least thirty-two bytes",
        "TOOLFLEET_API_PORT": str(port),
    }
    api = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api.main", env=environment, cwd=ROOT
    )
    try:
        url = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(trust_env=False) as http:

            async def alive() -> bool:
                with suppress(httpx2.TransportError):
                    return (await http.get(f"{url}/healthz")).status_code == 200
                return False

            await until(alive)
        yield api, url
    finally:
        if api.returncode is None:
            api.kill()
        await api.wait()


@requirement("api:strong-key")
@pytest.mark.parametrize("key", ["", "k" * 31])
def test_an_api_whose_signing_key_could_be_guessed_does_not_start(key: str) -> None:
    settings = Settings(secret_key=SecretStr(key), database_url="postgresql://", redis_url="redis:")
    with pytest.raises(ValueError, match="TOOLFLEET_SECRET_KEY is empty or shorter than 32 bytes"):
        create_app(settings)


@requirement("api:stops")
async def test_a_stopping_process_answers_whoever_waits_and_ends(
    api: Api, database_url: str, redis_url: str
) -> None:
    await api.serve()
    call = await api.submit(await api.run())
    async with process(database_url, redis_url) as (running, url):
        waiting = asyncio.create_task(api.http.get(f"{url}/v1/calls/{call['id']}?wait=60"))
        follow = f"{url}/v1/calls/{call['id']}/events"
        async with api.http.stream("GET", follow) as answer:
            events = _events(answer)
            await anext(events)
            running.terminate()
            assert [event async for event in events] == []
        assert (await waiting).json() == call
        async with asyncio.timeout(20):
            await running.wait()


@requirement("api:stops")
async def test_a_process_without_postgres_and_redis_starts_and_ends(api: Api) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    async with process(nowhere, NOWHERE) as (running, url):
        ready = await api.http.get(f"{url}/readyz")
        assert ready.json() == {"ready": False, "database": "away", "broker": "away"}
        running.terminate()
        async with asyncio.timeout(20):
            await running.wait()


# -- figures --------------------------------------------------------------------------------


@requirement("api:metrics")
async def test_metrics_show_requests_queues_calls_and_each_workers_figures(api: Api) -> None:
    await api.serve()
    await api.submit(await api.run())
    for worker, count in (("w1", 3), ("w2", 4)):
        text = (
            "# HELP toolfleet_calls_total Calls\n# TYPE toolfleet_calls_total counter\n"
            f'toolfleet_calls_total{{server="demo",state="succeeded"}} {count}.0\n'
        )
        await Signals(api.redis).figures(worker, text)
    await until(lambda: api.redis.llen("mcp.demo"))
    answer = await api.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    for worker, count in (("w1", 3), ("w2", 4)):
        assert (
            f'toolfleet_calls_total{{server="demo",state="succeeded",worker="{worker}"}} {count}.0'
        ) in lines
    assert 'toolfleet_queue_length{server="demo"} 1.0' in lines
    assert 'toolfleet_calls_unfinished{state="queued"} 1.0' in lines
    assert 'toolfleet_workers{server="demo"} 0.0' in lines
    counted = (
        'toolfleet_http_requests_total{method="POST",route="/v1/runs/{run_id}/calls",status="202",'
        'worker="api:'
    )
    assert [line[-4:] for line in lines if line.startswith(counted)] == [" 1.0"]
    assert lines.count("# TYPE toolfleet_calls_total counter") == 1


@requirement("api:documented")
async def test_the_openapi_document_names_every_route_and_its_bodies(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()
    assert document["security"] == [{"key": []}]
    submit = document["paths"]["/v1/runs/{run_id}/calls"]["post"]
    assert submit["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "SubmitCall"
    )
    assert "Prefer" in [parameter["name"] for parameter in submit["parameters"]]
    assert (await api.http.get("/docs")).status_code == 200
