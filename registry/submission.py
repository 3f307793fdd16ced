"""From a caller's wish to a row: resolve, check, insert. Every face submits through here.

A bad call never costs a queue slot: tool, policy, size and arguments are checked before the row
exists, and each refusal is a typed error.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from sqlalchemy import text

from registry import calls
from registry.calls import TOOLS_CALL, CallState, NewCall, Submitted
from registry.database import Database, to_json
from registry.definitions import Delivery, digest
from registry.discovery import CALL_TOOL, FIND_TOOLS, find
from registry.errors import Code, FleetError
from registry.offer import OfferedVersion
from registry.policies import Policies
from registry.policy import TenantPolicy
from registry.requests import CLASS, may_ask
from registry.runs import Exposure, Run, get_run, run_is_open
from registry.schemas import check_arguments
from registry.scopes import Scopes
from registry.settings import Settings
from registry.snapshots import Shelf
from registry.tiers import Access

OWN_SERVER: Final = "toolfleet"
"""What the record names as the server of a call that the fleet answered itself."""


@dataclass(frozen=True)
class Wish:
    """What a caller asks for."""

    tool: str
    arguments: dict[str, Any]
    actor: str
    idempotency_key: str | None = None
    timeout_s: float | None = None
    traceparent: str | None = None
    trace: dict[str, str] | None = None
    """What goes along with it (`registry.trace.trace_of`)."""
    reply_to: str | None = None
    call_id: str | None = None
    """The id the call is to have; a random one by default."""
    method: str = TOOLS_CALL
    """What is asked; if it is no tool, ``tool`` is only how the record names it."""
    version: OfferedVersion | None = None
    """Whom it is asked, if it is no tool."""
    scopes: Scopes | None = None
    """What the caller's key is narrowed to."""
    answers: frozenset[str] = frozenset()
    """What the tool's server may ask the caller while the call runs (`registry.questions`)."""
    log_level: str | None = None
    """From which level on the caller wants the server's log messages; None: it wants none."""


async def make_call(
    database: Database,
    run: Run,
    wish: Wish,
    settings: Settings,
    policy: TenantPolicy,
    blocked: Container[tuple[int, str]] = (),
) -> NewCall:
    """Return the call a wish becomes; raise what is wrong with it (see `prepare`).

    What is asked of a server beside its tools goes by `prepare_request`. Of a run that shows its
    model `find_tools` that is answered here: the call ends as it begins.
    """
    if wish.method != TOOLS_CALL:
        return prepare_request(run, wish, settings, policy)
    if run.exposure is not Exposure.SEARCH or wish.tool != FIND_TOOLS["name"]:
        return prepare(run, wish, settings, policy, blocked)
    run_is_open(run)
    check_arguments(wish.tool, FIND_TOOLS["inputSchema"], wish.arguments)
    async with database.transaction() as connection:
        result = await find(connection, run.manifest, wish.arguments)
    return _new_call(
        run,
        wish,
        settings,
        policy,
        server=OWN_SERVER,
        asked=wish.tool,
        tool=wish.tool,
        server_version_id=0,
        tool_version_id=0,
        delivery=Delivery.READ,
        call_timeout_s=0,
        arguments_digest=_digest(wish.tool, wish.arguments),
        state=CallState.SUCCEEDED,
        result=result,
    )


