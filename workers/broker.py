"""The credential broker of a worker: whose secret a session carries, wherever that is kept.

1. It is asked at borrow, and answers from memory nearly always: what the record says is at most a
   second old, tokens are renewed before they end, and no call waits for that while the old one
   lives.
2. A tenant's own credential comes before the shared one; of each, the file that
   TOOLFLEET_CREDENTIALS_FILE names comes before the record.
3. What cannot be found out (Postgres, an authorization server, Vault away) takes nothing away.
4. It knows of callers' tenants, and never of what they authenticated with.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from registry.addresses import Network, parse_network
from registry.credential_kinds import FromEnvironment, FromFile, FromVault, join
from registry.credentials import SHARED, FileProvider, Grant, missing, unfit
from registry.database import Database
from registry.definitions import ServerDefinition
from registry.errors import FleetError
from registry.policy import is_named
from registry.settings import Settings
from registry.stored_credential import CredentialState
from workers.authorization_servers import AuthorizationServers
from workers.credential_rows import CredentialRows, Known
from workers.encryption_keys import open_keys, open_vault, own_networks
from workers.local_secrets import LocalSecrets
from workers.outbound import open_client
from workers.renewing import Renewals
from workers.vault import Vault

WANTED_FOR_S: Final = 300.0
"""How long after it was last asked about a token is renewed ahead of its end."""
_BEARER: Final = "Bearer "
_LOCAL: Final = (FromFile, FromEnvironment, FromVault)
_TOKENS: Final = frozenset({"oauth_client_credentials", "oauth_refresh_token", "token_exchange"})


@dataclass
class _Wanted:
    """A credential whose token is in use, and where its server's definition lets it go."""

    asked_at: float
    networks: Sequence[Network]


