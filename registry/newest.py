"""Walking through a growing table from its newest row, a page at a time, at a bounded cost.

Invariants:
 1. A page looks at `LOOKED_AT` rows at most. Where those hold too few that fit, it says how far
    back it came (`Page.back_to`), and its cursor goes on from there.
 2. Pages neither repeat nor leave out a row, whatever is added meanwhile.
 3. A cursor names no row that was not shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString

from registry.database import Database
from registry.errors import Code, FleetError

LOOKED_AT: Final = 20_000
PAGE: Final = 50
PLACE: Final = "(created_at, id) < (%(at)s, %(id)s) AND (created_at, id) >= (%(since)s, '')"
"""Pairs are compared as the index has them; by instants alone Postgres may choose an index that
keeps no order, and sort all that there is."""
ORDER: Final = "ORDER BY created_at DESC, id DESC"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_END: Final = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Cursor:
    """A place between two rows: what follows is older than ``at``, or as old and of a lesser id."""

    at: datetime
    id: str = ""

    def __str__(self) -> str:
        return f"{(self.at - _EPOCH) // _MICROSECOND}.{self.id}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Return the cursor that was written so; raise `invalid_request`."""
        micros, dot, id_ = text.partition(".")
        try:
            if not (dot and micros.isascii() and micros.isdecimal() and id_.isprintable()):
                raise ValueError
            return cls(_EPOCH + int(micros) * _MICROSECOND, id_)
        except (ValueError, OverflowError):
            raise FleetError(
                Code.INVALID_REQUEST,
                f"{text[:60]!r} is no place in a list",
                hint="begin with the first page",
            ) from None


START: Final = Cursor(_END)


@dataclass(frozen=True)
class Page:
    """Some rows, newest first; ``next`` is where to go on, None at the end."""

    rows: list[dict[str, Any]]
    next: Cursor | None = None
    back_to: datetime | None = None
    """How far back was looked, where too few rows fitted and there are older ones."""


@dataclass(frozen=True)
class Walk:
    """How one table is walked through: backwards by an index on (created_at, id)."""

    fitting: LiteralString
    """The rows that fit among those that are looked at."""
    farthest: LiteralString
    """How many are looked at, and when the oldest of them began."""


def walk(table: LiteralString, columns: LiteralString, fits: LiteralString) -> Walk:
    """Return the walk through a table whose rows are called ``it`` in ``columns`` and ``fits``."""
    looked = f"SELECT * FROM {table} WHERE {PLACE} {ORDER} LIMIT {LOOKED_AT}"  # noqa: S608 - constants
    return Walk(
        f"SELECT {columns} FROM ({looked}) it WHERE {fits}"  # noqa: S608 - constants
        f" {ORDER} LIMIT {PAGE + 1}",
        "SELECT min(created_at) AS at, count(*) AS looked"  # noqa: S608 - constants
        f" FROM ({looked.replace('SELECT *', 'SELECT created_at')}) it",
    )


async def page(
    database: Database, through: Walk, start: Cursor, since: datetime, **wanted: Any
) -> Page:
    """Return the rows from a cursor on, none older than ``since``, that fit what is ``wanted``."""
    place = {"at": start.at, "id": start.id, "since": since}
    rows = await database.statement(through.fitting, **place, **wanted)
    if len(rows) > PAGE:
        return full(rows)
    (far,) = await database.statement(through.farthest, **place)
    if far["looked"] < LOOKED_AT:
        return Page(rows)
    # What is as old as the last one that was looked at belongs to the next page: of several rows
    # of one instant only some may have been looked at. More than that many are not told apart.
    after = Cursor(far["at"] + _MICROSECOND)
    if after == start:
        after = Cursor(far["at"])
    return Page([row for row in rows if row["created_at"] >= after.at], after, far["at"])


def full(rows: list[dict[str, Any]]) -> Page:
    """Return a page of rows of which one more was read than it shows, if there are so many."""
    if len(rows) <= PAGE:
        return Page(rows)
    last = rows[PAGE - 1]
    return Page(rows[:PAGE], Cursor(last["created_at"], last["id"]))
