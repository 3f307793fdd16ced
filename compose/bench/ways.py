"""The ways a call can go, each behind the same three verbs: open, call, close."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol
from urllib.parse import urlsplit

from compose.bench.noop import round_trip
from registry.definitions import ServerDefinition, parse_definition
from workers.session import Session

TEXT = "What does one more layer cost?"
LIMIT_S = 30.0
MAX_RESULT_BYTES = 1_000_000
MOST_AT_ONCE = 64


class Way(Protocol):
    """One way to make a call; `call` returns when it is answered and raises when it is not."""

    async def open(self) -> None:
        """Make ready, outside of what is measured."""

    async def call(self) -> None:
        """Make one call."""

    async def close(self) -> None:
        """Undo `open`."""


class Direct:
    """A warm session of the same client that the workers use, shared by all callers."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self._definition = parse_definition(definition)
        self._session: Session | None = None

    async def open(self) -> None:
        """Open the session."""
        self._session = await _open(self._definition)

    async def call(self) -> None:
        """Call through it."""
        assert self._session is not None
        await _echo(self._session)

    async def close(self) -> None:
        """Close it."""
        if self._session is not None:
            await self._session.close()


class PerCall:
    """A session of its own for each call: over stdio that is a process spawned per call."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self._definition = parse_definition(definition)

    async def open(self) -> None:
        """Nothing is kept."""

    async def call(self) -> None:
        """Open, call, close."""
        session = await _open(self._definition)
        try:
            await _echo(session)
        finally:
            await session.close()

    async def close(self) -> None:
        """Nothing was kept."""


class Fleet:
    """The whole durable path: ``POST /v1/runs/{id}/calls`` over one connection per caller.

    The client is as lean as HTTP allows, so that what is measured is the fleet and not its caller.
    """

    def __init__(self, url: str, key: str, run_id: str, tool: str, wait_s: int) -> None:
        where = urlsplit(url)
        self._address = (where.hostname or "", where.port or 80)
        body = f'{{"tool":"{tool}","arguments":{{"text":"{TEXT}"}}}}'
        self._request = (
            f"POST /v1/runs/{run_id}/calls HTTP/1.1\r\n"
            f"Host: {where.netloc}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            + (f"Prefer: wait={wait_s}\r\n" if wait_s else "")
            + f"\r\n{body}"
        ).encode()
        self._wanted = b"200" if wait_s else b"202"
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def open(self) -> None:
        """Do nothing: connections are opened as they are needed, and kept."""

    async def call(self) -> None:
        """Send the request, read the answer; raise `RuntimeError` unless the call succeeded."""
        reader, writer = await self._connection()
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        if head[9:12] != self._wanted or (
            self._wanted == b"200" and b'"state":"succeeded"' not in body
        ):
            raise RuntimeError(f"the fleet answered {head[:15]!r}: {body[:300]!r}")
        self._idle.append((reader, writer))

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return an idle connection that the server has not closed meanwhile, or a new one."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(*self._address)

    async def close(self) -> None:
        """Close every connection."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()


class Noop:
    """A Celery no-op, from `send_task` to the result, in a thread as Celery's client wants it."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="celery")

    async def open(self) -> None:
        """Do nothing: connections are opened as they are needed, and kept."""

    async def call(self) -> None:
        """Send one task and wait for its result."""
        await asyncio.get_running_loop().run_in_executor(self._threads, round_trip)

    async def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


def make_way(kind: str, options: Mapping[str, Any]) -> Way:
    """Return a way by the name that jobs give it."""
    makers: dict[str, Callable[..., Way]] = {
        "direct": Direct,
        "per-call": PerCall,
        "fleet": Fleet,
        "noop": Noop,
    }
    return makers[kind](**options)


def _open(definition: ServerDefinition) -> Awaitable[Session]:
    return Session.open(
        definition,
        connect_timeout_s=LIMIT_S,
        stop_grace_s=2,
        max_result_bytes=MAX_RESULT_BYTES,
    )


async def _echo(session: Session) -> None:
    result = await session.call_tool("echo", {"text": TEXT}, timeout_s=LIMIT_S)
    if result.body["content"][0]["text"] != TEXT:
        raise RuntimeError(f"the echo is not what was sent: {result.body}")
