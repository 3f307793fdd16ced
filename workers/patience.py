"""How long a server may take for a call: the clock stands still while it waits for an answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager


class Patience:
    """The time left of a call's limit, over one request or several.

    While an answer of ours is awaited none of it is used; the call's own ``deadline``, an instant
    of the loop's clock, holds all the same.
    """

    def __init__(self, limit_s: float, deadline: float = math.inf) -> None:
        self.limit_s = limit_s
        self._left_s = limit_s
        self._deadline = deadline
        self._timeout: asyncio.Timeout | None = None
        self._stops = 0

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Raise `TimeoutError` within the context when the time is over."""
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout_at(
                min(now() + self._left_s, self._deadline)
            ) as self._timeout:
                yield
        finally:
            if self._timeout is not None and not self._stops:
                self._left_s = max(0.0, (self._timeout.when() or 0.0) - now())
            self._timeout = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the clock for as long as the context lasts; the last of several starts it again."""
        if not self._stops and self._timeout is not None:
            now = asyncio.get_running_loop().time()
            self._left_s = max(0.0, (self._timeout.when() or 0.0) - now)
            self._set(self._deadline)
        self._stops += 1
        try:
            yield
        finally:
            self._stops -= 1
            if not self._stops:
                self._set(asyncio.get_running_loop().time() + self._left_s)

    def _set(self, when: float) -> None:
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(min(when, self._deadline))
