"""The catalog of servers: definitions by version, and which of them the fleet serves."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import audit
from registry.database import Database, to_json
from registry.definition_secrets import NO_KEYS, DefinitionSecrets
from registry.definitions import ServerDefinition, content_digest
from registry.envelope import KeyWrapper
from registry.errors import Code, FleetError
from registry.sealed_definitions import HIDDEN, hidden

CHANNEL = "toolfleet_servers"
"""Postgres NOTIFY channel that tells of servers added, changed and removed."""


@dataclass(frozen=True)
class ServerVersion:
    """One immutable version of a server, and whether its tools are known to be current.

    The secrets in its definition are as they lie in the record, sealed.
    """

    id: int
    definition: ServerDefinition
    stale: bool
    refreshed_at: datetime | None
    refresh_error: dict[str, Any] | None
    tools: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the server as shown to operators.

        Environment and header values stay hidden, and so do secrets in the query of its URL.
        """
        definition = hidden(self.definition.model_dump(mode="json", exclude_none=True))
        for secretive in ("env", "headers"):
            definition[secretive] = dict.fromkeys(definition.get(secretive, {}), HIDDEN)
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


# Asked every second by each worker: an API's document, which may be large, stays where it is.
LOOKED_AT: Final = "v.definition #- '{openapi,document}' AS definition"
"""A version's definition as it is looked at: an API's document may be large, and is left out."""
_CURRENT = """
    SELECT v.id, v.definition #- '{openapi,document}' AS definition,
        s.stale, s.refreshed_at, s.refresh_error,
        COALESCE((SELECT array_agg(t.name ORDER BY t.name) FROM tool_versions t
            WHERE t.id IN (SELECT unnest(latest.ids) FROM (
                SELECT l.tool_version_ids AS ids FROM listings l
                WHERE l.server_version_id = v.id ORDER BY l.id DESC LIMIT 1) AS latest)), '{}'
        ) AS tools
    FROM servers s JOIN server_versions v ON v.id = s.current_version_id
    WHERE s.removed_at IS NULL
"""


async def add_server(
    database: Database,
    definition: ServerDefinition,
    *,
    actor: str,
    keys: KeyWrapper = NO_KEYS,
    dry_run: bool = False,
) -> int:
    """Register a server, or a removed one again; return its version's id.

    Raises `name_collision` when a server of that name is registered (``details`` say whether it is
    the same but for its version, if that can be told), or when its tool prefix is another server's;
    `credential_unavailable` where its definition has secrets and ``keys`` cannot be used. With
    ``dry_run`` everything is tried and nothing stays.
    """
    secrets = await DefinitionSecrets.prepared(database, keys, [definition])
    async with database.transaction() as connection:
        await lock(connection)
        await _refuse_name(connection, definition, secrets)
        await refuse_prefix(connection, definition)
        await connection.execute(
            text("INSERT INTO servers (name) VALUES (:name) ON CONFLICT DO NOTHING"),
            {"name": definition.name},
        )
        version_id = await put_version(
            connection, definition, secrets, actor=actor, event="server.added"
        )
        if dry_run:
            await connection.rollback()
        return version_id


async def add_version(
    database: Database,
    definition: ServerDefinition,
    *,
    actor: str,
    keys: KeyWrapper = NO_KEYS,
    serve: bool = True,
) -> int:
    """Add a version to a registered server, and serve it unless told otherwise; return its id.

    Serving it at once ends a rollout that is under way. Raises `unknown_server`,
    `version_exists` when that version has other content, `credential_unavailable` where its
    definition has secrets and ``keys`` cannot be used.
    """
    secrets = await DefinitionSecrets.prepared(database, keys, [definition])
    async with database.transaction() as connection:
        await lock(connection)
        found = await connection.execute(
            text("SELECT 1 FROM servers WHERE name = :name AND removed_at IS NULL"),
            {"name": definition.name},
        )
        if found.first() is None:
            raise unknown_server(definition.name)
        await refuse_prefix(connection, definition)
        await _refuse_other_prefix(connection, definition)
        return await put_version(
            connection, definition, secrets,
            actor=actor, event="server.version_added", serve=serve,
        )  # fmt: skip


