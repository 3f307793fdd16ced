"""Leases: which workers live, and what becomes of the calls of those that do not.

A worker process renews one lease for all its calls. When the lease lapses, its running calls are
closed by delivery class: what may run again is queued again (up to ``max_attempts``), what may not
ends `outcome_unknown`, because nobody can say whether its effect happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import RowMapping, text

from registry import audit
from registry.audit import CALL_FACTS
from registry.database import Database, to_json
from registry.errors import Code, FleetError


async def open_worker(
    database: Database, worker: str, server: str, hostname: str, pid: int, lease: timedelta
) -> None:
    """Register a worker process with a lease of ``lease``."""
    async with database.transaction() as connection:
        await connection.execute(
            text(
                "INSERT INTO workers (id, server_name, hostname, pid, lease_until) VALUES"
                " (:id, :server, :hostname, :pid, clock_timestamp() + CAST(:lease AS interval))"
            ),
            {"id": worker, "server": server, "hostname": hostname, "pid": pid, "lease": lease},
        )
        where = {"server": server, "hostname": hostname, "pid": pid}
        await audit.record(connection, worker, "worker.started", where)


async def renew_worker(database: Database, worker: str, lease: timedelta) -> bool:
    """Extend a worker's lease; False when the steward already declared it dead."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "UPDATE workers SET lease_until = clock_timestamp() + CAST(:lease AS interval)"
                " WHERE id = :id AND stopped_at IS NULL AND lease_until > clock_timestamp()"
                " RETURNING id"
            ),
            {"id": worker, "lease": lease},
        )
        return result.first() is not None


async def close_worker(database: Database, worker: str) -> None:
    """Give up a worker's lease; what it still runs is then closed by delivery class."""
    async with database.transaction() as connection:
        closed = await connection.execute(
            text(
                "UPDATE workers SET stopped_at = clock_timestamp() WHERE id = :id"
                " AND stopped_at IS NULL RETURNING server_name"
            ),
            {"id": worker},
        )
        if (row := closed.first()) is not None:
            await audit.record(connection, worker, "worker.stopped", {"server": row.server_name})


async def ask_to_drain(database: Database, worker: str, *, actor: str) -> dict[str, Any]:
    """Ask a worker to take no more calls, and to end once those that run have; return its row.

    Asking again changes nothing. Raises `unknown_worker` for one that is not at work.
    """
    async with database.transaction() as connection:
        found = await connection.execute(
            text(
                "SELECT id, server_name, hostname, pid, started_at, drain_requested_at"
                " FROM workers WHERE id = :id AND stopped_at IS NULL"
                " AND lease_until > clock_timestamp() FOR UPDATE"
            ),
            {"id": worker},
        )
        row = found.mappings().first()
        if row is None:
            raise FleetError(
                Code.UNKNOWN_WORKER,
                f"no worker {worker!r} is at work",
                hint="`toolfleet workers list` shows those that are",
            )
        if row["drain_requested_at"] is not None:
            return dict(row)
        asked = await connection.execute(
            text(
                "UPDATE workers SET drain_requested_at = clock_timestamp() WHERE id = :id"
                " RETURNING drain_requested_at"
            ),
            {"id": worker},
        )
        details = {"worker": worker, "server": row["server_name"]}
        await audit.record(connection, actor, "worker.drain_requested", details)
        return {**row, "drain_requested_at": asked.scalar_one()}


async def drain_asked(database: Database, worker: str) -> bool:
    """Say whether somebody wants a worker to drain."""
    rows = await database.statement(
        "SELECT 1 FROM workers WHERE id = %(id)s AND drain_requested_at IS NOT NULL", id=worker
    )
    return bool(rows)


