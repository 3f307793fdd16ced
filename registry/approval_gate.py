"""The last look at an approval: at the dispatch of its call, with what is about to be sent.

An approval is for one call. It covers that call's attempts while it holds: those of a `write` only
under the claim that used it first, and none once the call has ended, whatever its row says then.
"""

from __future__ import annotations

from typing import Final

from registry.approvals import decision_of
from registry.bindings import Facts, Sealer, approval_expired, mismatch, refuse_unless_approved
from registry.calls import FINAL_STATES, Claim
from registry.database import Database, to_json
from registry.definitions import ApprovalRule, ServerDefinition
from registry.errors import Code, FleetError

_APPROVED: Final = """
    SELECT r.snapshot_digest, r.actor AS started_by, v.digest AS server_digest,
        t.digest AS tool_digest, clock_timestamp() AS now
    FROM runs r, server_versions v, tool_versions t
    WHERE r.id = %(run)s AND v.id = %(version)s AND t.id = %(tool)s
"""
_DECISIONS: Final = """
    SELECT binding, approve, decided_by, decided_at, holds_until, reason, seal
    FROM approvals WHERE call_id = %(call)s ORDER BY id
"""
_USE: Final = """
    INSERT INTO approval_uses (call_id, number, fence, worker_id)
    SELECT c.id, used.times + 1, c.fence, c.worker_id FROM calls c, LATERAL (
        SELECT count(*) AS times, count(*) FILTER (
            WHERE u.fence <> c.fence OR u.worker_id <> c.worker_id) AS elsewhere
        FROM approval_uses u WHERE u.call_id = c.id) used
    WHERE c.id = %(call)s AND c.state = 'running' AND c.fence = %(fence)s
        AND c.worker_id = %(worker)s AND used.times < %(most)s
        AND (%(rerun)s OR used.elsewhere = 0)
        AND NOT EXISTS (SELECT 1 FROM approvals a WHERE a.call_id = c.id AND NOT a.approve)
        AND NOT EXISTS (SELECT 1 FROM audit l WHERE l.call_id = c.id AND l.event = ANY(%(ends)s))
    ON CONFLICT DO NOTHING
    RETURNING number
"""
_ENDS: Final = [f"call.{state}" for state in FINAL_STATES]
_EXPIRE: Final = """
    WITH late AS (
        SELECT c.id FROM calls c
        WHERE c.state = 'queued' AND c.decided_by IS NOT NULL AND EXISTS (
            SELECT 1 FROM approvals a
            WHERE a.call_id = c.id AND a.approve AND a.holds_until <= clock_timestamp())
        LIMIT 500 FOR UPDATE OF c SKIP LOCKED
    ), ended AS (
        UPDATE calls c SET state = 'expired', ended_at = clock_timestamp(),
            error = CAST(%(error)s AS jsonb)
        FROM late l WHERE c.id = l.id
        RETURNING c.id, c.tenant_id, c.run_id, c.tool, c.error
    ), logged AS (
        INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)
        SELECT tenant_id, 'steward', 'call.expired', run_id, id,
            jsonb_build_object('tool', tool, 'code', error ->> 'code')
        FROM ended
    )
    SELECT id FROM ended
"""

_FORGED: Final = """
    INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)
    SELECT c.tenant_id, %(worker)s, 'call.message_refused', c.run_id, c.id, jsonb_build_object(
        'tool', c.tool, 'state', c.state, 'queue', %(server)s::text)
    FROM calls c
    WHERE c.id = %(call)s AND (c.server_name <> %(server)s OR (
        EXISTS (SELECT 1 FROM audit l
            WHERE l.call_id = c.id AND l.event = 'call.awaiting_approval')
        AND NOT EXISTS (SELECT 1 FROM approvals a
            WHERE a.call_id = c.id AND a.approve AND a.closes)))
    RETURNING call_id
"""


async def use(
    database: Database,
    sealer: Sealer,
    claim: Claim,
    definition: ServerDefinition,
    tool: str,
    *,
    max_attempts: int,
) -> None:
    """Use a claimed call's approval for one dispatch; return when the call may be dispatched.

    ``tool`` is the name about to be sent. Raises `policy_denied`, `approval_mismatch`,
    `approval_expired`, or `approval_spent` where the approval covers no further dispatch.
    """
    found = await database.statement(
        _APPROVED,
        run=claim.run_id,
        version=claim.server_version_id,
        tool=claim.tool_version_id,
    )
    decisions = await database.statement(_DECISIONS, call=claim.id)
    if not found:
        raise mismatch("its run or its tool is not on record")
    facts = _facts(claim, definition, tool, found[0])
    given = [decision_of(row) for row in decisions]
    refuse_unless_approved(facts, given, sealer, now=found[0]["now"])
    used = await database.statement(
        _USE,
        call=claim.id,
        fence=claim.fence,
        worker=claim.worker,
        most=max_attempts,
        rerun=claim.delivery.may_rerun,
        ends=_ENDS,
    )
    if not used:
        raise FleetError(
            Code.APPROVAL_SPENT,
            f"the approval of call {claim.id} of {claim.tool} has been used",
            hint="an approval lets one call run once: submit the call again",
        )


async def expire(database: Database) -> list[str]:
    """End the queued calls whose approval was not used in time; return their ids."""
    error = approval_expired().as_dict()
    return [row["id"] for row in await database.statement(_EXPIRE, error=to_json(error))]


async def note_forged(database: Database, call_id: str, server: str, worker: str) -> bool:
    """Say whether a message about a call, in the queue of ``server``, was not the fleet's own.

    That is so of a call of another server, and of one that never had its approval; it is audited.
    """
    return bool(await database.statement(_FORGED, call=call_id, server=server, worker=worker))


def _facts(claim: Claim, definition: ServerDefinition, tool: str, row: dict[str, object]) -> Facts:
    rule = definition.tools.get(tool)
    return Facts(
        call=claim.id,
        tenant=claim.tenant_id,
        run=claim.run_id,
        snapshot=str(row["snapshot_digest"]),
        requested_by=(claim.actor, str(row["started_by"])),
        server=claim.server_name,
        server_version=claim.server_version_id,
        server_digest=str(row["server_digest"]),
        tool=claim.tool,
        tool_name=tool,
        tool_version=claim.tool_version_id,
        tool_digest=str(row["tool_digest"]),
        delivery=claim.delivery,
        approvers=(rule.approval if rule is not None else ApprovalRule()).approvers,
        arguments=claim.arguments,
    )
