"""What a server says of a call while it runs, passed on in its order, as fast as is listened."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from registry.database import to_json
from workers.scrub import Scrubber

OnProgress = Callable[[float, float | None, str | None], Awaitable[None]]
OnLog = Callable[[dict[str, Any]], Awaitable[None]]
"""Is told of a log message: ``level``, ``logger`` (if it has one) and ``data``."""

MOST_WAITING: Final = 100
LOGS_PER_S: Final = 50
LARGEST_LOG_BYTES: Final = 65_536
SETTLE_S: Final = 1.0

_Report = tuple[float, float | None, str | None]


class InOrder:
    """Tell the listeners of a call, one message at a time; the session's secret is taken out.

    Of reports of progress that follow each other while nobody listens, the latest is told. Log
    messages beyond `LOGS_PER_S`, and the oldest of more than `MOST_WAITING`, are left out.
    """

    def __init__(
        self, on_progress: OnProgress | None, on_log: OnLog | None, scrubber: Scrubber
    ) -> None:
        self._on_progress = on_progress
        self._on_log = on_log
        self._scrubber = scrubber
        self._waiting: deque[_Report | dict[str, Any]] = deque(maxlen=MOST_WAITING)
        self._telling: asyncio.Event | None = None
        self._since = 0.0
        self._logs = 0

    async def progress(self, done: float, total: float | None, message: str | None) -> None:
        """Take a report (the MCP SDK's ``ProgressFnT``)."""
        if self._waiting and isinstance(self._waiting[-1], tuple):
            self._waiting.pop()
        self._waiting.append((done, total, message))
        await self._tell()

    async def log(self, body: dict[str, Any]) -> None:
        """Take a log message."""
        now = asyncio.get_running_loop().time()
        if now - self._since > 1.0:
            self._since, self._logs = now, 0
        self._logs += 1
        if self._on_log is not None and self._logs <= LOGS_PER_S:
            self._waiting.append(_bounded(body))
            await self._tell()

    async def settled(self) -> None:
        """Return once what was said has been told; bounded, for a listener that hangs."""
        if self._telling is not None and self._on_log is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._telling.wait(), SETTLE_S)

    async def _tell(self) -> None:
        if self._telling is not None:
            return
        self._telling = told = asyncio.Event()
        try:
            while self._waiting:
                await self._tell_one(self._waiting.popleft())
        finally:
            self._telling = None
            told.set()

    async def _tell_one(self, item: _Report | dict[str, Any]) -> None:
        if isinstance(item, dict):
            if self._on_log is not None:
                await self._on_log(self._scrubber.json(item))
        elif self._on_progress is not None:
            done, total, message = item
            await self._on_progress(done, total, message and self._scrubber.text(message))


def _bounded(body: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(to_json(body))
    except (ValueError, RecursionError):
        return {**body, "logger": None, "data": "(left out: it is no JSON)"}
    if size <= LARGEST_LOG_BYTES:
        return body
    return {"level": body["level"], "data": f"(left out: {size} bytes)"}
