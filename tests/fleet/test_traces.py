"""One call is one trace, through every process of a real fleet, whichever way it came."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from registry.telemetry import Span
from tests.fleet.driver import Fleet, script
from tests.requirements import requirement
from tests.waiting import until
from workers.client import FleetClient

pytestmark = pytest.mark.anyio

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
WITHIN = ("claim", "policy", "breaker", "borrow", "tools/call echo", "redact", "commit")
RAW_CLIENT = """
import json, sys
from celery import Celery

url, token, tool, traceparent = sys.argv[1:]
app = Celery(broker=url, backend=url)
result = app.send_task(
    "toolfleet.submit",
    args=[token, tool, {"text": "hi"}],
    queue="toolfleet",
    headers={"traceparent": traceparent},
)
print(json.dumps(result.get(timeout=20)))
"""


@pytest.fixture(scope="module")
async def fleet(empty_fleet: Fleet) -> Fleet:
    await empty_fleet.serve(empty_fleet.sleeper("local", pool={"min_idle": 1, "max_size": 2}))
    return empty_fleet


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[FleetClient]:
    client = FleetClient(fleet.local.redis_url)
    yield client
    await client.close()


async def whole(client: FleetClient, trace_id: str, *, processes: int) -> list[Span] | None:
    """Return a trace once each process that has a part in it has left it."""
    spans = await client.trace_of(trace_id)
    names = {span.name for span in spans}
    arrived = {"enqueue", "commit"} <= names and len({span.service for span in spans}) >= processes
    return spans if arrived else None


def is_connected(spans: list[Span], caller: str | None) -> bool:
    """Say whether every span but the first, which is the caller's child, has its parent there."""
    ids = {span.span_id for span in spans}
    tops = [span.parent_id for span in spans if span.parent_id not in ids]
    return tops == [caller]


@requirement("traces:connected", "traces:kept", "traces:nothing-personal")
async def test_a_call_over_http_is_one_trace_from_its_request_to_its_commit(
    fleet: Fleet, client: FleetClient
) -> None:
    fleet.http.headers["traceparent"] = f"00-{TRACE}-{CALLER}-01"
    try:
        run = await fleet.run()
        call = await fleet.call(run, "local_echo", text="jane@example.com, 4111 1111 1111 1111")
    finally:
        del fleet.http.headers["traceparent"]
    spans = await until(partial(whole, client, TRACE, processes=2))
    assert is_connected(spans, CALLER)
    named = {span.name: span for span in spans}
    http = named["POST /v1/runs/{run_id}/calls"]
    assert spans[0] is http
    assert {named[it].parent_id for it in ("check", "submit", "enqueue", "call")} == {http.span_id}
    assert {named[it].parent_id for it in WITHIN} == {named["call"].span_id}
    assert named["queue wait"].start_s == named["call"].start_s
    asked = named["tools/call echo"].attributes
    assert (
        asked
        | {
            "mcp.method.name": "tools/call",
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "echo",
            "network.transport": "pipe",
            "toolfleet.call.id": call["id"],
            "toolfleet.run.id": run["id"],
            "toolfleet.tenant": "acme",
            "toolfleet.server": "local",
            "toolfleet.server.version": fleet.folder.name,
            "toolfleet.attempt": 1,
        }
        == asked
    )
    assert named["borrow"].attributes["toolfleet.borrow.spawned"] is False
    assert http.attributes["toolfleet.arguments.bytes"] > 0
    told = json.dumps([vars(span) for span in spans])
    assert not [it for it in ("jane", "4111", "operator", "127.0.0.1", "http://") if it in told]


@requirement("traces:connected")
async def test_a_call_of_a_raw_celery_client_goes_on_with_the_clients_trace(
    fleet: Fleet, client: FleetClient
) -> None:
    run = await fleet.run()
    trace = TRACE[::-1]
    traceparent = f"00-{trace}-{CALLER}-01"
    said = await script(
        RAW_CLIENT, fleet.local.redis_url, run["run_token"], "local_echo", traceparent
    )
    answer: dict[str, Any] = json.loads(said)
    assert answer["content"][0]["text"] == "hi"
    spans = await until(partial(whole, client, trace, processes=2))
    assert is_connected(spans, CALLER)
    assert (spans[0].name, spans[0].service) == ("toolfleet.submit", "toolfleet-steward")
    assert "tools/call echo" in {span.name for span in spans}
