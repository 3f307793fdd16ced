"""The catalog of servers: definitions by version, and which of them the fleet serves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.database import Database, to_json
from registry.definitions import ServerDefinition, digest
from registry.errors import Code, FleetError

CHANNEL = "toolfleet_servers"
"""Postgres NOTIFY channel that tells of servers added, changed and removed."""


@dataclass(frozen=True)
class ServerVersion:
    """One immutable version of a server, and whether its tools are known to be current."""

    id: int
    definition: ServerDefinition
    stale: bool
    refreshed_at: datetime | None
    refresh_error: dict[str, Any] | None
    tools: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the server as shown to operators; environment and header values stay hidden."""
        definition = self.definition.model_dump(mode="json", exclude_none=True)
        for secretive in ("env", "headers"):
            definition[secretive] = dict.fromkeys(definition.get(secretive, {}), "***")
        return {
            "name": self.definition.name,
            "version": self.definition.version,
            "version_id": self.id,
            "stale": self.stale,
            "refreshed_at": self.refreshed_at,
            "refresh_error": self.refresh_error,
            "tools": list(self.tools),
            "queue": self.definition.queue,
            "definition": definition,
        }


_CURRENT = """
    SELECT v.id, v.definition, s.stale, s.refreshed_at, s.refresh_error,
        COALESCE((SELECT array_agg(t.name ORDER BY t.name) FROM tool_versions t
            WHERE t.id IN (SELECT unnest(latest.ids) FROM (
                SELECT l.tool_version_ids AS ids FROM listings l
                WHERE l.server_version_id = v.id ORDER BY l.id DESC LIMIT 1) AS latest)), '{}'
        ) AS tools
    FROM servers s JOIN server_versions v ON v.id = s.current_version_id
    WHERE s.removed_at IS NULL
"""


async def add_server(database: Database, definition: ServerDefinition, *, actor: str) -> int:
    """Register a server, or a removed one again; return its version's id.

    Raises `name_collision` when a server of that name is registered, or when its tool prefix is
    another server's.
    """
    async with database.transaction() as connection:
        await _lock(connection)
        existing = await connection.execute(
            text("SELECT removed_at FROM servers WHERE name = :name"), {"name": definition.name}
        )
        row = existing.first()
        if row is not None and row.removed_at is None:
            raise FleetError(
                Code.NAME_COLLISION,
                f"a server named {definition.name!r} is registered already",
                hint="add a version to it, or choose another name",
            )
        await _refuse_prefix(connection, definition)
        if row is None:
            await connection.execute(
                text("INSERT INTO servers (name) VALUES (:name)"), {"name": definition.name}
            )
        return await _put_version(connection, definition, actor, "server.added")


async def add_version(database: Database, definition: ServerDefinition, *, actor: str) -> int:
    """Add a version to a registered server and make it current; return its id.

    Raises `unknown_server`, or `version_exists` when that version has other content.
    """
    async with database.transaction() as connection:
        await _lock(connection)
        found = await connection.execute(
            text("SELECT 1 FROM servers WHERE name = :name AND removed_at IS NULL"),
            {"name": definition.name},
        )
        if found.first() is None:
            raise unknown_server(definition.name)
        await _refuse_prefix(connection, definition)
        return await _put_version(connection, definition, actor, "server.version_added")


async def remove_server(database: Database, name: str, *, actor: str) -> None:
    """Take a server out of the fleet; its versions, calls and audit stay in the record."""
    async with database.transaction() as connection:
        await _lock(connection)
        result = await connection.execute(
            text(
                "UPDATE servers SET removed_at = clock_timestamp()"
                " WHERE name = :name AND removed_at IS NULL RETURNING name"
            ),
            {"name": name},
        )
        if result.first() is None:
            raise unknown_server(name)
        await _announce(connection, name, actor, "server.removed")


async def list_servers(database: Database) -> list[ServerVersion]:
    """Return the current version of every server, by name."""
    async with database.transaction() as connection:
        result = await connection.execute(text(_CURRENT + " ORDER BY s.name"))
        return [_version(row) for row in result.mappings()]


