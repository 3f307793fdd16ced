"""Calls that share a session, sessions that were forgotten, and what is done between two users."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from registry.definitions import PoolDefinition
from registry.errors import Code, FleetError
from tests.faulty import FACES, PATIENCE_S, Face, Faulty, faulty, over_http, over_stdio
from tests.requirements import requirement
from tests.waiting import until
from workers.pool import SessionKey, SessionPool
from workers.session import CallError, Session

pytestmark = pytest.mark.anyio

SHORT_S = 0.5
SLACK_S = 10.0  # more than a busy machine adds; one after the other they would take 32 s
# What each call of one session, all at once, must end as: its answer, or code, dispatched, status
# and the seconds to wait.
TOGETHER: dict[str, tuple[object, ...]] = {
    "behave": ("here",),
    "status_401": (Code.CREDENTIAL_REJECTED, False, 401, None),
    "status_418": (Code.TOOL_REFUSED, True, 418, None),
    "status_429": (Code.RATE_LIMITED, False, 429, 7.0),
    "status_500": (Code.UPSTREAM_FAILED, True, 500, None),
    "status_503": (Code.UPSTREAM_FAILED, True, 503, 2.0),
    "html": (Code.PROTOCOL_ERROR, True, 200, None),
    "redirect": (Code.PROTOCOL_ERROR, False, 307, None),
    "reset": (Code.SESSION_LOST, True, None, None),
    "short_body": (Code.SESSION_LOST, True, None, None),
    "endless_line": (Code.RESULT_TOO_LARGE, True, None, None),
    "drop_events": (Code.SESSION_LOST, True, None, None),
    "drop_then_answer": ("here",),
    "hang": (Code.CALL_TIMEOUT, True, None, None),
}


async def outcome(session: Session, mode: str, timeout_s: float) -> tuple[object, ...]:
    """Make a call; say how it ended, as far as one call can be mistaken for another."""
    try:
        result = await session.call_tool(mode, {}, timeout_s=timeout_s)
    except CallError as error:
        return error.code, error.dispatched, error.details.get("status"), error.retry_after_s
    return (result.body["content"][0]["text"],)


@requirement("session:multiplexes")
@pytest.mark.parametrize("face", ["http", "http-legacy"])
async def test_calls_that_share_a_session_end_each_in_its_own_way(
    face: Face, tmp_path: Path
) -> None:
    async with faulty(face, tmp_path / "journal") as server:
        session = await server.open()
        ends = await asyncio.gather(
            *(
                outcome(session, mode, SHORT_S if mode == "hang" else PATIENCE_S)
                for mode in TOGETHER
            )
        )
        assert dict(zip(TOGETHER, ends, strict=True)) == TOGETHER
        assert await outcome(session, "behave", PATIENCE_S) == ("here",)


@requirement("session:multiplexes")
@pytest.mark.parametrize("face", ["http", "http-legacy"])
async def test_many_calls_that_time_out_together_all_end_in_time(
    face: Face, tmp_path: Path
) -> None:
    async with faulty(face, tmp_path / "journal") as server:
        session = await server.open()
        started = time.monotonic()
        ends = await asyncio.gather(*(outcome(session, "hang", SHORT_S) for _ in range(64)))
        assert time.monotonic() - started < SHORT_S + SLACK_S
        assert {end[0] for end in ends} == {Code.CALL_TIMEOUT}


@requirement("session:multiplexes")
async def test_a_timeout_or_a_cancel_leaves_the_other_calls_of_a_session_alone() -> None:
    session = await Session.open(
        over_stdio("echo.py"),
        connect_timeout_s=PATIENCE_S,
        stop_grace_s=2.0,
        max_result_bytes=1_000_000,
    )
    goes_on = asyncio.create_task(
        session.call_tool("sleep", {"seconds": 1.5, "token": "a"}, timeout_s=PATIENCE_S)
    )
    stopped = asyncio.create_task(
        session.call_tool("sleep", {"seconds": 600, "token": "b"}, timeout_s=PATIENCE_S)
    )
    with pytest.raises(CallError) as caught:
        await session.call_tool("sleep", {"seconds": 600, "token": "c"}, timeout_s=0.5)
    stopped.cancel()
    assert caught.value.code is Code.CALL_TIMEOUT
    assert session.poisoned
    assert (await goes_on).body["content"][0]["text"] == "a"
    await session.close()


@requirement("session:multiplexes")
async def test_a_line_without_end_is_nobodys_while_several_calls_are_under_way(
    tmp_path: Path,
) -> None:
    async with faulty("stdio", tmp_path / "journal") as server:
        session = await server.open()
        ends = await asyncio.gather(
            outcome(session, "hang", PATIENCE_S), outcome(session, "endless_line", PATIENCE_S)
        )
        assert {(end[0], end[1]) for end in ends} == {(Code.SESSION_LOST, True)}


@requirement("session:errors-are-typed")
@pytest.mark.parametrize("face", ["http", "http-legacy"])
async def test_a_call_to_an_http_server_that_is_gone_was_never_dispatched(
    face: Face, tmp_path: Path
) -> None:
    async with faulty(face, tmp_path / "journal") as server:
        session = await server.open()
        assert (await outcome(session, "exit_0", PATIENCE_S))[:2] == (Code.SESSION_LOST, True)

        async def refused() -> bool:
            return await outcome(session, "behave", PATIENCE_S) == (
                Code.SESSION_LOST,
                False,
                None,
                None,
            )

        await until(refused)  # at first an idle connection may not have heard of it yet
        assert session.poisoned


@requirement("session:lost-or-refused")
async def test_a_call_whose_session_was_forgotten_is_made_once_more_and_runs_once(
    tmp_path: Path,
) -> None:
    journal = tmp_path / "journal"
    args = ("--journal", str(journal))
    async with over_http(*args) as definition:
        port = str(urlsplit(str(definition.url)).port)
        server = Faulty(definition, journal)
        pool = SessionPool(
            "faulty", PoolDefinition(min_idle=0, validate_after_s=60), lambda _key: server.open()
        )
        async with pool.borrow(SessionKey(1), PATIENCE_S) as lease:
            assert await outcome(lease.session, "behave", PATIENCE_S) == ("here",)
    async with over_http(*args, "--port", port):
        async with pool.borrow(SessionKey(1), PATIENCE_S) as lease:
            end = await outcome(lease.session, "behave", PATIENCE_S)
            assert end == (Code.SESSION_LOST, False, 404, None)
            lease.discard("session_lost", dead=True)
        async with pool.borrow(SessionKey(1), PATIENCE_S) as lease:
            assert await outcome(lease.session, "behave", PATIENCE_S) == ("here",)
        assert server.count("call behave") == 2  # before the restart, and after it
        await pool.close()


@requirement("session:lost-or-refused")
async def test_a_session_that_idled_for_long_was_forgotten_even_if_nobody_used_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.session._FRESH_S", 0)  # for long: longer than this
    async with faulty("http-legacy", tmp_path / "journal") as server:
        session = await server.open()
        end = await outcome(session, "forget_404", PATIENCE_S)
        assert end == (Code.SESSION_LOST, False, 404, None)


# -- probes


@requirement("session:probes")
async def test_a_refusal_of_the_probe_proves_that_the_server_lives() -> None:
    session = await Session.open(
        over_stdio("noisy.py"),
        connect_timeout_s=PATIENCE_S,
        stop_grace_s=0.2,
        max_result_bytes=1000,
    )
    await session.probe(PATIENCE_S)  # it answers that it knows no ping
    assert not session.poisoned
    await session.close()


@requirement("session:probes")
async def test_a_probe_without_an_answer_makes_the_session_unfit(tmp_path: Path) -> None:
    async with faulty("stdio", tmp_path / "journal") as server:
        session = await server.open()
        assert await outcome(session, "stop_reading", PATIENCE_S) == ("here",)
        with pytest.raises(FleetError) as caught:
            await session.probe(0.2)
        assert (caught.value.code, session.poisoned) == (Code.CALL_TIMEOUT, True)


@requirement("session:probes")
async def test_a_probe_that_is_cancelled_makes_the_session_unfit(tmp_path: Path) -> None:
    async with faulty("stdio", tmp_path / "journal") as server:
        session = await server.open()
        assert await outcome(session, "stop_reading", PATIENCE_S) == ("here",)
        probing = asyncio.create_task(session.probe(PATIENCE_S))
        await asyncio.sleep(0)
        probing.cancel()
        await asyncio.wait({probing})
        assert session.poisoned


@requirement("session:probes")
async def test_a_legacy_session_whose_server_is_gone_does_not_pass_the_probe(
    tmp_path: Path,
) -> None:
    async with faulty("http-legacy", tmp_path / "journal") as server:
        session = await server.open()
        await session.probe(PATIENCE_S)
        await outcome(session, "exit_0", PATIENCE_S)
        session.poisoned = False  # by the call; here it is the probe that is asked
        with pytest.raises(FleetError) as caught:
            await session.probe(PATIENCE_S)
        assert (caught.value.code, session.poisoned) == (Code.SESSION_LOST, True)


@requirement("session:probes")
async def test_a_modern_http_server_is_not_asked_whether_it_lives(tmp_path: Path) -> None:
    async with faulty("http", tmp_path / "journal") as server:
        session = await server.open()
        await outcome(session, "exit_0", PATIENCE_S)
        await session.probe(PATIENCE_S)


@requirement("session:probes")
@pytest.mark.parametrize("face", FACES)
async def test_only_sessions_over_http_die_together(face: Face, tmp_path: Path) -> None:
    async with faulty(face, tmp_path / "journal") as server:
        session = await server.open()
        assert session.shares_fate == (face != "stdio")


# -- resets


@requirement("session:resets")
@pytest.mark.parametrize("face", FACES)
async def test_a_session_that_was_reset_goes_on(face: Face, tmp_path: Path) -> None:
    async with faulty(face, tmp_path / "journal") as server:
        session = await server.open()
        await session.reset("behave", PATIENCE_S)
        assert server.count("call behave") == 1
        assert not session.poisoned


@requirement("session:resets")
async def test_a_reset_that_is_refused_makes_the_session_unfit(tmp_path: Path) -> None:
    async with faulty("http", tmp_path / "journal") as server:
        session = await server.open()
        with pytest.raises(CallError) as caught:
            await session.reset("status_403", PATIENCE_S)
        assert (caught.value.code, session.poisoned) == (Code.UPSTREAM_FORBIDDEN, True)


@requirement("session:resets")
async def test_a_reset_that_fails_as_a_tool_does_makes_the_session_unfit() -> None:
    session = await Session.open(
        over_stdio("echo.py"), connect_timeout_s=PATIENCE_S, stop_grace_s=2, max_result_bytes=10_000
    )
    with pytest.raises(CallError, match="tool fail of server faulty, which resets"):
        await session.reset("fail", PATIENCE_S)
    assert session.poisoned
    await session.close()
