"""Looking through 100,000 calls: what each look takes and by which plan, what its indexes cost.

``make calls-bench`` prints it; ``CALLS=1000000`` fills in more. Everything real: a durable
Postgres, the statements of `registry.call_search`.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text

from compose.embedded import EmbeddedPostgres
from compose.migrate import upgrade_database
from registry import call_search
from registry.call_search import Wanted, newest_calls
from registry.calls import CallState
from registry.database import Database
from registry.newest import PAGE, Cursor, Page

CALLS = int(os.environ.get("CALLS", "100000"))
RUNS = CALLS // 50
TENANTS, SERVERS = 20, 12
ROUNDS = 30
BATCHES, BATCH = 12, 2_000

FILL_RUNS = f"""
    INSERT INTO runs (id, tenant_id, snapshot_digest, actor, created_at, expires_at)
    SELECT overlay(lpad(to_hex(n), 32, '0')::uuid::text placing 'face' from 1),
        't' || 1 + n % {TENANTS}, 'none', 'bench', now() - n * 50 * interval '0.4 s',
        now() + interval '1 day'
    FROM generate_series(1, {RUNS}) n
"""
# A call each 0.4 s; one in a thousand has not ended, one in five hundred is of a rare server.
FILL_CALLS = f"""
    INSERT INTO calls (id, run_id, tenant_id, actor, tool, server_name, server_version_id,
        tool_version_id, delivery, call_timeout_s, arguments, arguments_digest, idempotency_key,
        traceparent, state, attempts, deadline_at, created_at, queued_at, started_at, ended_at,
        is_error, result, timings)
    SELECT md5('call' || n)::uuid::text,
        overlay(lpad(to_hex(1 + n % {RUNS}), 32, '0')::uuid::text placing 'face' from 1),
        't' || 1 + n % {TENANTS}, 'bench', server || '_tool' || n % 7, server, 1, 1,
        'read', 60,
        '{{"query": "what a call usually asks for", "limit": 10}}', md5(n::text),
        CASE WHEN n % 10 = 0 THEN 'key-' || n END,
        '00-' || md5('trace' || n) || '-' || left(md5('span' || n), 16) || '-01',
        CASE WHEN n % 1000 = 7 THEN 'queued' WHEN n % 40 = 3 THEN 'failed' ELSE 'succeeded' END,
        1, at + interval '1 min', at, at, at + interval '2 ms',
        CASE WHEN n % 1000 <> 7 THEN at + interval '90 ms' END, n % 100 = 1,
        json_build_object('content', repeat('what it usually gives ', 12)),
        '{{"call_s": 0.0234, "queue_wait_s": 0.0021, "borrow_wait_s": 0.00012, "spawned": false}}'
    FROM (
        SELECT n, now() - n * interval '0.4 s' AS at,
            CASE WHEN n % 500 = 0 THEN 'rare' ELSE 'server-' || n % {SERVERS} END AS server
        FROM generate_series(CAST(:first AS int), CAST(:last AS int)) n
    ) made
"""


async def fill(database: Database) -> None:
    """Make the tenants, the runs and their calls."""
    async with database.transaction() as connection:
        await connection.execute(
            text("INSERT INTO snapshots (digest, tools) VALUES ('none', '[]')")
        )
        await connection.execute(
            text(f"INSERT INTO tenants (id) SELECT 't' || n FROM generate_series(1, {TENANTS}) n")
        )
        await connection.execute(text(FILL_RUNS))
    for first in range(1, CALLS + 1, 10_000):
        async with database.transaction() as connection:
            part = {"first": first, "last": min(first + 9_999, CALLS)}
            await connection.execute(text(FILL_CALLS), part)
    async with database.transaction() as connection:
        await connection.execute(text("ANALYZE"))


class Watched:
    """The registry's door that notes each statement with its values, so as to ask for its plan."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def statement(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        self.asked.append((sql, values))
        return await self._database.statement(sql, **values)

    async def plans(self) -> list[str]:
        """Return how each statement was run: what it read the tables by, and rows looked at."""
        found = []
        for sql, values in self.asked:
            rows = await self._database.statement(f"EXPLAIN (ANALYZE, BUFFERS) {sql}", **values)
            lines = [row["QUERY PLAN"] for row in rows]
            scans = [
                re.sub(r"\(cost=.*?\) \(actual time=\S+ ", "(", line).strip(" ->")
                for line in lines
                if re.search(r"Scan.* on (calls|runs)|Scan using", line)
            ]
            found += scans
        return found


async def look(name: str, database: Database, what: Callable[[Any], Awaitable[Any]]) -> None:
    """Print what a look takes, and how Postgres read the tables for it."""
    took = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        await what(database)
        took.append((time.perf_counter() - begun) * 1000)
    watched = Watched(database)
    await what(watched)
    print(f"{name:<46} p50 {statistics.median(took):7.2f} ms   most {max(took):7.2f} ms")
    for plan in await watched.plans():
        print(f"    {plan}")


async def deep(database: Database, pages: int) -> Cursor:
    """Return the place after some pages."""
    found = Page([])
    for _ in range(pages):
        found = await newest_calls(database, Wanted(), found.next)
        assert len(found.rows) == PAGE
    assert found.next is not None
    return found.next