async def get_server(database: Database, name: str) -> ServerVersion:
    """Return the current version of a server; raise `unknown_server`."""
    async with database.transaction() as connection:
        result = await connection.execute(text(_CURRENT + " AND s.name = :name"), {"name": name})
        row = result.mappings().first()
    if row is None:
        raise unknown_server(name)
    return _version(row)


async def worker_servers(database: Database) -> list[str]:
    """Return the names of the servers that need a worker."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text("SELECT name FROM servers WHERE removed_at IS NULL ORDER BY name")
        )
        return [row.name for row in result]


async def get_definition(database: Database, version_id: int) -> ServerDefinition:
    """Return the definition of one server version, removed servers included."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text("SELECT definition FROM server_versions WHERE id = :id"), {"id": version_id}
        )
        row = result.first()
    if row is None:
        raise FleetError(Code.UNKNOWN_SERVER, f"there is no server version {version_id}")
    return ServerDefinition.model_validate(row.definition)


def unknown_server(name: str) -> FleetError:
    """Return the error for a name that no server has."""
    return FleetError(
        Code.UNKNOWN_SERVER,
        f"there is no server named {name!r}",
        hint="`toolfleet servers list` shows the registered servers",
    )


async def _lock(connection: AsyncConnection) -> None:
    # Registrations are rare; one at a time makes the checks of names and prefixes exact.
    await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('toolfleet.servers'))"))


async def _refuse_prefix(connection: AsyncConnection, definition: ServerDefinition) -> None:
    result = await connection.execute(
        text(_CURRENT + " AND s.name <> :name"), {"name": definition.name}
    )
    for row in result.mappings():
        other = _version(row).definition
        if other.prefix == definition.prefix:
            raise FleetError(
                Code.NAME_COLLISION,
                f"server {other.name!r} has the tool prefix {definition.prefix!r} already",
                hint="give this server another tool_prefix",
                details={"tool_prefix": definition.prefix, "server": other.name},
            )


async def _put_version(
    connection: AsyncConnection, definition: ServerDefinition, actor: str, event: str
) -> int:
    body = definition.model_dump(mode="json")
    content = digest(body)
    inserted = await connection.execute(
        text(
            "INSERT INTO server_versions (server_name, version, definition, digest)"
            " VALUES (:name, :version, CAST(:definition AS jsonb), :digest)"
            " ON CONFLICT (server_name, version) DO NOTHING RETURNING id"
        ),
        {
            "name": definition.name,
            "version": definition.version,
            "definition": to_json(body),
            "digest": content,
        },
    )
    row = inserted.first()
    if row is None:
        existing = await connection.execute(
            text(
                "SELECT id, digest FROM server_versions"
                " WHERE server_name = :name AND version = :version"
            ),
            {"name": definition.name, "version": definition.version},
        )
        row = existing.one()
        if row.digest != content:
            raise FleetError(
                Code.VERSION_EXISTS,
                f"version {definition.version} of server {definition.name!r} has other content",
                hint="versions never change: register the new content under a new version",
            )
    await connection.execute(
        text(
            "UPDATE servers SET current_version_id = :id, stale = true, removed_at = NULL,"
            " refresh_error = NULL WHERE name = :name"
        ),
        {"id": row.id, "name": definition.name},
    )
    await _announce(connection, definition.name, actor, event, version=definition.version)
    return int(row.id)


async def _announce(
    connection: AsyncConnection, name: str, actor: str, event: str, **details: str
) -> None:
    await connection.execute(
        text(
            "INSERT INTO audit (actor, event, details)"
            " VALUES (:actor, :event, CAST(:details AS jsonb))"
        ),
        {"actor": actor, "event": event, "details": to_json({"server": name, **details})},
    )
    await connection.execute(
        text("SELECT pg_notify(:channel, :name)"), {"channel": CHANNEL, "name": name}
    )


def _version(row: RowMapping) -> ServerVersion:
    return ServerVersion(
        id=row["id"],
        definition=ServerDefinition.model_validate(row["definition"]),
        stale=row["stale"],
        refreshed_at=row["refreshed_at"],
        refresh_error=row["refresh_error"],
        tools=tuple(row["tools"]),
    )