def prepare(
    run: Run,
    wish: Wish,
    settings: Settings,
    policy: TenantPolicy,
    blocked: Container[tuple[int, str]] = (),
) -> NewCall:
    """Return the call a wish becomes; raise what is wrong with it.

    ``blocked`` holds (server version id, tool) of what may not be called now. Raises `run_closed`,
    `run_cancelled`, `run_expired`, `unknown_tool`, `out_of_scope`, `policy_denied`, `tool_held`,
    `invalid_request`, `request_too_large`, `invalid_arguments`.
    """
    run_is_open(run)
    wish = _unwrapped(run, wish)
    tool = run.find(wish.tool)
    if wish.scopes is not None:
        wish.scopes.refuse_tool(tool.server, tool.upstream_name)
    access = policy.tool_access(tool.server, tool.upstream_name, tool.delivery)
    if access is Access.DENY:
        raise policy.denied(tool.server, tool.upstream_name, tool.delivery)
    if (tool.server_version_id, tool.upstream_name) in blocked:
        raise tool_held(tool.server, tool.upstream_name)
    arguments_digest = _digest(tool.name, wish.arguments)  # refuses what is no JSON
    size = _size_of(tool.name, wish.arguments, settings)
    check_arguments(tool.name, tool.input_schema, wish.arguments)
    awaits = tool.approval or access is Access.APPROVE
    return _new_call(
        run,
        wish,
        settings,
        policy,
        server=tool.server,
        asked=tool.upstream_name,
        tool=tool.name,
        server_version_id=tool.server_version_id,
        tool_version_id=tool.tool_version_id,
        delivery=tool.delivery,
        call_timeout_s=tool.timeout_s,
        arguments_digest=arguments_digest,
        arguments_bytes=size,
        state=CallState.AWAITING_APPROVAL if awaits else CallState.QUEUED,
        approval_s=settings.approval_lifetime.total_seconds() if awaits else None,
        caps=policy.caps(tool.server, tool.upstream_name),
    )


def prepare_request(run: Run, wish: Wish, settings: Settings, policy: TenantPolicy) -> NewCall:
    """Return the call of a request that is of no tool (`registry.requests`).

    Raises `run_closed`, `run_cancelled`, `run_expired`, `out_of_scope`, `policy_denied`,
    `invalid_request`, `request_too_large`, `invalid_arguments`.
    """
    run_is_open(run)
    assert wish.version is not None
    definition = wish.version.definition
    policy.refuse_server(definition)
    if run.servers is not None and definition.name not in run.servers:
        raise FleetError(
            Code.OUT_OF_SCOPE,
            f"run {run.id} was not started for server {definition.name!r}",
            hint="start a run with this server",
        )
    if wish.scopes is not None:
        wish.scopes.refuse_tool(definition.name, wish.method)
    if not may_ask(policy, definition, wish.method):
        raise policy.denied(definition.name, wish.method, CLASS)
    arguments_digest = _digest(wish.tool, wish.arguments)
    size = _size_of(wish.tool, wish.arguments, settings)
    return _new_call(
        run,
        wish,
        settings,
        policy,
        server=definition.name,
        asked=wish.method,
        tool=wish.tool,
        method=wish.method,
        server_version_id=wish.version.id,
        tool_version_id=0,
        delivery=CLASS,
        call_timeout_s=definition.timeouts.call_s,
        arguments_digest=arguments_digest,
        arguments_bytes=size,
        caps=policy.caps(definition.name, wish.method),
    )


def _new_call(
    run: Run,
    wish: Wish,
    settings: Settings,
    policy: TenantPolicy,
    *,
    server: str,
    asked: str,
    **rest: Any,
) -> NewCall:
    """Return a call with what each has of its run, its wish and its tenant's policy.

    ``asked`` is the tool as its server calls it, or the method. Raises `invalid_request`.
    """
    return NewCall(
        id=wish.call_id or str(uuid.uuid4()),
        run_id=run.id,
        tenant_id=run.tenant,
        actor=wish.actor,
        server_name=server,
        upstream_name=asked,
        arguments=wish.arguments,
        deadline_s=_deadline_s(wish, settings),
        idempotency_key=_key(wish),
        traceparent=wish.traceparent,
        trace=wish.trace if wish.traceparent else None,
        reply_to=wish.reply_to,
        answers=tuple(sorted(wish.answers)),
        log_level=wish.log_level,
        buckets=policy.buckets(server, asked),
        priority=policy.tier.priority,
        **rest,
    )