async def looks(database: Database) -> None:
    (some,) = await database.statement(
        "SELECT * FROM calls WHERE idempotency_key = %(key)s", key=f"key-{CALLS // 20 * 10}"
    )
    hour = datetime.now(UTC) - timedelta(hours=1)

    async def list_(name: str, start: Cursor | None = None, **wanted: Any) -> None:
        await look(name, database, lambda it: newest_calls(it, Wanted(**wanted), start))

    async def find(name: str, what: str) -> None:
        await look(name, database, lambda it: call_search.find(it, what, tenant=None))

    await list_("the newest")
    await list_("after 20 pages", await deep(database, 20))
    await list_("half way through", Cursor(some["created_at"], some["id"]))
    await list_("one server's", server="server-3")
    await list_("a rare server's", server="rare")
    await list_("nobody's server: all that is looked at", server="none")
    await list_("one tenant's failures", tenant="t4", state=CallState.FAILED)
    await list_("queued", state=CallState.QUEUED)
    await list_("errors of the last hour", is_error=True, since=hour)
    await find("by id", some["id"])
    await find("by an id's first 6", some["id"][:6])
    await find("by idempotency key", some["idempotency_key"])
    await find("by trace id", some["traceparent"][3:35])
    await look("the newest runs", database, call_search.newest_runs)
    await look("a run's calls", database, lambda it: call_search.calls_of_run(it, some["run_id"]))


NEWEST = "CREATE INDEX {name}_newest ON {name} (created_at, id)"
TRACE = (
    "CREATE INDEX {name}_trace ON {name} (substr(traceparent, 4, 32)) WHERE traceparent IS NOT NULL"
)
INDEXES = {"neither": (), "ix_calls_newest": (NEWEST,), "and ix_calls_trace": (NEWEST, TRACE)}


async def cost_of_indexes(database: Database) -> None:
    """Write the same calls into copies of the table that differ in their indexes, by turns."""
    took: dict[str, list[float]] = {name: [] for name in INDEXES}
    for number, indexes in enumerate(INDEXES.values()):
        await copy(database, f"copy_{number}", indexes)
    for batch in range(BATCHES):
        for number, name in enumerate(INDEXES):
            took[name].append(await lives(database, f"copy_{number}", f"{batch}-"))
    print(f"inserting, claiming and finishing a call, {BATCH} to a statement:")
    for name, each in took.items():
        print(f"    {name:<24} {statistics.median(each) / BATCH * 1e6:6.1f} us of Postgres' time")


async def copy(database: Database, name: str, indexes: Sequence[str]) -> None:
    """Make a table like that of the calls, with 20,000 of them, and these indexes of the two."""
    async with database.transaction() as connection:
        await connection.execute(text(f"CREATE TABLE {name} (LIKE calls INCLUDING ALL)"))
        found = await connection.execute(
            text(
                "SELECT indexname FROM pg_indexes WHERE tablename = :table"
                " AND (indexdef LIKE '%(created_at, id)%' OR indexdef LIKE '%substr%')"
            ),
            {"table": name},
        )
        for row in found:
            await connection.execute(text(f"DROP INDEX {row.indexname}"))
        for index in indexes:
            await connection.execute(text(index.format(name=name)))
        await connection.execute(
            text(f"INSERT INTO {name} SELECT * FROM calls ORDER BY created_at LIMIT 20000")
        )


async def lives(database: Database, table: str, batch: str) -> float:
    """Insert a batch of calls, claim and finish them; return the seconds that it took."""
    insert = FILL_CALLS.replace("INTO calls", f"INTO {table}")
    for named in ("'call'", "'trace'", "'key-'"):
        insert = insert.replace(f"{named} ||", f"'{batch}' ||")
    begun = time.perf_counter()
    async with database.transaction() as connection:
        await connection.execute(text(insert), {"first": 1, "last": BATCH})
    for state in ("running", "succeeded"):
        async with database.transaction() as connection:
            await connection.execute(
                text(
                    f"UPDATE {table} SET state = :state, fence = fence + 1"
                    " WHERE id IN (SELECT md5(:batch || n)::uuid::text"
                    " FROM generate_series(1, CAST(:last AS int)) n)"
                ),
                {"state": state, "batch": batch, "last": BATCH},
            )
    return time.perf_counter() - begun


@asynccontextmanager
async def opened() -> AsyncIterator[Database]:
    with tempfile.TemporaryDirectory(prefix="toolfleet-bench-") as folder:
        postgres = EmbeddedPostgres(Path(folder), durable=True)
        url = await postgres.start()
        try:
            await asyncio.to_thread(upgrade_database, url)
            database = Database(url)
            try:
                yield database
            finally:
                await database.close()
        finally:
            await postgres.stop()


async def main() -> None:
    async with opened() as database:
        begun = time.perf_counter()
        await fill(database)
        print(f"{CALLS} calls in {RUNS} runs: {time.perf_counter() - begun:.1f} s")
        await looks(database)
        await cost_of_indexes(database)


if __name__ == "__main__":
    asyncio.run(main())