async def remove_server(database: Database, name: str, *, actor: str) -> None:
    """Take a server out of the fleet; its versions, calls and audit stay in the record."""
    async with database.transaction() as connection:
        await lock(connection)
        await delete_server(connection, name, actor=actor)


async def delete_server(connection: AsyncConnection, name: str, *, actor: str) -> None:
    """Remove a server within a transaction that holds the lock."""
    result = await connection.execute(
        text(
            "UPDATE servers SET removed_at = clock_timestamp()"
            " WHERE name = :name AND removed_at IS NULL RETURNING name"
        ),
        {"name": name},
    )
    if result.first() is None:
        raise unknown_server(name)
    await replace_rollout(connection, name, actor)
    await announce(connection, name, actor, "server.removed")


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


async def followed(database: Database, name: str) -> list[ServerVersion]:
    """Return the versions of a server that new runs may see: the current one, then a canary.

    Each comes with its own freshness. Raises `unknown_server`.
    """
    current = await get_server(database, name)
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                f"SELECT v.id, {LOOKED_AT}, r.stale, r.refreshed_at, r.refresh_error"  # noqa: S608 - a constant
                " FROM rollouts r JOIN server_versions v ON v.id = r.canary_version_id"
                " WHERE r.server_name = :name AND r.state = 'active'"
            ),
            {"name": name},
        )
        return [current, *(_version({**row, "tools": ()}) for row in result.mappings())]


async def list_versions(database: Database, name: str) -> list[dict[str, Any]]:
    """Return the versions of a server, newest first: version, digest, created_at, serving."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "SELECT v.version, v.digest, v.created_at, v.id = s.current_version_id AS current"
                " FROM server_versions v JOIN servers s ON s.name = v.server_name"
                " WHERE v.server_name = :name ORDER BY v.id DESC"
            ),
            {"name": name},
        )
        return [dict(row) for row in result.mappings()]


async def get_version(database: Database, name: str, version: str) -> ServerVersion:
    """Return one version of a served server, without its tools.

    Raises `unknown_server` and `unknown_version`.
    """
    async with database.transaction() as connection:
        await current_version_id(connection, name)
        id_ = await version_id(connection, name, version)
        result = await connection.execute(
            text(
                f"SELECT v.id, {LOOKED_AT}, s.stale, s.refreshed_at, s.refresh_error"  # noqa: S608 - a constant
                " FROM server_versions v JOIN servers s ON s.name = v.server_name WHERE v.id = :id"
            ),
            {"id": id_},
        )
        return _version({**result.mappings().one(), "tools": ()})


async def previous_version(database: Database, name: str) -> str | None:
    """Return the version that was current before this one; None where there was none."""
    rows = await database.statement(
        "SELECT v.version FROM servers s JOIN server_versions v ON v.id = s.previous_version_id"
        " WHERE s.name = %(name)s AND s.removed_at IS NULL",
        name=name,
    )
    return rows[0]["version"] if rows else None


async def serve_previous(
    database: Database, name: str, *, actor: str, wanted: str | None = None
) -> str:
    """Serve the version again that was current before this one; return its name.

    ``wanted`` names the version that is meant. Raises `unknown_server`, `not_found` when there was
    none, or `rollout_conflict` when another one was current before this one.
    """
    async with database.transaction() as connection:
        await lock(connection)
        await current_version_id(connection, name)
        result = await connection.execute(
            text(
                "SELECT v.id, v.version FROM servers s"
                " JOIN server_versions v ON v.id = s.previous_version_id WHERE s.name = :name"
            ),
            {"name": name},
        )
        row = result.first()
        if row is None:
            raise FleetError(Code.NOT_FOUND, f"server {name!r} had no version before this one")
        if wanted not in {None, row.version}:
            raise FleetError(
                Code.ROLLOUT_CONFLICT,
                f"server {name!r} served version {row.version} before this one, not {wanted}",
                hint="somebody was quicker: look at its versions again",
            )
        await replace_rollout(connection, name, actor)
        await switch(connection, name, row.id)
        await announce(connection, name, actor, "server.version_restored", version=row.version)
        return str(row.version)


async def current_version_id(connection: AsyncConnection, name: str) -> int:
    """Return the id of a server's current version; raise `unknown_server`."""
    result = await connection.execute(
        text("SELECT current_version_id FROM servers WHERE name = :name AND removed_at IS NULL"),
        {"name": name},
    )
    row = result.first()
    if row is None:
        raise unknown_server(name)
    return int(row.current_version_id)


