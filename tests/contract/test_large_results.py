"""Large results over each transport: they arrive whole, and no callback of the loop is held by one.

The servers are real processes, and so is the one that reads the results.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from registry.definitions import ServerDefinition
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
from tests.loop_time import attempts
from tests.requirements import requirement
from tests.waiting import until
from workers.guardrails import Guardrails
from workers.large import LargeReader
from workers.output_gate import Gate
from workers.session import CallError, Session

pytestmark = pytest.mark.anyio

MAX_BYTES = 10_000_000
# How long a callback may take, in readings of the yardstick. Measured: 1, and 10 for what the loop
# reads itself at most; of eight times as much 65.
STALL = 5.0
READ_HERE_STALL = 25.0
MAIL = "jane.doe@example.com"
KINDS: tuple[Kind, ...] = ("stdio", "http", "http-legacy", "http-json")


@pytest.fixture(scope="module")
async def reader(anyio_backend: str) -> AsyncIterator[LargeReader]:
    reader = LargeReader(longest_bytes=MAX_BYTES)
    yield reader
    await reader.close()


@pytest.fixture(scope="module")
async def servers(anyio_backend: str) -> AsyncIterator[dict[str, ServerDefinition]]:
    """An echo server of each kind; over HTTP one for all tests, as each has sessions of its own."""
    async with AsyncExitStack() as stack:
        ports = {
            kind: await stack.enter_async_context(http_server(*FLAGS[kind]))
            for kind in KINDS
            if kind.startswith("http")
        }
        yield {
            **{kind: stdio("echo.py", *FLAGS[kind]) for kind in KINDS if kind not in ports},
            **{kind: http(port) for kind, port in ports.items()},
        }


@pytest.fixture
async def opened(
    kind: Kind, reader: LargeReader, servers: dict[str, ServerDefinition]
) -> AsyncIterator[Session]:
    """Open a session with an echo server whose large results ``reader`` reads."""
    session = await open_session(servers[kind], **options(reader))
    yield session
    await session.close()


@pytest.fixture(scope="module")
async def beside(
    reader: LargeReader, servers: dict[str, ServerDefinition]
) -> AsyncIterator[Session]:
    """A session over stdio that nothing ends."""
    session = await open_session(servers["stdio"], **options(reader))
    yield session
    await session.close()


def options(reader: LargeReader) -> dict[str, Any]:
    return {"max_result_bytes": MAX_BYTES, "large": reader}


@requirement("large:no-stall", "large:checked-and-redacted")
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("stdio", 1_000_000),
        ("stdio", 9_000_000),
        ("http", 9_000_000),
        ("http-legacy", 1_000_000),
        *(
            pytest.param(kind, size, marks=pytest.mark.long)
            for kind, size in (
                ("http", 1_000_000),
                ("http-legacy", 9_000_000),
                ("http-json", 1_000_000),
                ("http-json", 9_000_000),
            )
        ),
    ],
)
async def test_a_large_result_arrives_redacted_and_holds_up_nothing(
    opened: Session, size: int, reader: LargeReader
) -> None:
    await echo(opened)
    for attempt in attempts(most=STALL):
        with attempt:
            result = await opened.call_tool(
                "around", {"text": MAIL, "size": size}, timeout_s=LIMIT_S
            )
            assert result.large is not None
            clean = await reader.finish(result.large, "around", None)
    assert size - 100 < len(json.loads(clean.encoded)["content"][0]["text"]) < size + 100
    assert b"so many words [email] so many words" in clean.encoded
    assert MAIL.encode() not in clean.encoded
    assert (await echo(opened)).body["content"][0]["text"] == "hello"


@requirement("large:no-stall")
@pytest.mark.parametrize(
    "unit", ["0", "[]", "[[[[[[[[[[]]]]]]]]]]", '{"":0}', '"-eyJ"', '"4222222222222"', '"a@b.c "']
)
async def test_the_largest_result_that_is_read_here_holds_up_nothing_either(
    unit: str, beside: Session, reader: LargeReader
) -> None:
    arguments = {"unit": unit, "count": (reader.read_here_bytes - 300) // (len(unit) + 1)}
    for attempt in attempts(most=READ_HERE_STALL):
        with attempt:
            result = await beside.call_tool("repeat", arguments, timeout_s=LIMIT_S)
            gate = Gate("acme", "echo", "repeat", DEFAULT_RULES, Guardrails())
            await gate.result("echo_repeat", None, result.body, result.size_bytes)
    assert result.large is None
    assert result.size_bytes > reader.read_here_bytes - 400


@requirement("large:checked-and-redacted")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_large_result_that_does_not_fit_its_schema_is_invalid(
    opened: Session, reader: LargeReader
) -> None:
    result = await opened.call_tool("big", {"size": 1_000_000}, timeout_s=LIMIT_S)
    assert result.large is not None
    with pytest.raises(FleetError, match="returned no structured content") as refused:
        await reader.finish(result.large, "big", {"type": "object"})
    assert refused.value.code is Code.RESULT_INVALID


@requirement("session:bounds-results")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_result_over_the_limit_is_refused_as_ever(opened: Session) -> None:
    for size in (MAX_BYTES + 1, 2 * MAX_BYTES):
        with pytest.raises(CallError) as refused:
            await opened.call_tool("big", {"size": size}, timeout_s=LIMIT_S)
        assert refused.value.code is Code.RESULT_TOO_LARGE


@requirement("large:fails-alone")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_result_whose_reader_died_is_a_typed_error_of_its_call(
    opened: Session, beside: Session, reader: LargeReader
) -> None:
    await opened.call_tool("big", {"size": 1_000_000}, timeout_s=LIMIT_S)
    pid = reader.shrinking.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    call = asyncio.create_task(opened.call_tool("big", {"size": 1_000_000}, timeout_s=LIMIT_S))
    await until(lambda: reader.shrinking.busy)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(CallError, match="tool big.*ended in the middle") as refused:
        await call
    assert (refused.value.code, refused.value.dispatched) == (Code.REDACTION_FAILED, True)
    assert opened.poisoned
    result = await beside.call_tool("big", {"size": 1_000_000}, timeout_s=LIMIT_S)
    assert result.large is not None
