"""Approvals: calls that wait for a person's word, as rows, for days and across restarts.

Invariants:
 1. A decision is about what was shown: it names the binding (`registry.bindings`) of the call.
 2. Nobody approves a call that they asked for, or that runs in a run that they started.
 3. A call is decided about once: by the first who denies, or the last approver that it needs.
 4. Each decision is a sealed row of its own, written once, in the transaction that acts on it.

The worker checks all of it again before it dispatches (`registry.approval_gate`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Literal

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.bindings import Decision, Facts, Sealer, approvers, hide, holds_until
from registry.calls import CallState
from registry.database import Database, to_json
from registry.definitions import ApprovalRule, Delivery
from registry.errors import Code, FleetError
from registry.leases import Unsent, unsent

Row = Mapping[str, Any] | RowMapping


@dataclass(frozen=True)
class Verdict:
    """What somebody says about a call that waits, and what they were shown of it."""

    call: str
    binding: str
    approve: bool
    reason: str | None = None


@dataclass(frozen=True)
class Decided:
    """A call that was decided about, with the message to send if it may run.

    It goes on waiting, `awaiting_approval`, when more have to approve it.
    """

    id: str
    state: CallState
    unsent: Unsent | None


_FACTS: Final = """
    c.id, c.tenant_id, c.run_id, c.tool, c.server_name, c.server_version_id, c.tool_version_id,
    c.delivery, c.actor AS requested_by, c.arguments, c.arguments_digest, c.created_at, c.state,
    c.deadline_at, c.deadline_at > clock_timestamp() AS in_time, r.snapshot_digest,
    r.actor AS started_by, r.state AS run_state, v.version AS server_version,
    v.digest AS server_digest, t.name AS tool_name, t.digest AS tool_digest,
    v.definition -> 'tools' -> t.name -> 'approval' AS rule
"""
_PARTS: Final = """
    calls c JOIN runs r ON r.id = c.run_id JOIN server_versions v ON v.id = c.server_version_id
    JOIN tool_versions t ON t.id = c.tool_version_id
"""
_MATCHES: Final = """
    (%(tenant)s::text IS NULL OR c.tenant_id = %(tenant)s)
    AND (%(server)s::text IS NULL OR c.server_name = %(server)s)
    AND (%(tool)s::text IS NULL OR c.tool = %(tool)s)
"""
_WAITING: Final = f"""
    SELECT {_FACTS} FROM {_PARTS}
    WHERE c.state = 'awaiting_approval' AND c.deadline_at > clock_timestamp() AND {_MATCHES}
        AND (%(after)s::text IS NULL OR (c.created_at, c.id) >
            (SELECT created_at, id FROM calls WHERE id = %(after)s))
    ORDER BY c.created_at, c.id LIMIT %(limit)s
"""  # noqa: S608 - constants
_CLOSED: Final = f"""
    SELECT {_FACTS} FROM approvals a JOIN {_PARTS.replace("calls c", "calls c ON c.id = a.call_id")}
    WHERE a.closes AND {_MATCHES} AND (%(after)s::text IS NULL OR a.id <
        (SELECT id FROM approvals WHERE closes AND call_id = %(after)s))
    ORDER BY a.id DESC LIMIT %(limit)s
"""  # noqa: S608 - constants
_ONE: Final = f"SELECT {_FACTS} FROM {_PARTS} WHERE c.id = %(id)s"  # noqa: S608 - constants
_ANY_DECISION: Final = "EXISTS (SELECT 1 FROM approvals WHERE call_id = %(id)s)"
_SHOWN: Final = f"{_ONE} AND (c.state = 'awaiting_approval' OR {_ANY_DECISION})"
_LOCKED: Final = text(
    f"SELECT {_FACTS}, clock_timestamp() AS now FROM {_PARTS}"  # noqa: S608 - constants
    " WHERE c.id = :id AND (CAST(:tenant AS text) IS NULL OR c.tenant_id = :tenant)"
    " FOR UPDATE OF c"
)
_DECISIONS: Final = (
    "SELECT call_id, binding, approve, decided_by, decided_at, holds_until, reason, seal"
    " FROM approvals WHERE call_id = ANY(%(ids)s) ORDER BY id"
)
_DECISIONS_TEXT: Final = text(_DECISIONS.replace("%(ids)s", ":ids"))
_DECIDE: Final = text(
    """
    INSERT INTO approvals (call_id, tenant_id, binding, approve, decided_by, decided_at,
        holds_until, closes, reason, seal)
    VALUES (:call, :tenant, :binding, :approve, :decided_by, :decided_at, :holds_until, :closes,
        :reason, :seal)
    """
)
_APPLY: Final = text(
    """
    UPDATE calls SET state = CASE WHEN :approve THEN 'queued' ELSE 'denied' END,
        decided_by = :actor, decided_at = CAST(:now AS timestamptz),
        queued_at = CAST(:now AS timestamptz), sent_at = CAST(:now AS timestamptz),
        deadline_at = CASE WHEN :approve
            THEN CAST(:now AS timestamptz) + make_interval(secs => deadline_s)
            ELSE deadline_at END,
        ended_at = CASE WHEN :approve THEN NULL ELSE CAST(:now AS timestamptz) END,
        error = CASE WHEN :approve THEN NULL ELSE CAST(:error AS jsonb) END
    WHERE id = :id RETURNING *, deadline_s AS remaining_s
    """
)
_LOG: Final = text(
    """
    INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)
    VALUES (:tenant, :actor, :event, :run, :call, CAST(:details AS jsonb))
    """
)


async def listed(
    database: Database,
    sealer: Sealer,
    *,
    state: Literal["waiting", "decided"] = "waiting",
    tenant: str | None = None,
    server: str | None = None,
    tool: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Return calls as their approvers see them: what waits, oldest first, or what was decided.

    What was decided comes newest first. ``after`` is the id of the last call already seen.
    """
    wanted = {"tenant": tenant, "server": server, "tool": tool, "after": after, "limit": limit}
    rows = await database.statement(_WAITING if state == "waiting" else _CLOSED, **wanted)
    return await _views(database, sealer, rows)


