"""What is known of one request while it travels, and what keeps any stream from taking over.

Some of what a server says never reaches the SDK: more questions than `_QUESTIONS_PER_S`, and that
something changed, which it may say as often as it likes.

The SDK hands each message to its transport in the context of whoever sent it, the reconnections of
an HTTP request included. So a context variable tells the transports whose request they carry,
however many calls of one session are under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Self

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCNotification, JSONRPCRequest

from registry.allowance import Allowance
from workers.caller import Talk

STREAMS_PER_EXCHANGE: Final = 5
_BREATH_S: Final = 0.002
_QUESTIONS_PER_S: Final = 20
_MOST_QUESTIONS: Final = 100
_TRICKLE_BYTES_PER_S: Final = 256 * 1024
_TRICKLE_PIECES_PER_S: Final = 2_000
LISTING_CHANGED: Final = "notifications/tools/list_changed"
OFFERINGS_CHANGED: Final = (
    "notifications/prompts/list_changed",
    "notifications/resources/list_changed",
)
RESOURCE_UPDATED: Final = "notifications/resources/updated"


@dataclass(slots=True, eq=False)
class Exchange:
    """One request: what its transport saw of it, for the call that judges how it ended."""

    stderr_from: int | None = 0
    """How much a stdio server had said on stderr before; None when some of it may be of others."""

    headers: Mapping[str, str] = field(default_factory=dict)
    """What it says in headers too, over HTTP."""
    sent: bool = False
    """A byte of it may have reached the server."""
    over: bool = False
    """Nobody waits for its answer any more."""
    status: int | None = None
    retry_after_s: float | None = None
    said: str = ""
    """The beginning of a refusal's body."""
    challenge: str = ""
    """What a refusal says is to be shown instead: its WWW-Authenticate, as it came."""
    server_timing: str = ""
    """What its answer says about the time it took: its Server-Timing, as it came."""
    in_session: bool = False
    """It named an HTTP session, which the server may have forgotten."""
    problem: str = ""
    """Why its answer cannot be one, whatever its body says."""
    oversize: bool = False
    failure: Exception | None = None
    """How its connection failed."""
    streams_left: int = STREAMS_PER_EXCHANGE
    """How many event streams may still be opened to look for its answer."""
    endless: bool = False
    """It is answered by notifications for as long as it lasts; they are read as a trickle."""
    talk: Talk | None = None
    """What its server may say to its caller meanwhile; None for what no caller is behind."""
    on_stream: Callable[[bool], None] | None = None
    """Is told when an event stream that was opened for it begins, and when it ends."""

    def begin(self, *, in_session: bool) -> None:
        """Forget an earlier request (a handshake makes several in one exchange)."""
        self.sent = True
        self.in_session = in_session
        self.status = self.retry_after_s = self.failure = None
        self.said = self.problem = self.challenge = self.server_timing = ""


_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


@contextmanager
def exchange(*, endless: bool = False, talk: Talk | None = None) -> Iterator[Exchange]:
    """Make what is sent in this block one exchange; it is over when the block ends."""
    mine = Exchange(endless=endless, talk=talk)
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


class Trickle:
    """Slow down a stream that ought to be quiet: what is too much in a second waits at its sender.

    What is said now and then passes without delay.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._bytes = 0
        self._pieces = 0

    async def passed(self, size: int) -> None:
        """Count a piece that was read; suspend until the next one may be."""
        now = asyncio.get_running_loop().time()
        if now - self._since > 1.0:
            self._since, self._bytes, self._pieces = now, 0, 0
        self._bytes += size
        self._pieces += 1
        if self._bytes > _TRICKLE_BYTES_PER_S or self._pieces > _TRICKLE_PIECES_PER_S:
            await asyncio.sleep(self._since + 1.0 - now)


class Around:
    """A stream of the SDK with something of ours around it; what is not ours is the stream's."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def aclose(self) -> None:
        """Close the stream."""
        await self._inner.aclose()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> bool | None:
        left: bool | None = await self._inner.__aexit__(*error)
        return left


class Sieve(Around):
    """A read stream without what the server says of its own accord, as far as it is no use here.

    Its questions, beyond `_QUESTIONS_PER_S` over time and `_MOST_QUESTIONS` at once: each is
    answered, put to a caller or refused, and an answer takes its turn among our requests. What
    ``heard`` has a listener for, by its method: that is told the notification's parameters.
    """

    def __init__(self, inner: Any, heard: Mapping[str, Callable[[dict[str, Any]], None]]) -> None:
        super().__init__(inner)
        self._heard = heard
        clock = asyncio.get_running_loop().time
        self._questions = Allowance(_QUESTIONS_PER_S, _MOST_QUESTIONS, clock)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        while True:
            item: SessionMessage | Exception = await self._inner.__anext__()
            if isinstance(item, Exception):
                return item
            message = item.message
            if isinstance(message, JSONRPCNotification) and message.method in self._heard:
                self._heard[message.method](message.params or {})
            elif not isinstance(message, JSONRPCRequest) or self._questions.take():
                return item

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message; raise `anyio.EndOfStream` when there is none."""
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise anyio.EndOfStream from None


class Stamped(Around):
    """A write stream that adds members to the ``_meta`` of every request, whoever makes it."""

    def __init__(self, inner: Any, meta: Mapping[str, str]) -> None:
        super().__init__(inner)
        self._meta = meta

    async def send(self, item: SessionMessage) -> None:
        """Send a message."""
        if isinstance(item.message, JSONRPCRequest):
            params = item.message.params or {}
            meta = {**(params.get("_meta") or {}), **self._meta}
            item.message.params = {**params, "_meta": meta}
        await self._inner.send(item)
