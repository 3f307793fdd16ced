"""Runs: an agent's work, pinned to an immutable snapshot of tools from its start to its end.

Invariants:
 1. A run sees one snapshot; what the registry learns later changes nothing for it.
 2. A snapshot is named by its content's digest; equal tools are one row.
 3. A cancelled run takes no more calls and none of its queued calls is ever claimed.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from sqlalchemy import text

from registry import audit, tokens
from registry.calls import run_not_open
from registry.database import Database, to_json
from registry.discovery import CALL_TOOL, DEFAULT_LIMIT, FIND_TOOLS, best_fitting
from registry.errors import Code, FleetError
from registry.offer import Offers
from registry.policies import get_tenant
from registry.snapshots import Shelf, Snapshot
from registry.tenants import ensure_tenant
from registry.tools import SnapshotTool

_AUDIENCE: Final = "toolfleet.run"


class Exposure(StrEnum):
    """What a model is shown of a run's tools."""

    ALL = "all"
    SEARCH = "search"
    """Two tools, to find the others and to call them (`registry.discovery`)."""


@dataclass(frozen=True)
class Run:
    """A run and the snapshot of tools that it sees."""

    id: str
    tenant: str
    actor: str
    state: str
    manifest: Snapshot
    exposure: Exposure
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    expired: bool
    servers: frozenset[str] | None = None
    """The servers that it was started for; None: for all that its tenant may use."""

    @property
    def snapshot(self) -> str:
        """Return the digest of its snapshot."""
        return self.manifest.digest

    @property
    def tools(self) -> dict[str, SnapshotTool]:
        """Return its tools by model-facing name."""
        return self.manifest.tools

    @property
    def shown(self) -> bytes:
        """Return the JSON list of what a model is shown, as MCP writes tools."""
        if self.exposure is Exposure.SEARCH:
            return to_json([FIND_TOOLS, CALL_TOOL]).encode()
        return self.manifest.shown

    def find(self, tool: str) -> SnapshotTool:
        """Return a tool of the run's snapshot; raise `unknown_tool` naming the nearest ones."""
        return self.manifest.find(tool, self.id)


async def start_run(
    database: Database,
    *,
    tenant: str,
    actor: str,
    lifetime: timedelta,
    servers: Sequence[str] | None = None,
    intent: str | None = None,
    limit: int | None = None,
    exposure: Exposure = Exposure.ALL,
    offers: Offers | None = None,
    shelf: Shelf | None = None,
) -> Run:
    """Start a run for a tenant, pinned to the tools it may use now (of ``servers`` only, if given).

    With an ``intent`` it sees the ``limit`` tools (`DEFAULT_LIMIT`) that fit it best. Raises
    `unknown_server` for a name that is not registered, `policy_denied` for one the tenant may not
    use, `name_collision` if two tools would have one name.
    """
    offers, shelf = offers or Offers(database), shelf or Shelf(database)
    await ensure_tenant(database, tenant, actor=actor)
    manifest = await offers.snapshot(await get_tenant(database, tenant), servers)
    if intent is not None:
        async with database.transaction() as connection:
            names = await best_fitting(connection, manifest, intent, limit or DEFAULT_LIMIT)
        manifest = manifest.only(names)
    run_id = str(uuid.uuid4())
    async with database.transaction() as connection:
        await shelf.put(connection, manifest)
        result = await connection.execute(
            text(
                "INSERT INTO runs (id, tenant_id, snapshot_digest, actor, exposure, servers,"
                " expires_at) VALUES (:id, :tenant, :snapshot, :actor, :exposure, :servers,"
                " clock_timestamp() + CAST(:lifetime AS interval))"
                " RETURNING created_at, expires_at"
            ),
            {
                "id": run_id,
                "tenant": tenant,
                "snapshot": manifest.digest,
                "actor": actor,
                "exposure": exposure.value,
                "servers": None if servers is None else sorted(set(servers)),
                "lifetime": lifetime,
            },
        )
        row = result.one()
        details = {"snapshot": manifest.digest} | ({"intent": intent[:500]} if intent else {})
        await audit.record(connection, actor, "run.started", details, tenant=tenant, run=run_id)
    shelf.stored(manifest)
    return Run(
        run_id,
        tenant,
        actor,
        "open",
        manifest,
        exposure,
        row.created_at,
        row.expires_at,
        None,
        False,
        None if servers is None else frozenset(servers),
    )


