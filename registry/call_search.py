"""Looking through the calls of the record: the newest, those that fit, the one that is named.

Every statement has an index, or a bound on the rows that it looks at: it costs the same among a
hundred calls and among millions. ``tenant`` bounds all of it to one tenant's calls; None does not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from registry import newest
from registry.calls import CallState
from registry.database import Database
from registry.newest import LOOKED_AT, ORDER, PAGE, PLACE, START, Cursor, Page
from registry.pulse import FAILED
from registry.trace import TRACEPARENT

SHORTEST_PREFIX: Final = 4
MOST_FOUND: Final = 20
MOST_COUNTED: Final = 1_000
"""Calls of a run that are counted by their states."""
_ALL_TIME: Final = datetime(1970, 1, 1, tzinfo=UTC)
_HEX: Final = re.compile(r"[0-9a-f]+(-[0-9a-f]+)*-?")
_TRACE_ID: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
_UNFINISHED: Final = tuple(state.value for state in CallState if not state.final)

_COLUMNS: Final = """
    it.id, it.run_id, it.tenant_id, it.tool, it.server_name, it.state, it.is_error, it.attempts,
    it.created_at, it.queued_at, it.started_at, it.ended_at, it.stop_requested_at,
    it.open_questions, it.timings, it.error ->> 'code' AS code
"""
_FITS: Final = """
    (%(tenant)s::text IS NULL OR it.tenant_id = %(tenant)s)
    AND (%(server)s::text IS NULL OR it.server_name = %(server)s)
    AND (%(tool)s::text IS NULL OR it.tool = %(tool)s)
    AND (%(state)s::text IS NULL OR it.state = %(state)s)
    AND (%(is_error)s::boolean IS NULL OR COALESCE(it.is_error, false) = %(is_error)s)
    AND (NOT %(wrong)s::boolean OR it.state = ANY(%(bad)s) OR it.is_error)
"""
_WALK: Final = newest.walk("calls", _COLUMNS, _FITS)
# Calls that have not ended are few, have an index, and may be older than all that is looked at.
_STAND: Final = "state IN ('queued', 'running', 'awaiting_approval')"
_STANDING: Final = f"SELECT count(*) FROM (SELECT FROM calls WHERE {_STAND} LIMIT {LOOKED_AT}) it"  # noqa: S608 - constants
_THOSE_STANDING: Final = f"""
    WITH it AS MATERIALIZED (SELECT {_COLUMNS} FROM calls it WHERE {_STAND})
    SELECT * FROM it WHERE {_FITS} AND {PLACE} {ORDER} LIMIT {PAGE + 1}
"""  # noqa: S608 - constants
# The run is compared as a part of the place, and not by `=`: only the run's own index has that
# order. Else the planner may choose that of all calls, the newest of which may be of other runs.
_OF_RUN: Final = f"""
    SELECT {_COLUMNS} FROM calls it
    WHERE (run_id, created_at, id) < (%(run)s, %(at)s, %(id)s)
        AND (run_id, created_at, id) >= (%(run)s, %(since)s, '')
    ORDER BY run_id DESC, created_at DESC, id DESC LIMIT {PAGE + 1}
"""  # noqa: S608 - constants
_BY_ID: Final = f"""
    SELECT {_COLUMNS} FROM calls it WHERE it.id BETWEEN %(first)s AND %(last)s
        AND (%(tenant)s::text IS NULL OR it.tenant_id = %(tenant)s)
    ORDER BY it.id LIMIT {MOST_FOUND}
"""  # noqa: S608 - constants
# Each tenant's keys are looked up in the index: there is none of the keys of all.
_BY_KEY: Final = f"""
    SELECT {_COLUMNS} FROM tenants t
    JOIN calls it ON it.tenant_id = t.id AND it.idempotency_key = %(key)s
    WHERE %(tenant)s::text IS NULL OR t.id = %(tenant)s LIMIT {MOST_FOUND}
"""  # noqa: S608 - constants
_BY_TRACE: Final = f"""
    WITH it AS MATERIALIZED (
        SELECT {_COLUMNS} FROM calls it
        WHERE substr(it.traceparent, 4, 32) = %(trace)s LIMIT {LOOKED_AT}
    )
    SELECT * FROM it WHERE %(tenant)s::text IS NULL OR it.tenant_id = %(tenant)s
    {ORDER} LIMIT {MOST_FOUND}
"""  # noqa: S608 - constants
_RUN_COLUMNS: Final = """
    it.id, it.tenant_id, it.actor, it.exposure, it.created_at, it.expires_at, it.ended_at,
    CASE WHEN it.state = 'open' AND it.expires_at <= clock_timestamp() THEN 'expired'
        ELSE it.state END AS state
"""
_RUN_FITS: Final = """
    (%(tenant)s::text IS NULL OR it.tenant_id = %(tenant)s)
    AND (%(state)s::text IS NULL OR %(state)s = CASE WHEN it.state = 'open'
        AND it.expires_at <= clock_timestamp() THEN 'expired' ELSE it.state END)
"""
_RUNS: Final = newest.walk("runs", _RUN_COLUMNS, _RUN_FITS)
_RUNS_BY_ID: Final = f"""
    SELECT {_RUN_COLUMNS} FROM runs it WHERE it.id BETWEEN %(first)s AND %(last)s
        AND (%(tenant)s::text IS NULL OR it.tenant_id = %(tenant)s)
    ORDER BY it.id LIMIT {MOST_FOUND}
