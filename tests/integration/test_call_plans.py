"""How Postgres reads 100,000 calls for the console: by an index, and no more rows than is said."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from registry import call_search
from registry.call_search import Wanted, newest_calls
from registry.calls import CallState
from registry.database import Database
from registry.newest import LOOKED_AT, PAGE, Cursor
from tests.bench.call_search import CALLS, Watched, fill
from tests.requirements import requirement

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(240)]


@requirement("console:newest")
async def test_no_look_reads_all_calls(database: Database) -> None:
    await fill(database)
    (some,) = await database.statement(
        "SELECT * FROM calls WHERE idempotency_key = %(key)s", key=f"key-{CALLS // 20 * 10}"
    )
    middle = Cursor(some["created_at"], some["id"])
    hour = datetime.now(UTC) - timedelta(hours=1)
    watched = Watched(database)
    for wanted in (
        Wanted(), Wanted(server="rare"), Wanted(server="none"), Wanted(tenant="t3", tool="no"),
        Wanted(state=CallState.FAILED), Wanted(state=CallState.QUEUED), Wanted(wrong=True),
        Wanted(is_error=True, since=hour),
    ):  # fmt: skip
        for start in (None, middle):
            await newest_calls(watched, wanted, start)  # type: ignore[arg-type] - it notes what is asked
    for named in (some["id"], some["id"][:6], some["idempotency_key"], some["traceparent"]):
        found = await call_search.find(watched, named, tenant=None)  # type: ignore[arg-type] - as above
        assert some["id"] in {row["id"] for row in found.calls}
    for plan in await watched.plans():
        assert not re.search("Seq Scan on calls", plan), plan
        rows = re.search(r"rows=(\d+)", plan)
        assert rows is None or int(rows[1]) <= LOOKED_AT, plan


@requirement("console:newest")
async def test_a_page_of_a_run_reads_no_more_calls_than_it_shows(database: Database) -> None:
    await fill(database)
    some = await database.statement("SELECT run_id FROM calls ORDER BY created_at LIMIT 2")
    small, large = (row["run_id"] for row in some)
    async with database.transaction() as connection:
        await connection.execute(
            text("UPDATE calls SET run_id = :large WHERE run_id <> :small AND id < '8'"),
            {"large": large, "small": small},
        )
        await connection.execute(text("ANALYZE calls"))
    watched = Watched(database)
    for run in (small, large):
        first = await call_search.calls_of_run(watched, run)  # type: ignore[arg-type] - it notes what is asked
        assert first.rows
        assert {row["run_id"] for row in first.rows} == {run}
    assert first.next is not None
    older = await call_search.calls_of_run(watched, large, first.next)  # type: ignore[arg-type] - as above
    assert older.rows[0]["created_at"] <= first.rows[-1]["created_at"]
    for plan in await watched.plans():
        assert "ix_calls_run_newest" in plan, plan
        rows = re.search(r"rows=(\d+)", plan)
        assert rows is not None, plan
        assert int(rows[1]) <= PAGE + 1, plan
