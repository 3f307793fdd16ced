"""The record's credentials for this process's server, in memory: sealed, and at most a second old.

1. What the record says of a credential replaces what it said before by its serial alone, so that
   an answer that was under way cannot bring an older one back.
2. While Postgres is away what is known stays; what was never known cannot be said to be missing.
3. A data key is kept for `KEY_KEPT_S` at most, and asked for again after that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from registry import credential_store, data_keys
from registry.data_keys import place_of_key
from registry.database import Database
from registry.envelope import KeyWrapper
from registry.errors import FleetError
from registry.stored_credential import (
    Content,
    CredentialState,
    StoredCredential,
)

KEY_KEPT_S: Final = 300.0
_LONGEST_SLACK_S: Final = 5.0


@dataclass
class Known:
    """What the record said of a credential, and when, by this process's monotonic clock."""

    stored: StoredCredential
    at: float

    def left_s(self, seconds: float | None, now: float) -> float | None:
        """Return what is left now of seconds that the record counted from its answer on."""
        return None if seconds is None else seconds - (now - self.at)

    def lives(self, now: float) -> bool:
        """Say whether its token may still be used: until a little before its end."""
        left_s = self.left_s(self.stored.expires_in_s, now)
        if left_s is None:
            return True
        stored = self.stored
        reserve_s = (stored.expires_in_s or 0.0) - (stored.renew_in_s or 0.0)
        return left_s > min(_LONGEST_SLACK_S, max(reserve_s, 0.0) / 2)

    def due(self, now: float) -> bool:
        """Say whether it is time to renew its token."""
        left_s = self.left_s(self.stored.renew_in_s, now)
        return left_s is not None and left_s <= 0

    def pausing_s(self, now: float) -> float:
        """Return how long the next try has to wait, 0 if it has not."""
        return max(self.left_s(self.stored.retry_in_s, now) or 0.0, 0.0)


@dataclass
class _Server:
    known: dict[str, Known] = field(default_factory=dict)
    serial: int = 0
    read: bool = False
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


class CredentialRows:
    """What the record says, by server and tenant."""

    def __init__(
        self,
        database: Database,
        keys: KeyWrapper,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._wrapper = keys
        self._clock = clock
        self._servers: dict[str, _Server] = {}
        self._keys: dict[str, tuple[float, bytes]] = {}

    async def get(self, tenant: str, server: str) -> Known | None:
        """Return what is known of a credential; raise `store_unavailable` if nothing ever was."""
        if server not in self._servers or not self._servers[server].read:
            await self.catch_up(server)
        known = self._servers[server].known.get(tenant)
        return None if known is None or known.stored.state is CredentialState.REMOVED else known

    async def read_again(self, tenant: str, server: str) -> Known | None:
        """Return what the record says of a credential now; raise `store_unavailable`."""
        asked_at = self._clock()
        stored = await credential_store.read(self._database, tenant, server)
        if stored is not None:
            self._take(self._servers.setdefault(server, _Server()), stored, asked_at)
        return await self.get(tenant, server)

    async def catch_up(self, server: str) -> None:
        """Learn what has changed; raise `store_unavailable`."""
        mine = self._servers.setdefault(server, _Server())
        async with mine.reading:
            asked_at = self._clock()
            for stored in await credential_store.changes(self._database, server, mine.serial):
                self._take(mine, stored, asked_at)
                mine.serial = stored.serial
            mine.read = True

    def servers(self) -> list[str]:
        """Return the servers that were asked about."""
        return list(self._servers)

    def known(self, server: str) -> Iterator[Known]:
        """Yield what there is for a server, by tenant."""
        rows = self._servers[server].known if server in self._servers else {}
        for tenant in sorted(rows):
            if rows[tenant].stored.state is not CredentialState.REMOVED:
                yield rows[tenant]

    def _take(self, server: _Server, stored: StoredCredential, asked_at: float) -> None:
        before = server.known.get(stored.tenant)
        if before is None or stored.serial >= before.stored.serial:
            # Counted from when the record was asked, so that nothing is held to last longer.
            server.known[stored.tenant] = Known(stored, asked_at)

    # -- what is sealed

    async def content(self, stored: StoredCredential) -> Content:
        """Return what is sealed in a credential; raise `credential_unavailable`."""
        if stored.sealed is None:
            return Content({})
        return stored.open(await self.key(stored))

    async def key(self, stored: StoredCredential) -> bytes:
        """Return a credential's data key; raise `credential_unavailable`."""
        key_id = stored.data_key_id
        assert key_id is not None
        assert stored.wrapped is not None
        kept_until, key = self._keys.get(key_id, (0.0, b""))
        if self._clock() < kept_until:
            return key
        place = place_of_key(stored.tenant, key_id)
        try:
            key = await self._wrapper.unwrap(stored.wrapped, place)
        except FleetError:
            # Wrapped anew since it was read, perhaps, and the key of then taken away.
            found = await data_keys.get(self._database, key_id)
            if found is None or found[1] == stored.wrapped:
                raise
            key = await self._wrapper.unwrap(found[1], place)
        self._keys[key_id] = (self._clock() + KEY_KEPT_S, key)
        return key

    def forget_old_keys(self) -> None:
        """Let go of the data keys that were kept long enough."""
        now = self._clock()
        self._keys = {id_: kept for id_, kept in self._keys.items() if now < kept[0]}
