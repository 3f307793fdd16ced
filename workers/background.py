"""The tasks of a process that go on until it closes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

_CANCEL_AGAIN_S: Final = 0.5


class Background:
    """Tasks that nobody awaits until they are ended together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end(self) -> None:
        """Cancel every task; return when all have ended."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            # Until Python 3.12 `asyncio.wait_for`, which psycopg waits with, can lose one.
            await asyncio.wait(self._tasks, timeout=_CANCEL_AGAIN_S)
