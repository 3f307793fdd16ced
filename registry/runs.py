"""Runs: an agent's work, pinned to an immutable snapshot of tools from its start to its end.

Invariants:
 1. A run sees one snapshot; what the registry learns later changes nothing for it.
 2. A snapshot is named by its content's digest; equal tools are one row.
 3. A cancelled run takes no more calls and none of its queued calls is ever claimed.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, Final

import jwt
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.calls import run_not_open
from registry.database import Database, to_json
from registry.definitions import ServerDefinition
from registry.errors import Code, FleetError
from registry.policy import may_use
from registry.tenants import ensure_tenant
from registry.tools import (
    SnapshotTool,
    ToolVersion,
    refuse_collisions,
    snapshot_digest,
    snapshot_tools,
)

_AUDIENCE: Final = "toolfleet.run"


@dataclass(frozen=True)
class Run:
    """A run and the tools it sees, by model-facing name."""

    id: str
    tenant: str
    actor: str
    state: str
    snapshot: str
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    expired: bool
    tools: dict[str, SnapshotTool]

    def find(self, tool: str) -> SnapshotTool:
        """Return a tool of the run's snapshot; raise `unknown_tool` naming the nearest ones."""
        found = self.tools.get(tool)
        if found is None:
            near = get_close_matches(tool, self.tools, n=3)
            raise FleetError(
                Code.UNKNOWN_TOOL,
                f"run {self.id} has no tool named {tool!r}",
                hint=f"did you mean {', '.join(near)}?" if near else "GET the run to see its tools",
            )
        return found


async def start_run(
    database: Database,
    *,
    tenant: str,
    actor: str,
    lifetime: timedelta,
    servers: Sequence[str] | None = None,
) -> Run:
    """Start a run for a tenant, pinned to the tools it may use now (of ``servers`` only, if given).

    Raises `unknown_server` for a name that is not registered, `policy_denied` for one the tenant
    may not use, `name_collision` if two tools would have one name.
    """
    await ensure_tenant(database, tenant)
    async with database.transaction() as connection:
        entries = await _visible_tools(connection, tenant, servers)
        refuse_collisions(entries)
        snapshot = snapshot_digest(entries)
        await connection.execute(
            text(
                "INSERT INTO snapshots (digest, tools) VALUES (:digest, CAST(:tools AS jsonb))"
                " ON CONFLICT DO NOTHING"
            ),
            {"digest": snapshot, "tools": to_json([entry.as_dict() for entry in entries])},
        )
        run_id = str(uuid.uuid4())
        result = await connection.execute(
            text(
                "INSERT INTO runs (id, tenant_id, snapshot_digest, actor, expires_at)"
                " VALUES (:id, :tenant, :snapshot, :actor,"
                " clock_timestamp() + CAST(:lifetime AS interval))"
                " RETURNING created_at, expires_at"
            ),
            {
                "id": run_id,
                "tenant": tenant,
                "snapshot": snapshot,
                "actor": actor,
                "lifetime": lifetime,
            },
        )
        row = result.one()
        await _log(connection, tenant, actor, "run.started", run_id, {"snapshot": snapshot})
    return Run(
        run_id,
        tenant,
        actor,
        "open",
        snapshot,
        row.created_at,
        row.expires_at,
        None,
        False,
        {entry.name: entry for entry in entries},
    )


