"""Looks at the fleet for the console's pages, once for everybody who looks in the same moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from api import checkup, fleet
from api.checkup import Finding
from api.console.glance import Need, Standing, needs, standing
from api.console.trends import LATELY, Trends, draw
from api.fleet import FleetState, Server
from api.operations import Operations
from registry import overview
from registry.pulse import pulse

FLEET_KEPT_S: Final = 1.0
TRENDS_KEPT_S: Final = 4.0
FINDINGS_KEPT_S: Final = 10.0
QUIET: Final = draw(())
"""The trends of a server that nobody called."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class Card:
    """A server with how it is."""

    server: Server
    standing: Standing
    trends: Trends


@dataclass(frozen=True)
class Glance:
    """The fleet as operators look at it."""

    fleet: FleetState
    cards: list[Card]
    needs: list[Need]

    @property
    def per_minute(self) -> float:
        """Return how many calls a minute there were in the last whole ones."""
        latest = [it.trends.beats[-LATELY - 1 : -1] for it in self.cards]
        return sum(beat.submitted for beats in latest for beat in beats) / LATELY


class Kept(Generic[Value]):
    """The latest answer to a question, asked again once it is ``for_s`` old.

    Those who come together ask once, and one who leaves takes nothing from the others.
    """

    def __init__(
        self,
        ask: Callable[[], Coroutine[Any, Any, Value]],
        for_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._for_s = for_s
        self._clock = clock
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[Value] | None = None

    async def get(self) -> Value:
        """Return the answer; raise what asking raises."""
        if self._asking is None or (self._asking.done() and self._over(self._asking)):
            self._asked_at = self._clock()
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    def forget(self) -> None:
        """Ask again when somebody next wants to know."""
        self._asking = None

    def _over(self, asked: asyncio.Task[Value]) -> bool:
        failed = asked.cancelled() or asked.exception() is not None
        return failed or self._clock() - self._asked_at >= self._for_s


class Lookout:
    """Looks at the fleet for the pages of one process: ten who watch cost as much as one."""

    def __init__(
        self, operations: Operations, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._operations = operations
        self._glance = Kept(self._look, FLEET_KEPT_S, clock)
        self._trends = Kept(self._read_trends, TRENDS_KEPT_S, clock)
        self._findings = Kept(self._check, FINDINGS_KEPT_S, clock)

    async def glance(self) -> Glance:
        """Return the whole fleet; raise `store_unavailable` while the record is away."""
        return await self._glance.get()

    async def card(self, name: str) -> Card | None:
        """Return one server, if there is one of that name."""
        seen = await self._glance.get()
        return next((it for it in seen.cards if it.server.name == name), None)

    def forget(self) -> None:
        """Look anew, because something was changed."""
        self._glance.forget()

    async def _look(self) -> Glance:
        database = self._operations.database
        state = await fleet.read_fleet(self._operations)
        alone = [server.name for server in state.servers if not server.workers]
        gone_s = await overview.workers_gone(database, alone)
        trends = await self._trends.get()
        cards = [_card(server, trends.get(server.name, QUIET)) for server in state.servers]
        return Glance(state, cards, needs(state, await self._findings.get(), gone_s, trends))

    async def _read_trends(self) -> dict[str, Trends]:
        beats = await pulse(self._operations.database)
        return {server: draw(its) for server, its in beats.items()}

    async def _check(self) -> list[Finding]:
        return [it async for it in checkup.check_parts(self._operations)]


def _card(server: Server, trends: Trends) -> Card:
    return Card(server, standing(server, trends), trends)
