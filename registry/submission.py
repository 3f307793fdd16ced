"""From a caller's wish to a row: resolve, check, insert. Every face submits through here.

A bad call never costs a queue slot: tool, policy, size and arguments are checked before the row
exists, and each refusal is a typed error.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from registry import calls
from registry.calls import NewCall, Submitted
from registry.database import Database, to_json
from registry.definitions import digest
from registry.errors import Code, FleetError
from registry.policy import refuse_unapproved
from registry.runs import Run, get_run, run_is_open
from registry.schemas import check_arguments
from registry.settings import Settings


@dataclass(frozen=True)
class Wish:
    """What a caller asks for."""

    tool: str
    arguments: dict[str, Any]
    actor: str
    idempotency_key: str | None = None
    timeout_s: float | None = None
    traceparent: str | None = None
    reply_to: str | None = None
    call_id: str | None = None
    """The id the call is to have; a random one by default."""


def prepare(run: Run, wish: Wish, settings: Settings) -> NewCall:
    """Return the call a wish becomes; raise what is wrong with it.

    `run_closed`, `run_cancelled`, `run_expired`, `unknown_tool`, `policy_denied`,
    `invalid_request`, `request_too_large`, `invalid_arguments`.
    """
    run_is_open(run)
    if "\0" in (wish.idempotency_key or ""):
        raise FleetError(Code.INVALID_REQUEST, "the idempotency key contains a NUL character")
    tool = run.find(wish.tool)
    refuse_unapproved(tool.name, approval=tool.approval)
    arguments_digest = _digest(tool.name, wish.arguments)  # refuses what is no JSON
    size = len(to_json(wish.arguments))
    if size > settings.max_arguments_bytes:
        raise FleetError(
            Code.REQUEST_TOO_LARGE,
            f"the arguments of {tool.name} are {size} bytes; the limit is "
            f"{settings.max_arguments_bytes}",
            hint="pass large data by reference",
        )
    check_arguments(tool.name, tool.input_schema, wish.arguments)
    return NewCall(
        id=wish.call_id or str(uuid.uuid4()),
        run_id=run.id,
        tenant_id=run.tenant,
        actor=wish.actor,
        tool=tool.name,
        server_name=tool.server,
        server_version_id=tool.server_version_id,
        tool_version_id=tool.tool_version_id,
        delivery=tool.delivery,
        call_timeout_s=tool.timeout_s,
        arguments=wish.arguments,
        arguments_digest=arguments_digest,
        deadline_s=_deadline_s(wish, settings),
        idempotency_key=wish.idempotency_key,
        traceparent=wish.traceparent,
        reply_to=wish.reply_to,
    )


def message_of(call: NewCall, call_id: str) -> dict[str, Any]:
    """Return the fields of the message about a call: never its arguments."""
    return {
        "id": call_id,
        "run_id": call.run_id,
        "tool": call.tool,
        "server_name": call.server_name,
        "traceparent": call.traceparent,
        "remaining_s": call.deadline_s,
    }


async def submit_one(
    database: Database,
    settings: Settings,
    *,
    run_id: str,
    tenant: str,
    **wish: Any,
) -> tuple[Submitted, dict[str, Any]]:
    """Check and commit one call; return its row and its message."""
    run = await get_run(database, run_id, tenant=tenant)
    call = prepare(run, Wish(**wish), settings)
    (answer,) = await calls.submit(database, [call])
    if isinstance(answer, FleetError):
        raise answer
    return answer, message_of(call, answer.id)


async def unreplied(database: Database, limit: int = 200) -> list[dict[str, Any]]:
    """Return ended calls whose raw Celery client has no result yet."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "SELECT id, reply_to, state, result, error FROM calls WHERE reply_to IS NOT NULL"
                " AND replied_at IS NULL AND ended_at IS NOT NULL ORDER BY ended_at LIMIT :limit"
            ),
            {"limit": limit},
        )
        return [dict(row) for row in result.mappings()]


async def mark_replied(database: Database, call_id: str) -> None:
    """Note that a raw client's result is stored."""
    async with database.transaction() as connection:
        await connection.execute(
            text("UPDATE calls SET replied_at = clock_timestamp() WHERE id = :id"),
            {"id": call_id},
        )


def _deadline_s(wish: Wish, settings: Settings) -> float:
    if wish.timeout_s is None:
        return settings.default_deadline.total_seconds()
    longest = settings.max_deadline.total_seconds()
    if not 0 < wish.timeout_s <= longest:
        raise FleetError(
            Code.INVALID_REQUEST,
            f"timeout_s is {wish.timeout_s}; it has to be more than 0 and at most {longest:.0f}",
        )
    return wish.timeout_s


def _digest(tool: str, arguments: dict[str, Any]) -> str:
    try:
        return digest({"tool": tool, "arguments": arguments})
    except (ValueError, UnicodeEncodeError) as error:
        raise FleetError(
            Code.INVALID_ARGUMENTS,
            f"the arguments of {tool} cannot be written as JSON (RFC 8785): {error}",
            hint="send integers beyond 2^53 as strings, and no lone surrogates",
        ) from error