class Broker:
    """A `CredentialProvider` of the file, the record, and what the record points to."""

    def __init__(
        self,
        file: FileProvider,
        rows: CredentialRows,
        renewals: Renewals,
        local: LocalSecrets,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._rows = rows
        self._renewals = renewals
        self._local = local
        self._clock = clock
        self._numbers: dict[tuple[str, str], tuple[Any, int]] = {}
        self._wanted: dict[tuple[str, str], _Wanted] = {}

    # -- what `CredentialProvider` promises

    async def resolve(self, tenant_id: str, definition: ServerDefinition) -> Grant | None:
        """See `CredentialProvider.resolve`.

        Raises, beside `credential_missing`: `credential_expired` where only a new consent helps,
        `credential_unavailable` and `store_unavailable` where it cannot be had just now.
        """
        if (grant := await self._first(tenant_id, definition)) is not None:
            return grant
        if not definition.credentials.required:
            return None
        # It may have been set within the last second.
        await self._rows.catch_up(definition.name)
        if (grant := await self._first(tenant_id, definition)) is not None:
            return grant
        raise missing(definition, tenant_id, "")

    async def resolve_listing(self, definition: ServerDefinition) -> Grant | None:
        """See `CredentialProvider.resolve_listing`; of several tenants it is the first by name."""
        grant = await self._find(SHARED, definition)
        if grant is not None or not definition.credentials.required:
            return grant
        stored = (it.stored.tenant for it in self._rows.known(definition.name))
        tenants = {it for it in stored if is_named(it, definition)}
        for tenant in sorted(tenants.union(self._file.tenants(definition))):
            with suppress(FleetError):  # another one may do
                if (grant := await self._find(tenant, definition)) is not None:
                    return grant
        raise missing(definition, SHARED, "")

    async def renewed(self, identity: str, generation: int, definition: ServerDefinition) -> bool:
        """See `CredentialProvider.renewed`."""
        known = await self._rows.read_again(identity, definition.name)
        if await self._generation(identity, definition) != generation:
            return True
        if known is None or self._file.find(identity, definition) is not None:
            return False
        if known.stored.definition["kind"] in _TOKENS:
            await self._renewals.replace(known, _networks(definition))
        elif known.stored.definition["kind"] == "vault":
            await self._read_local(known, again=True)
        return await self._generation(identity, definition) != generation

    # -- as time goes by

    async def look_after(self) -> None:
        """Learn what has changed and renew what is due; to be called every second."""
        self._rows.forget_old_keys()
        for server in self._rows.servers():
            with suppress(FleetError):  # Postgres away: what is known stays
                await self._rows.catch_up(server)
        await self._local.look_after()
        now = self._clock()
        for name, wanted in list(self._wanted.items()):
            known = await self._rows.get(*name)
            if known is None or now - wanted.asked_at > WANTED_FOR_S:
                del self._wanted[name]
            elif (
                known.due(now)
                and known.stored.state is CredentialState.READY
                and not known.pausing_s(now)
            ):
                self._renewals.start(known.stored, wanted.networks)

    async def close(self) -> None:
        """Let what is being renewed be recorded."""
        await self._renewals.close()

    # -- one credential

    async def _first(self, tenant: str, definition: ServerDefinition) -> Grant | None:
        for identity in (tenant, SHARED) if tenant != SHARED else (SHARED,):
            if (grant := await self._find(identity, definition)) is not None:
                return grant
        return None

    async def _find(self, identity: str, definition: ServerDefinition) -> Grant | None:
        """Return the credential of this very identity, None if it has none."""
        if (filed := self._file.find(identity, definition)) is not None:
            return self._grant(identity, definition, filed.secret, ("file", filed.generation))
        known = await self._rows.get(identity, definition.name)
        if known is None:
            self._number((identity, definition.name), None)
            return None
        how = known.stored.definition
        if how["kind"] in _TOKENS:
            name = (identity, definition.name)
            wanted = self._wanted[name] = _Wanted(self._clock(), _networks(definition))
            secret: str | None
            known, secret = await self._renewals.fresh(known, wanted.networks)
            mark: Any = known.stored.version
        elif how["kind"] == "static":
            content = await self._rows.content(known.stored)
            secret = content.secrets["secret"]
            mark = known.stored.version
        else:
            secret = await self._read_local(known)
            mark = (known.stored.version, _fingerprint(secret or ""))
        if secret is None:
            raise missing(definition, identity, "there is none where its definition points to")
        return self._grant(identity, definition, _prefix(how, definition) + secret, mark)

    async def _read_local(self, known: Known, *, again: bool = False) -> str | None:
        source = join(known.stored.definition, {})
        assert isinstance(source, _LOCAL)
        return await self._local.read(source, again=again)

    async def _generation(self, identity: str, definition: ServerDefinition) -> int:
        """Return the number of what there is now, or of what there was if it cannot be told."""
        with suppress(FleetError):
            if (grant := await self._find(identity, definition)) is not None:
                return grant.generation
        return self._numbers.get((identity, definition.name), (None, 0))[1]

    def _grant(self, identity: str, definition: ServerDefinition, secret: str, mark: Any) -> Grant:
        how = definition.credentials
        assert how.inject != "none", "a server that takes no credential was asked about"
        assert how.name is not None
        if problem := unfit(secret, definition):
            raise missing(definition, identity, problem)
        generation = self._number((identity, definition.name), mark)
        return Grant(identity, generation, how.inject, how.name, secret)

    def _number(self, name: tuple[str, str], mark: Any) -> int:
        """Return how often a credential was another one than before."""
        before, number = self._numbers.get(name, (None, 0))
        if mark != before:
            number += 1
            self._numbers[name] = (mark, number)
        return number


def make_broker(
    settings: Settings,
    database: Database,
    worker: str,
    *,
    vault: Vault | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Broker:
    """Return the broker of a worker process; ``vault`` is that of the settings, if it is open."""
    vault = vault or open_vault(settings)
    rows = CredentialRows(database, open_keys(settings, vault))
    servers = AuthorizationServers(open_client, own_networks(settings))
    return Broker(
        FileProvider(settings.credentials_file),
        rows,
        Renewals(database, rows, servers, worker),
        LocalSecrets(settings.credential_folder, vault, environment=environment),
    )


def _networks(definition: ServerDefinition) -> Sequence[Network]:
    return tuple(parse_network(text) for text in definition.networks)


def _prefix(how: dict[str, Any], definition: ServerDefinition) -> str:
    prefix = how.get("prefix")
    if prefix is None:
        in_header = definition.credentials.inject == "header"
        return _BEARER if how["kind"] in _TOKENS and in_header else ""
    return str(prefix)


def _fingerprint(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
