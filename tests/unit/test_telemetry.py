"""Traces in one process: which are recorded, what is in their spans, and what is lost of them."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from registry.database import GroupCommit
from registry.definitions import PoolDefinition
from registry.discretion import DiscreetFormatter
from registry.errors import Code, FleetError
from registry.telemetry import CALL_ID, MOST_STEPS, RUN_ID, Kind, Trace, Tracer, current, work_on
from registry.telemetry_otlp import is_wanted
from registry.telemetry_outlet import Outlet, Part
from registry.telemetry_sampling import Sampler
from registry.telemetry_spans import Span, in_order
from registry.trace import parent_of
from tests.requirements import requirement
from tests.unit.test_pool import FakeSession
from tests.waiting import until
from workers.pool import SessionKey, SessionPool
from workers.tracing import queued_at

pytestmark = pytest.mark.anyio

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Shelf(Outlet):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("a shelf", self.no_delivery)
        self.parts: list[bytes] = []

    async def no_delivery(self, parts: Sequence[Part]) -> None:
        raise AssertionError(parts)

    def put(self, trace_id: str, part: bytes) -> None:
        self.parts.append(part)

    @property
    def spans(self) -> list[Span]:
        return in_order(self.parts)


def tracer(
    *sampling: float, clock: Clock | None = None, recording: bool = True
) -> tuple[Tracer, Shelf]:
    clock = clock or Clock()
    made = Tracer(
        "toolfleet-test",
        Sampler(*sampling, clock=clock),
        recording=recording,
        clock=clock,
        wall_ns=lambda: round((clock() + 1_000_000) * 1e9),
    )
    shelf = Shelf()
    made.outlets.append(shelf)
    return made, shelf


@requirement("traces:connected")
def test_steps_are_children_of_the_first_and_that_of_the_callers() -> None:
    clock = Clock()
    made, shelf = tracer(clock=clock)
    trace = made.begin("call", Kind.CONSUMER, SAMPLED)
    trace.attributes = {"toolfleet.tenant": "acme"}
    with trace.step("borrow") as step:
        clock.now += 0.25
        told = parent_of(step.traceparent)
    made.end(trace)
    first, borrow = shelf.spans
    assert (first.trace_id, first.parent_id, first.kind) == (TRACE, CALLER, "consumer")
    assert (borrow.name, borrow.parent_id) == ("borrow", first.span_id)
    assert (borrow.start_s, borrow.end_s) == (1_000_100.0, 1_000_100.25)
    assert borrow.attributes == {"toolfleet.tenant": "acme"}
    assert told == (TRACE, borrow.span_id, True)


@requirement("traces:connected")
@pytest.mark.parametrize(
    ("received", "claimed", "since"),
    [(103.0, 103.5, 100.5), (101.0, 103.5, 100.5), (100.2, 103.5, 100.2)],
)
def test_a_call_was_queued_neither_before_its_record_nor_after_it_was_received(
    received: float, claimed: float, since: float
) -> None:
    assert queued_at(3.0, received, claimed) == since


@requirement("traces:sampled-once")
def test_a_callers_flag_says_whether_its_trace_is_recorded() -> None:
    made, shelf = tracer(0.0, 0.0)
    trace = made.begin("call", traceparent=SAMPLED)
    made.end(trace)
    assert len(shelf.spans) == 1
    made, shelf = tracer()
    trace = made.begin("call", traceparent=NOT_SAMPLED)
    made.end(trace)
    assert shelf.spans == []
    assert trace.traceparent.endswith("-00")
    assert trace.trace_id == TRACE


@requirement("traces:sampled-once")
@pytest.mark.parametrize("traceparent", [None, "", "00-trace", "ff" + SAMPLED[2:]])
def test_what_names_no_trace_begins_a_new_one(traceparent: str | None) -> None:
    made, shelf = tracer()
    trace = made.begin("call", traceparent=traceparent)
    made.end(trace)
    (span,) = shelf.spans
    assert span.parent_id is None
    assert parent_of(trace.traceparent) == (span.trace_id, span.span_id, True)


@requirement("traces:sampled-once")
def test_a_share_of_the_traces_that_begin_here_is_recorded() -> None:
    made, _ = tracer(0.25, 1e9)
    recorded = sum(made.begin("call").sampled for _ in range(4_000))
    assert 800 < recorded < 1_200


@requirement("traces:cheap")
def test_no_more_than_so_many_new_traces_a_second_are_recorded() -> None:
    clock = Clock()
    made, _ = tracer(1.0, 5.0, clock=clock)
    assert sum(made.begin("call").sampled for _ in range(20)) == 5
    clock.now += 0.4
    assert sum(made.begin("call").sampled for _ in range(20)) == 2


@requirement("traces:cheap")
@pytest.mark.parametrize(("per_s", "recorded"), [(0.5, 4), (1.0, 7), (0.0, 0)])
def test_less_than_one_trace_a_second_is_recorded_every_few_seconds(
    per_s: float, recorded: int
) -> None:
    clock = Clock()
    made, shelf = tracer(1.0, per_s, clock=clock)
    for _ in range(7):
        assert sum(made.begin("call").sampled for _ in range(5)) <= 1
        failed = made.begin("failed", traceparent=NOT_SAMPLED)
        failed.error = "call_timeout"
        made.end(failed)
        clock.now += 1
    assert len(shelf.spans) == recorded


@requirement("traces:failures-kept")
def test_what_failed_or_was_slow_is_kept_in_a_trace_that_is_not_recorded() -> None:
    clock = Clock()
    made, shelf = tracer(0.0, 2.0, 5.0, clock=clock)
    failed = made.begin("failed")
    failed.error = "call_timeout"
    made.end(failed)
    clock.now += 1
    made.end(made.begin("quick"))
    slow = made.begin("slow")
    clock.now += 5
    made.end(slow)
    assert [(span.name, span.error) for span in shelf.spans] == [
        ("failed", "call_timeout"),
        ("slow", ""),
    ]


@requirement("traces:failures-kept")
def test_a_step_says_by_which_code_it_failed_and_nothing_of_what_was_said() -> None:
    made, shelf = tracer()
    trace = made.begin("call")
    for error in (FleetError(Code.POOL_CLOSED, "a secret"), ValueError("a secret")):
        with pytest.raises(type(error)), trace.step("borrow"):
            raise error
    trace.step("tools/call")
    trace.interrupt("call_timeout")
    made.end(trace)
    assert [span.error for span in shelf.spans[1:]] == ["pool_closed", "ValueError", "call_timeout"]
    assert b"secret" not in shelf.parts[0]


@requirement("traces:cheap")
def test_a_trace_has_so_many_steps_at_most() -> None:
    made, shelf = tracer()
    trace = made.begin("call")
    for _ in range(MOST_STEPS + 10):
        trace.step("question").end()
    made.end(trace)
    assert len(shelf.spans) == MOST_STEPS + 1


@requirement("traces:harmless")
def test_a_name_that_is_no_text_loses_its_span_and_nothing_else() -> None:
    made, shelf = tracer()
    trace = made.begin("tools/call \ud800")
    made.end(trace)
    assert (shelf.spans, made.counts["lost"]) == ([], 1)


@requirement("traces:harmless")
def test_where_nothing_is_recorded_trace_context_goes_on_as_ever() -> None:
    made, shelf = tracer(recording=False)
    trace = made.begin("call", traceparent=SAMPLED)
    with trace.step("borrow") as step:
        assert step.traceparent[3:35] == TRACE
    made.end(trace)
    assert shelf.spans == []


@requirement("traces:connected")
async def test_a_step_beside_belongs_to_the_trace_under_way_or_else_stands_alone() -> None:
    made, shelf = tracer()
    trace = made.begin("call", traceparent=SAMPLED)
    work_on(trace)
    with made.beside(trace.traceparent, "enqueue", Kind.PRODUCER):
        pass
    made.end(trace)
    with made.beside(trace.traceparent, "enqueue again", Kind.PRODUCER):
        pass
    first, within, alone = shelf.spans
    assert within.parent_id == alone.parent_id == first.span_id
    assert within.span_id != alone.span_id


# -- outlets


@requirement("traces:harmless")
async def test_what_comes_while_an_outlet_is_full_is_dropped_and_counted() -> None:
    delivered: list[Part] = []

    async def deliver(parts: Sequence[Part]) -> None:
        delivered.extend(parts)

    outlet = Outlet("a test", deliver, most=3)
    for number in range(5):
        outlet.put(str(number), b"part")
    await outlet.close()
    assert [trace_id for trace_id, _ in delivered] == ["0", "1", "2"]
    assert (outlet.counts["delivered"], outlet.counts["dropped"]) == (3, 2)


@requirement("traces:harmless")
async def test_a_delivery_that_fails_loses_its_parts_and_the_next_one_goes_on() -> None:
    tries: asyncio.Queue[list[str]] = asyncio.Queue()

    async def deliver(parts: Sequence[Part]) -> None:
        tries.put_nowait([trace_id for trace_id, _ in parts])
        if tries.qsize() == 1 and parts[0][0] == "first":
            raise OSError("away")

    outlet = Outlet("a test", deliver, every_s=0.0)
    outlet.put("first", b"part")
    assert await tries.get() == ["first"]
    outlet.put("second", b"part")
    assert await tries.get() == ["second"]
    await outlet.close()
    assert (outlet.counts["failed"], outlet.counts["delivered"]) == (1, 1)


@requirement("traces:exported")
@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"},
            False,
        ),
    ],
)
def test_traces_are_exported_where_a_collector_is_named(
    variables: dict[str, str], wanted: bool
) -> None:
    assert is_wanted(variables) is wanted


# -- logs


def working_on_a_call() -> Trace:
    trace = Tracer().begin("call", traceparent=SAMPLED)
    trace.attributes = {CALL_ID: "a-call", RUN_ID: "a-run", "toolfleet.tenant": "acme"}
    work_on(trace)
    return trace


def record(**rest: Any) -> logging.LogRecord:
    given = {"name": "toolfleet.worker", "levelno": logging.WARNING, "levelname": "WARNING"}
    return logging.makeLogRecord({**given, **rest})


@requirement("logs:carry-ids")
async def test_a_line_of_json_has_the_ids_of_its_call() -> None:
    working_on_a_call()
    line = DiscreetFormatter(form="json").format(record(msg="it is %s", args=("slow",)))
    said = json.loads(line)
    assert datetime.fromisoformat(said.pop("timestamp")).tzinfo is not None
    assert said == {
        "event": "it is slow",
        "level": "warning",
        "logger": "toolfleet.worker",
        "trace": TRACE,
        "call": "a-call",
        "run": "a-run",
    }


@requirement("logs:carry-ids")
async def test_a_line_for_people_has_them_too_and_one_of_no_call_has_none() -> None:
    formatter = DiscreetFormatter()
    assert "call=" not in formatter.format(record(msg="ready"))
    working_on_a_call()
    line = formatter.format(record(msg="it is slow"))
    assert "it is slow" in line
    assert f"call=a-call run=a-run trace={TRACE}" in line


@requirement("logs:carry-ids")
async def test_what_a_call_starts_logs_its_ids_and_its_neighbours_do_not() -> None:
    async def seen() -> str | None:
        trace = current()
        return trace.trace_id if trace else None

    async def call() -> str | None:
        working_on_a_call()
        return await asyncio.create_task(seen())

    assert await asyncio.gather(call(), seen()) == [TRACE, None]


@requirement("logs:carry-ids")
async def test_a_line_about_what_goes_on_after_a_call_has_no_ids_of_it() -> None:
    made, _ = tracer()
    trace = working_on_a_call()
    made.end(trace)
    assert "a-call" not in DiscreetFormatter().format(record(msg="it goes on"))


@requirement("logs:carry-ids")
async def test_what_works_for_many_calls_names_none_of_them() -> None:
    lines: list[str] = []

    def log() -> None:
        lines.append(DiscreetFormatter().format(record(msg="at work")))

    async def write(items: Sequence[int]) -> Sequence[int]:
        log()
        return items

    async def deliver(_: Sequence[Part]) -> None:
        log()

    async def open_session(key: SessionKey) -> FakeSession:
        log()
        return FakeSession(key, 0)

    working_on_a_call()
    await GroupCommit(write).add(1)
    outlet = Outlet("a test", deliver, every_s=0.0)
    outlet.put(TRACE, b"part")
    await until(lambda: outlet.counts["delivered"])
    pool = SessionPool("crm", PoolDefinition(min_idle=0), open_session)
    async with pool.borrow(SessionKey(1), 5.0):
        pass
    await pool.close()
    assert len(lines) == 3
    assert not [line for line in lines if "a-call" in line]


@requirement("secrets:log")
def test_a_secret_that_json_has_to_escape_is_taken_out_before() -> None:
    formatter = DiscreetFormatter(lambda text: text.replace('pa"ss\n', "[gone]"), form="json")
    try:
        raise ValueError('pa"ss\n')
    except ValueError:
        line = formatter.format(record(msg='with pa"ss\n', exc_info=sys.exc_info()))
    said = json.loads(line)
    assert said["event"] == "with [gone]"
    assert said["exception"].endswith("ValueError: [gone]")
