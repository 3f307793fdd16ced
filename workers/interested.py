"""Who wants to hear of a server's resources: wishes of tenants, and what they are told.

What somebody wants is in the record (`registry.interests`); a session listens for it with that
tenant's credential, and a change is told by the keys of those who may hear of it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from registry import interests
from registry.database import Database
from registry.errors import FleetError
from registry.policies import Policies
from registry.requests import RESOURCES_READ, may_ask
from workers.background import Background
from workers.following import Following
from workers.pool import SessionKey
from workers.signals import Signals
from workers.versions import Versions

TELL_EVERY_S: Final = 0.1  # of resources that changed, however often they do


class Interested:
    """The wishes for one server's resources, as its worker knows them."""

    def __init__(
        self,
        server: str,
        database: Database,
        versions: Versions,
        following: Following,
        policies: Policies,
        signals: Signals,
        background: Background,
    ) -> None:
        self._server = server
        self._database = database
        self._versions = versions
        self._following = following
        self._policies = policies
        self._signals = signals
        self._background = background
        self._interested: dict[tuple[int, SessionKey, str], set[str]] = {}
        self._updated: set[str] = set()

    async def watch(self, worker_id: str) -> None:
        """Listen to the resources that tenants want to hear of, and may."""
        interested: dict[tuple[int, SessionKey, str], set[str]] = {}
        for it in await interests.wanted(self._database, self._server, worker_id):
            version_id = self._following.successor_of(it.version_id)
            if version_id is None:
                break
            served = await self._versions.get(version_id)
            policy = await self._policies.of(it.tenant)
            if not may_ask(policy, served.definition, RESOURCES_READ):
                continue
            with suppress(FleetError):  # without a credential there is nothing to hear
                key = await served.keyring.key_of(it.tenant)
                interested.setdefault((served.id, key, it.uri), set()).add(it.key)
        self._interested = interested
        for served in self._versions.ready():
            mine: dict[SessionKey, set[str]] = {}
            for version_id, key, uri in interested:
                if version_id == served.id:
                    mine.setdefault(key, set()).add(uri)
            served.resources.want({key: frozenset(uris) for key, uris in mine.items()})

    def updated(self, version_id: int, key: SessionKey, uri: str) -> None:
        """Tell who wants to hear of a resource that it has changed, soon."""
        if not self._updated:
            self._background.start(self._tell())
        self._updated |= self._interested.get((version_id, key, uri), set())

    async def _tell(self) -> None:
        await asyncio.sleep(TELL_EVERY_S)
        keys, self._updated = self._updated, set()
        if keys:
            await self._signals.resources_updated(sorted(keys))
