"""How the calls of each server went lately, minute by minute: for sparklines and for plans.

Read from the ledger, so that it is the same for every process and survives all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from registry.database import Database

FAILED: Final = ("failed", "expired", "outcome_unknown")
"""The states of a call whose server, or whose fleet, did not do what it was asked."""


@dataclass(frozen=True)
class Beat:
    """What was submitted to a server within one step of time, and how it went."""

    at: datetime
    """When the step began."""
    submitted: int
    ended: int
    """Of those submitted within it."""
    failed: int
    p50_s: float | None
    """Of the round trips of `tools/call`; None without any."""
    p95_s: float | None
    p95_queue_wait_s: float | None
    p95_borrow_wait_s: float | None


async def pulse(
    database: Database,
    *,
    server: str | None = None,
    window: timedelta = timedelta(minutes=30),
    step: timedelta = timedelta(minutes=1),
) -> dict[str, list[Beat]]:
    """Return the beats of each server that was called within ``window``, the oldest first.

    Every step is there, empty ones too; the last is the one that has not ended yet.
    """
    # By now(), which stands still in a statement: with clock_timestamp() no index would serve.
    rows = await database.statement(
        """
        WITH step AS (
            SELECT date_bin(%(step)s, now(), 'epoch') AS last
        ), called AS (
            SELECT c.server_name, date_bin(%(step)s, c.created_at, 'epoch') AS at,
                count(*) AS submitted,
                count(c.ended_at) AS ended,
                count(*) FILTER (WHERE c.state = ANY(%(failed)s)) AS failed,
                percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (
                    ORDER BY CAST(c.timings ->> 'call_s' AS double precision)) AS call_s,
                percentile_cont(0.95) WITHIN GROUP (
                    ORDER BY CAST(c.timings ->> 'queue_wait_s' AS double precision)) AS queue_s,
                percentile_cont(0.95) WITHIN GROUP (
                    ORDER BY CAST(c.timings ->> 'borrow_wait_s' AS double precision)) AS borrow_s
            FROM calls c
            WHERE c.created_at > date_bin(%(step)s, now(), 'epoch') - CAST(%(window)s AS interval)
                AND (CAST(%(server)s AS text) IS NULL OR c.server_name = %(server)s)
            GROUP BY 1, 2
        )
        SELECT s.server_name, g.at, COALESCE(c.submitted, 0) AS submitted,
            COALESCE(c.ended, 0) AS ended, COALESCE(c.failed, 0) AS failed,
            c.call_s[1] AS p50_s, c.call_s[2] AS p95_s,
            c.queue_s AS p95_queue_wait_s, c.borrow_s AS p95_borrow_wait_s
        FROM (SELECT DISTINCT server_name FROM called) s
        CROSS JOIN (
            SELECT generate_series(last - %(window)s + %(step)s, last, %(step)s) AS at FROM step
        ) g
        LEFT JOIN called c ON c.server_name = s.server_name AND c.at = g.at
        ORDER BY s.server_name, g.at
        """,
        server=server,
        window=window,
        step=step,
        failed=list(FAILED),
    )
    found: dict[str, list[Beat]] = {}
    for row in rows:
        found.setdefault(row.pop("server_name"), []).append(Beat(**row))
    return found
