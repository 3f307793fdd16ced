"""A server's tool listing into the record: immutable tool versions, one listing per change.

What changed is told apart by kind, and taken in or held as the server's definition says
(`registry.intake`). A held change waits for an operator: `accept`, `reject`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import audit, holds
from registry.database import Database, to_json
from registry.definitions import ServerDefinition, digest
from registry.errors import Code, FleetError
from registry.holds import UNUSABLE, Hold, HoldState
from registry.intake import Intake, Listed, Standing, take_in
from registry.tools import (
    ToolVersion,
    mirrored_parameters,
    refuse_collisions,
    snapshot_tools,
    tool_version,
)

_ACTOR = "steward"


async def ingest(
    database: Database,
    version_id: int,
    definition: ServerDefinition,
    listed: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Record what a server version lists and mark it fresh; return what changed.

    An unchanged listing adds no row. Raises `name_collision` when two tools would have one
    model-facing name, `protocol_error` when a name is listed twice or a tool has none.
    """
    # Reading and judging thousands of tools takes a while, and nobody else is to wait for it.
    tools = await asyncio.to_thread(_read, definition, listed)
    async with database.transaction() as connection:
        # Two workers may have listed at the same time: the second compares with the first.
        await connection.execute(
            text("SELECT FROM server_versions WHERE id = :id FOR UPDATE"), {"id": version_id}
        )
        baseline_id = await _baseline(connection, version_id)
        standing = await _standing(connection, version_id, baseline_id)
        intake, wanted = await asyncio.to_thread(_judge, definition, standing, tools)
        if intake.changes or intake.withdrawn or standing.first:
            await _record(connection, version_id, definition.name, wanted, intake, baseline_id)
        await _mark_fresh(connection, definition.name, version_id)
    return intake.changes


async def accept(database: Database, server: str, hold_id: int, *, actor: str) -> Hold:
    """Take a held change in: from now on runs are offered what the server lists.

    Raises `not_found`, `already_decided`, or `name_collision`; `changes_held` for a tool that
    cannot be offered whatever an operator says.
    """
    async with database.transaction() as connection:
        hold = await _locked(connection, server, hold_id)
        if hold.kind == UNUSABLE:
            raise FleetError(
                Code.CHANGES_HELD,
                f"tool {hold.tool!r} of server {server!r} cannot be offered: "
                + "; ".join(it["what"] for it in hold.change["differences"][:3]),
                hint="the server has to be mended; until then reject the change, or leave it",
            )
        await holds.end(connection, [hold], HoldState.ACCEPTED, actor=actor)
        offered = await _offered(connection, hold.server_version_id)
        ids = {name: id_ for name, (id_, _) in offered.items() if name != hold.tool}
        if hold.tool_version_id is not None:
            ids[hold.tool] = hold.tool_version_id
        await _refuse_new_collision(connection, hold.server_version_id, ids)
        change = {**hold.change, "reaction": "accepted"}
        await _add_listing(connection, hold.server_version_id, server, ids, [change], actor)
        return await holds.find(connection, server, hold_id)


async def reject(database: Database, server: str, hold_id: int, *, actor: str) -> Hold:
    """Keep a held change out until the server changes the tool again; raises as `accept`."""
    async with database.transaction() as connection:
        hold = await _locked(connection, server, hold_id)
        await holds.end(connection, [hold], HoldState.REJECTED, actor=actor)
        return await holds.find(connection, server, hold_id)


async def mark_stale(
    database: Database,
    server: str,
    error: FleetError | None = None,
    *,
    version_id: int | None = None,
) -> None:
    """Mark a server's tools as not known to be current, with what kept a refresh from working.

    With ``version_id`` only that version's, where it is the current one or a canary.
    """
    values = {
        "name": server,
        "version": version_id,
        "error": to_json(error.as_dict()) if error else None,
    }
    async with database.transaction() as connection:
        await connection.execute(
            text(
                "UPDATE servers SET stale = true, refresh_error = CAST(:error AS jsonb)"
                " WHERE name = :name"
                " AND current_version_id = COALESCE(:version, current_version_id)"
            ),
            values,
        )
        await connection.execute(
            text(
                "UPDATE rollouts SET stale = true, refresh_error = CAST(:error AS jsonb)"
                " WHERE server_name = :name AND state = 'active'"
                " AND canary_version_id = COALESCE(:version, canary_version_id)"
            ),
            values,
        )


