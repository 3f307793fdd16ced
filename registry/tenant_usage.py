"""How much each tenant asks of the fleet: what it has under way, and what it did lately and today.

Counted in the record, as the limits on calls at once are; today is a day of UTC.
"""

from __future__ import annotations

from dataclasses import dataclass

from registry.database import Database


@dataclass(frozen=True)
class Usage:
    """What one tenant does, or did: calls by when they were submitted, runs by their start."""

    queued: int = 0
    running: int = 0
    awaiting_approval: int = 0
    last_second: int = 0
    last_minute: int = 0
    last_hour: int = 0
    calls_today: int = 0
    failed_today: int = 0
    open_runs: int = 0
    runs_today: int = 0

    @property
    def at_once(self) -> int:
        """Return what counts against a limit on calls at once."""
        return self.queued + self.running


async def read_usage(database: Database) -> dict[str, Usage]:
    """Return what each tenant does that does anything, or did today."""
    rows = await database.statement(
        """
        WITH unfinished AS (
            SELECT tenant_id,
                count(*) FILTER (WHERE state = 'queued') AS queued,
                count(*) FILTER (WHERE state = 'running') AS running,
                count(*) FILTER (WHERE state = 'awaiting_approval') AS awaiting_approval
            FROM calls WHERE state IN ('queued', 'running', 'awaiting_approval')
            GROUP BY tenant_id
        ), called AS (
            SELECT tenant_id,
                count(*) FILTER (WHERE created_at > now() - interval '1 second') AS last_second,
                count(*) FILTER (WHERE created_at > now() - interval '1 minute') AS last_minute,
                count(*) FILTER (WHERE created_at > now() - interval '1 hour') AS last_hour,
                count(*) FILTER (WHERE created_at >= date_trunc('day', now(), 'UTC'))
                    AS calls_today,
                count(*) FILTER (WHERE created_at >= date_trunc('day', now(), 'UTC')
                    AND state IN ('failed', 'expired', 'outcome_unknown')) AS failed_today
            FROM calls
            WHERE created_at >= LEAST(date_trunc('day', now(), 'UTC'), now() - interval '1 hour')
            GROUP BY tenant_id
        ), ran AS (
            SELECT tenant_id,
                count(*) FILTER (WHERE state = 'open' AND expires_at > now()) AS open_runs,
                count(*) FILTER (WHERE created_at >= date_trunc('day', now(), 'UTC')) AS runs_today
            FROM (
                SELECT tenant_id, state, created_at, expires_at FROM runs
                WHERE created_at >= date_trunc('day', now(), 'UTC')
                UNION ALL
                SELECT tenant_id, state, created_at, expires_at FROM runs
                WHERE state = 'open' AND expires_at > now()
                    AND created_at < date_trunc('day', now(), 'UTC')
            ) it
            GROUP BY tenant_id
        )
        SELECT * FROM unfinished FULL JOIN called USING (tenant_id) FULL JOIN ran USING (tenant_id)
        """
    )
    return {
        row.pop("tenant_id"): Usage(**{name: value or 0 for name, value in row.items()})
        for row in rows
    }
