"""How Postgres reads 100,000 calls for the console: by an index, and no more rows than is said."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from registry import call_search
from registry.call_search import Wanted, newest_calls
from registry.calls import CallState
from registry.database import Database
from registry.newest import LOOKED_AT, Cursor
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
    for text in (some["id"], some["id"][:6], some["idempotency_key"], some["traceparent"]):
        found = await call_search.find(watched, text, tenant=None)  # type: ignore[arg-type] - as above
        assert some["id"] in {row["id"] for row in found.calls}
    for plan in await watched.plans():
        assert not re.search("Seq Scan on calls", plan), plan
        rows = re.search(r"rows=(\d+)", plan)
        assert rows is None or int(rows[1]) <= LOOKED_AT, plan
