"""Failed attempts to say who one is: how many a source may make, and what the audit hears of them.

A source is an address (IPv6: its /64 network). Both are bounded however many sources there are, and
neither ever holds a credential.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from registry import audit
from registry.database import Database
from registry.errors import Code, FleetError

BURST: Final = 30
"""Attempts that a source may fail at once."""
REFILL_PER_S: Final = 0.5
MOST_SOURCES: Final = 4096
ENTRIES_A_MINUTE: Final = 10
_MOST_COUNTED: Final = 256

logger = logging.getLogger("toolfleet.api")


def source_of(address: str | None) -> str:
    """Return the source that an address belongs to."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return address or "local"
    if found.version == 6:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


class Attempts:
    """One bucket of attempts for each source; a success gives its attempt back."""

    def __init__(
        self,
        *,
        burst: int = BURST,
        refill_per_s: float = REFILL_PER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = burst
        self._refill_per_s = refill_per_s
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, source: str) -> None:
        """Take one attempt; raise `too_many_attempts` where none is left."""
        now = self._clock()
        left, at = self._buckets.pop(source, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._refill_per_s)
        if len(self._buckets) >= MOST_SOURCES:
            self._buckets.popitem(last=False)  # the one that has been quiet for longest
        allowed = left >= 1
        self._buckets[source] = (left - 1 if allowed else left, now)
        if not allowed:
            raise FleetError(
                Code.TOO_MANY_ATTEMPTS,
                "too many requests from this address carried credentials that are not valid",
                hint="check the key; keys that worked a moment ago go on working",
                retry_after_s=(1 - left) / self._refill_per_s,
            )

    def give_back(self, source: str) -> None:
        """Return an attempt that did not fail."""
        if source in self._buckets:
            left, at = self._buckets[source]
            self._buckets[source] = (min(self._burst, left + 1), at)


class Refusals:
    """Tells the audit of refused attempts: the first at once, later ones once a minute, counted."""

    def __init__(self, database: Database, *, every_s: float = 60) -> None:
        self._database = database
        self._every_s = every_s
        self._counts: Counter[tuple[str, str]] = Counter()
        self._writer: asyncio.Task[None] | None = None

    def note(self, source: str, code: Code) -> None:
        """Count an attempt that was refused."""
        known = len(self._counts) < _MOST_COUNTED or (source, code.code) in self._counts
        self._counts[source if known else "others", code.code] += 1
        if self._writer is None:
            self._writer = asyncio.create_task(self._keep_writing())

    async def close(self) -> None:
        """Write what is still counted."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait([self._writer])
            with suppress(FleetError):
                await self._write()

    async def _keep_writing(self) -> None:
        try:
            while self._counts:
                try:
                    await self._write()
                except FleetError as error:
                    logger.warning("refused attempts are not in the audit yet: %s", error)
                await asyncio.sleep(self._every_s)
        finally:
            self._writer = None

    async def _write(self) -> None:
        counts, self._counts = self._counts, Counter()
        told = counts.most_common(ENTRIES_A_MINUTE)
        rest = counts.total() - sum(count for _, count in told)
        try:
            async with self._database.transaction() as connection:
                for (source, code), count in told:
                    details = {"code": code, "count": count}
                    await audit.record(connection, f"source:{source}", "access.refused", details)
                if rest:
                    details = {"code": "any", "count": rest}
                    await audit.record(connection, "source:others", "access.refused", details)
        except BaseException:
            self._counts.update(counts)
            raise