async def get_run(database: Database, run_id: str, *, tenant: str | None = None) -> Run:
    """Return a run; raise `unknown_run`, also when it is another tenant's."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "SELECT r.*, r.expires_at <= now() AS expired, s.tools"
                " FROM runs r JOIN snapshots s ON s.digest = r.snapshot_digest"
                " WHERE r.id = :id AND (CAST(:tenant AS text) IS NULL OR r.tenant_id = :tenant)"
            ),
            {"id": run_id, "tenant": tenant},
        )
        row = result.mappings().first()
    if row is None:
        raise FleetError(Code.UNKNOWN_RUN, f"there is no run {run_id}", hint="start a run first")
    entries = [SnapshotTool.from_dict(entry) for entry in row["tools"]]
    return Run(
        row["id"],
        row["tenant_id"],
        row["actor"],
        row["state"],
        row["snapshot_digest"],
        row["created_at"],
        row["expires_at"],
        row["ended_at"],
        row["expired"],
        {entry.name: entry for entry in entries},
    )


async def end_run(
    database: Database, run_id: str, *, cancel: bool, actor: str, tenant: str | None = None
) -> tuple[bool, list[str]]:
    """Close or cancel a run; return whether this ended it and the ids of its unfinished calls.

    Ending a run that has ended changes nothing, except that a closed one can still be cancelled.
    """
    state = "cancelled" if cancel else "closed"
    async with database.transaction() as connection:
        found = await connection.execute(
            text(
                "SELECT state, tenant_id FROM runs WHERE id = :id"
                " AND (CAST(:tenant AS text) IS NULL OR tenant_id = :tenant) FOR UPDATE"
            ),
            {"id": run_id, "tenant": tenant},
        )
        run = found.first()
        if run is None:
            raise FleetError(Code.UNKNOWN_RUN, f"there is no run {run_id}")
        changed = run.state == "open" or (cancel and run.state == "closed")
        if changed:
            await connection.execute(
                text("UPDATE runs SET state = :state, ended_at = clock_timestamp() WHERE id = :id"),
                {"state": state, "id": run_id},
            )
            await _log(connection, run.tenant_id, actor, f"run.{state}", run_id, {})
        unfinished = await connection.execute(
            text(
                "SELECT id FROM calls WHERE run_id = :id"
                " AND state IN ('queued', 'running', 'awaiting_approval')"
            ),
            {"id": run_id},
        )
        return changed, [row.id for row in unfinished]


def run_is_open(run: Run) -> None:
    """Raise `run_closed`, `run_cancelled` or `run_expired` unless a run takes calls."""
    if run.state != "open" or run.expired:
        raise run_not_open(run.id, {"state": run.state})


def sign_run_token(run: Run, key: str) -> str:
    """Return a signed token that stands for a run until it expires (run, tenant, snapshot).

    ``key`` is `Settings.secret_key`, at least 32 characters.
    """
    return jwt.encode(
        {
            "sub": run.id,
            "tenant": run.tenant,
            "snapshot": run.snapshot,
            "aud": _AUDIENCE,
            "exp": run.expires_at,
        },
        key,
        algorithm="HS256",
    )


def read_run_token(token: str, key: str) -> tuple[str, str]:
    """Return (run id, tenant) of a run token; raise `unauthenticated` or `run_expired`."""
    if not key:
        raise FleetError(
            Code.INTERNAL,
            "run tokens cannot be checked: TOOLFLEET_SECRET_KEY is empty",
            hint="give every process of the fleet the same key",
        )
    try:
        claims = jwt.decode(token, key, algorithms=["HS256"], audience=_AUDIENCE)
    except jwt.ExpiredSignatureError as error:
        raise FleetError(
            Code.RUN_EXPIRED, "the run token has expired", hint="start a new run"
        ) from error
    except jwt.InvalidTokenError as error:
        raise FleetError(
            Code.UNAUTHENTICATED,
            "the run token is not valid",
            hint="use the token that POST /v1/runs returned",
        ) from error
    return claims["sub"], claims["tenant"]


async def _visible_tools(
    connection: AsyncConnection, tenant: str, wanted: Sequence[str] | None
) -> list[SnapshotTool]:
    result = await connection.execute(
        text(
            "SELECT v.id, v.definition, (SELECT l.tool_version_ids FROM listings l"
            "  WHERE l.server_version_id = v.id ORDER BY l.id DESC LIMIT 1) AS tool_version_ids"
            " FROM servers s JOIN server_versions v ON v.id = s.current_version_id"
            " WHERE s.removed_at IS NULL ORDER BY s.name"
        )
    )
    versions = [
        (row.id, ServerDefinition.model_validate(row.definition), row.tool_version_ids or [])
        for row in result
    ]
    if wanted is not None:
        _refuse_servers(tenant, wanted, [definition for _, definition, _ in versions])
    chosen = [
        version
        for version in versions
        if may_use(tenant, version[1]) and (wanted is None or version[1].name in wanted)
    ]
    ids = [tool for _, _, tools in chosen for tool in tools]
    rows = await connection.execute(
        text("SELECT id, name, digest, definition FROM tool_versions WHERE id = ANY(:ids)"),
        {"ids": ids},
    )
    tools: dict[int, ToolVersion] = {
        row.id: ToolVersion(row.name, row.digest, row.definition) for row in rows
    }
    entries: list[SnapshotTool] = []
    for version_id, definition, tool_ids in chosen:
        entries += snapshot_tools(definition, version_id, [(id_, tools[id_]) for id_ in tool_ids])
    return sorted(entries, key=lambda entry: entry.name)


def _refuse_servers(
    tenant: str, wanted: Sequence[str], definitions: Sequence[ServerDefinition]
) -> None:
    by_name = {definition.name: definition for definition in definitions}
    for name in wanted:
        if name not in by_name:
            raise FleetError(Code.UNKNOWN_SERVER, f"there is no server named {name!r}")
        if not may_use(tenant, by_name[name]):
            raise FleetError(Code.POLICY_DENIED, f"tenant {tenant!r} may not use server {name!r}")


async def _log(
    connection: AsyncConnection,
    tenant: str,
    actor: str,
    event: str,
    run_id: str,
    details: dict[str, Any],
) -> None:
    await connection.execute(
        text(
            "INSERT INTO audit (tenant_id, actor, event, run_id, details)"
            " VALUES (:tenant, :actor, :event, :run, CAST(:details AS jsonb))"
        ),
        {
            "tenant": tenant,
            "actor": actor,
            "event": event,
            "run": run_id,
            "details": to_json(details),
        },
    )
