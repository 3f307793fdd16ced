"""The audit read page by page: every entry that fits, once, at a price with a bound."""

from __future__ import annotations

from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

import pytest

from registry import audit_search
from registry.audit_search import STRETCHES, Sought
from registry.database import Database
from tests.requirements import requirement

pytestmark = pytest.mark.anyio


async def written(database: Database, count: int) -> list[dict[str, Any]]:
    """Write entries a minute apart, with gaps in their ids; return them, newest first."""
    await database.statement(
        "INSERT INTO audit (id, at, tenant_id, actor, event, run_id, call_id)"
        " OVERRIDING SYSTEM VALUE SELECT n * 3, now() - make_interval(mins => %(count)s - n),"
        " CASE n %% 7 WHEN 0 THEN 'rare' ELSE 'acme' END, 'actor' || n %% 2,"
        " CASE n %% 5 WHEN 0 THEN 'call.failed' ELSE 'run.started' END,"
        " CASE n %% 2 WHEN 0 THEN 'r' END, CASE n %% 3 WHEN 0 THEN 'c' || n %% 4 END"
        " FROM generate_series(1, %(count)s) AS n RETURNING id",
        count=count,
    )
    return await database.statement("SELECT * FROM audit ORDER BY id DESC")


async def pages(
    database: Database, sought: Sought, **how: Any
) -> tuple[list[int], list[audit_search.Page]]:
    """Turn every page; return the ids in the order in which they came, and the pages."""
    found, before = [], None
    while True:
        found.append(await audit_search.page(database, sought, before=before, **how))
        before = found[-1].before
        if before is None:
            return [it["id"] for page in found for it in page.entries], found


FILTERS = (
    {},
    {"tenant": "rare"},
    {"actor": "actor1", "event": "call.*"},
    {"event": "call.failed", "run": "r"},
    {"call": "c3"},
    {"tenant": "nobody"},
)
_COLUMNS = {"tenant": "tenant_id", "run": "run_id", "call": "call_id"}


def fits(entry: dict[str, Any], filters: dict[str, str]) -> bool:
    values = ((entry[_COLUMNS.get(name, name)] or "", wanted) for name, wanted in filters.items())
    return all(fnmatchcase(value, wanted) for value, wanted in values)


@requirement("console:audit")
async def test_every_entry_that_fits_comes_once_newest_first(database: Database) -> None:
    entries = await written(database, 60)
    for filters, stretch in product(FILTERS, (1, 7, 50_000)):
        found, _ = await pages(database, Sought(**filters), limit=5, stretch=stretch)
        assert found == [it["id"] for it in entries if fits(it, filters)], (filters, stretch)


@requirement("console:audit")
async def test_entries_are_found_by_time(database: Database) -> None:
    entries = await written(database, 60)
    since, until = entries[40]["at"], entries[20]["at"]
    found, _ = await pages(database, Sought(since=since, until=until), limit=5, stretch=7)
    assert found == [it["id"] for it in entries[20:41]]
    later: datetime = entries[0]["at"] + timedelta(days=1)
    assert await pages(database, Sought(since=later)) == ([], [audit_search.Page([], None)])


@requirement("console:audit-bounded")
async def test_a_page_that_finds_too_little_says_how_far_it_looked_back(
    database: Database,
) -> None:
    entries = await written(database, 60)
    page = await audit_search.page(database, Sought(tenant="nobody"), stretch=10)
    assert page.entries == []
    assert page.before == entries[0]["id"] + 1 - STRETCHES * 10
    assert page.looked_back_to == min(it["at"] for it in entries if it["id"] >= page.before)
