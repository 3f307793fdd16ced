"""A server's tool listing into the record: immutable tool versions, one listing per change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.database import Database, to_json
from registry.definitions import ServerDefinition, digest
from registry.errors import Code, FleetError
from registry.tools import ToolVersion, refuse_collisions, snapshot_tools, tool_version


async def ingest(
    database: Database,
    version_id: int,
    definition: ServerDefinition,
    listed: Sequence[Mapping[str, Any]],
) -> list[dict[str, str]]:
    """Record what a server version lists and mark it fresh; return what changed.

    An unchanged listing adds no row. Raises `name_collision` when two tools would have one
    model-facing name, `protocol_error` when a name is listed twice.
    """
    tools = [tool_version(tool) for tool in listed]
    names = [tool.name for tool in tools]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise FleetError(
            Code.PROTOCOL_ERROR,
            f"server {definition.name!r} lists these tools twice: {', '.join(twice)}",
        )
    refuse_collisions(snapshot_tools(definition, version_id, enumerate(tools)))
    async with database.transaction() as connection:
        before = await _latest(connection, version_id)
        changes = _changes(before, tools)
        if changes or before is None:
            await _record(connection, version_id, definition.name, tools, changes)
        await connection.execute(
            text(
                "UPDATE servers SET stale = false, refresh_error = NULL,"
                " refreshed_at = clock_timestamp()"
                " WHERE name = :name AND current_version_id = :version"
            ),
            {"name": definition.name, "version": version_id},
        )
    return changes


async def mark_stale(database: Database, server: str, error: FleetError | None = None) -> None:
    """Mark a server's tools as not known to be current, with what kept a refresh from working."""
    async with database.transaction() as connection:
        await connection.execute(
            text(
                "UPDATE servers SET stale = true, refresh_error = CAST(:error AS jsonb)"
                " WHERE name = :name"
            ),
            {"name": server, "error": to_json(error.as_dict()) if error else None},
        )


async def schedule_refresh(database: Database, every: timedelta) -> None:
    """Mark the servers stale whose tools were not listed for ``every``."""
    async with database.transaction() as connection:
        await connection.execute(
            text(
                "UPDATE servers SET stale = true WHERE removed_at IS NULL AND NOT stale"
                " AND refreshed_at < clock_timestamp() - CAST(:every AS interval)"
            ),
            {"every": every},
        )


async def list_changes(database: Database, server: str, limit: int = 100) -> list[dict[str, Any]]:
    """Return the listings of a server that changed something, newest first."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "SELECT l.id, v.version, l.digest, l.changes, l.created_at FROM listings l"
                " JOIN server_versions v ON v.id = l.server_version_id"
                " WHERE v.server_name = :server ORDER BY l.id DESC LIMIT :limit"
            ),
            {"server": server, "limit": limit},
        )
        return [dict(row) for row in result.mappings()]


async def _latest(connection: AsyncConnection, version_id: int) -> dict[str, str] | None:
    result = await connection.execute(
        text(
            "SELECT tool_version_ids FROM listings WHERE server_version_id = :id"
            " ORDER BY id DESC LIMIT 1"
        ),
        {"id": version_id},
    )
    row = result.first()
    if row is None:
        return None
    tools = await connection.execute(
        text("SELECT name, digest FROM tool_versions WHERE id = ANY(:ids)"),
        {"ids": row.tool_version_ids},
    )
    return {tool.name: tool.digest for tool in tools}


def _changes(
    before: Mapping[str, str] | None, tools: Sequence[ToolVersion]
) -> list[dict[str, str]]:
    known = before or {}
    after = {tool.name: tool.digest for tool in tools}
    added = [{"change": "added", "tool": name} for name in after if name not in known]
    removed = [{"change": "removed", "tool": name} for name in known if name not in after]
    changed = [
        {"change": "changed", "tool": name, "before": known[name], "after": after[name]}
        for name in after
        if name in known and known[name] != after[name]
    ]
    return sorted(added + removed + changed, key=lambda change: change["tool"])


async def _record(
    connection: AsyncConnection,
    version_id: int,
    server: str,
    tools: Sequence[ToolVersion],
    changes: list[dict[str, str]],
) -> None:
    if tools:
        await connection.execute(
            text(
                "INSERT INTO tool_versions (server_name, name, digest, definition)"
                " VALUES (:server, :name, :digest, CAST(:definition AS jsonb))"
                " ON CONFLICT (server_name, digest) DO NOTHING"
            ),
            [
                {
                    "server": server,
                    "name": tool.name,
                    "digest": tool.digest,
                    "definition": to_json(tool.definition),
                }
                for tool in tools
            ],
        )
    digests = [tool.digest for tool in tools]
    result = await connection.execute(
        text(
            "SELECT id FROM tool_versions WHERE server_name = :s AND digest = ANY(:d) ORDER BY id"
        ),
        {"s": server, "d": digests},
    )
    await connection.execute(
        text(
            "INSERT INTO listings (server_version_id, digest, tool_version_ids, changes)"
            " VALUES (:version, :digest, :ids, CAST(:changes AS jsonb))"
        ),
        {
            "version": version_id,
            "digest": digest(sorted(digests)),
            "ids": [row.id for row in result],
            "changes": to_json(changes),
        },
    )
    await connection.execute(
        text(
            "INSERT INTO audit (actor, event, details)"
            " VALUES ('steward', 'listing.changed', CAST(:details AS jsonb))"
        ),
        {"details": to_json({"server": server, "changes": changes})},
    )


@dataclass(frozen=True)
class ToolRow:
    """What a worker needs of a tool version: its upstream name and the schema of its results."""

    name: str
    output_schema: dict[str, Any] | None


async def get_tool(database: Database, tool_version_id: int) -> ToolRow:
    """Return one immutable tool version; raise `unknown_tool`."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text("SELECT name, definition FROM tool_versions WHERE id = :id"),
            {"id": tool_version_id},
        )
        row = result.first()
    if row is None:
        raise FleetError(Code.UNKNOWN_TOOL, f"there is no tool version {tool_version_id}")
    return ToolRow(row.name, row.definition.get("outputSchema"))
