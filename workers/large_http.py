"""Large bodies and events of HTTP responses, made small on their way to the SDK.

A body is one JSON message; of an event stream each event is. What is small passes as it came.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2

from registry.errors import FleetError
from workers.exchange import Exchange
from workers.large import LargeMessages


class Shrunk(httpx2.AsyncByteStream):
    """A response's stream without large messages; an event over ``max_bytes`` ends it."""

    def __init__(
        self,
        inner: httpx2.AsyncByteStream,
        exchange: Exchange,
        large: LargeMessages,
        *,
        events: bool,
        max_bytes: int,
    ) -> None:
        self._inner = inner
        self._exchange = exchange
        self._large = large
        self._of_events = events
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if not self._of_events:
            yield await self._small(b"".join([chunk async for chunk in self._inner]))
            return
        events = EventBuffer()
        async for chunk in self._inner:
            for whole in events.feed(chunk):
                yield await self._small(whole)
            if events.pending_bytes > self._max_bytes:
                self._exchange.oversize = True
                raise httpx2.SSEError(f"an event is larger than {self._max_bytes} bytes")

    async def _small(self, raw: bytes) -> bytes:
        if not self._large.is_large(raw):
            return raw
        try:
            return await self._large.shrink(raw, event=self._of_events)
        except FleetError as error:
            self._exchange.failure = error
            if self._of_events:
                # The one error after which the SDK does not look for the answer elsewhere.
                raise httpx2.SSEError(error.message) from error
            raise httpx2.StreamError(error.message) from error

    async def aclose(self) -> None:
        """Close the response."""
        await self._inner.aclose()


class EventBuffer:
    """Bytes of an event stream in, whole events out, their lines ended by newlines."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held_return = False
        self.pending_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take a chunk; return the event that it completes, and those that lie in it, as one."""
        chunk = b"\r" * self._held_return + chunk
        self._held_return = chunk.endswith(b"\r")  # a newline may follow, and belong to it
        chunk = chunk[: len(chunk) - self._held_return]
        text = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._parts and self._parts[-1].endswith(b"\n") and text.startswith(b"\n"):
            first = 1
        else:
            first = text.find(b"\n\n") + 2
            if first == 1:
                self._keep(text)
                return []
        last = max(first, text.rfind(b"\n\n") + 2)
        completed = b"".join([*self._parts, text[:first]])
        self._parts = []
        self.pending_bytes = 0
        self._keep(text[last:])
        return [completed, text[first:last]] if last > first else [completed]

    def _keep(self, text: bytes) -> None:
        if text:
            self._parts.append(text)
            self.pending_bytes += len(text)
