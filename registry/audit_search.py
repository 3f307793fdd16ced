"""The audit as people read it: newest first, page by page, at a price that does not grow with it.

Entries are looked at in the order of their ids. A filter that little fits would make one statement
read the whole audit; so a page looks at a stretch of ids at a time, at most `STRETCHES` of them,
and says where it stopped: the next page goes on from there. Instants are found by halving, for ids
and instants rise together, but for the time that a transaction takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from registry.database import Database

STRETCH: Final = 25_000
"""How many ids one statement looks at: some 10 ms where nothing fits."""
STRETCHES: Final = 4
LIMIT: Final = 50
_LOOSE: Final = timedelta(minutes=10)
"""How far entries may stand from the order of their instants: as long as a transaction may take."""

_FITTING: Final = """
    SELECT id, at, tenant_id, actor, event, run_id, call_id, details FROM audit
    WHERE (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s)
        AND (%(actor)s::text IS NULL OR actor = %(actor)s)
        AND (%(run)s::text IS NULL OR run_id = %(run)s)
        AND (%(call)s::text IS NULL OR call_id = %(call)s)
        AND (%(event)s::text IS NULL OR event = %(event)s OR (right(%(event)s, 2) = '.*'
            AND starts_with(event, left(%(event)s, -1))))
        AND (%(since)s::timestamptz IS NULL OR at >= %(since)s)
        AND (%(until)s::timestamptz IS NULL OR at <= %(until)s)
"""


@dataclass(frozen=True)
class Sought:
    """Which entries: all that are named have to fit; ``event`` may be a family such as `call.*`."""

    tenant: str | None = None
    actor: str | None = None
    event: str | None = None
    run: str | None = None
    call: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class Page:
    """Entries, newest first, and where the next page goes on; None where there is nothing more."""

    entries: list[dict[str, Any]]
    before: int | None
    looked_back_to: datetime | None = None
    """Set where the page ends for it has looked far enough, and not for it is full."""


async def page(
    database: Database,
    sought: Sought,
    *,
    before: int | None = None,
    limit: int = LIMIT,
    stretch: int = STRETCH,
) -> Page:
    """Return the entries that fit, from before the id ``before`` on."""
    if sought.call is not None:  # has an index of its own
        return await _indexed(database, sought, before, limit)
    ends = await database.statement("SELECT min(id) AS first, max(id) AS last FROM audit")
    first, last = ends[0]["first"], ends[0]["last"]
    if first is None:
        return Page([], None)
    upper = last + 1 if before is None else min(before, last + 1)
    if sought.until is not None:
        upper = min(upper, await _first_id_at(database, first, last + 1, sought.until + _LOOSE))
    lower = await _begin(database, sought, first, last)
    found: list[dict[str, Any]] = []
    for _ in range(STRETCHES):
        if upper <= lower:
            return Page(found, None)
        begin = max(upper - stretch, lower)
        found += await _within(database, sought, begin, upper, limit - len(found))
        if len(found) == limit:
            return Page(found, found[-1]["id"])
        upper = begin
    if upper <= lower:
        return Page(found, None)
    return Page(found, upper, await _instant_of(database, upper))


async def _begin(database: Database, sought: Sought, first: int, last: int) -> int:
    """Return the lowest id that can fit: of an instant, or of a run's beginning."""
    since = sought.since
    if sought.run is not None:
        rows = await database.statement(
            "SELECT created_at FROM runs WHERE id = %(run)s", run=sought.run
        )
        if rows:
            since = max(since or rows[0]["created_at"], rows[0]["created_at"])
    if since is None:
        return first
    return await _first_id_at(database, first, last + 1, since - _LOOSE)


async def _first_id_at(database: Database, low: int, high: int, at: datetime) -> int:
    """Return about the first id whose entry is not older than an instant; ``high`` for none."""
    while low < high:
        middle = (low + high) // 2
        found = await _instant_of(database, middle)
        if found is not None and found < at:
            low = middle + 1
        else:
            high = middle
    return low


async def _instant_of(database: Database, id_: int) -> datetime | None:
    """Return the instant of the first entry from an id on."""
    rows = await database.statement(
        "SELECT at FROM audit WHERE id >= %(id)s ORDER BY id LIMIT 1", id=id_
    )
    return rows[0]["at"] if rows else None


async def _within(
    database: Database, sought: Sought, begin: int, end: int, limit: int
) -> list[dict[str, Any]]:
    return await database.statement(
        f"{_FITTING} AND id >= %(begin)s AND id < %(end)s ORDER BY id DESC LIMIT %(limit)s",
        begin=begin,
        end=end,
        limit=limit,
        **vars(sought),
    )


async def _indexed(database: Database, sought: Sought, before: int | None, limit: int) -> Page:
    rows = await database.statement(
        f"{_FITTING} AND call_id = %(call)s AND (%(before)s::bigint IS NULL OR id < %(before)s)"
        " ORDER BY id DESC LIMIT %(limit)s",
        before=before,
        limit=limit,
        **vars(sought),
    )
    return Page(rows, rows[-1]["id"] if len(rows) == limit else None)
