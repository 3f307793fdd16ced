"""A call's life in phases, and a trace as a waterfall: what is drawn of a row and of spans."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from api.console.phases import life_of
from api.console.waterfall import DEEPEST, MOST_STEPS, waterfall
from registry.telemetry import Kind, Span
from tests.requirements import requirement

BEGUN = datetime(2026, 11, 26, 3, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return BEGUN + timedelta(seconds=seconds)


def row(state: str = "succeeded", **rest: Any) -> dict[str, Any]:
    """Return a call's row: submitted at once, claimed after 1 s, ended after 5 s."""
    return {
        "state": state, "created_at": BEGUN, "queued_at": BEGUN, "started_at": at(1),
        "ended_at": at(5), "decided_at": None, "stop_requested_at": None, "timings": {},
        "gated": False, **rest,
    }  # fmt: skip


def drawn(found: dict[str, Any], now: float = 5) -> list[tuple[str, float, float]]:
    """Return each phase's name, start and length."""
    return [
        (it.name, round(it.start_s, 3), round(it.took_s, 3))
        for it in life_of(found, at(now)).phases
    ]


@requirement("console:timeline")
def test_a_call_that_ended_shows_its_waits_its_call_and_what_the_fleet_took() -> None:
    life = life_of(row(timings={"borrow_wait_s": 0.5, "spawned": True, "call_s": 3.0}), at(60))
    assert [(it.name, it.start_s, it.took_s) for it in life.phases] == [
        ("Queue", 0, 1), ("Borrow", 1, 0.5), ("Call", 1.5, 3), ("Checks, gate, record", 4.5, 0.5),
    ]  # fmt: skip
    assert life.total_s == 5
    assert life.phases[1].note == "a session was started for it"
    assert life.share(life.phases[2]) == (30, 60)


@requirement("console:timeline")
def test_what_has_not_ended_is_drawn_up_to_now() -> None:
    waits = row("awaiting_approval", gated=True, started_at=None, ended_at=None)
    assert drawn(waits, 7) == [("Waiting for approval", 0, 7)]
    queued = row("queued", started_at=None, ended_at=None, timings=None)
    assert drawn(queued, 2) == [("Queue", 0, 2)]
    running = life_of(row("running", ended_at=None, timings=None), at(3))
    assert [(it.name, it.took_s, it.going_on) for it in running.phases] == [
        ("Queue", 1, False), ("Running", 2, True),
    ]  # fmt: skip


@requirement("console:timeline")
def test_an_approval_comes_first_and_a_denial_last() -> None:
    approved = row(gated=True, decided_at=at(0.4), queued_at=at(0.4))
    assert drawn(approved)[:2] == [("Waiting for approval", 0, 0.4), ("Queue", 0.4, 0.6)]
    gone = {"gated": True, "started_at": None}
    assert drawn(row("denied", decided_at=at(5), **gone)) == [("Waiting for approval", 0, 5)]
    assert drawn(row("stopped", stop_requested_at=at(5), **gone)) == [
        ("Waiting for approval", 0, 5)
    ]


@requirement("console:timeline")
def test_a_call_that_was_given_back_shows_the_time_of_its_earlier_attempts() -> None:
    again = row("queued", queued_at=at(4), ended_at=None)
    assert drawn(again, 6) == [("Earlier attempts", 0, 4), ("Queue", 4, 2)]
    lost = row("outcome_unknown", timings=None)
    assert drawn(lost) == [("Queue", 0, 1), ("At its worker", 1, 4)]
    alone = row(started_at=None, ended_at=BEGUN)
    assert drawn(alone) == [("Answered without a server", 0, 0)]


@requirement("console:timeline")
def test_a_stop_tells_its_rung_and_its_time() -> None:
    asked = {"stop_requested_at": at(4)}
    timings = {"call_s": 2.0, "stop": {"rung": "sigkill", "elapsed_s": 0.9}}
    killed = life_of(row("stopped", timings=timings, **asked), at(60)).stop
    assert "had to be killed (SIGKILL); that took 0.900 s, 1.000 s after the request" in killed
    unseen = life_of(row("stopped", started_at=None, **asked), at(60)).stop
    assert unseen == "stopped before its server was asked anything"
    going_on = life_of(row("running", ended_at=None, **asked), at(60)).stop
    assert going_on == "asked to stop; its worker has not said yet that it has"
    assert "ended in another way" in life_of(row("succeeded", **asked), at(60)).stop
    assert life_of(row(), at(60)).stop == ""


@requirement("console:timeline")
def test_clocks_that_went_backwards_give_no_negative_time() -> None:
    odd = row(started_at=at(-1), queued_at=at(-2), timings={"borrow_wait_s": 9.0, "call_s": 9.0})
    assert all(it.took_s >= 0 and it.start_s >= 0 for it in life_of(odd, at(5)).phases)


def span(name: str, parent: str | None, start: float, end: float, **rest: Any) -> Span:
    return Span("t" * 32, name, parent, name, "toolfleet-api", start, end, **rest)


@requirement("console:waterfall")
def test_each_step_is_below_its_parent_in_the_order_of_time() -> None:
    spans = [
        span("call", "run", 2, 4), span("http", None, 0, 10), span("run", "http", 1, 8),
        span("late", "http", 8, 9), span("borrow", "run", 1, 2),
    ]  # fmt: skip
    found = waterfall(spans)
    assert [(it.span.name, it.depth) for it in found.steps] == [
        ("http", 0), ("run", 1), ("borrow", 2), ("call", 2), ("late", 1),
    ]  # fmt: skip
    call = found.steps[3]
    assert (call.start_s, call.took_s, call.start, call.width) == (2, 2, 20, 20)
    assert found.took_s == 10


@requirement("console:waterfall")
def test_waits_and_what_others_did_are_told_from_the_fleets_own_work() -> None:
    asked = span("tools/call echo", None, 0, 1, kind=Kind.CLIENT)
    steps = waterfall([asked, span("queue wait", None, 0, 1), span("commit", None, 1, 2)]).steps
    assert {it.span.name: it.kind for it in steps} == {
        "tools/call echo": "call", "queue wait": "wait", "commit": "work",
    }  # fmt: skip


@requirement("console:waterfall")
def test_steps_without_their_parent_begin_a_tree_and_circles_end() -> None:
    orphan = waterfall([span("worker", "the caller's", 1, 2), span("claim", "worker", 1, 2)])
    assert [(it.span.name, it.depth) for it in orphan.steps] == [("worker", 0), ("claim", 1)]
    circle = waterfall([span("a", "b", 0, 1), span("b", "a", 0, 1), span("c", "c", 0, 1)])
    assert sorted(it.span.name for it in circle.steps) == ["a", "b", "c"]
    assert waterfall([]).steps == []


@requirement("console:waterfall")
def test_a_trace_without_end_is_cut_and_drawn_no_deeper_than_there_is_room() -> None:
    chain = [span(str(n), str(n - 1) if n else None, n, n + 1) for n in range(MOST_STEPS + 3)]
    found = waterfall(chain)
    assert (len(found.steps), found.left_out) == (MOST_STEPS, 3)
    assert max(it.depth for it in found.steps) == DEEPEST
    moment = waterfall([span("now", None, 5, 5)]).steps[0]
    assert (moment.start, moment.width) == (0, 0)
