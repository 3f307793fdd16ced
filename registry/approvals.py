"""Approvals: calls that wait for a person's word, as rows, for days and across restarts.

The row is what is approved: its tool version, tenant and arguments never change, so a decision
cannot be carried over to another call. It is made once, by a guarded transition, and the worker
asks for it again before it dispatches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import text

from registry.calls import CallState
from registry.database import Database, to_json
from registry.errors import Code, FleetError
from registry.leases import Unsent, unsent


@dataclass(frozen=True)
class Decided:
    """A call that was decided about, with the message to send if it may run."""

    id: str
    state: CallState
    unsent: Unsent | None


_DECIDE: Final = text(
    """
    WITH decided AS (
        UPDATE calls c SET state = CASE WHEN :approve THEN 'queued' ELSE 'denied' END,
            decided_by = :actor, decided_at = clock_timestamp(),
            queued_at = clock_timestamp(), sent_at = clock_timestamp(),
            deadline_at = CASE WHEN :approve
                THEN clock_timestamp() + make_interval(secs => c.deadline_s)
                ELSE c.deadline_at END,
            ended_at = CASE WHEN :approve THEN NULL ELSE clock_timestamp() END,
            error = CASE WHEN :approve THEN NULL ELSE CAST(:error AS jsonb) END
        FROM runs r
        WHERE c.id = :id AND c.state = 'awaiting_approval' AND c.stop_requested_at IS NULL
            AND c.deadline_at > clock_timestamp() AND r.id = c.run_id AND r.state <> 'cancelled'
        RETURNING c.*
    ), logged AS (
        INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)
        SELECT tenant_id, CAST(:actor AS text), 'call.' || CASE WHEN CAST(:approve AS boolean)
            THEN 'approved' ELSE 'denied' END, run_id, id, jsonb_strip_nulls(jsonb_build_object(
                'tool', tool, 'arguments_digest', arguments_digest,
                'tool_version_id', tool_version_id, 'reason', CAST(:reason AS text)))
        FROM decided
    )
    SELECT *, deadline_s AS remaining_s FROM decided
    """
)


async def waiting(
    database: Database, *, tenant: str | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """Return the calls that wait for an approval, the oldest first, with their arguments."""
    return await database.statement(
        "SELECT c.id, c.tenant_id, c.run_id, c.tool, c.server_name, v.version AS server_version,"
        " c.delivery, c.actor AS requested_by, c.arguments, c.arguments_digest, c.created_at,"
        " c.deadline_at AS expires_at FROM calls c"
        " JOIN server_versions v ON v.id = c.server_version_id"
        " WHERE c.state = 'awaiting_approval' AND c.deadline_at > clock_timestamp()"
        " AND (%(tenant)s::text IS NULL OR c.tenant_id = %(tenant)s)"
        " ORDER BY c.created_at LIMIT %(limit)s",
        tenant=tenant,
        limit=limit,
    )


async def decide(
    database: Database, call_id: str, *, approve: bool, actor: str, reason: str | None = None
) -> Decided:
    """Approve a call, whose deadline then begins, or deny it.

    Raises `unknown_call`, or `already_decided` when it waits no more.
    """
    denied = FleetError(
        Code.POLICY_DENIED, "the call was denied" + (f": {reason}" if reason else "")
    )
    async with database.transaction() as connection:
        result = await connection.execute(
            _DECIDE,
            {
                "id": call_id,
                "approve": approve,
                "actor": actor,
                "reason": reason,
                "error": to_json(denied.as_dict()),
            },
        )
        row = result.mappings().first()
        if row is None:
            found = await connection.execute(
                text("SELECT state FROM calls WHERE id = :id"), {"id": call_id}
            )
            state = found.scalar_one_or_none()
            if state is None:
                raise FleetError(Code.UNKNOWN_CALL, f"there is no call {call_id}")
            raise FleetError(
                Code.ALREADY_DECIDED,
                f"call {call_id} waits for no approval: it is {state.replace('_', ' ')}, or too "
                "late, or its run was cancelled",
            )
    if not approve:
        return Decided(call_id, CallState.DENIED, None)
    return Decided(call_id, CallState.QUEUED, unsent(row))
