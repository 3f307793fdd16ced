"""What is known of one request while it travels, and what keeps any stream from taking over.

The SDK hands each message to its transport in the context of whoever sent it, the reconnections of
an HTTP request included. So a context variable tells the transports whose request they carry,
however many calls of one session are under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Self

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCRequest

STREAMS_PER_EXCHANGE: Final = 5
_BREATH_S: Final = 0.002
_QUESTIONS_PER_S: Final = 20


@dataclass(slots=True)
class Exchange:
    """One request: what its transport saw of it, for the call that judges how it ended."""

    sent: bool = False
    """A byte of it may have reached the server."""
    over: bool = False
    """Nobody waits for its answer any more."""
    status: int | None = None
    retry_after_s: float | None = None
    said: str = ""
    """The beginning of a refusal's body."""
    in_session: bool = False
    """It named an HTTP session, which the server may have forgotten."""
    problem: str = ""
    """Why its answer cannot be one, whatever its body says."""
    oversize: bool = False
    failure: Exception | None = None
    """How its connection failed."""
    streams_left: int = STREAMS_PER_EXCHANGE
    """How many event streams may still be opened to look for its answer."""

    def begin(self, *, in_session: bool) -> None:
        """Forget an earlier request (a handshake makes several in one exchange)."""
        self.sent = True
        self.in_session = in_session
        self.status = self.retry_after_s = self.failure = None
        self.said = self.problem = ""


_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


@contextmanager
def exchange() -> Iterator[Exchange]:
    """Make what is sent in this block one exchange; it is over when the block ends."""
    mine = Exchange()
    token = _current.set(mine)
    try:
        yield mine
    finally:
        mine.over = True
        _current.reset(token)


def current_exchange() -> Exchange:
    """Return the exchange of the request being carried; a new one for what is nobody's."""
    return _current.get() or Exchange()


class Breather:
    """Let others run: what takes from a buffer that is never empty would not suspend by itself."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rested_at = self._loop.time()

    def rested(self) -> None:
        """Note that the loop has just come round."""
        self._rested_at = self._loop.time()

    async def breathe(self) -> None:
        """Suspend for one round of the loop if the last one was a while ago."""
        if self._loop.time() - self._rested_at > _BREATH_S:
            await asyncio.sleep(0)
            self._rested_at = self._loop.time()


class FewQuestions:
    """A read stream that passes on `_QUESTIONS_PER_S` of the server's own requests, and no more.

    Each is answered ("ping") or refused (all others: we offer nothing to ask for), and an answer
    takes its turn among our requests.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._since = 0.0
        self._passed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        while True:
            item: SessionMessage | Exception = await self._inner.__anext__()
            if isinstance(item, Exception) or not isinstance(item.message, JSONRPCRequest):
                return item
            now = asyncio.get_running_loop().time()
            if now - self._since > 1.0:
                self._since, self._passed = now, 0
            self._passed += 1
            if self._passed <= _QUESTIONS_PER_S:
                return item

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message; raise `anyio.EndOfStream` when there is none."""
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise anyio.EndOfStream from None

    async def aclose(self) -> None:
        """Close the stream."""
        await self._inner.aclose()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> bool | None:
        left: bool | None = await self._inner.__aexit__(*error)
        return left