async def version_id(connection: AsyncConnection, name: str, version: str) -> int:
    """Return the id of a server's version; raise `unknown_version`, naming those there are."""
    result = await connection.execute(
        text("SELECT id, version FROM server_versions WHERE server_name = :name ORDER BY id"),
        {"name": name},
    )
    ids = {row.version: int(row.id) for row in result}
    if version not in ids:
        raise FleetError(
            Code.UNKNOWN_VERSION,
            f"server {name!r} has no version {version!r}",
            hint=f"it has {', '.join(list(ids)[-10:])}; add the version first",
        )
    return ids[version]


async def switch(connection: AsyncConnection, name: str, to: int) -> None:
    """Serve another version of a server within a transaction that holds the lock."""
    await connection.execute(
        text(
            "UPDATE servers SET previous_version_id = CASE WHEN current_version_id = :id"
            " THEN previous_version_id ELSE current_version_id END, current_version_id = :id,"
            " stale = true, removed_at = NULL, refresh_error = NULL WHERE name = :name"
        ),
        {"id": to, "name": name},
    )


async def worker_servers(database: Database) -> list[str]:
    """Return the names of the servers that need a worker."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text("SELECT name FROM servers WHERE removed_at IS NULL ORDER BY name")
        )
        return [row.name for row in result]


async def get_definition(
    database: Database, version_id: int, keys: KeyWrapper = NO_KEYS
) -> ServerDefinition:
    """Return the definition of one server version with its secrets, removed servers included.

    Raises `credential_unavailable` where it has any and they cannot be opened.
    """
    async with database.transaction() as connection:
        result = await connection.execute(
            text("SELECT definition FROM server_versions WHERE id = :id"), {"id": version_id}
        )
        row = result.first()
    if row is None:
        raise FleetError(Code.UNKNOWN_SERVER, f"there is no server version {version_id}")
    secrets = DefinitionSecrets(keys)
    await secrets.learn(database, [row.definition])
    return secrets.opened(row.definition)


def unknown_server(name: str) -> FleetError:
    """Return the error for a name that no server has."""
    return FleetError(
        Code.UNKNOWN_SERVER,
        f"there is no server named {name!r}",
        hint="`toolfleet servers list` shows the registered servers",
    )


async def lock(connection: AsyncConnection) -> None:
    """Let nobody else register, remove or switch servers until this transaction ends.

    Registrations are rare; one at a time makes the checks of names and prefixes exact.
    """
    await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('toolfleet.servers'))"))


async def _refuse_name(
    connection: AsyncConnection, definition: ServerDefinition, secrets: DefinitionSecrets
) -> None:
    result = await connection.execute(
        text(
            "SELECT v.definition FROM servers s JOIN server_versions v ON"
            " v.id = s.current_version_id WHERE s.name = :name AND s.removed_at IS NULL"
        ),
        {"name": definition.name},
    )
    row = result.first()
    if row is not None:
        details: dict[str, Any] = {"server": definition.name}
        with suppress(FleetError):  # whose keys may only seal cannot tell
            current = await _opened(connection, row.definition, secrets)
            same_version = current.model_copy(update={"version": definition.version})
            details["same"] = same_version == definition
        raise FleetError(
            Code.NAME_COLLISION,
            f"a server named {definition.name!r} is registered already",
            hint="add a version to it, or choose another name",
            details=details,
        )


async def refuse_prefix(connection: AsyncConnection, definition: ServerDefinition) -> None:
    """Raise `name_collision` when another server has the definition's tool prefix."""
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


