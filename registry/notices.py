"""Notices: who approves is told that a call waits; this is the outbox of what is still to be told.

A notice is written with its call, by a trigger, in the submission's transaction. It is told at
least once while its call waits, and given up after `MOST_ATTEMPTS`; that is audited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from registry.database import Database, to_json

MOST_ATTEMPTS: Final = 20
"""With pauses that double up to an hour: about nine hours."""
LONGEST_PAUSE: Final = timedelta(hours=1)


@dataclass(frozen=True)
class Notice:
    """A call that waits, as it is told of: without its arguments."""

    call_id: str
    run_id: str
    tenant: str
    server: str
    tool: str
    delivery: str
    requested_by: str
    waits_since: datetime
    expires_at: datetime
    attempt: int
    """Which attempt to tell of it this is, from 1."""
    time_s: int
    """The time of this attempt, in seconds since 1970, on Postgres' clock."""


_TAKE: Final = """
    WITH due AS (
        SELECT n.call_id FROM approval_notices n JOIN calls c ON c.id = n.call_id
        WHERE n.delivered_at IS NULL AND n.given_up_at IS NULL AND n.due_at <= clock_timestamp()
            AND c.state = 'awaiting_approval' AND c.deadline_at > clock_timestamp()
        ORDER BY n.due_at LIMIT %(limit)s FOR UPDATE OF n SKIP LOCKED
    ), taken AS (
        UPDATE approval_notices n SET attempts = n.attempts + 1,
            due_at = clock_timestamp() + %(lease)s::interval
        FROM due WHERE n.call_id = due.call_id RETURNING n.call_id, n.attempts AS attempt
    )
    SELECT c.id AS call_id, c.run_id, c.tenant_id AS tenant, c.server_name AS server, c.tool,
        c.delivery, c.actor AS requested_by, c.created_at AS waits_since,
        c.deadline_at AS expires_at, taken.attempt,
        EXTRACT(EPOCH FROM clock_timestamp())::bigint AS time_s
    FROM taken JOIN calls c ON c.id = taken.call_id
"""
_SETTLE: Final = """
    WITH told AS (
        SELECT * FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(
            call_id text, attempt integer, problem text, pause_s double precision)
    ), settled AS (
        UPDATE approval_notices n SET problem = t.problem,
            delivered_at = CASE WHEN t.problem IS NULL THEN clock_timestamp() END,
            given_up_at = CASE WHEN t.problem IS NOT NULL AND t.pause_s IS NULL
                THEN clock_timestamp() END,
            due_at = clock_timestamp() + make_interval(secs => COALESCE(t.pause_s, 0))
        FROM told t WHERE n.call_id = t.call_id AND n.attempts = t.attempt
            AND n.delivered_at IS NULL
        RETURNING n.call_id, n.attempts, n.given_up_at, n.problem
    )
    INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)
    SELECT c.tenant_id, 'steward', 'call.notice_given_up', c.run_id, c.id, jsonb_build_object(
        'tool', c.tool, 'attempts', s.attempts, 'problem', s.problem)
    FROM settled s JOIN calls c ON c.id = s.call_id WHERE s.given_up_at IS NOT NULL
    RETURNING call_id
"""
_COUNT: Final = """
    SELECT count(*) FILTER (WHERE n.delivered_at IS NOT NULL) AS delivered,
        count(*) FILTER (WHERE n.given_up_at IS NOT NULL) AS given_up,
        count(*) FILTER (WHERE n.delivered_at IS NULL AND n.given_up_at IS NULL AND n.attempts = 0)
            AS new,
        count(*) FILTER (WHERE n.delivered_at IS NULL AND n.given_up_at IS NULL AND n.attempts > 0)
            AS failing
    FROM approval_notices n JOIN calls c ON c.id = n.call_id
    WHERE c.state = 'awaiting_approval'
"""


def pause_after(attempt: int) -> timedelta | None:
    """Return how long to wait after a failed attempt (from 1); None after the last one."""
    if attempt >= MOST_ATTEMPTS:
        return None
    return min(timedelta(seconds=2 ** (attempt - 1)), LONGEST_PAUSE)


async def take(database: Database, *, lease: timedelta, limit: int) -> list[Notice]:
    """Return notices to tell now; until ``lease`` has passed nobody else gets them."""
    rows = await database.statement(_TAKE, lease=lease, limit=limit)
    return [Notice(**row) for row in rows]


async def settle(database: Database, told: Sequence[tuple[Notice, str | None]]) -> list[str]:
    """Record how telling went, each with its problem or None; return the calls that were given up.

    What failed is due again after a pause that grows.
    """
    rows = []
    for notice, problem in told:
        pause = pause_after(notice.attempt)
        rows.append(
            {
                "call_id": notice.call_id,
                "attempt": notice.attempt,
                "problem": problem,
                "pause_s": None if pause is None else pause.total_seconds(),
            }
        )
    return [row["call_id"] for row in await database.statement(_SETTLE, rows=to_json(rows))]


async def counts(database: Database) -> Mapping[str, Any]:
    """Return how many notices of calls that wait are new, failing, delivered and given up."""
    (row,) = await database.statement(_COUNT)
    return row


async def sweep(database: Database) -> None:
    """Remove the notices of calls that wait no more."""
    await database.statement(
        "DELETE FROM approval_notices n USING calls c"
        " WHERE c.id = n.call_id AND c.state <> 'awaiting_approval' RETURNING n.call_id"
    )
