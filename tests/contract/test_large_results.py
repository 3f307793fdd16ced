"""Large results over each transport: they arrive whole, and no callback of the loop is held by one.

The servers are real processes, and so is the one that reads the results.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from registry.errors import Code, FleetError
from registry.output_rules import DEFAULT_RULES
from tests.contract.test_sessions import (
    FLAGS,
    LIMIT_S,
    Kind,
    echo,
    http,
    http_server,
    open_session,
    stdio,
)
from tests.loop_time import watch_callbacks
from tests.requirements import requirement
from tests.waiting import until
from workers.guardrails import Guardrails
from workers.large import LargeReader
from workers.output_gate import Gate
from workers.session import CallError, Session

pytestmark = pytest.mark.anyio

MAX_BYTES = 10_000_000
MOST_HELD_S = 0.05
MAIL = "jane.doe@example.com"
KINDS: tuple[Kind, ...] = ("stdio", "http", "http-legacy", "http-json")


@pytest.fixture(scope="module")
async def reader(anyio_backend: str) -> AsyncIterator[LargeReader]:
    reader = LargeReader(longest_bytes=MAX_BYTES)
    yield reader
    await reader.close()


@asynccontextmanager
async def opened(kind: Kind, reader: LargeReader) -> AsyncIterator[Session]:
    """Open a session with an echo server whose large results ``reader`` reads."""
    options = {"max_result_bytes": MAX_BYTES, "large": reader}
    if kind.startswith("http"):
        async with http_server(*FLAGS[kind]) as port:
            session = await open_session(http(port), **options)
            yield session
            await session.close()
    else:
        session = await open_session(stdio("echo.py", *FLAGS[kind]), **options)
        yield session
        await session.close()


@requirement("large:no-stall", "large:checked-and-redacted")
@pytest.mark.parametrize("size", [1_000_000, 9_000_000])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_large_result_arrives_redacted_and_holds_up_nothing(
    kind: Kind, size: int, reader: LargeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(kind, reader) as session:
        await echo(session)
        with watch_callbacks(monkeypatch) as held:
            result = await session.call_tool(
                "around", {"text": MAIL, "size": size}, timeout_s=LIMIT_S
            )
            assert result.large is not None
            clean = await reader.finish(result.large, "around", None)
        assert size - 100 < len(json.loads(clean.encoded)["content"][0]["text"]) < size + 100
        assert b"so many words [email] so many words" in clean.encoded
        assert MAIL.encode() not in clean.encoded
        assert held.longest_s < MOST_HELD_S
        assert (await echo(session)).body["content"][0]["text"] == "hello"


@requirement("large:no-stall")
@pytest.mark.parametrize(
    "unit", ["0", "[]", "[[[[[[[[[[]]]]]]]]]]", '{"":0}', '"-eyJ"', '"4222222222222"', '"a@b.c "']
)
async def test_the_largest_result_that_is_read_here_holds_up_nothing_either(
    unit: str, reader: LargeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"unit": unit, "count": (reader.read_here_bytes - 300) // (len(unit) + 1)}
    async with opened("stdio", reader) as session:
        with watch_callbacks(monkeypatch) as held:
            result = await session.call_tool("repeat", arguments, timeout_s=LIMIT_S)
            gate = Gate("acme", "echo", "repeat", DEFAULT_RULES, Guardrails())
            await gate.result("echo_repeat", None, result.body, result.size_bytes)
        assert result.large is None
        assert result.size_bytes > reader.read_here_bytes - 400
        assert held.longest_s < MOST_HELD_S


@requirement("large:checked-and-redacted")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_large_result_that_does_not_fit_its_schema_is_invalid(
    kind: Kind, reader: LargeReader
) -> None:
    async with opened(kind, reader) as session:
        result = await session.call_tool("big", {"size": 1_000_000}, timeout_s=LIMIT_S)
        assert result.large is not None
        with pytest.raises(FleetError, match="returned no structured content") as refused:
            await reader.finish(result.large, "big", {"type": "object"})
    assert refused.value.code is Code.RESULT_INVALID


@requirement("session:bounds-results")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_result_over_the_limit_is_refused_as_ever(kind: Kind, reader: LargeReader) -> None:
    async with opened(kind, reader) as session:
        for size in (MAX_BYTES + 1, 2 * MAX_BYTES):
            with pytest.raises(CallError) as refused:
                await session.call_tool("big", {"size": size}, timeout_s=LIMIT_S)
            assert refused.value.code is Code.RESULT_TOO_LARGE


@requirement("large:fails-alone")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_result_whose_reader_died_is_a_typed_error_of_its_call(
    kind: Kind, reader: LargeReader
) -> None:
    async with opened(kind, reader) as session, opened("stdio", reader) as neighbour:
        await session.call_tool("big", {"size": 1_000_000}, timeout_s=LIMIT_S)
        pid = reader.shrinking.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        call = asyncio.create_task(session.call_tool("big", {"size": 1_000_000}, timeout_s=LIMIT_S))
        await until(lambda: reader.shrinking.busy)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(CallError, match="tool big.*ended in the middle") as refused:
            await call
        assert (refused.value.code, refused.value.dispatched) == (Code.REDACTION_FAILED, True)
        assert session.poisoned
        result = await neighbour.call_tool("big", {"size": 1_000_000}, timeout_s=LIMIT_S)
        assert result.large is not None
