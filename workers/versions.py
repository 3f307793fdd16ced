"""The versions of its server that a worker process serves: each with its sessions and its breaker.

1. A version is made at its first use, once, however many calls ask for it meanwhile.
2. One that nobody asked for in a while and that holds no session is let go; a run that is pinned
   to it has it made anew.
3. Once they drain no version lends, neither one that is made only then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container, Coroutine, Iterable
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final

from registry.calls import Claim
from registry.catalog import ServerVersion
from registry.definitions import Delivery, ServerDefinition
from workers.breaker import Breaker
from workers.census import Census, outgrown
from workers.keyring import Keyring
from workers.lending import SessionKey
from workers.listening import Listening
from workers.pool import SessionPool
from workers.resource_watch import ResourceWatch
from workers.session import Session
from workers.watching import ListingWatch

logger = logging.getLogger("toolfleet.worker")

UNUSED_S: Final = 600.0
CLOSE_LIMIT_S: Final = 20.0
"""For all of them: a pool takes 16 s at most, and the worker has 30 s for all that it closes."""
SPARE_PLACES: Final = 4
"""Calls that a worker takes beyond those that have a session."""


def places_of(versions: Iterable[ServerVersion]) -> int:
    """Return how many calls at once a worker takes: as many as its server's sessions, and some.

    Claims and records of some calls overlap with the sessions of others, so that a session never
    waits for a commit.
    """
    pools = [version.definition.pool for version in versions]
    sessions = max(pool.max_size * pool.calls_per_session for pool in pools)
    return sessions + min(sessions, SPARE_PLACES)


@dataclass(frozen=True)
class ServedVersion:
    """One server version in this process: its definition, warm sessions, breaker and ears."""

    id: int
    definition: ServerDefinition
    pool: SessionPool[Session]
    breaker: Breaker
    keyring: Keyring
    listening: Listening
    resources: ResourceWatch

    @property
    def watch(self) -> ListingWatch:
        """Return what is known of whether its tools may have changed."""
        return self.listening.watch

    @property
    def offerings(self) -> ListingWatch:
        """Return what is known of whether what it has beside tools may have changed."""
        return self.listening.offerings

    @property
    def name(self) -> str:
        """Return what it is called in figures."""
        return f"{self.definition.name}@{self.definition.version}"

    @property
    def idle(self) -> bool:
        """Say whether it has no session and nobody waits for one."""
        stats = self.pool.stats()
        return stats.size == 0 and stats.waiting == 0

    def retire_outgrown(self, census: Census) -> None:
        """Retire the sessions whose process trees are larger than their pool allows."""
        limits = self.definition.pool
        if limits.max_rss_mb or limits.max_open_fds:
            self.pool.retire(lambda it: outgrown(census.trees.get(it.pid or 0), limits))

    def rotate(self, key: SessionKey) -> None:
        """Go over to a newer credential; raise `credential_rotated` when it is not the newest."""
        self.listening.rotate(key)
        self.pool.rotate(key)

    def arguments(self, claim: Claim, tool: str) -> dict[str, Any]:
        """Return the arguments to send; a `keyed` tool gets the call id as its idempotency key."""
        rule = self.definition.tools.get(tool)
        if claim.delivery is Delivery.KEYED and rule is not None and rule.idempotency_argument:
            return {**claim.arguments, rule.idempotency_argument: claim.id}
        return claim.arguments

    async def close(self) -> None:
        """End its sessions and send what its breaker has counted."""
        try:
            await asyncio.gather(self.listening.close(), self.resources.close(), self.pool.close())
        finally:
            await self.breaker.close()


class Versions:
    """The versions in use, by id; ``make`` makes one."""

    def __init__(
        self,
        make: Callable[[int], Coroutine[Any, Any, ServedVersion]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._clock = clock
        self._ready: dict[int, ServedVersion] = {}
        self._making: dict[int, asyncio.Task[ServedVersion]] = {}
        self._asked_at: dict[int, float] = {}
        self._draining = False

    async def get(self, version_id: int) -> ServedVersion:
        """Return a version ready to be called; raise why it cannot be made."""
        served = self._ready.get(version_id)
        if served is None:
            making = self._making.get(version_id)
            if making is None:
                making = self._making[version_id] = asyncio.create_task(
                    self._made(version_id),
                    context=Context(),  # it outlives the call that asks
                )
                making.add_done_callback(lambda _: self._making.pop(version_id))
            served = await asyncio.shield(making)
        self._asked_at[version_id] = self._clock()
        return served

    def ready(self) -> list[ServedVersion]:
        """Return the versions that have been made."""
        return list(self._ready.values())

    def listen(self, *, only: Container[int]) -> None:
        """Hear of changes of the tools of these versions, and keep no session for the others'."""
        for served in self.ready():
            if served.id in only:
                served.listening.start()
            else:
                served.listening.stop()

    async def let_go(self, *, but: Container[int]) -> None:
        """Close the versions nobody has asked for in a while that hold no session, ``but`` some."""
        for served in self.ready():
            unused = self._clock() - self._asked_at[served.id] > UNUSED_S
            if unused and served.idle and served.id not in but:
                del self._ready[served.id], self._asked_at[served.id]
                await served.close()

    async def drain(self) -> None:
        """Lend no more; return when all sessions were given back and closed."""
        self._draining = True
        await asyncio.gather(*(served.pool.drain() for served in self.ready()))

    async def close(self) -> None:
        """Close all at the same time; return when they are, or after `CLOSE_LIMIT_S`."""
        for making in self._making.values():
            making.cancel()
        closing = {asyncio.create_task(served.close()): served for served in self.ready()}
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_LIMIT_S)
        for task, served in closing.items():
            if not task.done():
                task.cancel()
                logger.error("%s could not be closed in %g s", served.name, CLOSE_LIMIT_S)
            elif error := task.exception():
                logger.error("%s could not be closed", served.name, exc_info=error)

    async def _made(self, version_id: int) -> ServedVersion:
        served = await self._make(version_id)
        if self._draining:
            await served.pool.drain()
        self._ready[version_id] = served
        self._asked_at[version_id] = self._clock()
        return served