"""  # noqa: S608 - constants
_COUNTS: Final = f"""
    SELECT r.id, c.state, count(*) AS calls FROM unnest(%(runs)s::text[]) AS r (id)
    CROSS JOIN LATERAL (SELECT state FROM calls WHERE run_id = r.id LIMIT {MOST_COUNTED}) c
    GROUP BY r.id, c.state ORDER BY r.id, c.state
"""  # noqa: S608 - constants
_RECORDED: Final = """
    SELECT c.queued_at, c.traceparent, c.idempotency_key, c.actor, c.method, c.worker_id,
        v.version AS server_version, clock_timestamp() AS now,
        EXISTS (SELECT FROM audit l
            WHERE l.call_id = c.id AND l.event = 'call.awaiting_approval') AS gated
    FROM calls c JOIN server_versions v ON v.id = c.server_version_id WHERE c.id = %(call)s
"""

_DESCRIPTIONS: Final = """
    SELECT id, definition ->> 'description' AS description FROM tool_versions
    WHERE id = ANY(%(ids)s)
"""


@dataclass(frozen=True)
class Wanted:
    """Which calls are looked for; None is any."""

    tenant: str | None = None
    server: str | None = None
    tool: str | None = None
    state: CallState | None = None
    is_error: bool | None = None
    wrong: bool = False
    """Only what did not do as it was asked: it failed, or its tool says that it did."""
    since: datetime | None = None


@dataclass(frozen=True)
class Found:
    """What a text names."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)


async def newest_calls(database: Database, wanted: Wanted, start: Cursor | None = None) -> Page:
    """Return the calls that are wanted, newest first, from a cursor on."""
    start, since = start or START, wanted.since or _ALL_TIME
    fits = {name: it for name, it in vars(wanted).items() if name != "since"} | {
        "bad": list(FAILED)
    }
    if wanted.state in _UNFINISHED:
        (standing,) = await database.statement(_STANDING)
        if standing["count"] < LOOKED_AT:
            place = {"at": start.at, "id": start.id, "since": since}
            return newest.full(await database.statement(_THOSE_STANDING, **place, **fits))
    return await newest.page(database, _WALK, start, since, **fits)


async def newest_runs(
    database: Database,
    *,
    tenant: str | None = None,
    state: str | None = None,
    start: Cursor | None = None,
) -> Page:
    """Return runs, newest first, each with its ``calls`` by state (of `MOST_COUNTED`)."""
    page = await newest.page(database, _RUNS, start or START, _ALL_TIME, tenant=tenant, state=state)
    counts = await call_counts(database, [row["id"] for row in page.rows])
    for row in page.rows:
        row["calls"] = counts[row["id"]]
    return page


async def call_counts(database: Database, runs: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return how many calls of each run are in each state, of `MOST_COUNTED` of them."""
    counts: dict[str, dict[str, int]] = {run: {} for run in runs}
    for row in await database.statement(_COUNTS, runs=list(runs)):
        counts[row["id"]][row["state"]] = row["calls"]
    return counts


async def calls_of_run(database: Database, run: str, start: Cursor | None = None) -> Page:
    """Return the calls of a run, newest first, from a cursor on."""
    start = start or START
    rows = await database.statement(_OF_RUN, run=run, at=start.at, id=start.id, since=_ALL_TIME)
    return newest.full(rows)


async def find(database: Database, text: str, *, tenant: str | None) -> Found:
    """Return the calls and runs that a text names, at most `MOST_FOUND` of each kind.

    It is an id, or the beginning of one (`SHORTEST_PREFIX`), an idempotency key, a trace id, or a
    whole ``traceparent``.
    """
    named = text.strip()
    found = await database.statement(_BY_KEY, key=named, tenant=tenant)
    runs: list[dict[str, Any]] = []
    if (ids := ids_beginning(named.lower())) is not None:
        between = {"first": ids[0], "last": ids[1], "tenant": tenant}
        found += await database.statement(_BY_ID, **between)
        runs = await database.statement(_RUNS_BY_ID, **between)
        counts = await call_counts(database, [row["id"] for row in runs])
        runs = [{**row, "calls": counts[row["id"]]} for row in runs]
    if (trace := trace_named(named.lower())) is not None:
        found += await database.statement(_BY_TRACE, trace=trace, tenant=tenant)
    return Found(list({row["id"]: row for row in found}.values()), runs)


async def recorded(database: Database, call: str) -> dict[str, Any]:
    """Return what the record has of a call beside what its caller is told.

    ``gated`` says whether it waits or waited for an approval, ``now`` what time it is.
    """
    (row,) = await database.statement(_RECORDED, call=call)
    return row


async def descriptions(database: Database, tool_versions: Sequence[int]) -> dict[int, str]:
    """Return what each of these versions of tools says of itself; empty where it says nothing."""
    rows = await database.statement(_DESCRIPTIONS, ids=list(tool_versions))
    return {row["id"]: row["description"] or "" for row in rows}


def ids_beginning(text: str) -> tuple[str, str] | None:
    """Return the first and the last id that begin so, hyphens or none; None where none does.

    Both are whole ids: such texts are in the same order by every collation of a database.
    """
    digits = text.replace("-", "")
    if not (_HEX.fullmatch(text) and SHORTEST_PREFIX <= len(digits) <= 32):
        return None
    return _laid_out(digits.ljust(32, "0")), _laid_out(digits.ljust(32, "f"))


def trace_named(text: str) -> str | None:
    """Return the trace id that a text is, or that a ``traceparent`` has."""
    if TRACEPARENT.fullmatch(text):
        return text.split("-")[1]
    return text if _TRACE_ID.fullmatch(text) else None


def _laid_out(digits: str) -> str:
    return "-".join(
        digits[begin:end] for begin, end in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
    )
