"""What was asked of each server lately, as the ledger has it: what plans are made from."""

from __future__ import annotations

from datetime import timedelta

from registry.capacity import Demand
from registry.database import Database


async def demands(database: Database, *, window: timedelta) -> dict[str, Demand]:
    """Return what was asked of each server that was called within ``window`` until now.

    Calls count in the minute in which they were submitted; the minutes are counted back from now,
    so that each is whole.
    """
    # By now(), which stands still in a statement: with clock_timestamp() no index would serve.
    rows = await database.statement(
        """
        WITH called AS (
            SELECT server_name, tenant_id,
                date_bin('1 second', created_at, now()) AS second,
                date_bin('1 minute', created_at, now()) AS minute,
                CAST(timings ->> 'call_s' AS double precision) AS call_s,
                CAST(timings ->> 'queue_wait_s' AS double precision)
                    + CAST(timings ->> 'borrow_wait_s' AS double precision) AS wait_s
            FROM calls WHERE created_at >= now() - CAST(%(window)s AS interval)
                AND state <> 'denied'
        ), seconds AS (
            SELECT server_name, minute, count(*) AS calls FROM called
            GROUP BY server_name, minute, second
        ), minutes AS (
            SELECT server_name, minute, sum(calls) AS calls,
                (sum(calls * calls) - sum(calls) * sum(calls) / 60) / 59 AS variance
            FROM seconds GROUP BY server_name, minute
        ), arrived AS (
            SELECT server_name, max(calls) AS peak, sum(variance) / (sum(calls) / 60) AS burstiness
            FROM minutes GROUP BY server_name
        )
        SELECT server_name, count(*) AS calls, CAST(a.peak AS double precision) AS peak_per_minute,
            CAST(a.burstiness AS double precision) AS burstiness,
            count(call_s) AS served, avg(call_s) AS service_s,
            percentile_cont(0.95) WITHIN GROUP (ORDER BY call_s) AS p95_service_s,
            var_pop(call_s) / NULLIF(avg(call_s) ^ 2, 0) AS service_variability,
            percentile_cont(0.95) WITHIN GROUP (ORDER BY wait_s) AS p95_wait_s,
            count(DISTINCT tenant_id) AS tenants
        FROM called JOIN arrived a USING (server_name)
        GROUP BY server_name, a.peak, a.burstiness
        """,
        window=window,
    )
    minutes = window / timedelta(minutes=1)
    return {
        row.pop("server_name"): Demand(mean_per_minute=row["calls"] / minutes, **row)
        for row in rows
    }
