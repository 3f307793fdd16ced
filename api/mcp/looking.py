"""Looking for changes while somebody wants to hear of them, and not otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any


class Looking:
    """A task that looks, over and over, for as long as anybody listens."""

    def __init__(self, look: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._look = look
        self._name = name
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Look for as long as the context lasts, and others do."""
        self._listeners += 1
        if self._task is None:
            self._task = asyncio.create_task(self._look(), name=self._name)
        try:
            yield
        finally:
            self._listeners -= 1
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task = None

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