async def _refuse_other_prefix(connection: AsyncConnection, definition: ServerDefinition) -> None:
    """Raise `invalid_definition` when a version would rename the tools that models know."""
    result = await connection.execute(
        text(_CURRENT + " AND s.name = :name"), {"name": definition.name}
    )
    current = _version(result.mappings().one()).definition
    if current.prefix != definition.prefix:
        raise FleetError(
            Code.INVALID_DEFINITION,
            f"version {definition.version} of server {definition.name!r} has the tool prefix "
            f"{definition.prefix!r}; the server's is {current.prefix!r}",
            hint="the names that models see never change with a version: keep the prefix, or add "
            "another server",
            details={"problems": [{"path": "tool_prefix", "problem": "differs from the server's"}]},
        )


async def put_version(
    connection: AsyncConnection,
    definition: ServerDefinition,
    secrets: DefinitionSecrets,
    *,
    actor: str,
    event: str,
    serve: bool = True,
) -> int:
    """Add a version within a transaction that holds the lock; return its id.

    ``secrets`` were prepared for it before.
    """
    result = await connection.execute(
        text(
            "SELECT id, definition FROM server_versions"
            " WHERE server_name = :name AND version = :version"
        ),
        {"name": definition.name, "version": definition.version},
    )
    row = result.first()
    if row is None:
        id_ = await _insert_version(connection, definition, secrets)
    else:
        id_ = int(row.id)
        # Not by digest: a field that a later release added is in no older row.
        if await _opened(connection, row.definition, secrets) != definition:
            raise FleetError(
                Code.VERSION_EXISTS,
                f"version {definition.version} of server {definition.name!r} has other content",
                hint="versions never change: register the new content under a new version",
            )
    if serve:
        await replace_rollout(connection, definition.name, actor)
        await switch(connection, definition.name, id_)
    await announce(connection, definition.name, actor, event, version=definition.version)
    return id_


async def _insert_version(
    connection: AsyncConnection, definition: ServerDefinition, secrets: DefinitionSecrets
) -> int:
    await secrets.keep(connection, definition)
    inserted = await connection.execute(
        text(
            "INSERT INTO server_versions (server_name, version, definition, digest)"
            " VALUES (:name, :version, CAST(:definition AS jsonb), :digest) RETURNING id"
        ),
        {
            "name": definition.name,
            "version": definition.version,
            "definition": to_json(secrets.sealed(definition)),
            "digest": content_digest(definition),
        },
    )
    return int(inserted.scalar_one())


async def _opened(
    connection: AsyncConnection, body: Mapping[str, Any], secrets: DefinitionSecrets
) -> ServerDefinition:
    await secrets.learn_within(connection, [body])
    return secrets.opened(body)


async def replace_rollout(connection: AsyncConnection, name: str, actor: str) -> None:
    """End a server's rollout because something else is served now."""
    replaced = await connection.execute(
        text(
            "UPDATE rollouts r SET state = 'replaced', ended_at = clock_timestamp(),"
            " ended_by = :actor FROM server_versions v WHERE r.server_name = :name"
            " AND r.state = 'active' AND v.id = r.canary_version_id RETURNING v.version"
        ),
        {"name": name, "actor": actor},
    )
    for row in replaced:
        details = {"server": name, "version": row.version}
        await audit.record(connection, actor, "rollout.replaced", details)


async def announce(
    connection: AsyncConnection, name: str, actor: str, event: str, **details: Any
) -> None:
    """Write what became of a server to the audit, and tell whoever listens."""
    await audit.record(connection, actor, event, {"server": name, **details})
    await connection.execute(
        text("SELECT pg_notify(:channel, :name)"), {"channel": CHANNEL, "name": name}
    )


def _version(row: RowMapping | dict[str, Any]) -> ServerVersion:
    return ServerVersion(
        id=row["id"],
        definition=ServerDefinition.model_validate(row["definition"]),
        stale=row["stale"],
        refreshed_at=row["refreshed_at"],
        refresh_error=row["refresh_error"],
        tools=tuple(row["tools"]),
    )
