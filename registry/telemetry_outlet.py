"""Where the parts of traces go: taken along together once a second, and never waited for.

Invariants:
 1. An outlet holds so many parts at most; what comes while it is full is dropped, and counted.
 2. One delivery is under way at a time; one that fails loses its parts, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Final

logger = logging.getLogger("toolfleet.traces")

EVERY_S: Final = 1.0
MOST_HELD: Final = 8_192
LAST_WORDS_S: Final = 3.0

Part = tuple[str, bytes]
"""The id of a trace, and a part of it (`registry.telemetry_spans`)."""


class Outlet:
    """One way out of a process; ``deliver`` takes what has gathered, ``ends`` closes it."""

    def __init__(
        self,
        name: str,
        deliver: Callable[[Sequence[Part]], Awaitable[None]],
        *,
        ends: Callable[[], Awaitable[None]] | None = None,
        most: int = MOST_HELD,
        every_s: float = EVERY_S,
    ) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        """Parts by what became of them: ``delivered``, ``dropped``, ``failed``."""
        self._deliver = deliver
        self._ends = ends
        self._most = most
        self._every_s = every_s
        self._held: list[Part] = []
        self._due: asyncio.TimerHandle | None = None
        self._delivering: asyncio.Task[None] | None = None
        self._failing = False

    def put(self, trace_id: str, part: bytes) -> None:
        """Have a part taken along; to be called in the loop's thread."""
        if len(self._held) >= self._most:
            self.counts["dropped"] += 1
            return
        self._held.append((trace_id, part))
        if self._due is None and self._delivering is None:
            self._leave_later()

    async def close(self) -> None:
        """Deliver what is left, within a few seconds, and take no more."""
        self._most = 0
        if self._due is not None:
            self._due.cancel()
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                if self._delivering is not None:
                    await asyncio.wait([self._delivering])
                await self._flush()
        except TimeoutError:
            logger.warning("the last traces did not get out to %s in time", self.name)
        if self._due is not None:
            self._due.cancel()
        if self._ends is not None:
            await self._ends()

    def _leave_later(self) -> None:
        # Not in the context of the call whose part came first: parts of others go along.
        self._due = asyncio.get_running_loop().call_later(
            self._every_s, self._leave, context=Context()
        )

    def _leave(self) -> None:
        self._due = None
        self._delivering = asyncio.get_running_loop().create_task(self._flush())
        self._delivering.add_done_callback(self._left)

    def _left(self, _: asyncio.Task[None]) -> None:
        self._delivering = None
        if self._held:
            self._leave_later()

    async def _flush(self) -> None:
        parts, self._held = self._held, []
        if not parts:
            return
        try:
            await self._deliver(parts)
        except asyncio.CancelledError:
            self.counts["failed"] += len(parts)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, no call is to know
            self.counts["failed"] += len(parts)
            if not self._failing:
                logger.warning("traces do not get out to %s: %s", self.name, type(error).__name__)
            self._failing = True
        else:
            self.counts["delivered"] += len(parts)
            self._failing = False