async def schedule_refresh(database: Database, every: timedelta) -> None:
    """Mark the servers and canaries stale whose tools were not listed for ``every``."""
    async with database.transaction() as connection:
        await connection.execute(
            text(
                "UPDATE servers SET stale = true WHERE removed_at IS NULL AND NOT stale"
                " AND refreshed_at < clock_timestamp() - CAST(:every AS interval)"
            ),
            {"every": every},
        )
        await connection.execute(
            text(
                "UPDATE rollouts SET stale = true WHERE state = 'active' AND NOT stale"
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


async def first_changes(database: Database, version_id: int) -> list[dict[str, Any]]:
    """Return how a version's tools differed from those of the version before, when first listed."""
    rows = await database.statement(
        "SELECT changes FROM listings WHERE server_version_id = %(id)s ORDER BY id LIMIT 1",
        id=version_id,
    )
    return list(rows[0]["changes"]) if rows else []


# -- a listing, read


def _read(definition: ServerDefinition, listed: Sequence[Mapping[str, Any]]) -> list[Listed]:
    tools = [_listed(definition, number, tool) for number, tool in enumerate(listed)]
    _refuse_twice(definition, [it.tool.name for it in tools])
    return tools


def _judge(
    definition: ServerDefinition, standing: Standing, tools: Sequence[Listed]
) -> tuple[Intake, list[ToolVersion]]:
    """Return what follows from a listing, and the tools of it that have to be on record."""
    intake = take_in(standing, tools, definition.changes)
    digests = intake.wanted
    wanted = [it.tool for it in tools if it.tool.digest in digests]
    refuse_collisions(snapshot_tools(definition, 0, enumerate(wanted)))
    return intake, wanted


def _listed(definition: ServerDefinition, number: int, raw: Mapping[str, Any]) -> Listed:
    try:
        return Listed(tool_version(raw), raw)
    except FleetError as error:
        raise FleetError(
            error.code,
            f"server {definition.name!r} lists a tool that cannot be read (tools/{number}): "
            + error.message,
            hint="report it to the server's maintainer",
            details={"path": f"tools/{number}"},
        ) from error


def _refuse_twice(definition: ServerDefinition, names: Sequence[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise FleetError(
            Code.PROTOCOL_ERROR,
            f"server {definition.name!r} lists these tools twice: {', '.join(twice[:10])}",
        )


# -- the record, read


async def _baseline(connection: AsyncConnection, version_id: int) -> int | None:
    """Return the version that was served before a version came, if there was one."""
    result = await connection.execute(
        text(
            "SELECT CASE WHEN s.current_version_id = v.id THEN s.previous_version_id"
            " ELSE s.current_version_id END AS id FROM server_versions v"
            " JOIN servers s ON s.name = v.server_name WHERE v.id = :id"
        ),
        {"id": version_id},
    )
    row = result.one()
    return row.id if row.id != version_id else None


async def _standing(
    connection: AsyncConnection, version_id: int, baseline_id: int | None
) -> Standing:
    listed = await connection.execute(
        text("SELECT 1 FROM listings WHERE server_version_id = :id LIMIT 1"), {"id": version_id}
    )
    first = listed.first() is None
    offered = {name: tool for name, (_, tool) in (await _offered(connection, version_id)).items()}
    blocking = await holds.blocking(connection, version_id)
    baseline: dict[str, ToolVersion] = {}
    if first and baseline_id is not None:
        baseline = {
            name: tool for name, (_, tool) in (await _offered(connection, baseline_id)).items()
        }
    for hold in blocking.values():
        if hold.baseline_version_id is not None and hold.tool not in offered:
            tools = await _offered(connection, hold.baseline_version_id)
            if hold.tool in tools:
                baseline[hold.tool] = tools[hold.tool][1]
    return Standing(offered, blocking, baseline, first)


async def _offered(
    connection: AsyncConnection, version_id: int
) -> dict[str, tuple[int, ToolVersion]]:
    """Return the tools that a version's latest listing has, by name."""
    result = await connection.execute(
        text(
            "SELECT id, name, digest, definition FROM tool_versions WHERE id = ANY(COALESCE(("
            " SELECT tool_version_ids FROM listings WHERE server_version_id = :id"
            " ORDER BY id DESC LIMIT 1), '{}'))"
        ),
        {"id": version_id},
    )
    return {row.name: (row.id, ToolVersion(row.name, row.digest, row.definition)) for row in result}


async def _locked(connection: AsyncConnection, server: str, hold_id: int) -> Hold:
    """Return a hold while nobody else changes its server version's listing."""
    hold = await holds.find(connection, server, hold_id)
    await connection.execute(
        text("SELECT FROM server_versions WHERE id = :id FOR UPDATE"),
        {"id": hold.server_version_id},
    )
    return await holds.find(connection, server, hold_id)


async def _refuse_new_collision(
    connection: AsyncConnection, version_id: int, ids: Mapping[str, int]
) -> None:
    result = await connection.execute(
        text(
            "SELECT v.definition AS server, t.name, t.digest, t.definition, t.id"
            " FROM server_versions v, tool_versions t WHERE v.id = :id AND t.id = ANY(:ids)"
        ),
        {"id": version_id, "ids": list(ids.values())},
    )
    rows = result.all()
    if rows:
        server = ServerDefinition.model_validate(rows[0].server)
        tools = [(row.id, ToolVersion(row.name, row.digest, row.definition)) for row in rows]
        refuse_collisions(snapshot_tools(server, version_id, tools))


# -- the record, written


async def _record(
    connection: AsyncConnection,
    version_id: int,
    server: str,
    tools: Sequence[ToolVersion],
    intake: Intake,
    baseline_id: int | None,
) -> None:
    ids = await _put_tools(connection, server, tools, set(intake.offered.values()))
    await holds.end(connection, intake.withdrawn, HoldState.WITHDRAWN, actor=_ACTOR)
    await holds.end(connection, intake.superseded, HoldState.SUPERSEDED, actor=_ACTOR)
    new = [change for change in intake.held if change["tool"] not in intake.offered]
    drifted = [change for change in intake.held if change["tool"] in intake.offered]
    await holds.put(connection, version_id, new, ids, baseline_id)
    await holds.put(connection, version_id, drifted, ids, None)
    offered = {name: ids[digest_] for name, digest_ in intake.offered.items()}
    await _add_listing(connection, version_id, server, offered, intake.changes, _ACTOR)


async def _put_tools(
    connection: AsyncConnection, server: str, tools: Sequence[ToolVersion], known: set[str]
) -> dict[str, int]:
    """Store tool versions that are new; return the ids of these and of ``known`` by digest."""
    rows = await asyncio.to_thread(_rows, server, tools)
    if rows:
        await connection.execute(
            text(
                "INSERT INTO tool_versions (server_name, name, digest, definition)"
                " VALUES (:server, :name, :digest, CAST(:definition AS jsonb))"
                " ON CONFLICT (server_name, digest) DO NOTHING"
            ),
            rows,
        )
    result = await connection.execute(
        text("SELECT id, digest FROM tool_versions WHERE server_name = :s AND digest = ANY(:d)"),
        {"s": server, "d": [*known, *(row["digest"] for row in rows)]},
    )
    return {row.digest: row.id for row in result}


async def _add_listing(
    connection: AsyncConnection,
    version_id: int,
    server: str,
    offered: Mapping[str, int],
    changes: Sequence[Mapping[str, Any]],
    actor: str,
) -> None:
    ids = sorted(offered.values())
    digests = await connection.execute(
        text("SELECT digest FROM tool_versions WHERE id = ANY(:ids)"), {"ids": ids}
    )
    await connection.execute(
        text(
            "INSERT INTO listings (server_version_id, digest, tool_version_ids, changes)"
            " VALUES (:version, :digest, :ids, CAST(:changes AS jsonb))"
        ),
        {
            "version": version_id,
            "digest": digest(sorted(row.digest for row in digests)),
            "ids": ids,
            "changes": to_json(changes),
        },
    )
    await audit.record(connection, actor, "listing.changed", {"server": server, "changes": changes})
    alerts = [it for it in changes if it.get("security") or it.get("reaction") in {"alert", "hold"}]
    if alerts:
        await audit.record(
            connection, actor, "listing.alert", {"server": server, "changes": alerts}
        )


async def _mark_fresh(connection: AsyncConnection, server: str, version_id: int) -> None:
    fresh = " SET stale = false, refresh_error = NULL, refreshed_at = clock_timestamp() WHERE"
    values = {"name": server, "version": version_id}
    await connection.execute(
        text(f"UPDATE servers{fresh} name = :name AND current_version_id = :version"), values
    )
    await connection.execute(
        text(
            f"UPDATE rollouts{fresh} server_name = :name AND canary_version_id = :version"
            " AND state = 'active'"
        ),
        values,
    )


def _rows(server: str, tools: Sequence[ToolVersion]) -> list[dict[str, str]]:
    return [
        {
            "server": server,
            "name": tool.name,
            "digest": tool.digest,
            "definition": to_json(tool.definition),
        }
        for tool in tools
    ]


@dataclass(frozen=True)
class ToolRow:
    """What a worker needs of a tool version: how to call it, and how to take what it answers."""

    name: str
    output_schema: dict[str, Any] | None
    annotations: dict[str, Any] | None
    mirrored: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Which arguments travel as headers too (`registry.tools.mirrored_parameters`)."""


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
    listed = row.definition
    return ToolRow(
        row.name,
        listed.get("outputSchema"),
        listed.get("annotations"),
        mirrored_parameters(listed.get("inputSchema")),
    )
