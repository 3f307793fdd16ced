"""The audit: one entry for each thing that was changed, in the transaction that changed it."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.database import Database, to_json
from registry.errors import storable

CALL_FACTS: Final = """
    'tool', tool, 'server', server_name, 'server_version_id', server_version_id,
    'tool_version_id', tool_version_id, 'arguments_digest', arguments_digest
"""
"""What each entry about a call says of it, for `jsonb_build_object` over rows of `calls`."""


async def record(
    connection: AsyncConnection,
    actor: str,
    event: str,
    details: dict[str, Any],
    *,
    tenant: str | None = None,
    run: str | None = None,
) -> None:
    """Write an entry that stands or falls with the transaction.

    A NUL in ``details``, which Postgres' JSON cannot hold, is written as U+FFFD.
    """
    await connection.execute(
        text(
            "INSERT INTO audit (tenant_id, actor, event, run_id, details)"
            " VALUES (:tenant, :actor, :event, :run, CAST(:details AS jsonb))"
        ),
        {
            "tenant": tenant,
            "actor": actor,
            "event": event,
            "run": run,
            "details": to_json(storable(details)),
        },
    )


async def entries(
    database: Database,
    *,
    tenant: str | None = None,
    run: str | None = None,
    call: str | None = None,
    event: str | None = None,
    before: int | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Return entries, newest first: those of a tenant, a run, a call, an event or its family.

    ``event`` may end in ``.*``; ``before`` is the id of the last entry already seen.
    """
    return await database.statement(
        "SELECT id, at, tenant_id, actor, event, run_id, call_id, details FROM audit"
        " WHERE (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s)"
        " AND (%(run)s::text IS NULL OR run_id = %(run)s)"
        " AND (%(call)s::text IS NULL OR call_id = %(call)s)"
        " AND (%(event)s::text IS NULL OR event = %(event)s OR (right(%(event)s, 2) = '.*'"
        "  AND starts_with(event, left(%(event)s, -1))))"
        " AND (%(before)s::bigint IS NULL OR id < %(before)s) ORDER BY id DESC LIMIT %(limit)s",
        tenant=tenant,
        run=run,
        call=call,
        event=event,
        before=before,
        limit=limit,
    )
