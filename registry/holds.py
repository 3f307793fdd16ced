"""Changes of tools that wait for an operator: held, and then accepted or rejected.

Invariants:
 1. A tool of a server version has at most one blocking hold (open or rejected), and while it has,
    no run is newly offered that tool of that version and no call of it is dispatched.
 2. A hold changes its state only along `TRANSITIONS`, each time with an audit entry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import audit
from registry.database import Database, to_json
from registry.errors import Code, FleetError

UNUSABLE: Final = "unusable"
SUSPICIOUS: Final = "suspicious"
"""Kinds of holds beside those of `registry.diff.ChangeKind`: what `registry.screening` found."""


class HoldState(StrEnum):
    """Where a held change is; the first two block the tool."""

    OPEN = "open"
    REJECTED = "rejected"
    ACCEPTED = "accepted"
    WITHDRAWN = "withdrawn"
    """The server lists again what was accepted before."""
    SUPERSEDED = "superseded"
    """The server changed the tool once more."""


TRANSITIONS: Final[dict[HoldState, frozenset[HoldState]]] = {
    HoldState.OPEN: frozenset(
        {
            HoldState.REJECTED,
            HoldState.ACCEPTED,
            HoldState.WITHDRAWN,
            HoldState.SUPERSEDED,
        }
    ),
    HoldState.REJECTED: frozenset({HoldState.ACCEPTED, HoldState.WITHDRAWN, HoldState.SUPERSEDED}),
    HoldState.ACCEPTED: frozenset(),
    HoldState.WITHDRAWN: frozenset(),
    HoldState.SUPERSEDED: frozenset(),
}


@dataclass(frozen=True)
class Hold:
    """A change of one tool of a server version that is, or was, held."""

    id: int
    server: str
    version: str
    server_version_id: int
    tool: str
    kind: str
    tool_version_id: int | None
    baseline_version_id: int | None
    """The version whose tool runs get instead, when the change came with a new version."""
    change: dict[str, Any]
    state: HoldState
    created_at: datetime
    decided_at: datetime | None
    decided_by: str | None

    @property
    def pending(self) -> str | None:
        """Return the digest of what the server listed; None when it listed the tool no more."""
        after: str | None = self.change.get("after")
        return after

    def as_dict(self) -> dict[str, Any]:
        """Return the hold as shown to operators."""
        internal = {"server_version_id", "tool_version_id", "baseline_version_id"}
        shown = {name: value for name, value in vars(self).items() if name not in internal}
        return {**shown, "state": self.state.value}


_HOLD: Final = """
    SELECT h.*, v.server_name AS server, v.version FROM holds h
    JOIN server_versions v ON v.id = h.server_version_id
"""


async def blocking(connection: AsyncConnection, version_id: int) -> dict[str, Hold]:
    """Return the blocking holds of a server version by tool."""
    result = await connection.execute(
        text(_HOLD + " WHERE h.server_version_id = :id AND h.state IN ('open', 'rejected')"),
        {"id": version_id},
    )
    return {row["tool"]: _hold(row) for row in result.mappings()}


async def blocked_tools(
    database: Database, version_ids: Sequence[int]
) -> dict[int, frozenset[str]]:
    """Return the tools, as their server names them, that may not be called, by server version."""
    rows = await database.statement(
        "SELECT server_version_id, tool FROM holds"
        " WHERE server_version_id = ANY(%(ids)s) AND state IN ('open', 'rejected')",
        ids=list(version_ids),
    )
    blocked: defaultdict[int, set[str]] = defaultdict(set)
    for row in rows:
        blocked[row["server_version_id"]].add(row["tool"])
    return {id_: frozenset(blocked[id_]) for id_ in version_ids}


async def list_holds(
    database: Database, server: str | None = None, *, everything: bool = False, limit: int = 500
) -> list[Hold]:
    """Return held changes, newest first; the ended ones too, if asked for.

    Of one server, or of all that are served.
    """
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                _HOLD + " JOIN servers s ON s.name = v.server_name"
                " WHERE CASE WHEN CAST(:server AS text) IS NULL THEN s.removed_at IS NULL"
                "  ELSE v.server_name = :server END"
                " AND (:everything OR h.state IN ('open', 'rejected'))"
                " ORDER BY h.id DESC LIMIT :limit"
            ),
            {"server": server, "everything": everything, "limit": limit},
        )
        return [_hold(row) for row in result.mappings()]


async def definitions(
    database: Database, held: Sequence[Hold]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the definitions before and after held changes, by server and digest.

    A tool that could not be used was never stored, and is not among them.
    """
    wanted = [
        (hold.server, digest)
        for hold in held
        for digest in (hold.change.get("before"), hold.pending)
        if digest is not None
    ]
    rows = await database.statement(
        "SELECT t.server_name, t.digest, t.definition FROM tool_versions t"
        " JOIN unnest(%(servers)s::text[], %(digests)s::text[]) AS w (server, digest)"
        " ON t.server_name = w.server AND t.digest = w.digest",
        servers=[server for server, _ in wanted],
        digests=[digest for _, digest in wanted],
    )
    return {(row["server_name"], row["digest"]): row["definition"] for row in rows}


