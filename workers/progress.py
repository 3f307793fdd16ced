"""Progress of a call, passed on to whoever listens, at the pace at which they listen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

OnProgress = Callable[[float, float | None, str | None], Awaitable[None]]


class Latest:
    """Pass progress on, one report at a time: what came meanwhile is told by its latest alone.

    ``scrub`` takes the session's secret out of what the server says.
    """

    def __init__(self, listener: OnProgress, scrub: Callable[[str], str]) -> None:
        self._listener = listener
        self._scrub = scrub
        self._next: tuple[float, float | None, str | None] | None = None
        self._telling = False

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        """Take a report (the MCP SDK's ``ProgressFnT``)."""
        self._next = (progress, total, message)
        if self._telling:
            return
        self._telling = True
        try:
            while self._next is not None:
                (progress, total, message), self._next = self._next, None
                await self._listener(progress, total, message and self._scrub(message))
        finally:
            self._telling = False
