"""What the record shows at a glance: a run's calls, what is unfinished, which workers live."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from registry import calls
from registry.database import Database


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


async def queue_ages(database: Database) -> dict[str, float]:
    """Return for how many seconds the oldest queued call of each server has waited."""
    rows = await database.statement(
        "SELECT server_name, EXTRACT(EPOCH FROM clock_timestamp() - min(queued_at))"
        "::double precision AS age_s FROM calls WHERE state = 'queued' GROUP BY server_name"
    )
    return {row["server_name"]: row["age_s"] for row in rows}


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
