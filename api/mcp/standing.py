"""Runs that stand: what requests belong to that name no run, and have no session.

Each caller has one for each of the ways in which it asks. It is the same run for as long as what it
would be offered is what it was shown, so that lists are current and each call still belongs to a
run with a pinned snapshot.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from api.operations import Operations
from registry.errors import Code, FleetError
from registry.runs import Exposure, Run
from registry.tenants import Actor

MOST_KEPT: Final = 4096
MOST_STARTING: Final = 4
_LIFE_USED: Final = 0.75
"""Which part of a run's lifetime is used: what begins near its end has to end within it."""


@dataclass(frozen=True)
class Way:
    """How a caller asks: for which tenant, about which server, and what it is shown."""

    tenant: str | None = None
    """None: the caller's own."""
    server: str | None = None
    exposure: Exposure = Exposure.ALL


@dataclass
class _Standing:
    starting: asyncio.Lock
    run: Run | None = None
    until: float = 0.0


class StandingRuns:
    """The standing runs of this process."""

    def __init__(
        self, operations: Operations, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._operations = operations
        self._clock = clock
        # Hundreds of clients may connect at once: they wait here, not for the record's connections.
        self._turns = asyncio.Semaphore(MOST_STARTING)
        self._kept: OrderedDict[tuple[str, str, Way], _Standing] = OrderedDict()

    async def get(self, actor: Actor, way: Way, *, now: bool = False) -> Run:
        """Return an actor's standing run, current as of ``now`` or a second ago.

        Raises what `Operations.start_run` raises, and `out_of_scope` for a key that starts none.
        """
        scopes = actor.scopes.model_dump_json() if actor.scopes is not None else ""
        kept = self._kept.setdefault((actor.label, scopes, way), _Standing(asyncio.Lock()))
        self._kept.move_to_end((actor.label, scopes, way))
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        if (run := await self._still_right(kept, actor, way, now=now)) is not None:
            return run
        async with kept.starting:
            if (run := await self._still_right(kept, actor, way, now=False)) is not None:
                return run
            kept.run = await self.start(actor, way)
            lifetime = self._operations.settings.run_lifetime
            kept.until = self._clock() + lifetime.total_seconds() * _LIFE_USED
            return kept.run

    async def start(self, actor: Actor, way: Way) -> Run:
        """Start a run for a caller that asks in some way; raises as `Operations.start_run`."""
        if actor.scopes is not None:
            actor.scopes.refuse_verb("runs:write")
        async with self._turns:
            return await self._operations.start_run(
                actor,
                tenant=way.tenant,
                servers=[way.server] if way.server is not None else None,
                exposure=way.exposure,
            )

    async def _still_right(
        self, kept: _Standing, actor: Actor, way: Way, *, now: bool
    ) -> Run | None:
        if kept.run is None or kept.until <= self._clock():
            return None
        servers = [way.server] if way.server is not None else None
        offered = await self._operations.offered(actor, kept.run.tenant, servers, now=now)
        if offered.digest != kept.run.snapshot:
            return None
        run = await self._operations.open_run(actor, kept.run.id)
        return run if run.state == "open" and not run.expired else None


def way_of(actor: Actor, tenant: str | None, server: str | None, exposure: str | None) -> Way:
    """Return how a request's headers say that it asks; raise `invalid_request`."""
    try:
        shown = Exposure(exposure or "all")
    except ValueError as error:
        raise FleetError(
            Code.INVALID_REQUEST,
            f"the header Toolfleet-Exposure is {exposure!r}",
            hint="it is 'all' or 'search'",
        ) from error
    return Way(tenant or actor.tenant, server, shown)
