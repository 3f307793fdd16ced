"""Calls through a whole fleet: over every transport, warm, recycled, and ended by typed errors."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from registry import catalog, ingest
from registry.definitions import parse_definition
from tests.fleet.driver import MAX_RESULT_BYTES, SERVERS, Fleet, living
from tests.ledger import listed
from tests.requirements import requirement
from tests.waiting import until
from workers.mark import marked

pytestmark = pytest.mark.anyio

MODERN, LEGACY = "2026-07-28", "2025-11-25"
STOPPED = {"stop_requested", "stopped_before_dispatch"}


@pytest.fixture(scope="module")
async def fleet(empty_fleet: Fleet) -> AsyncIterator[Fleet]:
    fleet = empty_fleet
    few_calls = {"min_idle": 1, "max_size": 2, "max_calls": 3}
    quick = {"block": {"timeout_s": 0.3, "delivery": "read"}, "sleep": {"delivery": "read"}}
    odd = {"name": "odd", "transport": "stdio", "command": sys.executable}
    async with fleet.echo_http("web") as web, fleet.echo_http("old", "--legacy") as old:
        local = fleet.echo(
            "local", tools={"block": {"timeout_s": 0.3}, "sleep": {"delivery": "read"}}
        )
        await fleet.serve(
            local,
            web,
            old,
            fleet.sleeper("short", pool=few_calls, tools=quick),
            {**odd, "args": [str(SERVERS / "odd.py")]},
        )
        yield fleet


def text(call: dict[str, Any]) -> str:
    return str(call["result"]["content"][0]["text"])


# -- transports


@requirement("fleet:transports")
async def test_a_call_over_stdio_succeeds(fleet: Fleet) -> None:
    call = await fleet.call(await fleet.run(), "local_meta")
    assert (call["state"], call["is_error"], call["attempts"]) == ("succeeded", False, 1)
    assert json.loads(text(call))["io.modelcontextprotocol/protocolVersion"] == MODERN


@requirement("fleet:transports")
@pytest.mark.parametrize(("server", "revision"), [("web", MODERN), ("old", LEGACY)])
async def test_a_call_over_http_succeeds_in_the_servers_own_revision(
    fleet: Fleet, server: str, revision: str
) -> None:
    call = await fleet.call(await fleet.run(), f"{server}_header", name="mcp-protocol-version")
    assert (call["state"], text(call)) == ("succeeded", revision)


@requirement("fleet:transports")
async def test_a_tools_own_error_is_a_call_that_succeeded(fleet: Fleet) -> None:
    call = await fleet.call(await fleet.run(), "local_fail", text="not today")
    assert (call["state"], call["is_error"], call["error"]) == ("succeeded", True, None)


@requirement("fleet:redacts")
async def test_personal_data_is_gone_from_what_is_returned_and_stored(fleet: Fleet) -> None:
    call = await fleet.call(await fleet.run(), "local_echo", text="ask jane@example.com")
    stored = await fleet.http.get(f"/v1/calls/{call['id']}")
    assert text(call) == "ask [email]"
    assert "jane" not in stored.text


# -- warm sessions


@requirement("fleet:prewarmed")
async def test_the_first_call_after_start_up_spawns_nothing(fleet: Fleet) -> None:
    await fleet.serve(fleet.sleeper("warm"))
    worker = fleet.worker("warm").pid
    there = {mark for _, mark in marked(lambda mark: mark.worker_pid == worker)}
    run = await fleet.run()
    call = await fleet.call(run, "warm_sleep", seconds=0, token="first")
    assert call["timings"]["spawned"] is False
    assert set(fleet.journal("warm").sessions("first")) <= there


@requirement("fleet:recycles")
async def test_sessions_are_replaced_after_their_last_call_and_leave_no_process(
    fleet: Fleet,
) -> None:
    run, journal = await fleet.run(), fleet.journal("short")
    ended = await asyncio.gather(
        *(fleet.call(run, "short_sleep", seconds=0, token=f"recycle-{n}") for n in range(10))
    )
    assert {call["state"] for call in ended} == {"succeeded"}
    served = Counter(journal.sessions(f"recycle-{n}")[0] for n in range(10))
    assert len(served) >= 4
    assert max(served.values()) <= 3
    worn_out = [mark for mark, count in served.items() if count == 3]
    await until(lambda: not list(marked(lambda mark: mark in worn_out)))


# -- bad input


@requirement("fleet:typed-ends")
async def test_a_server_that_does_not_start_ends_calls_with_its_last_words(fleet: Fleet) -> None:
    dying = {
        "name": "dying",
        "transport": "stdio",
        "command": sys.executable,
        "args": [str(SERVERS / "dying.py")],
    }
    definition = parse_definition(dying)
    version = await catalog.add_server(fleet.database, definition, actor="test")
    await ingest.ingest(fleet.database, version, definition, [listed("look")])
    run = await fleet.run(servers=["dying"])
    call = await fleet.call(run, "dying_look")
    assert (call["state"], call["error"]["code"]) == ("failed", "server_unavailable")
    assert call["error"]["retryable"] is True
    assert call["error"]["details"]["exit_code"] == 3
    assert "credentials.json is missing" in call["error"]["details"]["stderr"]


@requirement("fleet:typed-ends")
async def test_a_server_that_cannot_be_listed_says_why(fleet: Fleet) -> None:
    broken = {
        "name": "broken",
        "transport": "stdio",
        "command": sys.executable,
        "args": [str(SERVERS / "dying.py")],
    }
    assert (await fleet.http.post("/v1/servers", json=broken)).status_code == 201

    async def error() -> Any:
        return (await fleet.http.get("/v1/servers/broken")).json()["refresh_error"]

    found = await until(error)
    assert found["code"] == "server_unavailable"
    assert "credentials.json is missing" in found["message"]


@requirement("fleet:typed-ends")
async def test_a_call_without_an_answer_times_out_and_its_outcome_is_unknown(fleet: Fleet) -> None:
    call = await fleet.call(await fleet.run(), "local_block", seconds=60)
    assert (call["state"], call["error"]["code"]) == ("outcome_unknown", "outcome_unknown")
    assert call["error"]["details"]["cause"] == "call_timeout"


@requirement("fleet:typed-ends")
async def test_a_read_without_an_answer_times_out(fleet: Fleet) -> None:
    call = await fleet.call(await fleet.run(), "short_block", seconds=60)
    assert (call["state"], call["error"]["code"]) == ("failed", "call_timeout")


@requirement("fleet:typed-ends")
async def test_a_result_over_the_limit_is_refused(fleet: Fleet) -> None:
    call = await fleet.call(await fleet.run(), "local_big", size=MAX_RESULT_BYTES + 1)
    assert (call["state"], call["error"]["code"]) == ("failed", "result_too_large")


@requirement("fleet:typed-ends")
async def test_a_call_of_a_session_that_dies_ends_typed(fleet: Fleet) -> None:
    call = await fleet.call(await fleet.run(), "local_crash")
    assert call["state"] == "outcome_unknown"
    assert call["error"]["details"]["cause"] == "session_lost"


@requirement("fleet:typed-ends", "calls:result-as-it-came")
async def test_a_result_with_a_nul_character_comes_back_as_it_was(fleet: Fleet) -> None:
    call = await fleet.call(await fleet.run(), "odd_nul")
    assert call["state"] == "succeeded"
    assert call["result"]["structuredContent"] == {"value": "a\0b"}


@requirement("fleet:typed-ends")
@pytest.mark.parametrize(
    ("tool", "state", "code"),
    [
        ("nan", "failed", "result_invalid"),
        ("refuse", "failed", "tool_refused"),
        ("lost", "outcome_unknown", "outcome_unknown"),
    ],
)
async def test_what_no_store_takes_still_ends_the_call(
    fleet: Fleet, tool: str, state: str, code: str
) -> None:
    call = await fleet.call(await fleet.run(), f"odd_{tool}")
    assert (call["state"], call["error"]["code"]) == (state, code)


@requirement("catalog:unique")
@pytest.mark.parametrize("change", [{}, {"name": "newcomer", "tool_prefix": "local_"}])
async def test_a_server_with_a_taken_name_or_prefix_is_refused(
    fleet: Fleet, change: dict[str, Any]
) -> None:
    answer = await fleet.http.post("/v1/servers", json={**fleet.echo("local"), **change})
    assert (answer.status_code, answer.json()["code"]) == (409, "name_collision")


@requirement("tools:collisions")
async def test_tools_of_two_servers_that_fall_together_are_refused(fleet: Fleet) -> None:
    version: dict[str, int] = {}
    for name, prefix, tool in (("one", "a_", "b_look"), ("two", "a_b_", "look")):
        definition = parse_definition(
            {"name": name, "transport": "stdio", "command": "true", "tool_prefix": prefix}
        )
        version[name] = await catalog.add_server(fleet.database, definition, actor="test")
        await ingest.ingest(fleet.database, version[name], definition, [listed(tool)])
    answer = await fleet.http.post("/v1/runs", json={"tenant": "acme"})
    for name in version:
        await catalog.remove_server(fleet.database, name, actor="test")
    assert (answer.status_code, answer.json()["code"]) == (409, "name_collision")
    assert answer.json()["details"]["servers"] == ["one", "two"]


@requirement("fleet:many-at-once")
async def test_many_calls_at_once_each_get_their_own_answer(fleet: Fleet) -> None:
    run = await fleet.run()
    tools = ["local_echo", "web_echo", "old_echo"]
    ended = await asyncio.gather(
        *(fleet.call(run, tools[n % 3], text=f"number {n}") for n in range(60))
    )
    assert [text(call) for call in ended] == [f"number {n}" for n in range(60)]
    assert living({fleet.worker("local")})


# -- figures


async def figures(fleet: Fleet, server: str) -> dict[str, float]:
    """Return what `/metrics` says about the sessions and processes of a server's worker."""
    answer = await fleet.http.get("/metrics")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.labels.get("server") == server and "worker" in sample.labels:
                kind = sample.labels.get("state") or sample.labels.get("event") or ""
                found[f"{sample.name} {kind}".removeprefix("toolfleet_").rstrip()] = sample.value
    return found


