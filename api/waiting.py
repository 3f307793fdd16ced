"""Awaiting a call's end: a hint wakes, the record answers.

Invariants:
 1. Whoever waits is expected before the record is looked at, so no end falls between the two.
 2. Every answer is a row as Postgres has it; a hint only says when to look.
 3. A lost hint costs `LOOK_EVERY_S` at most, with Redis up or away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.hearing import Hearing
from registry import calls
from registry.calls import CallState
from registry.database import Database, GroupCommit
from registry.errors import Code, FleetError
from workers.client import ENDED_CHANNEL, PROGRESS_CHANNEL

Row = dict[str, Any]

LOOK_EVERY_S: Final = 1.0
MOST_PROGRESS: Final = 100


class Hint:
    """One waiter's bell, and the progress it has not seen yet."""

    def __init__(self) -> None:
        self._bell = asyncio.Event()
        self._rung = False
        self._progress: list[Any] = []

    def ring(self) -> None:
        """Wake the waiter, to look at the record."""
        self._rung = True
        self._bell.set()

    def take_ring(self) -> bool:
        """Say whether the record is worth a look since the last time."""
        rung, self._rung = self._rung, False
        return rung

    def add_progress(self, body: Any) -> None:
        """Leave a progress report, and wake the waiter; of a flood the latest are kept."""
        self._progress.append(body)
        del self._progress[:-MOST_PROGRESS]
        self._bell.set()

    def take_progress(self) -> list[Any]:
        """Return the reports since the last time."""
        taken, self._progress = self._progress, []
        return taken

    async def within(self, timeout_s: float) -> None:
        """Return when the bell rings or the time is over; the bell is silent again then."""
        if not self._bell.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._bell.wait()
        self._bell.clear()


class WaitingRoom:
    """Everyone in this process who waits for a call, with one subscription between them."""

    def __init__(
        self, database: Database, redis: Redis, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._redis = redis
        self._hearing = Hearing(redis)
        self._hearing.always(ENDED_CHANNEL, self._ended)
        self._clock = clock
        self._expected: dict[str, set[Hint]] = {}
        self._reads: GroupCommit[str, Row | None] = GroupCommit(self._read_batch)
        self._listener: asyncio.Task[None] | None = None
        self.dismissal = asyncio.Event()
        """Set once the process stops."""

    async def open(self) -> None:
        """Start to listen; harmless while Redis is away."""
        self.dismissal.clear()
        self._listener = asyncio.create_task(self._hearing.listen(), name="waiting-room")

    async def close(self) -> None:
        """Stop listening, and send home whoever still waits."""
        self.dismiss()
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])

    def dismiss(self) -> None:
        """Answer everyone who waits with the row as it is now, and whoever comes later at once."""
        self.dismissal.set()
        for hints in self._expected.values():
            for hint in hints:
                hint.ring()

    @property
    def dismissed(self) -> bool:
        """Say whether the process is stopping, so that no wait is worth while."""
        return self.dismissal.is_set()

    @contextmanager
    def expect(self, call_id: str, hint: Hint | None = None) -> Iterator[Hint]:
        """Yield a hint that rings when the call has ended; ``hint`` where it is given."""
        hint = hint or Hint()
        hints = self._expected.setdefault(call_id, set())
        hints.add(hint)
        try:
            yield hint
        finally:
            hints.discard(hint)
            if not hints and self._expected.get(call_id) is hints:
                del self._expected[call_id]

    async def read(self, call_id: str) -> Row | None:
        """Return a call's row, read together with those that others ask for; None: no such call."""
        return await self._reads.add(call_id)

    async def wait(
        self, call_id: str, timeout_s: float, until: Callable[[Row], bool] | None = None
    ) -> Row | None:
        """Return a call's row when it has ended or ``timeout_s`` is over; None: no such call.

        ``until`` says what else is worth returning for.
        """
        until = until or ended
        with self.expect(call_id) as hint:
            row = await self.read(call_id)
            if row is None or until(row) or timeout_s <= 0:
                return row
            return await self.wait_for(call_id, hint, timeout_s, until)

    async def wait_for(
        self,
        call_id: str,
        hint: Hint,
        timeout_s: float,
        until: Callable[[Row], bool] | None = None,
    ) -> Row | None:
        """As `wait`, for a call that is expected already and had not ended when it was.

        While Postgres is away it goes on waiting, and raises `store_unavailable` at the end.
        """
        until = until or ended
        deadline = self._clock() + timeout_s
        while True:
            remaining_s = deadline - self._clock()
            if remaining_s > 0 and not self.dismissed:
                await hint.within(min(remaining_s, LOOK_EVERY_S))
            over = self.dismissed or self._clock() >= deadline
            try:
                row = await self.read(call_id)
            except FleetError:
                if over:
                    raise
                continue
            if row is None or over or until(row):
                return row

    @asynccontextmanager
    async def progress_into(self, call_id: str, hint: Hint) -> AsyncIterator[None]:
        """Let a call's progress reports ring ``hint`` for as long as the context lasts.

        What is reported from then on is heard, unless Redis is away.
        """
        async with self._hearing.hears(PROGRESS_CHANNEL + call_id, hint.add_progress):
            yield

    def hears(
        self, channel: str, deliver: Callable[[Any], None]
    ) -> AbstractAsyncContextManager[None]:
        """Have ``deliver`` be given what is published on a channel; see `Hearing.hears`."""
        return self._hearing.hears(channel, deliver)

    async def check_broker(self) -> None:
        """Return when Redis answers; raise `broker_unavailable` when it does not."""
        try:
            await self._redis.ping()
        except (RedisError, OSError) as error:
            raise FleetError(
                Code.BROKER_UNAVAILABLE,
                f"the message broker cannot be reached ({type(error).__name__})",
                hint="check that Redis is up and TOOLFLEET_REDIS_URL is right",
                retry_after_s=1,
            ) from error

    def _ended(self, ids: Any) -> None:
        for call_id in ids:
            for hint in self._expected.get(call_id, ()):
                hint.ring()

    async def _read_batch(self, ids: Sequence[str]) -> list[Row | None]:
        rows = await calls.read(self._database, list(set(ids)))
        return [rows.get(id_) for id_ in ids]


def ended(row: Row) -> bool:
    """Say whether a call's row is final."""
    return CallState(row["state"]).final


def needs_attention(row: Row) -> bool:
    """Say whether a call has ended, or its server asks something."""
    return ended(row) or bool(row["open_questions"])
