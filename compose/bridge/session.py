"""The session of a client that began with ``initialize`` (2025-03-26 to 2025-11-25).

A client over stdio knows of no session: where the fleet has it no longer, as when its run is over,
the bridge begins another one in its place and asks again what was not taken.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Any, Final

from api.mcp.headers import VERSION as VERSION_HEADER
from compose.api_client import AskError
from compose.bridge.endpoint import Endpoint, Hear, LostError, Place, RefusedError
from compose.bridge.messages import Message, written

SESSION_HEADER: Final = "mcp-session-id"
END_WITHIN_S: Final = 3.0
GO_ON_WITHIN_S: Final = 60.0
"""How long the fleet may be away while a call of it runs."""
LONGEST_PAUSE_S: Final = 30.0
_NO_SUCH_SESSION: Final = 404
_INITIALIZED: Final = "notifications/initialized"


class Session:
    """One session after the other, as one."""

    def __init__(self, endpoint: Endpoint, hear: Hear) -> None:
        self._endpoint = endpoint
        self._hear = hear
        self._opening = asyncio.Lock()
        self._beginning: Message | None = None
        self._id = ""
        self._revision = ""
        self._listening: asyncio.Task[None] | None = None

    async def ask(self, request: Message, hear: Hear) -> None:
        """Ask, and hear what comes before the answer and the answer.

        Raises what `Endpoint.exchange` raises.
        """
        if request.method == "initialize":
            async with self._opening:
                self._beginning = request
                await self._begin(hear)
            return
        session = await self._current()
        try:
            await self._ask(request, hear)
        except RefusedError as refused:
            if refused.status != _NO_SUCH_SESSION or not session:
                raise
            await self._renew(session)
            await self._ask(request, hear)

    async def tell(self, message: Message) -> None:
        """Send what has no answer; say on stderr where it is not taken."""
        await self._current()
        try:
            await self._post(message, self._hear, Place())
        except (AskError, RefusedError, LostError) as error:
            sys.stderr.write(f"toolfleet mcp: {message.method or 'an answer'}: {error}\n")
        if message.method == _INITIALIZED and self._id and self._listening is None:
            self._listening = asyncio.create_task(self._listen())

    async def end(self) -> None:
        """End the session with its run and its calls."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        if self._id:
            with suppress(AskError, RefusedError, LostError, TimeoutError):
                async with asyncio.timeout(END_WITHIN_S):
                    headers = self._headers()
                    await self._endpoint.exchange("DELETE", headers, None, self._hear, Place())

    async def _current(self) -> str:
        """Return the session's id once it is not being opened."""
        async with self._opening:
            return self._id

    async def _begin(self, hear: Hear) -> None:
        assert self._beginning is not None
        answers: list[Message] = []

        async def note(message: Message) -> None:
            answers.append(message)

        begun = self._beginning.text
        headers = await self._endpoint.exchange("POST", {}, begun, note, Place())
        self._id = headers.get(SESSION_HEADER, "")
        for message in answers:
            if isinstance(result := message.said.get("result"), dict):
                self._revision = str(result.get("protocolVersion", ""))
            await hear(message)

    async def _renew(self, stale: str) -> None:
        async with self._opening:
            if self._id != stale:
                return  # another request has done it
            await self._begin(_nobody)
            told = written({"method": _INITIALIZED})
            await self._post(told, self._hear, Place())
        # It has a run of its own, whose tools may be others.
        await self._hear(written({"method": "notifications/tools/list_changed"}))

    async def _ask(self, request: Message, hear: Hear) -> None:
        """Ask in the session that there is; go on with the answer where its stream is lost."""
        place, answered = Place(), False

        async def listen(message: Message) -> None:
            nonlocal answered
            answered = answered or message.answers
            await hear(message)

        lost: Exception = LostError("the stream ended before the answer")
        try:
            await self._post(request, listen, place)
        except LostError as error:
            lost = error
        loop = asyncio.get_running_loop()
        until = loop.time() + GO_ON_WITHIN_S
        while not answered:
            if not place.event_id or loop.time() > until:
                raise lost
            await asyncio.sleep(place.retry_s)
            try:
                await self._get(listen, place)
                until = loop.time() + GO_ON_WITHIN_S
            except (AskError, LostError) as error:
                lost = error

    async def _listen(self) -> None:
        """Hear what nobody asked for, for as long as the client is there."""
        place, pause_s = Place(), 0.0
        while True:
            session = self._id
            try:
                await self._get(self._hear, place)
                pause_s = 0.0
            except RefusedError as refused:
                if refused.status != _NO_SUCH_SESSION:
                    return
                with suppress(AskError, RefusedError, LostError):
                    await self._renew(session)
                place, pause_s = Place(), _longer(pause_s)
            except (AskError, LostError):
                pause_s = _longer(pause_s)
            await asyncio.sleep(max(pause_s, place.retry_s))

    async def _post(self, message: Message, hear: Hear, place: Place) -> None:
        await self._endpoint.exchange("POST", self._headers(), message.text, hear, place)

    async def _get(self, hear: Hear, place: Place) -> None:
        headers = {**self._headers(), "accept": "text/event-stream"}
        if place.event_id:
            headers["last-event-id"] = place.event_id
        await self._endpoint.exchange("GET", headers, None, hear, place)

    def _headers(self) -> dict[str, str]:
        named = {SESSION_HEADER: self._id, VERSION_HEADER: self._revision}
        return {name: value for name, value in named.items() if value}


def _longer(pause_s: float) -> float:
    return min(max(pause_s * 2, 1.0), LONGEST_PAUSE_S)


async def _nobody(_message: Any) -> None:
    """Hear what the client is not to hear again."""