@requirement("api:metrics", "worker:counts-processes")
async def test_the_metrics_show_a_workers_waits_sessions_processes_and_files(fleet: Fleet) -> None:
    await fleet.call(await fleet.run(), "short_echo", text="x")

    async def counted() -> dict[str, float]:
        seen = await figures(fleet, "short")
        # A session of this server lives for a few calls: the next one may just be coming.
        wanted = ("borrow_wait_seconds_count", "processes", "sessions idle")
        return seen if all(seen.get(name) for name in wanted) else {}

    seen = await until(counted)
    worker = fleet.worker("short")
    assert seen["sessions idle"] >= 1
    assert seen["pool_events opened"] >= 1
    assert seen["pool_events borrowed"] >= 1
    assert seen["pool_max_size"] >= 1
    assert seen["pool_waiting"] == 0
    assert 1 <= seen["processes"] <= 3 * 4  # two sessions, and two that take their place
    assert seen["zombies"] == 0
    assert abs(seen["open_fds"] - worker.num_fds()) < 20
    assert seen["children_open_fds"] >= 3


# -- growth


@requirement("pool:resizes")
async def test_the_worker_that_runs_takes_as_many_calls_as_a_new_version_has_sessions(
    fleet: Fleet,
) -> None:
    small = fleet.sleeper("growing", pool={"min_idle": 1, "max_size": 1})
    await fleet.serve(small)
    larger = {**small, "version": "larger", "pool": {"min_idle": 1, "max_size": 12}}
    before = fleet.worker("growing").pid
    answer = await fleet.http.post("/v1/servers/growing/versions", json=larger)
    assert answer.status_code == 201, answer.text
    await until(lambda: fleet.fresh("growing"))
    run = await fleet.run()
    tokens = [f"token {number}" for number in range(10)]
    ids = [await fleet.submit(run, "growing_sleep", seconds=30, token=it) for it in tokens]
    await fleet.journal("growing").saw("started", *tokens)
    assert fleet.worker("growing").pid == before
    assert {await fleet.cancel(call_id) for call_id in ids} == {"stop_requested"}


@requirement("metrics:borrow-in-vain")
async def test_a_wait_for_a_session_in_vain_is_counted_as_well(fleet: Fleet) -> None:
    one = {"min_idle": 1, "max_size": 1, "borrow_timeout_s": 0.2}
    await fleet.serve(fleet.sleeper("scarce", pool=one))
    run = await fleet.run()
    holder = await fleet.submit(run, "scarce_sleep", seconds=30, token="holder")
    await fleet.journal("scarce").saw("started", "holder")
    waiting = await fleet.submit(run, "scarce_sleep", seconds=0, token="waiting")

    async def counted() -> bool:
        seen = await figures(fleet, "scarce")
        return seen.get("borrow_wait_seconds_count", 0) >= 2  # the holder's is one

    await until(counted)
    assert {await fleet.cancel(it) for it in (holder, waiting)} <= STOPPED
