"""Which pool key a tenant's sessions have, and which credential a session of a key carries.

It keeps no secret: a session is opened with what the provider has under the key's identity at
that moment, and not at all when that is another generation than the key's.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from registry.credentials import SHARED, CredentialProvider, Grant
from registry.definitions import ServerDefinition
from registry.errors import Code, FleetError
from workers.connection import Credential
from workers.pool import SessionKey
from workers.session import Session


class Keyring:
    """The session keys of one server version."""

    def __init__(
        self, version_id: int, definition: ServerDefinition, provider: CredentialProvider
    ) -> None:
        self._version_id = version_id
        self._definition = definition
        self._provider = provider
        self._opened: WeakKeyDictionary[Session, SessionKey] = WeakKeyDictionary()

    async def key_of(self, tenant_id: str) -> SessionKey:
        """Return the key of a tenant's sessions; raise `credential_missing`."""
        if self._definition.credentials.inject == "none":
            return SessionKey(self._version_id)
        return self._key(await self._provider.resolve(tenant_id, self._definition))

    async def listing_key(self) -> SessionKey:
        """Return the key of the sessions to list tools with; raise `credential_missing`."""
        if self._definition.credentials.inject == "none":
            return SessionKey(self._version_id)
        return self._key(await self._provider.resolve_listing(self._definition))

    async def warm_key(self) -> SessionKey | None:
        """Return the key worth keeping warm: that of sessions which no single tenant owns."""
        try:
            key = await self.listing_key()
        except FleetError:  # a call of the server will say what is missing
            return None
        return key if key.identity in ("", SHARED) else None

    async def credential(self, key: SessionKey) -> Credential | None:
        """Return what to open a session of this key with; raise `credential_rotated`."""
        if not key.identity:
            return None
        grant = await self._provider.resolve(key.identity, self._definition)
        if grant is None or self._key(grant) != key:
            raise FleetError(
                Code.CREDENTIAL_ROTATED,
                f"the credential for server {self._definition.name} was changed while a session "
                "was about to be opened with it",
                hint="submit the call again",
            )
        return Credential(grant.inject, grant.name, grant.secret)

    async def renewed(self, key: SessionKey) -> bool:
        """Say whether there is a newer credential than a key's, which its server has rejected."""
        return bool(key.identity) and await self._provider.renewed(
            key.identity, key.generation, self._definition
        )

    def opened(self, session: Session, key: SessionKey) -> None:
        """Watch over the credential of an open session; see `changed`."""
        self._opened[session] = key

    async def changed(self) -> list[SessionKey]:
        """Return the next key of each open session's identity whose credential changed or went."""
        newest: dict[str, SessionKey] = {}
        for session, key in list(self._opened.items()):
            if session.alive and key.identity:
                newest[key.identity] = max(key, newest.get(key.identity, key))
        # At the same time: one whose token is late keeps nobody else's waiting.
        now = await asyncio.gather(*map(self._now, newest.values()))
        return [key for key, before in zip(now, newest.values(), strict=True) if key != before]

    async def _now(self, key: SessionKey) -> SessionKey:
        gone = key._replace(generation=key.generation + 1)
        try:
            grant = await self._provider.resolve(key.identity, self._definition)
        except FleetError as error:
            # A provider that cannot be asked has taken nothing away.
            lost = {Code.CREDENTIAL_MISSING, Code.CREDENTIAL_EXPIRED}
            return gone if error.code in lost else key
        return self._key(grant) if grant and grant.identity == key.identity else gone

    def _key(self, grant: Grant | None) -> SessionKey:
        if grant is None:
            return SessionKey(self._version_id)
        return SessionKey(self._version_id, grant.identity, grant.generation)