def _size_of(what: str, arguments: dict[str, Any], settings: Settings) -> int:
    """Return the size of a call's arguments; raise `request_too_large`."""
    size = len(to_json(arguments))
    if size > settings.max_arguments_bytes:
        raise FleetError(
            Code.REQUEST_TOO_LARGE,
            f"the arguments of {what} are {size} bytes; the limit is "
            f"{settings.max_arguments_bytes}",
            hint="pass large data by reference",
        )
    return size


def tool_held(server: str, tool: str) -> FleetError:
    """Return the error for a tool whose definition changed and was not accepted yet."""
    return FleetError(
        Code.TOOL_HELD,
        f"tool {tool!r} of server {server!r} is not what this run was shown: the server changed it",
        hint=f"an operator has to decide: `toolfleet servers changes {server}`",
        details={"server": server, "tool": tool},
    )


def _unwrapped(run: Run, wish: Wish) -> Wish:
    """Return the wish that a call of `call_tool` stands for."""
    if run.exposure is not Exposure.SEARCH or wish.tool != CALL_TOOL["name"]:
        return wish
    check_arguments(wish.tool, CALL_TOOL["inputSchema"], wish.arguments)
    wanted, arguments = wish.arguments["name"], wish.arguments.get("arguments", {})
    return replace(wish, tool=wanted, arguments=arguments)


def _key(wish: Wish) -> str | None:
    if "\0" in (wish.idempotency_key or ""):
        raise FleetError(Code.INVALID_REQUEST, "the idempotency key contains a NUL character")
    return wish.idempotency_key


def message_of(call: NewCall, call_id: str) -> dict[str, Any]:
    """Return the fields of the message about a call: never its arguments."""
    return {
        "id": call_id,
        "run_id": call.run_id,
        "tenant_id": call.tenant_id,
        "tool": call.tool,
        "server_name": call.server_name,
        "traceparent": call.traceparent,
        "remaining_s": call.deadline_s,
        "priority": call.priority,
    }


class Admission(Protocol):
    """Who says whether a submission is within its tenant's rates (`workers.admission`)."""

    async def take(self, call: NewCall) -> None:
        """Take a call from its buckets; raise `tenant_limited` or `limiter_unavailable`."""

    def give_back(self, call: NewCall) -> None:
        """Put back what was taken for a call that came to nothing."""


async def submit_within(
    database: Database,
    call: NewCall,
    admission: Admission,
    insert: Callable[[NewCall], Awaitable[Submitted | FleetError]],
) -> Submitted | FleetError:
    """Insert a call within its tenant's rates; return its row, or why there is none.

    What is known by its idempotency key is not charged, nor is what becomes no new row. Raises
    what `Admission.take` and ``insert`` raise.
    """
    if not call.buckets:
        return await insert(call)
    key = call.idempotency_key
    if key is not None and await calls.is_known(database, call.tenant_id, key):
        return await insert(call)
    await admission.take(call)
    outcome = await insert(call)
    if isinstance(outcome, FleetError) or not outcome.created:
        admission.give_back(call)
    return outcome


async def submit_one(
    database: Database,
    settings: Settings,
    *,
    run_id: str,
    tenant: str,
    policies: Policies,
    shelf: Shelf,
    admission: Admission,
    **wish: Any,
) -> tuple[Submitted, dict[str, Any] | None]:
    """Check and commit one call; return its row and its message, if one is to be sent now."""
    run = await get_run(database, run_id, tenant=tenant, shelf=shelf)
    policy = await policies.of(run.tenant)
    call = await make_call(database, run, Wish(**wish), settings, policy)

    async def insert(call: NewCall) -> Submitted | FleetError:
        return (await calls.submit(database, [call]))[0]

    answer = await submit_within(database, call, admission, insert)
    if isinstance(answer, FleetError):
        raise answer
    return answer, message_of(call, answer.id) if call.state is CallState.QUEUED else None


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
