"""Which versions of its server a worker follows, and what they list: warm, listed, and held to it.

What new runs see is kept warm and listed again when it may have changed; a call of a tool whose
change nobody has accepted is refused, whichever version its run is pinned to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from registry import catalog
from registry.catalog import ServerVersion
from registry.database import Database
from registry.errors import Code, FleetError
from registry.holds import blocked_tools
from registry.ingest import mark_stale
from registry.submission import tool_held
from workers.background import Background
from workers.figures import Figures
from workers.pool import SessionKey
from workers.quota import Quotas
from workers.refresh import refresh, refresh_offerings
from workers.versions import ServedVersion, Versions, places_of
from workers.watching import SHORTEST_S

logger = logging.getLogger("toolfleet.worker")

SETTLE_S: Final = 3.0


class Following:
    """The versions that a worker keeps ready for what comes, and what is known of their tools."""

    def __init__(
        self,
        server: str,
        database: Database,
        versions: Versions,
        quotas: Quotas,
        figures: Figures,
        background: Background,
    ) -> None:
        self.resize: Callable[[int], None] | None = None
        """Has the process take so many calls at once; set by who made the process."""
        self._server = server
        self._database = database
        self._versions = versions
        self._quotas = quotas
        self._figures = figures
        self._background = background
        self._followed: frozenset[int] = frozenset()
        self._current = 0
        self._warm: dict[int, tuple[ServedVersion, SessionKey]] = {}
        self._blocked: dict[int, frozenset[str]] = {}
        self._hearing: dict[int, asyncio.Event] = {}
        self._refreshing = asyncio.Lock()
        self._listing_offerings: set[int] = set()

    # -- what calls ask ---------------------------------------------------------------------

    async def settled(self, served: ServedVersion, within_s: float) -> None:
        """Return once a version that has just said that its tools changed was listed again.

        A call of a tool that is about to be held must not slip through before. It waits for
        `SETTLE_S` at most, and not at all for a server that says so again and again.
        """
        if (hearing := self._hearing.get(served.id)) is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(hearing.wait(), min(within_s, SETTLE_S))

    def refuse_held(self, served: ServedVersion, tool: str) -> None:
        """Raise `tool_held` for a tool that the server changed and nobody accepted yet."""
        if tool in self._blocked.get(served.id, ()):
            raise tool_held(served.definition.name, tool)

    def successor_of(self, version_id: int) -> int | None:
        """Return which version answers for one: itself, or the current one if it is let go.

        None before any is followed.
        """
        if not self._followed:
            return None
        return version_id if version_id in self._followed else self._current

    # -- what is followed -------------------------------------------------------------------

    async def look_at(self, version_id: int) -> None:
        """Learn what is held of a version that is made now.

        A run may be pinned to one that is followed no more: what is held of it counts too.
        """
        self._blocked |= await blocked_tools(self._database, [version_id])

    async def follow(self) -> None:
        """Warm the versions that new runs see, let old ones go, list what may have changed."""
        followed = await catalog.followed(self._database, self._server)
        self._followed = frozenset(version.id for version in followed)
        self._current = followed[0].id
        if self.resize is not None:
            self.resize(places_of(followed))
        await self._versions.let_go(but=self._followed)
        made = [(version, await self._served_or_noted(version)) for version in followed]
        current = [(version, served) for version, served in made if served is not None]
        self._versions.listen(only=self._followed)
        await self._keep_warm([served for _, served in current])
        for version, served in current:
            failed = version.refresh_error is not None
            await self._refresh_if_due(served, stale=version.stale, failed=failed)
            self._list_offerings_if_due(served)
        await self._read_blocked()

    async def _served_or_noted(self, version: ServerVersion) -> ServedVersion | None:
        """Return a version; None, with the error on record, while its secrets do not open."""
        try:
            return await self._versions.get(version.id)
        except FleetError as error:
            if error.code is not Code.CREDENTIAL_UNAVAILABLE:
                raise
            logger.warning("server %s: %s", self._server, error.message)
            if version.refresh_error != error.as_dict():
                await mark_stale(self._database, self._server, error, version_id=version.id)
            return None

    async def _refresh_if_due(self, served: ServedVersion, *, stale: bool, failed: bool) -> None:
        if self._quotas.paused_for():
            return  # it asked to be left alone: its tools can wait
        async with self._refreshing:
            if served.watch.due(stale=stale, failed=failed):
                self._figures.changed(await refresh(self._database, served))
                served.offerings.heard()
                await self._read_blocked()

    def _list_offerings_if_due(self, served: ServedVersion) -> None:
        """List what a version has beside tools, in the background: its tools wait for nothing."""
        if served.id in self._listing_offerings or self._quotas.paused_for():
            return
        if served.offerings.due(stale=False, failed=False):
            self._listing_offerings.add(served.id)
            self._background.start(self._list_offerings(served))

    async def _list_offerings(self, served: ServedVersion) -> None:
        try:
            await refresh_offerings(self._database, served)
        except Exception:  # nobody awaits this task
            logger.exception("what %s has could not be listed", served.name)
        finally:
            self._listing_offerings.discard(served.id)

    async def _read_blocked(self) -> None:
        """Learn which tools may not be called, of every version that calls may still come for."""
        ids = [served.id for served in self._versions.ready()]
        self._blocked = await blocked_tools(self._database, ids)

    async def _keep_warm(self, wanted: Sequence[ServedVersion]) -> None:
        """Keep these versions' sessions warm, where there are any to share, and no others."""
        keys = {served.id: await served.keyring.warm_key() for served in wanted}
        for id_, (served, warm_key) in list(self._warm.items()):
            # A provider that cannot be asked just now has taken nothing away.
            unknown = id_ in keys and keys[id_] is None
            if keys.get(id_) != warm_key and not unknown:
                del self._warm[id_]
                served.pool.cool(warm_key)
        for served in wanted:
            key = keys[served.id]
            if key is not None and served.id not in self._warm:
                self._warm[served.id] = (served, key)
                await served.pool.start(key)

    # -- what is heard ----------------------------------------------------------------------

    def listing_changed(self, version_id: int) -> None:
        """Have a version's tools listed again: at once, or when the watch next comes round."""
        if version_id not in self._hearing:
            self._hearing[version_id] = asyncio.Event()
            self._background.start(self._heard(version_id))

    async def _heard(self, version_id: int) -> None:
        try:
            with suppress(FleetError):  # Postgres away: this worker lists them all the same
                await mark_stale(self._database, self._server, version_id=version_id)
            if version_id in self._followed:
                served = await self._versions.get(version_id)
                if served.watch.pause_s <= SHORTEST_S:
                    await asyncio.sleep(served.watch.due_in_s)
                    await self._refresh_if_due(served, stale=True, failed=False)
        finally:
            self._hearing.pop(version_id).set()
