"""One HTTP exchange: the answer to a request, a batch of them, or to nothing but listening.

An answer is one JSON body where it comes before anything else has to be told, and a stream of
server-sent events from then on. A client that takes one kind alone, or names it first, gets that.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

from starlette.types import Message, Receive, Send

from api.mcp import messages

HEARTBEAT_EVERY_S: Final = 15.0
RETRY_MS: Final = 1000
"""After which time a client that lost its stream is to come back."""

_STREAM_HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)
_HEARTBEAT: Final = b": still here\n\n"


class Accepted:
    """Which kinds of answers a client takes, and whether it would rather have a stream."""

    def __init__(self, accept: str | None) -> None:
        kinds = [part.split(";")[0].strip().lower() for part in (accept or "*/*").split(",")]
        anything = "*/*" in kinds
        self.json = anything or not {"application/json", "application/*"}.isdisjoint(kinds)
        self.stream = anything or not {"text/event-stream", "text/*"}.isdisjoint(kinds)
        self.rather_stream = kinds[0] == "text/event-stream" or not self.json


class Exchange:
    """The answer to one HTTP request, as it is written."""

    def __init__(self, send: Send, accepted: Accepted) -> None:
        self._send = send
        self._accepted = accepted
        self._name: str | None = None
        self._primed = False
        self._batch = False
        self._missing = 1
        self._answers: list[bytes] = []
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        """What the answer's head has beside the usual."""
        self._events = 0
        self._writing = asyncio.Lock()
        self._over = False
        self.streaming = False
        self.gone = False
        """Whether nobody reads it any more."""

    @property
    def takes_stream(self) -> bool:
        """Say whether something can be told before the answer."""
        return self._accepted.stream

    def name_events(self, name: str, *, primed: bool) -> None:
        """Give the events ids that begin with a name; else they have none.

        A stream that is ``primed`` begins with an event that says nothing but where to go on from.
        """
        self._name = name
        self._primed = primed

    def expect(self, answers: int) -> None:
        """Answer a batch: its end is when so many answers were given."""
        self._batch = True
        self._missing = answers

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification."""
        await self.event(messages.notification(method, params))

    async def ask(self, id_: str, method: str, params: dict[str, Any]) -> None:
        """Send a request of ours."""
        await self.event(messages.question(id_, method, params))

    async def event(self, message: bytes) -> None:
        """Send a message on the stream, which begins with it if it has not begun."""
        async with self._writing:
            await self._event(b"data: " + message + b"\n\n")

    async def heartbeat(self) -> None:
        """Show that the stream is alive."""
        async with self._writing:
            await self._event(_HEARTBEAT, named=False)

    async def answer(self, body: bytes, status: int = 200) -> None:
        """Send an answer; it is the last thing to be said, but in a batch."""
        async with self._writing:
            self._missing -= 1
            if self.streaming or (status == HTTPStatus.OK and self._accepted.rather_stream):
                await self._event(b"data: " + body + b"\n\n", more=self._missing > 0)
                return
            self._answers.append(body)
            if self._missing <= 0:
                whole = b"[" + b",".join(self._answers) + b"]" if self._batch else body
                await self._plain(status, whole, (b"content-type", b"application/json"))

    async def accept(self) -> None:
        """Say that what came was taken, and has no answer."""
        await self._plain(202, b"")

    async def done(self) -> None:
        """Say that what was asked for is done, with nothing to tell of it."""
        await self._plain(200, b"")

    async def end(self) -> None:
        """End the stream."""
        async with self._writing:
            await self._event(b"", more=False, named=False)

    async def _plain(self, status: int, body: bytes, *more: tuple[bytes, bytes]) -> None:
        self._over = True
        length = (b"content-length", str(len(body)).encode())
        headers = [*more, length, *self.headers]
        await self._tell({"type": "http.response.start", "status": status, "headers": headers})
        await self._tell({"type": "http.response.body", "body": body})

    async def _event(self, text: bytes, *, more: bool = True, named: bool = True) -> None:
        if self._over:
            return
        self._over = not more
        begun = b""
        if not self.streaming:
            self.streaming = True
            headers = [*_STREAM_HEADERS, *self.headers]
            await self._tell({"type": "http.response.start", "status": 200, "headers": headers})
            begun = b"".join(b"data: " + answer + b"\n\n" for answer in self._answers)
            if self._primed:
                begun = self._id() + b"retry: %d\ndata: \n\n" % RETRY_MS
        body = begun + (self._id() if named else b"") + text
        await self._tell({"type": "http.response.body", "body": body, "more_body": more})

    def _id(self) -> bytes:
        if self._name is None:
            return b""
        self._events += 1
        return f"id: {self._name}.{self._events}\n".encode()

    async def _tell(self, message: Message) -> None:
        if not self.gone:
            await self._send(message)


class TooLarge(Exception):
    """A body is larger than what is taken."""


class OtherEnd:
    """The other end of an exchange."""

    def __init__(self, receive: Receive, let_in: Callable[[], Awaitable[bool]]) -> None:
        self.receive = receive
        self.let_in = let_in
        """Says whether it would still be let in."""

    async def body(self, largest: int) -> bytes | None:
        """Return what it sends, None where it left before the end; raise `TooLarge`."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > largest:
                raise TooLarge
            if not message.get("more_body"):
                return part if not parts else b"".join([*parts, part])
            parts.append(part)

    async def left(self) -> None:
        """Return when it has gone."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


async def see_through(
    exchange: Exchange,
    answering: asyncio.Task[None],
    client: OtherEnd,
    *,
    patience_s: float | None,
    longest_s: float | None = None,
) -> bool:
    """Keep an exchange alive until it is answered; return False where the client went before.

    If the client takes one, a stream begins after ``patience_s`` at the latest, where there is such
    a limit, and says something every `HEARTBEAT_EVERY_S`; it ends for a client that would be let
    in no more. After ``longest_s`` it ends too: its client knows how to come back.
    """
    leaving = asyncio.create_task(client.left())
    wait_s = patience_s if exchange.takes_stream else None
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + longest_s if longest_s is not None else math.inf
    try:
        while True:
            await asyncio.wait(
                {answering, leaving}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
            )
            if answering.done():
                return True
            if leaving.done():
                exchange.gone = True
                return False
            over = loop.time() >= ends_at
            if exchange.streaming and (over or not await client.let_in()):
                await exchange.end()
                return False
            await exchange.heartbeat()
            wait_s = min(HEARTBEAT_EVERY_S, max(0.0, ends_at - loop.time()))
    finally:
        leaving.cancel()
