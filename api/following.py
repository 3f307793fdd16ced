"""A call that somebody follows to its end: what it reports, and its row, as often as that changes.

A hint says when to look, the record what there is to see (see `api.waiting`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from api.waiting import LOOK_EVERY_S, Hint, Row, WaitingRoom, ended
from registry.errors import FleetError


class Followed:
    """A call with its row as it was last seen; whoever follows it looks again and again."""

    def __init__(
        self,
        room: WaitingRoom,
        hint: Hint,
        row: Row,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.row = row
        self._room = room
        self._hint = hint
        self._clock = clock
        self._seen_at = clock()

    @property
    def id(self) -> str:
        """Return the call's id."""
        return str(self.row["id"])

    @property
    def ended(self) -> bool:
        """Say whether it has ended."""
        return ended(self.row)

    @property
    def asks(self) -> bool:
        """Say whether its server has asked something that is not answered."""
        return not self.ended and bool(self.row.get("open_questions"))

    @property
    def worth_waiting(self) -> bool:
        """Say whether this process still lets anybody wait: one that stops does not."""
        return not self._room.dismissed

    async def look(self, within_s: float) -> list[Any]:
        """Return what it reports next, or nothing: its row may be another, or the time be over.

        While Postgres is away the row stays as it was.
        """
        due_s = self._seen_at + LOOK_EVERY_S - self._clock()
        await self._hint.within(max(min(within_s, due_s), 0))
        reports = self._hint.take_progress()
        if self._hint.take_ring() or not reports or self._clock() - self._seen_at >= LOOK_EVERY_S:
            await self.refresh()
            reports += self._hint.take_progress()  # a call's last report comes beside its end
        return reports

    async def refresh(self) -> None:
        """Look at the record."""
        self._seen_at = self._clock()
        try:
            self.row = await self._room.read(self.id) or self.row
        except FleetError:
            return  # the next look may succeed; the call itself is not concerned
