"""Traces on their way out: over OTLP to a collector, and into Redis for the console."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from redis.asyncio import Redis

from api.operations import Operations
from registry.settings import Settings
from registry.telemetry import Kind, Tracer, make_tracer
from registry.telemetry_sampling import Sampler
from registry.trace import parent_of
from tests.mcp_clients import Stateless
from tests.receiving import Receiver, receiving
from tests.requirements import requirement
from tests.serving import Api
from tests.waiting import until
from workers.client import FleetClient
from workers.kept_traces import KeptTraces

pytestmark = pytest.mark.anyio

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
KEPT = "toolfleet:{traces}"


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    async with receiving() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=collectors")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        yield collector


def one_call(tracer: Tracer) -> None:
    trace = tracer.begin("call", Kind.CONSUMER, TRACEPARENT)
    trace.attributes = {"toolfleet.tenant": "acme", "toolfleet.attempt": 1}
    with trace.step("tools/call echo", Kind.CLIENT) as step:
        step.attributes = {"toolfleet.borrow.spawned": True}
    trace.error = "call_timeout"
    tracer.end(trace)


@requirement("traces:exported")
async def test_a_collector_gets_spans_as_opentelemetry_has_them(collector: Receiver) -> None:
    tracer = make_tracer("toolfleet-worker", Settings())
    one_call(tracer)
    await tracer.close()
    (request,) = collector.got
    assert (request.path, request.headers["api-key"]) == ("/v1/traces", "collectors")
    (resource,) = ExportTraceServiceRequest.FromString(request.body).resource_spans
    who = {it.key: it.value.string_value for it in resource.resource.attributes}
    assert who["service.name"] == "toolfleet-worker"
    assert who["deployment.environment.name"] == "test"
    first, asked = resource.scope_spans[0].spans
    assert first.trace_id.hex() == asked.trace_id.hex() == TRACE
    assert (first.parent_span_id.hex(), asked.parent_span_id) == (CALLER, first.span_id)
    assert (first.kind, asked.kind) == (first.SPAN_KIND_CONSUMER, first.SPAN_KIND_CLIENT)
    assert (first.status.code, asked.status.code) == (2, 0)
    assert first.start_time_unix_nano <= asked.start_time_unix_nano <= first.end_time_unix_nano
    said = {it.key: it.value for it in first.attributes}
    assert said["error.type"].string_value == "call_timeout"
    assert (said["toolfleet.tenant"].string_value, said["toolfleet.attempt"].int_value) == (
        "acme",
        1,
    )


@requirement("traces:harmless")
async def test_a_collector_that_fails_costs_its_spans_alone(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    collector.manner = "fails"
    tracer = make_tracer("toolfleet-worker", Settings())
    one_call(tracer)
    await tracer.close()
    (outlet,) = tracer.outlets
    assert (outlet.counts["failed"], outlet.counts["delivered"]) == (1, 0)


@requirement("traces:exported")
async def test_a_disabled_sdk_records_and_exports_nothing(
    collector: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracer = make_tracer("toolfleet-worker", Settings())
    one_call(tracer)
    await tracer.close()
    assert (tracer.outlets, collector.got) == ([], [])


# -- kept


@requirement("traces:kept")
async def test_of_all_traces_the_newest_are_kept_and_no_longer_than_their_time(
    redis_url: str,
) -> None:
    async with Redis.from_url(redis_url) as redis:
        kept = KeptTraces(redis, most=2, lifetime_s=60)
        outlet, tracer = kept.outlet(), Tracer(sampler=Sampler(most_per_s=10))
        tracer.outlets.append(outlet)
        traces = [tracer.begin("call") for _ in range(3)]
        for trace in traces:
            tracer.end(trace)
        await outlet.close()
        found = [len(await kept.of(trace.trace_id)) for trace in traces]
        assert found == [0, 1, 1]
        assert len(await redis.keys("*")) == 4
        lasting = [await redis.ttl(key) for key in await redis.keys("*")]
        assert all(0 < it <= 60 for it in lasting)


async def bytes_kept(redis: Redis) -> int:
    """Return how many bytes the parts of all traces have."""
    lists = [key for key in await redis.keys("*") if await redis.type(key) == b"list"]
    return sum([sum(map(len, await redis.lrange(key, 0, -1))) for key in lists])


@requirement("traces:kept")
async def test_the_oldest_traces_go_until_all_have_no_more_than_so_many_bytes(
    redis_url: str,
) -> None:
    async with Redis.from_url(redis_url) as redis:
        kept = KeptTraces(redis, most_bytes=1_000)
        await kept.keep([(name, b"x" * 300) for name in "abc"])
        assert await bytes_kept(redis) == 900
        await kept.keep([("c", b"x" * 50), ("d", b"x" * 500)])
        assert await bytes_kept(redis) == 850
        assert [await redis.exists(f"{KEPT}:{name}") for name in "abcd"] == [0, 0, 1, 1]
        for number in range(250):
            await kept.keep([(str(number), b"x" * 300)])
        assert await bytes_kept(redis) == 900
        # So has what is noted of them.
        assert await redis.hlen(f"{KEPT}:bytes") == 4
        assert await redis.zcard(KEPT) == 3


@requirement("traces:kept")
async def test_of_one_trace_the_newest_parts_are_kept_and_no_more_than_so_many_bytes(
    redis_url: str,
) -> None:
    async with Redis.from_url(redis_url) as redis:
        kept = KeptTraces(redis, most_bytes=2_000, most_bytes_of_one=1_000)
        await kept.keep([("other", b"x" * 900)])
        await kept.keep([(TRACE, b"%d" % number * 300) for number in range(9)])
        await kept.keep([(TRACE, b"x" * 1_001)])
        parts = await redis.lrange(f"{KEPT}:{TRACE}", 0, -1)
        assert [part[:1] for part in parts] == [b"6", b"7", b"8"]
        assert await bytes_kept(redis) == 1_800


@requirement("traces:kept")
async def test_traces_that_are_past_their_time_take_no_room_from_others(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        kept = KeptTraces(redis, lifetime_s=60, most_bytes=1_000)
        for _ in range(5):
            await kept.keep([(name, b"x" * 450) for name in "ab"])
            for name in "ab":
                await redis.pexpire(f"{KEPT}:{name}", 0)
            await kept.keep([("b", b"x" * 450), ("c", b"x" * 450)])
            assert await bytes_kept(redis) == 900
            for name in "bc":
                await redis.pexpire(f"{KEPT}:{name}", 0)


@requirement("traces:kept")
async def test_parts_of_one_trace_from_several_processes_come_together(redis_url: str) -> None:
    api, worker = FleetClient(redis_url), FleetClient(redis_url)
    first = api.tracer.begin("POST", Kind.SERVER)
    second = worker.tracer.begin("call", Kind.CONSUMER, first.traceparent)
    worker.tracer.end(second)
    api.tracer.end(first)
    await worker.close()
    await api.close()
    reader = FleetClient(redis_url)
    spans = await reader.trace_of(first.trace_id)
    await reader.close()
    assert [(span.name, span.parent_id) for span in spans] == [
        ("POST", None),
        ("call", spans[0].span_id),
    ]


# -- the API's part


@requirement("traces:connected")
async def test_a_call_over_mcp_is_named_after_what_was_asked_and_its_row_knows_its_trace(
    api: Api,
) -> None:
    await api.serve()
    client = Stateless(api.http)
    body, headers = client.request(
        "tools/call", {"name": "demo_echo", "arguments": {"text": "hi"}}, traceparent=TRACEPARENT
    )
    asking = asyncio.create_task(api.http.post("/mcp", json=body, headers=headers))
    row = await until(partial(queued, api))
    own = parent_of(row["traceparent"])
    assert own is not None
    assert own.trace_id == TRACE
    await api.work(row["id"])
    assert (await asking).status_code == 200
    operations: Operations = api.app.state.operations
    spans = await until(partial(operations.client.trace_of, TRACE))
    named = {span.name: span for span in spans}
    asked = named["tools/call demo_echo"]
    assert (asked.span_id, asked.parent_id, asked.kind) == (own.span_id, CALLER, "server")
    assert asked.attributes["http.route"] == "/mcp"
    assert asked.attributes["mcp.protocol.version"] == "2026-07-28"
    assert named["submit"].parent_id == asked.span_id


async def queued(api: Api) -> dict[str, Any] | None:
    """Return the one call in the record, once it is there."""
    rows = await api.database.statement("SELECT id, traceparent FROM calls")
    return rows[0] if rows else None


@requirement("traces:connected")
async def test_a_call_that_nobody_traces_has_a_trace_of_its_own(api: Api) -> None:
    await api.serve()
    await api.submit(await api.run())
    row = await until(partial(queued, api))
    assert parent_of(row["traceparent"]) is not None
    figures = (await api.http.get("/metrics")).text
    assert 'toolfleet_trace_parts{outcome="kept",way="here"' in figures


@requirement("traces:failures-kept", "traces:nothing-personal")
async def test_a_refused_call_says_by_which_code_and_nothing_of_what_it_was(api: Api) -> None:
    await api.serve()
    run = await api.run()
    answer = await api.http.post(
        f"/v1/runs/{run['id']}/calls",
        json={"tool": "demo_echo", "arguments": {"text": 1, "jane@example.com": 2}},
        headers={"traceparent": TRACEPARENT},
    )
    assert answer.status_code == 422, answer.text
    operations: Operations = api.app.state.operations
    http, check = await until(partial(operations.client.trace_of, TRACE))
    assert (check.name, check.error) == ("check", "invalid_arguments")
    assert (http.error, http.attributes["http.response.status_code"]) == ("", 422)
    assert "jane" not in str((http, check))