async def substitutes(database: Database, held: Sequence[Hold]) -> dict[int, str]:
    """Return, by hold, the version whose tool runs are offered in place of the changed one.

    Where there is none they are not offered the tool at all.
    """
    rows = await database.statement(
        "SELECT h.id, v.version FROM holds h JOIN server_versions v ON v.id = h.baseline_version_id"
        " WHERE h.id = ANY(%(ids)s) AND EXISTS (SELECT FROM tool_versions t WHERE t.name = h.tool"
        "  AND t.id IN (SELECT unnest(latest.ids) FROM (SELECT l.tool_version_ids AS ids"
        "   FROM listings l WHERE l.server_version_id = v.id ORDER BY l.id DESC LIMIT 1) AS latest)"
        " ) AND NOT EXISTS (SELECT FROM holds b WHERE b.server_version_id = v.id"
        "  AND b.tool = h.tool AND b.state IN ('open', 'rejected'))",
        ids=[hold.id for hold in held],
    )
    return {row["id"]: row["version"] for row in rows}


async def counts(database: Database) -> dict[tuple[str, str], int]:
    """Return how many changes are held now by server and kind."""
    rows = await database.statement(
        "SELECT v.server_name AS server, h.kind, count(*) AS held FROM holds h"
        " JOIN server_versions v ON v.id = h.server_version_id JOIN servers s"
        " ON s.name = v.server_name AND s.removed_at IS NULL"
        " WHERE h.state = 'open' GROUP BY v.server_name, h.kind"
    )
    return {(row["server"], row["kind"]): row["held"] for row in rows}


async def find(connection: AsyncConnection, server: str, hold_id: int) -> Hold:
    """Return one hold of a server, its row locked; raise `not_found`."""
    result = await connection.execute(
        text(_HOLD + " WHERE h.id = :id AND v.server_name = :server FOR UPDATE OF h"),
        {"id": hold_id, "server": server},
    )
    row = result.mappings().first()
    if row is None:
        raise FleetError(
            Code.NOT_FOUND,
            f"server {server!r} has no held change {hold_id}",
            hint=f"`toolfleet servers changes {server}` shows them",
        )
    return _hold(row)


async def put(
    connection: AsyncConnection,
    version_id: int,
    changes: Iterable[dict[str, Any]],
    tool_version_ids: dict[str, int],
    baseline_version_id: int | None,
) -> None:
    """Hold changes of a server version; a blocking hold of the same tool has to be ended before."""
    rows = [
        {
            "version": version_id,
            "tool": change["tool"],
            "kind": change["change"],
            "pending": tool_version_ids.get(change["after"] or ""),
            "baseline": baseline_version_id,
            "change": to_json(change),
        }
        for change in changes
    ]
    if rows:
        await connection.execute(
            text(
                "INSERT INTO holds (server_version_id, tool, kind, tool_version_id,"
                " baseline_version_id, change) VALUES (:version, :tool, :kind, :pending, :baseline,"
                " CAST(:change AS jsonb))"
            ),
            rows,
        )


async def end(
    connection: AsyncConnection, ended: Iterable[Hold], state: HoldState, *, actor: str
) -> None:
    """Move holds to a state; raise `already_decided` where that is no legal transition."""
    for hold in ended:
        if state not in TRANSITIONS[hold.state]:
            raise FleetError(
                Code.ALREADY_DECIDED,
                f"the change of tool {hold.tool!r} of server {hold.server!r} is "
                f"{hold.state.value} already",
            )
        await connection.execute(
            text(
                "UPDATE holds SET state = :state, decided_at = clock_timestamp(),"
                " decided_by = :actor WHERE id = :id"
            ),
            {"state": state.value, "actor": actor, "id": hold.id},
        )
        details = {"server": hold.server, "version": hold.version, "tool": hold.tool}
        await audit.record(connection, actor, f"change.{state.value}", details)


def _hold(row: RowMapping) -> Hold:
    return Hold(
        id=row["id"],
        server=row["server"],
        version=row["version"],
        server_version_id=row["server_version_id"],
        tool=row["tool"],
        kind=row["kind"],
        tool_version_id=row["tool_version_id"],
        baseline_version_id=row["baseline_version_id"],
        change=row["change"],
        state=HoldState(row["state"]),
        created_at=row["created_at"],
        decided_at=row["decided_at"],
        decided_by=row["decided_by"],
    )