async def shown(
    database: Database, sealer: Sealer, call_id: str, *, tenant: str | None = None
) -> dict[str, Any]:
    """Return one call as its approvers see it; raise `unknown_call` for one that never waited."""
    rows = await database.statement(_SHOWN, id=call_id)
    if not rows or tenant not in (None, rows[0]["tenant_id"]):
        raise _unknown(call_id)
    (view,) = await _views(database, sealer, rows)
    return view


async def _views(database: Database, sealer: Sealer, rows: Sequence[Row]) -> list[dict[str, Any]]:
    ids = [row["id"] for row in rows]
    found = await database.statement(_DECISIONS, ids=ids) if ids else []
    decisions: dict[str, list[Row]] = {id_: [] for id_ in ids}
    for decision in found:
        decisions[decision["call_id"]].append(decision)
    return [_view(row, sealer, decisions[row["id"]]) for row in rows]


def _view(row: Row, sealer: Sealer, decisions: Iterable[Row]) -> dict[str, Any]:
    rule = _rule(row)
    arguments, hidden = hide(row["arguments"], rule.redact)
    waits = row["state"] == CallState.AWAITING_APPROVAL
    seen = ("decided_by", "approve", "decided_at", "holds_until", "reason")
    return {
        **{name: row[name] for name in _VIEWED},
        "arguments": arguments,
        "hidden": hidden,
        "approvers": rule.approvers,
        "decisions": [{name: decision[name] for name in seen} for decision in decisions],
        "expires_at": row["deadline_at"] if waits else None,
        "binding": sealer.binding(_facts(row)),
    }


_VIEWED: Final = (
    "id", "tenant_id", "run_id", "tool", "server_name", "server_version", "tool_version_id",
    "delivery", "requested_by", "started_by", "state", "created_at",
)  # fmt: skip


async def decide(
    database: Database,
    sealer: Sealer,
    verdict: Verdict,
    *,
    actor: str,
    holds: timedelta,
    tenant: str | None = None,
) -> Decided:
    """Approve a call, whose deadline begins once nobody else has to, or deny it.

    ``tenant`` is that of an approver who is bound to one. Raises `unknown_call`, `already_decided`
    when it waits no more (or ``actor`` has approved it before), `approval_mismatch` when it is not
    what was shown, `forbidden` for who asked for it. Refusals of the last two kinds are audited.
    """
    try:
        async with database.transaction() as connection:
            locked = await connection.execute(_LOCKED, {"id": verdict.call, "tenant": tenant})
            row = locked.mappings().first()
            if row is None:
                raise _unknown(verdict.call)
            return await _decide(connection, sealer, verdict, row, actor, holds)
    except FleetError as error:
        if error.code in (Code.APPROVAL_MISMATCH, Code.FORBIDDEN):
            await _log_refusal(database, verdict, actor, error)
        raise


async def _decide(
    connection: AsyncConnection,
    sealer: Sealer,
    verdict: Verdict,
    row: Row,
    actor: str,
    holds: timedelta,
) -> Decided:
    _refuse_unless_waiting(row)
    binding = sealer.binding(_facts(row))
    if verdict.binding != binding:
        raise FleetError(
            Code.APPROVAL_MISMATCH,
            f"the binding sent for call {row['id']} is not that of the call as it waits",
            hint=f"look at GET /v1/approvals/{row['id']} and send the binding that it shows",
        )
    if verdict.approve and actor in (row["requested_by"], row["started_by"]):
        raise FleetError(
            Code.FORBIDDEN,
            f"{actor} asked for call {row['id']} and cannot approve it",
            hint="somebody else has to: that is what an approval is for",
        )
    earlier = await _decisions(connection, row["id"])
    _refuse_a_second_time(verdict, earlier, actor)
    others = {it for it in approvers(earlier, binding, sealer) if it != actor}
    closes = not verdict.approve or len(others) + 1 >= _rule(row).approvers
    until = holds_until(row["now"], row["deadline_at"], holds, last=closes)
    decision = Decision(binding, verdict.approve, actor, row["now"], until, verdict.reason)
    decision = replace(decision, seal=sealer.seal(decision))
    await connection.execute(
        _DECIDE,
        {**vars(decision), "call": row["id"], "tenant": row["tenant_id"], "closes": closes},
    )
    await _log_decision(connection, row, decision, closes=closes)
    if not closes:
        return Decided(row["id"], CallState.AWAITING_APPROVAL, None)
    return await _apply(connection, row, decision)


