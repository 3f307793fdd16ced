"""What pages say of servers, pools and figures over time, before anybody draws them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from api.checkup import Finding
from api.console import charts, glance
from api.console.lookout import Kept
from api.console.trends import draw
from api.fleet import FleetState, Pool, Server, Worker
from registry.catalog import ServerVersion
from registry.definitions import parse_definition
from registry.pulse import Beat
from registry.rollouts import Rollout, RolloutPlan, RolloutState
from tests.requirements import requirement
from workers.breaker_state import BreakerState
from workers.client import BreakerSnapshot

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DEFINITION = parse_definition({"name": "crm", "transport": "stdio", "command": "true"})


def pool(size: int = 8, waiting: int = 0, **sessions: int) -> Pool:
    made = Pool("1", waiting=waiting, max_size=size)
    made.sessions |= sessions
    return made


def server(*pools: Pool, queued_s: float = 0, state: str = "closed", held: int = 0) -> Server:
    workers = [Worker(f"w{n}", "crm", pools={"1": it}) for n, it in enumerate(pools)]
    version = ServerVersion(1, DEFINITION, False, NOW, None)
    breaker = BreakerSnapshot(
        BreakerState(state), open_s=90, why="10 timeouts in a row", retry_after_s=12
    )
    return Server(version, workers, int(queued_s > 0), queued_s, held, breaker)


def beat(minute: int, submitted: int = 10, failed: int = 0, p95_s: float | None = 0.1) -> Beat:
    at = NOW + timedelta(minutes=minute)
    return Beat(at, submitted, submitted, failed, p95_s, p95_s, 0.0, 0.0)


@requirement("console:fleet")
@pytest.mark.parametrize(
    ("it", "beats", "tone", "words"),
    [
        (server(), [], "bad", "No worker"),
        (server(pool(), state="open"), [], "bad", "Not called: its breaker is open"),
        (server(pool(), state="half_open"), [], "wait", "Being tried again"),
        (server(pool()), [beat(0, 100, 6)], "bad", "6 of 100 calls failed in 5 min"),
        (server(pool(), queued_s=90), [], "wait", "Falls behind"),
        (server(pool(in_use=8, waiting=1)), [], "wait", "Every session is busy"),
        (server(pool(in_use=1)), [beat(0, 100, 5)], "good", "Working"),
        (server(pool(idle=2)), [], "good", "Ready"),
        # What was long ago does not count.
        (server(pool()), [beat(0, 9, 9), *(beat(n) for n in range(1, 6))], "good", "Ready"),
    ],
)
def test_a_server_is_described_by_the_worst_that_is_true_of_it(
    it: Server, beats: list[Beat], tone: str, words: str
) -> None:
    assert glance.standing(it, draw(beats)) == glance.Standing(tone, words)


@requirement("console:fleet")
def test_each_session_is_a_square_and_many_share_the_room_of_forty() -> None:
    few = pool(6, in_use=2, reserved=1, opening=1, idle=1)
    kinds = [cell.kind for cell in glance.strip(few)]
    assert kinds == ["in_use", "in_use", "changing", "opening", "idle", "free"]
    many = glance.strip(pool(80, in_use=60, idle=20))
    assert [(cell.kind, cell.x, cell.width) for cell in many] == [
        ("in_use", 0, 30),
        ("idle", 30, 10),
    ]


@requirement("console:needs")
def test_what_is_broken_comes_before_what_waits() -> None:
    state = FleetState(
        [server(pool(), held=1), server(pool(), state="open"), server()],
        (),
        {"awaiting_approval": 2},
    )
    findings = [Finding("clock", "warning", "is off"), Finding("broker", "ok", "answers")]
    found = glance.needs(state, findings, {"crm": 30}, {})
    assert [(it.tone, it.title, it.since_s) for it in found] == [
        ("bad", "crm: its breaker is open", 90),
        ("bad", "crm: no worker serves its queue", 30),
        ("wait", "crm: 1 change of its tools is held", None),
        ("wait", "2 calls wait for an approval", None),
        ("wait", "Clock", None),
    ]
    assert all(it.advice or it.title == "Clock" for it in found)


@requirement("console:needs")
def test_a_server_that_fails_too_many_of_its_calls_needs_somebody() -> None:
    state = FleetState([server(pool())], (), {})
    (failing,) = glance.needs(state, [], {}, {"crm": draw([beat(0, 100, 6)])})
    assert (failing.tone, failing.title) == ("bad", "crm: 6 of 100 calls failed in 5 min")
    assert glance.needs(state, [], {}, {"crm": draw([beat(0, 100, 5)])}) == []


@requirement("console:needs")
def test_an_open_breaker_of_a_canary_needs_somebody() -> None:
    plan = RolloutPlan(version="2")
    rollout = Rollout(
        1, "crm", "1", "2", 1, 2, plan, RolloutState.ACTIVE, None, False, None, NOW, None, None
    )
    opened = server(pool(), state="open").shared_breaker
    state = FleetState([replace(server(pool()), rollout=rollout, canary_breaker=opened)], (), {})
    (need,) = glance.needs(state, [], {}, {})
    assert (need.tone, need.since_s) == ("bad", 90)
    assert need.title == "crm: the breaker of its canary 2 is open"


@requirement("console:pictures")
def test_a_minute_without_calls_is_a_gap_in_the_line_and_a_lone_one_a_dot() -> None:
    drawn = charts.line([1.0, 1.0, None, 0.0, None], 1.0)
    assert drawn.path == "M0.0 2.0L30.0 2.0M90.0 27.0h0"
    assert drawn.area.count("Z") == 1


@requirement("console:pictures")
def test_one_failure_among_a_thousand_calls_is_drawn() -> None:
    assert charts.bars([1, 0], 1000) == "M0.5 28.0v-1.5h59.0v1.5Z"
    assert charts.bars([1000, 0], 1000) == "M0.5 28.0v-26.0h59.0v26.0Z"
    assert charts.bars([0, 0], 0) == ""


@requirement("console:cheap")
@pytest.mark.anyio
async def test_ten_who_look_in_the_same_moment_cost_one_look_and_an_error_is_not_kept() -> None:
    now_s, asked = 0.0, 0

    async def look() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        if asked == 2:
            raise ValueError("away")
        return asked

    kept = Kept(look, 1.0, lambda: now_s)
    assert await asyncio.gather(*(kept.get() for _ in range(10))) == [1] * 10
    now_s = 1.0
    with pytest.raises(ValueError, match="away"):
        await kept.get()
    assert await kept.get() == 3
    kept.forget()
    assert await kept.get() == 4
