"""A call's story as server-sent events: `state`, `progress` and `log`, the final `state`, the end.

There is a `state` too whenever what its server asks has changed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from starlette.responses import StreamingResponse
from starlette.types import Send

from api.encoding import encode
from api.waiting import LOOK_EVERY_S, Row, WaitingRoom, ended
from api.wire import call_body
from registry.errors import FleetError

HEARTBEAT_EVERY_S: Final = 15.0
HEARTBEAT: Final = b": still here\n\n"


class EventStream(StreamingResponse):
    """A response that closes its source at once when the client goes."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Send events until the source ends."""
        async with aclosing(self._events):
            await super().stream_response(send)


async def story(
    room: WaitingRoom,
    row: Row,
    whole: Callable[[Row], Awaitable[Row]],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[bytes, None]:
    """Yield a call's events; a comment every `HEARTBEAT_EVERY_S` while there are none.

    ``whole`` adds to a row what the call's server asks.
    Listening changes nothing for the call: it runs on when the listener goes.
    """
    call_id = row["id"]
    yield _event("state", call_body(await whole(row)))
    with room.expect(call_id) as hint:
        async with room.progress_into(call_id, hint):
            told_at = clock()
            while not ended(row) and not room.dismissed:
                try:
                    seen = await room.read(call_id) or row
                except FleetError:
                    seen = row  # the next look may succeed; the call itself is not concerned
                events = [_told(body) for body in hint.take_progress()]
                if _changed(row, seen):
                    events.append(_event("state", call_body(await whole(seen))))
                elif not events and clock() - told_at >= HEARTBEAT_EVERY_S:
                    events.append(HEARTBEAT)
                for event in events:
                    told_at = clock()
                    yield event
                row = seen
                if not ended(row):
                    await hint.within(LOOK_EVERY_S)


def _changed(row: Row, seen: Row) -> bool:
    return any(row.get(name) != seen.get(name) for name in ("state", "open_questions"))


def _told(body: Any) -> bytes:
    if isinstance(body, dict) and "log" in body:
        return _event("log", body["log"])
    return _event("progress", body)


def _event(name: str, body: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + encode(body) + b"\n\n"
