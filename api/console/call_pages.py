"""The pages of calls: all of them, newest first, and each one with its life, end and trace."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.auth import CALLERS, actor_of
from api.console.lists import address, cursor_of, older, one_of, texts_of
from api.console.page import ConsoleRoute, back_to, may, page
from api.console.phases import life_of
from api.console.waterfall import Waterfall, waterfall
from api.rest import operations_of
from api.waiting import Row
from registry import audit, call_search, tenants
from registry.call_search import Wanted, trace_named
from registry.calls import CallState
from registry.errors import Code, FleetError
from registry.tenants import Actor, Role

WITHIN: Final = {
    "15m": ("15 minutes", timedelta(minutes=15)),
    "1h": ("hour", timedelta(hours=1)),
    "24h": ("24 hours", timedelta(hours=24)),
    "7d": ("7 days", timedelta(days=7)),
}
"""The windows of time that can be chosen."""
WRONG: Final = "went_wrong"
"""Chosen in a state's place: `Wanted.wrong`."""
FOLDED_FROM: Final = 2_000
"""Characters of JSON from which on it is folded up."""
MOST_ENTRIES: Final = 50
STOPS: Final[dict[str, tuple[str, str]]] = {
    "stopped_before_dispatch": ("good", "The call was stopped before any server saw it."),
    "stop_requested": (
        "wait",
        "The call runs, and its worker was told to stop it; below it says how that ended.",
    ),
    "too_late": ("bad", "Too late: the call had ended already. Nothing was changed."),
}
"""What each answer to a stop means."""
_TRUTH: Final[dict[str, bool]] = {"yes": True, "no": False}

router = APIRouter(route_class=ConsoleRoute, dependencies=[Depends(CALLERS)])


@router.get("/calls", tags=["calls"])
async def list_calls(request: Request) -> Response:
    """Show the newest calls that fit, or what a text names; go to it if it names one thing."""
    operations, actor = operations_of(request), actor_of(request)
    chosen = texts_of(request, "find", "server", "tool", "tenant", "state", "is_error", "within")
    shown: dict[str, Any] = {
        "chosen": chosen,
        "states": [WRONG, *CallState],
        "windows": {key: name for key, (name, _) in WITHIN.items()},
        "for_all": actor.tenant is None,
    }
    if named := chosen.get("find"):
        found = await call_search.find(operations.database, named, tenant=actor.tenant)
        if len(found.calls) + len(found.runs) == 1:
            kind, (only, *_) = ("calls", found.calls) if found.calls else ("runs", found.runs)
            return back_to(f"/console/{kind}/{only['id']}")
        return page(request, "calls.html", **shown, found=found, calls=found.calls)
    start = cursor_of(request)
    found_page = await call_search.newest_calls(operations.database, _wanted(chosen, actor), start)
    return page(
        request,
        "calls.html",
        **shown,
        found=None,
        calls=found_page.rows,
        older=older("/console/calls", chosen, found_page),
        back_to=found_page.back_to,
        first=start is None,
        here=address("/console/calls", chosen, start),
    )


@router.get("/calls/{call_id}", tags=["calls"])
async def show_call(request: Request, call_id: str) -> Response:
    """Show a call: where it is, its phases, its trace, how it ended."""
    operations, actor = operations_of(request), actor_of(request)
    told = await operations.get_call(actor, call_id)
    row = {**told, **await call_search.recorded(operations.database, call_id)}
    row = await operations.with_questions(actor, row)
    operates = actor.role is Role.OPERATOR
    entries: list[dict[str, Any]] | None = None
    if may(actor, "audit:read", Role.OPERATOR):
        entries = await audit.entries(operations.database, call=call_id, limit=MOST_ENTRIES)
    return page(
        request,
        "call.html",
        call=row,
        ended=CallState(row["state"]).final,
        life=life_of(row, row["now"]),
        trace_id=trace_named(row["traceparent"] or ""),
        trace=await _trace(request, row) if operates else None,
        waits=await _as_approved(request, actor, row),
        entries=entries,
        operates=operates,
        names=await tenants.key_names(
            operations.database,
            {row["actor"], row["decided_by"] or "", *(it["actor"] for it in entries or ())},
        ),
        may_stop=may(actor, "calls:cancel", Role.OPERATOR, Role.TENANT),
        may_approve=may(actor, "approvals:write", Role.OPERATOR),
        said=STOPS.get(request.query_params.get("stop", "")),
        folded_from=FOLDED_FROM,
    )


@router.post("/calls/{call_id}/cancel", tags=["calls"])
async def stop_call(request: Request, call_id: str) -> Response:
    """Ask a call to stop; its page says what that could still do."""
    said, _ = await operations_of(request).stop_call(actor_of(request), call_id)
    return back_to(f"/console/calls/{call_id}?stop={said.value}")


async def _as_approved(request: Request, actor: Actor, row: Row) -> dict[str, Any] | None:
    """Return a call as its approvers see it, for those who may: the one place of its arguments."""
    if not row["gated"] or not may(actor, "approvals:read", Role.OPERATOR, Role.TENANT):
        return None
    try:
        return await operations_of(request).approval(actor, row["id"])
    except FleetError as error:
        if error.code is not Code.UNKNOWN_CALL:
            raise
        return None  # it waited, and nobody decided about it


async def _trace(request: Request, row: Row) -> Waterfall:
    """Return what is kept of the trace of a call: it may be of several tenants' calls."""
    trace_id = trace_named(row["traceparent"] or "")
    if trace_id is None:
        return waterfall([])
    try:
        return waterfall(await operations_of(request).client.trace_of(trace_id))
    except FleetError:
        return waterfall([])  # without a broker there is no trace, and there is all the rest


def _wanted(chosen: dict[str, str], actor: Actor) -> Wanted:
    state = one_of("state", chosen.get("state"), [WRONG, *(it.value for it in CallState)])
    within = one_of("within", chosen.get("within"), WITHIN)
    is_error = one_of("is_error", chosen.get("is_error"), _TRUTH)
    return Wanted(
        tenant=actor.tenant or chosen.get("tenant"),
        server=chosen.get("server"),
        tool=chosen.get("tool"),
        state=CallState(state) if state and state != WRONG else None,
        wrong=state == WRONG,
        is_error=_TRUTH[is_error] if is_error else None,
        since=datetime.now(UTC) - WITHIN[within][1] if within else None,
    )