async def get_run(
    database: Database, run_id: str, *, tenant: str | None = None, shelf: Shelf | None = None
) -> Run:
    """Return a run; raise `unknown_run`, also when it is another tenant's."""
    rows = await database.statement(
        "SELECT *, expires_at <= now() AS expired FROM runs WHERE id = %(id)s"
        " AND (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s)",
        id=run_id,
        tenant=tenant,
    )
    if not rows:
        raise FleetError(Code.UNKNOWN_RUN, f"there is no run {run_id}", hint="start a run first")
    row = rows[0]
    return Run(
        row["id"],
        row["tenant_id"],
        row["actor"],
        row["state"],
        await (shelf or Shelf(database)).get(row["snapshot_digest"]),
        Exposure(row["exposure"]),
        row["created_at"],
        row["expires_at"],
        row["ended_at"],
        row["expired"],
        None if row["servers"] is None else frozenset(row["servers"]),
    )


async def end_run(
    database: Database, run_id: str, *, cancel: bool, actor: str, tenant: str | None = None
) -> tuple[bool, list[str]]:
    """Close or cancel a run; return whether this ended it and the ids of its unfinished calls.

    Ending a run that has ended changes nothing, except that a closed one can still be cancelled.
    """
    state = "cancelled" if cancel else "closed"
    async with database.transaction() as connection:
        found = await connection.execute(
            text(
                "SELECT state, tenant_id FROM runs WHERE id = :id"
                " AND (CAST(:tenant AS text) IS NULL OR tenant_id = :tenant) FOR UPDATE"
            ),
            {"id": run_id, "tenant": tenant},
        )
        run = found.first()
        if run is None:
            raise FleetError(Code.UNKNOWN_RUN, f"there is no run {run_id}")
        changed = run.state == "open" or (cancel and run.state == "closed")
        if changed:
            await connection.execute(
                text("UPDATE runs SET state = :state, ended_at = clock_timestamp() WHERE id = :id"),
                {"state": state, "id": run_id},
            )
            await audit.record(
                connection, actor, f"run.{state}", {}, tenant=run.tenant_id, run=run_id
            )
        unfinished = await connection.execute(
            text(
                "SELECT id FROM calls WHERE run_id = :id"
                " AND state IN ('queued', 'running', 'awaiting_approval')"
            ),
            {"id": run_id},
        )
        return changed, [row.id for row in unfinished]


def run_is_open(run: Run) -> None:
    """Raise `run_closed`, `run_cancelled` or `run_expired` unless a run takes calls."""
    if run.state != "open" or run.expired:
        raise run_not_open(run.id, {"state": run.state})


def sign_run_token(run: Run, key: str) -> str:
    """Return a signed token that stands for a run until it expires (run, tenant, snapshot).

    ``key`` is `Settings.secret_key`, at least 32 characters.
    """
    claims = {"sub": run.id, "tenant": run.tenant, "snapshot": run.snapshot}
    return tokens.sign(claims, audience=_AUDIENCE, expires_at=run.expires_at, key=key)


def read_run_token(token: str, key: str) -> tuple[str, str]:
    """Return (run id, tenant) of a run token; raise `unauthenticated` or `run_expired`."""
    if not key:
        raise FleetError(
            Code.INTERNAL,
            "run tokens cannot be checked: TOOLFLEET_SECRET_KEY is empty",
            hint="give every process of the fleet the same key",
        )
    try:
        claims = tokens.read(token, audience=_AUDIENCE, key=key)
    except FleetError as error:
        if error.code is Code.TOKEN_EXPIRED:
            raise FleetError(
                Code.RUN_EXPIRED, "the run token has expired", hint="start a new run"
            ) from error
        raise FleetError(
            Code.UNAUTHENTICATED,
            "the run token is not valid",
            hint="use the token that POST /v1/runs returned",
        ) from error
    return claims["sub"], claims["tenant"]
