"""What the record shows at a glance: a run's calls, what is unfinished, which workers live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from registry import calls
from registry.database import Database
from registry.tools import ToolVersion


async def calls_of_run(database: Database, run_id: str, limit: int = 100) -> list[dict[str, Any]]:
    """Return the newest calls of a run, newest first."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "SELECT id FROM calls WHERE run_id = :run ORDER BY created_at DESC, id LIMIT :limit"
            ),
            {"run": run_id, "limit": limit},
        )
        ids = [row.id for row in result]
    rows = await calls.read(database, ids)
    return [rows[id_] for id_ in ids]


async def unfinished_calls(database: Database) -> dict[str, int]:
    """Return how many calls are in each state that is not final."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "SELECT state, count(*) AS calls FROM calls"
                " WHERE state IN ('queued', 'running', 'awaiting_approval') GROUP BY state"
            )
        )
        return {row.state: row.calls for row in result}


async def database_facts(database: Database) -> dict[str, Any]:
    """Return Postgres' time (seconds since 1970), its version and the schema's revision."""
    (row,) = await database.statement(
        "SELECT EXTRACT(EPOCH FROM clock_timestamp())::double precision AS time_s,"
        " current_setting('server_version') AS version,"
        " (SELECT max(version_num) FROM alembic_version) AS revision"
    )
    return row


async def worker_counts(database: Database) -> dict[str, int]:
    """Return how many workers with a lease that holds each served server has."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "SELECT s.name, count(w.id) AS workers FROM servers s"
                " LEFT JOIN workers w ON w.server_name = s.name AND w.stopped_at IS NULL"
                "  AND w.lease_until > clock_timestamp()"
                " WHERE s.removed_at IS NULL GROUP BY s.name"
            )
        )
        return {row.name: row.workers for row in result}


async def living_workers(database: Database) -> list[dict[str, Any]]:
    """Return the workers whose lease holds, by server and age.

    Each has id, server_name, hostname, pid, started_at, drain_requested_at.
    """
    return await database.statement(
        "SELECT id, server_name, hostname, pid, started_at, drain_requested_at FROM workers"
        " WHERE stopped_at IS NULL AND lease_until > clock_timestamp()"
        " ORDER BY server_name, started_at, id"
    )


async def queued_by_server(database: Database) -> dict[str, tuple[int, float]]:
    """Return how many calls of each server are queued, and for how long the oldest has been (s)."""
    rows = await database.statement(
        "SELECT server_name, count(*) AS calls, EXTRACT(EPOCH FROM clock_timestamp() -"
        " min(queued_at))::double precision AS age_s FROM calls WHERE state = 'queued'"
        " GROUP BY server_name"
    )
    return {row["server_name"]: (row["calls"], row["age_s"]) for row in rows}


async def newest_failures(
    database: Database, server: str, *, limit: int = 10
) -> list[dict[str, Any]]:
    """Return the newest calls of a server that failed, expired or ended unknown, newest first.

    Those that an open breaker refused are left out: they are many, and say nothing of the cause.
    Each has id, tool, tenant_id, state, error, created_at, ended_at.
    """
    return await database.statement(
        "SELECT id, tool, tenant_id, state, error, created_at, ended_at FROM calls"
        " WHERE server_name = %(server)s AND state IN ('failed', 'expired', 'outcome_unknown')"
        " AND (error ->> 'code') IS DISTINCT FROM 'breaker_open'"
        " ORDER BY created_at DESC LIMIT %(limit)s",
        server=server,
        limit=limit,
    )


async def workers_gone(database: Database, servers: Sequence[str]) -> dict[str, float]:
    """Return for how many seconds servers without a worker have had none, if they ever had one."""
    if not servers:
        return {}
    rows = await database.statement(
        "SELECT server_name, EXTRACT(EPOCH FROM clock_timestamp() -"
        " max(LEAST(COALESCE(stopped_at, lease_until), clock_timestamp())))"
        "::double precision AS gone_s"
        " FROM workers WHERE server_name = ANY(%(servers)s) GROUP BY server_name",
        servers=list(servers),
    )
    return {row["server_name"]: row["gone_s"] for row in rows}


async def listed_tools(database: Database, version_id: int) -> list[ToolVersion]:
    """Return the tools of a server version as it listed them last, by name."""
    rows = await database.statement(
        "SELECT t.name, t.digest, t.definition FROM tool_versions t WHERE t.id IN ("
        "  SELECT unnest(latest.ids) FROM (SELECT tool_version_ids AS ids FROM listings"
        "   WHERE server_version_id = %(id)s ORDER BY id DESC LIMIT 1) AS latest) ORDER BY t.name",
        id=version_id,
    )
    return [ToolVersion(**row) for row in rows]