async def _apply(connection: AsyncConnection, row: Row, decision: Decision) -> Decided:
    """Move a call, whose row is locked, to where a decision that closes it says."""
    reason = f": {decision.reason}" if decision.reason else ""
    denied = FleetError(Code.POLICY_DENIED, "the call was denied" + reason)
    applied = await connection.execute(
        _APPLY,
        {
            "id": row["id"],
            "approve": decision.approve,
            "actor": decision.decided_by,
            "now": decision.decided_at,
            "error": to_json(denied.as_dict()),
        },
    )
    after = applied.mappings().one()
    if not decision.approve:
        return Decided(row["id"], CallState.DENIED, None)
    return Decided(row["id"], CallState.QUEUED, unsent(after))


async def _decisions(connection: AsyncConnection, call_id: str) -> list[Decision]:
    found = await connection.execute(_DECISIONS_TEXT, {"ids": [call_id]})
    return [decision_of(row) for row in found.mappings()]


def decision_of(row: Row) -> Decision:
    """Return a decision from its row."""
    return Decision(**{name: row[name] for name in Decision.__dataclass_fields__})


def _refuse_unless_waiting(row: Row) -> None:
    problem = ""
    if row["state"] != CallState.AWAITING_APPROVAL:
        problem = f"it is {row['state'].replace('_', ' ')}"
    elif row["run_state"] == "cancelled":
        problem = "its run was cancelled"
    elif not row["in_time"]:
        problem = "it has waited too long"
    if problem:
        raise FleetError(Code.ALREADY_DECIDED, f"call {row['id']} waits for no approval: {problem}")


def _refuse_a_second_time(verdict: Verdict, earlier: Iterable[Decision], actor: str) -> None:
    if any(it.decided_by == actor and it.approve == verdict.approve for it in earlier):
        raise FleetError(
            Code.ALREADY_DECIDED,
            f"{actor} has approved call {verdict.call} already, and it needs others as well",
        )


async def _log_decision(
    connection: AsyncConnection, row: Row, decision: Decision, *, closes: bool
) -> None:
    event = "denied" if not decision.approve else "approved" if closes else "approved_in_part"
    details = {
        **{name: row[name] for name in ("tool", "arguments_digest", "requested_by")},
        **{name: row[name] for name in ("server_version_id", "tool_version_id")},
        "server": row["server_name"],
        "binding": decision.binding,
        "holds_until": decision.holds_until.isoformat(),
        "reason": decision.reason,
    }
    await connection.execute(
        _LOG,
        {
            "tenant": row["tenant_id"],
            "actor": decision.decided_by,
            "event": f"call.{event}",
            "run": row["run_id"],
            "call": row["id"],
            "details": to_json({name: it for name, it in details.items() if it is not None}),
        },
    )


async def _log_refusal(database: Database, verdict: Verdict, actor: str, error: FleetError) -> None:
    details = {"code": error.code.code, "approve": verdict.approve}
    async with database.transaction() as connection:
        found = await connection.execute(
            text("SELECT tenant_id, run_id FROM calls WHERE id = :id"), {"id": verdict.call}
        )
        call = found.mappings().one()
        await connection.execute(
            _LOG,
            {
                "tenant": call["tenant_id"],
                "actor": actor,
                "event": "call.decision_refused",
                "run": call["run_id"],
                "call": verdict.call,
                "details": to_json(details),
            },
        )


def _rule(row: Row) -> ApprovalRule:
    stored = row["rule"]  # true or false, or nothing where a tier wants the approval
    return ApprovalRule.model_validate(stored) if isinstance(stored, dict) else ApprovalRule()


def _facts(row: Row) -> Facts:
    return Facts(
        call=row["id"],
        tenant=row["tenant_id"],
        run=row["run_id"],
        snapshot=row["snapshot_digest"],
        requested_by=(row["requested_by"], row["started_by"]),
        server=row["server_name"],
        server_version=row["server_version_id"],
        server_digest=row["server_digest"],
        tool=row["tool"],
        tool_name=row["tool_name"],
        tool_version=row["tool_version_id"],
        tool_digest=row["tool_digest"],
        delivery=Delivery(row["delivery"]),
        approvers=_rule(row).approvers,
        arguments=row["arguments"],
    )


def _unknown(call_id: str) -> FleetError:
    return FleetError(
        Code.UNKNOWN_CALL,
        f"there is no call {call_id} that waits or waited for an approval",
        hint="`toolfleet approvals list` shows the calls that wait",
    )