async def live_workers(database: Database, server: str) -> list[dict[str, Any]]:
    """Return the workers of a server whose lease holds: id, hostname, pid."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "SELECT id, hostname, pid FROM workers WHERE server_name = :server"
                " AND stopped_at IS NULL AND lease_until > clock_timestamp() ORDER BY started_at"
            ),
            {"server": server},
        )
        return [dict(row) for row in result.mappings()]


@dataclass(frozen=True)
class Unsent:
    """What a message about a queued call needs."""

    id: str
    run_id: str
    tenant_id: str
    tool: str
    server_name: str
    traceparent: str | None
    remaining_s: float
    priority: int


_WORKER_LOST = FleetError(
    Code.WORKER_LOST,
    "the worker that ran this call died, and the call used up its attempts",
    hint="look at the worker's log for what kills it before you send the call again",
).as_dict()
_UNKNOWN = FleetError(
    Code.OUTCOME_UNKNOWN,
    "the worker that ran this call died after it may have been dispatched",
    hint="check in the target system whether the effect happened before you send it again",
).as_dict()
_LATE = FleetError(
    Code.DEADLINE_EXCEEDED,
    "the call's deadline passed before a worker could run it",
    hint="give a longer timeout_s, or add workers to the server's queue",
).as_dict()
_UNDECIDED = FleetError(
    Code.DEADLINE_EXCEEDED,
    "nobody approved or denied the call in time",
    hint="`toolfleet approvals list` shows the calls that wait",
).as_dict()
_RUN_CANCELLED = FleetError(Code.STOPPED, "the run of this call was cancelled").as_dict()
_STOPPED = FleetError(Code.STOPPED, "the call was stopped and does not run again").as_dict()

_CLOSE_DEAD = text(
    f"""
    WITH lost AS (
        SELECT c.id, c.deadline_at <= clock_timestamp() AS late,
            c.stop_requested_at IS NOT NULL OR r.state = 'cancelled' AS stopped,
            c.delivery <> 'write' AS again, c.attempts < :max_attempts AS attempts_left
        FROM calls c JOIN runs r ON r.id = c.run_id
        LEFT JOIN workers w ON w.id = c.worker_id
        WHERE c.state = 'running'
            AND (w.id IS NULL OR w.stopped_at IS NOT NULL OR w.lease_until <= clock_timestamp())
        LIMIT 500 FOR UPDATE OF c SKIP LOCKED
    ), closed AS (
        UPDATE calls c SET
            fence = c.fence + 1, open_questions = 0,
            state = CASE WHEN NOT l.again THEN 'outcome_unknown' WHEN l.stopped THEN 'stopped'
                WHEN l.late THEN 'expired' WHEN l.attempts_left THEN 'queued' ELSE 'failed' END,
            error = CASE WHEN NOT l.again THEN CAST(:unknown AS jsonb)
                WHEN l.stopped THEN CAST(:stopped AS jsonb)
                WHEN l.late THEN CAST(:late AS jsonb) WHEN l.attempts_left THEN NULL
                ELSE CAST(:lost AS jsonb) END,
            worker_id = CASE WHEN l.again AND l.attempts_left AND NOT l.stopped AND NOT l.late
                THEN NULL ELSE c.worker_id END,
            queued_at = CASE WHEN l.again THEN clock_timestamp() ELSE c.queued_at END,
            ended_at = CASE WHEN l.again AND l.attempts_left AND NOT l.stopped AND NOT l.late
                THEN NULL ELSE clock_timestamp() END
        FROM lost l WHERE c.id = l.id
        RETURNING c.*,
            EXTRACT(EPOCH FROM c.deadline_at - clock_timestamp())::double precision AS remaining_s
    ), logged AS (
        INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)
        SELECT tenant_id, 'steward', 'call.' || state, run_id, id, jsonb_strip_nulls(
            jsonb_build_object({CALL_FACTS}, 'attempt', attempts, 'reason', 'worker_lost',
                'code', error ->> 'code'))
        FROM closed
    )
    SELECT id, run_id, tenant_id, tool, server_name, traceparent, priority, state, remaining_s
    FROM closed
    """  # noqa: S608 - a constant
)

_EXPIRE = text(
    f"""
    WITH late AS (
        SELECT c.id, r.state = 'cancelled' AS cancelled,
            c.state = 'awaiting_approval' AS undecided,
            r.state = 'cancelled' OR c.stop_requested_at IS NOT NULL AS stopped
        FROM calls c JOIN runs r ON r.id = c.run_id
        WHERE c.state IN ('queued', 'awaiting_approval') AND (c.deadline_at <= clock_timestamp()
            OR r.state = 'cancelled' OR c.stop_requested_at IS NOT NULL)
        LIMIT 500 FOR UPDATE OF c SKIP LOCKED
    ), ended AS (
        UPDATE calls c SET state = CASE WHEN l.stopped THEN 'stopped' ELSE 'expired' END,
            error = CASE WHEN l.cancelled THEN CAST(:cancelled AS jsonb)
                WHEN l.stopped THEN CAST(:stopped AS jsonb)
                WHEN l.undecided THEN CAST(:undecided AS jsonb) ELSE CAST(:late AS jsonb) END,
            ended_at = clock_timestamp()
        FROM late l WHERE c.id = l.id
        RETURNING c.*
    ), logged AS (
        INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)
        SELECT tenant_id, 'steward', 'call.' || state, run_id, id,
            jsonb_build_object({CALL_FACTS}, 'code', error ->> 'code')
        FROM ended
    )
    SELECT id FROM ended
    """  # noqa: S608 - a constant
)

_OVERDUE = text(
    """
    SELECT server_name, count(*) AS queued,
        count(*) FILTER (WHERE sent_at < clock_timestamp() - CAST(:age AS interval)) AS overdue
    FROM calls WHERE state = 'queued' AND not_before IS NULL GROUP BY server_name
    """
)

_TAKE_OVERDUE = text(
    """
    WITH due AS (
        SELECT id FROM calls
        WHERE state = 'queued' AND not_before IS NULL AND server_name = :server
            AND sent_at < clock_timestamp() - CAST(:age AS interval)
            AND deadline_at > clock_timestamp()
        ORDER BY queued_at LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE calls c SET sent_at = clock_timestamp() FROM due WHERE c.id = due.id
    RETURNING c.id, c.run_id, c.tenant_id, c.tool, c.server_name, c.traceparent, c.priority,
        EXTRACT(EPOCH FROM c.deadline_at - clock_timestamp())::double precision AS remaining_s
    """
)


_TAKE_DUE = text(
    """
    WITH due AS (
        SELECT id FROM calls
        WHERE state = 'queued' AND not_before <= clock_timestamp()
            AND deadline_at > clock_timestamp()
        ORDER BY not_before LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE calls c SET not_before = NULL, sent_at = clock_timestamp() FROM due WHERE c.id = due.id
    RETURNING c.id, c.run_id, c.tenant_id, c.tool, c.server_name, c.traceparent, c.priority,
        EXTRACT(EPOCH FROM c.deadline_at - clock_timestamp())::double precision AS remaining_s
    """
)


async def close_dead(database: Database, max_attempts: int) -> tuple[list[str], list[Unsent]]:
    """Close the calls of dead workers; return the ids that ended and the calls to send again."""
    async with database.transaction() as connection:
        result = await connection.execute(
            _CLOSE_DEAD,
            {
                "max_attempts": max_attempts,
                "unknown": to_json(_UNKNOWN),
                "stopped": to_json(_STOPPED),
                "late": to_json(_LATE),
                "lost": to_json(_WORKER_LOST),
            },
        )
        rows = result.mappings().all()
    ended = [row["id"] for row in rows if row["state"] != "queued"]
    return ended, [unsent(row) for row in rows if row["state"] == "queued"]


async def expire(database: Database) -> list[str]:
    """End queued calls that are too late, stopped or of a cancelled run; return their ids.

    A stopped one is queued when its worker gave it back in the moment it was asked to stop.
    """
    async with database.transaction() as connection:
        result = await connection.execute(
            _EXPIRE,
            {
                "late": to_json(_LATE),
                "undecided": to_json(_UNDECIDED),
                "cancelled": to_json(_RUN_CANCELLED),
                "stopped": to_json(_STOPPED),
            },
        )
        return [row.id for row in result]


async def overdue(database: Database, age: timedelta) -> dict[str, int]:
    """Return how many calls each server has queued, where one was sent over ``age`` ago."""
    async with database.transaction() as connection:
        result = await connection.execute(_OVERDUE, {"age": age})
        return {row.server_name: row.queued for row in result if row.overdue}


async def take_overdue(database: Database, server: str, age: timedelta, limit: int) -> list[Unsent]:
    """Return up to ``limit`` of a server's overdue calls, oldest first, counted as sent now."""
    async with database.transaction() as connection:
        result = await connection.execute(
            _TAKE_OVERDUE, {"server": server, "age": age, "limit": limit}
        )
        return [unsent(row) for row in result.mappings()]


async def take_due(database: Database, limit: int) -> list[Unsent]:
    """Return up to ``limit`` calls that had to wait and may be tried again, counted as sent now."""
    async with database.transaction() as connection:
        result = await connection.execute(_TAKE_DUE, {"limit": limit})
        return [unsent(row) for row in result.mappings()]


def unsent(row: RowMapping) -> Unsent:
    """Return what a message needs of a call's row, which has `remaining_s` beside its columns."""
    return Unsent(
        row["id"],
        row["run_id"],
        row["tenant_id"],
        row["tool"],
        row["server_name"],
        row["traceparent"],
        row["remaining_s"],
        row["priority"],
    )
