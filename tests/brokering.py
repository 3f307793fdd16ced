"""Brokers as workers have them, on a real Postgres, beside a real authorization server."""

from __future__ import annotations

import base64
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry import catalog, credential_store
from registry.addresses import parse_network
from registry.credential_kinds import parse_credential
from registry.credentials import FileProvider, Grant
from registry.database import Database
from registry.definitions import ServerDefinition, parse_definition
from registry.key_file import KeyFile
from registry.stored_credential import StoredCredential
from tests.servers.authorization import CLIENT_ID, CLIENT_SECRET, AuthorizationServer
from workers.authorization_servers import AuthorizationServers
from workers.broker import Broker
from workers.credential_rows import CredentialRows
from workers.local_secrets import LocalSecrets
from workers.outbound import open_client
from workers.renewing import Renewals
from workers.vault import Vault

LOOPBACK = (parse_network("127.0.0.0/8"),)


def crm(**credentials: Any) -> ServerDefinition:
    """Return a server that takes a credential in a header."""
    how = {"inject": "header", "name": "Authorization", "required": True, **credentials}
    return parse_definition(
        {
            "name": "crm",
            "transport": "http",
            "url": "http://127.0.0.1:9/mcp",
            "networks": ["127.0.0.0/8"],
            "credentials": how,
        }
    )


class Keys:
    """A file of encryption keys, the current one first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = KeyFile(path)
        self._lines: dict[str, str] = {}
        self.put("first")

    def put(self, *names: str) -> None:
        """Have these keys in the file, in this order; new ones are made."""
        for name in names:
            self._lines.setdefault(name, base64.b64encode(secrets.token_bytes(32)).decode())
        fresh = self.path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text("".join(f"{name} {self._lines[name]}\n" for name in names))
        fresh.replace(self.path)


class FakeClock:
    """A monotonic clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def client(**rest: Any) -> dict[str, Any]:
    """Return the client that the authorization server knows."""
    return {"id": CLIENT_ID, "secret": CLIENT_SECRET, **rest}


@dataclass
class Tenancy:
    """A registry with server `crm`, and the keys that its credentials are kept with."""

    database: Database
    keys: Keys
    definition: ServerDefinition
    url: str = ""

    @classmethod
    async def open(cls, database: Database, folder: Path, url: str = "") -> Tenancy:
        definition = crm()
        await catalog.add_server(database, definition, actor="test")
        return cls(database, Keys(folder / "encryption.keys"), definition, url)

    async def set(self, tenant: str, document: dict[str, Any], server: str = "crm") -> None:
        """Set a credential, as the API does."""
        await credential_store.put(
            self.database,
            self.keys.file,
            parse_credential(document),
            tenant=tenant,
            server=server,
            actor="ops",
        )

    async def consent(self, tenant: str, server: AuthorizationServer, **rest: Any) -> None:
        """Set the refresh token of a new consent."""
        await self.set(tenant, by_refresh(server, server.consent(tenant), **rest))

    async def row(self, tenant: str) -> StoredCredential:
        stored = await credential_store.read(self.database, tenant, "crm")
        assert stored is not None
        return stored

    async def shown(self, tenant: str) -> dict[str, Any]:
        return await credential_store.get(self.database, tenant, "crm")

    async def events(self) -> list[str]:
        rows = await self.database.statement(
            "SELECT event FROM audit WHERE starts_with(event, 'credential.') ORDER BY id",
        )
        return [row["event"].removeprefix("credential.") for row in rows]

    async def age(self, *columns: str, by: str = "1 hour") -> None:
        """Move instants of every credential back, as if so much time had passed."""
        for column in columns:
            await self.database.statement(
                f"UPDATE credentials SET {column} = {column} - interval '{by}',"  # type: ignore[arg-type]
                " serial = nextval('credential_serials') WHERE true RETURNING 1",
                x=1,
            )

    def broker(
        self,
        *,
        clock: Callable[[], float] | None = None,
        database: Database | None = None,
        file: Path | None = None,
        folder: Path = Path("/run/secrets"),
        environment: dict[str, str] | None = None,
        vault: Vault | None = None,
        keys: Any = None,
        patience_s: float = 10.0,
        limit_s: float = 10.0,
    ) -> Broker:
        """Return a broker of its own, as a worker process would have it."""
        database = database or self.database
        clocks: dict[str, Any] = {"clock": clock} if clock else {}
        rows = CredentialRows(database, keys or self.keys.file, **clocks)
        servers = AuthorizationServers(open_client, limit_s=limit_s, **clocks)
        renewals = Renewals(
            database, rows, servers, f"worker-{uuid.uuid4().hex[:4]}",
            patience_s=patience_s, **clocks,
        )  # fmt: skip
        local = LocalSecrets(folder, vault, environment=environment or {}, **clocks)
        return Broker(FileProvider(file), rows, renewals, local, **clocks)

    async def grant(self, broker: Broker, tenant: str = "alice") -> Grant:
        grant = await broker.resolve(tenant, self.definition)
        assert grant is not None
        return grant


def by_refresh(server: AuthorizationServer, token: str, **rest: Any) -> dict[str, Any]:
    """Return a credential of a refresh token."""
    return {
        "kind": "oauth_refresh_token",
        "issuer": server.url,
        "token_endpoint": f"{server.url}/token",
        "client": client(),
        "refresh_token": token,
        **rest,
    }
