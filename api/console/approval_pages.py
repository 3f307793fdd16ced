"""The page of approvals: what waits for a person's word, with all of it in view.

A decision names the binding that its page showed: what has changed since is not decided about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.responses import Response

from api.auth import actor_of, only
from api.console.page import ConsoleRoute, back_to, form_of, may, page
from api.operations import label
from api.rest import operations_of
from api.wire import Decide
from registry import approvals, call_search, tenants
from registry.approvals import Verdict
from registry.calls import CallState, is_id
from registry.errors import Code, FleetError
from registry.tenants import Role

MOST_WAITING: Final = 50
MOST_DECIDED: Final = 10
TOLD: Final = frozenset(
    {Code.ALREADY_DECIDED, Code.APPROVAL_MISMATCH, Code.FORBIDDEN, Code.UNKNOWN_CALL}
)
"""Refusals of a decision that are told above what waits now."""
_DECIDERS: Final = (Role.OPERATOR, Role.APPROVER)
_APPROVERS: Final = [Depends(only(*_DECIDERS))]
_READERS: Final = [Depends(only(Role.OPERATOR, Role.APPROVER, Role.TENANT))]

router = APIRouter(route_class=ConsoleRoute)


@router.get("/approvals", tags=["approvals"], dependencies=_READERS)
async def list_approvals(request: Request) -> Response:
    """Show what waits, oldest first, what was decided lately, and what became of a decision."""
    decided = request.query_params.get("decided", "")
    told = await _told(request, decided) if is_id(decided) else None
    return await _shown(request, told)


@router.post("/approvals/{call_id}/approve", tags=["approvals"], dependencies=_APPROVERS)
async def approve(request: Request, call_id: str) -> Response:
    """Let a waiting call run."""
    return await _decide(request, call_id, approve=True)


@router.post("/approvals/{call_id}/deny", tags=["approvals"], dependencies=_APPROVERS)
async def deny(request: Request, call_id: str) -> Response:
    """End a waiting call as denied."""
    return await _decide(request, call_id, approve=False)


async def _decide(request: Request, call_id: str, *, approve: bool) -> Response:
    form = await form_of(request)
    try:
        said = Decide(
            binding=form.get("binding", ""), reason=form.get("reason", "").strip() or None
        )
    except ValidationError as error:
        where = error.errors()[0]
        raise FleetError(
            Code.INVALID_REQUEST,
            f"the decision is not valid: {'.'.join(map(str, where['loc']))}: {where['msg']}",
            hint="decide on the page that shows the call",
        ) from None
    verdict = Verdict(call_id, said.binding, approve, said.reason)
    try:
        await operations_of(request).decide(actor_of(request), verdict)
    except FleetError as error:
        if error.code not in TOLD:
            raise
        return await _shown(request, {"tone": "bad", "error": error}, status=error.code.status)
    return back_to(f"/console/approvals?decided={call_id}")


async def _shown(request: Request, told: Mapping[str, Any] | None, status: int = 200) -> Response:
    operations, actor = operations_of(request), actor_of(request)
    database, sealer = operations.database, operations.sealer
    waiting = await approvals.listed(database, sealer, tenant=actor.tenant, limit=MOST_WAITING + 1)
    decided = await approvals.listed(
        database, sealer, state="decided", tenant=actor.tenant, limit=MOST_DECIDED
    )
    tools = await call_search.descriptions(database, [it["tool_version_id"] for it in waiting])
    return page(
        request,
        "approvals.html",
        status=status,
        waiting=waiting[:MOST_WAITING],
        more=len(waiting) > MOST_WAITING,
        decided=decided,
        descriptions=tools,
        names=await tenants.key_names(database, _labels([*waiting, *decided])),
        told=told,
        me=label(actor),
        may_decide=may(actor, "approvals:write", *_DECIDERS),
        calls_shown=may(actor, "calls:read", Role.OPERATOR, Role.TENANT),
    )


def _labels(views: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return everybody who asked for one of these calls, or decided about it."""
    asked = {view[name] for view in views for name in ("requested_by", "started_by")}
    return asked | {it["decided_by"] for view in views for it in view["decisions"]}


async def _told(request: Request, call_id: str) -> Mapping[str, Any] | None:
    """Return what became of a decision, as the record has it."""
    try:
        view = await operations_of(request).approval(actor_of(request), call_id)
    except FleetError:
        return None
    given = sum(it["approve"] for it in view["decisions"])
    state = CallState(view["state"])
    if state is CallState.AWAITING_APPROVAL:
        tone, text = "wait", f"has {given} of the {view['approvers']} approvals that it needs"
    elif state is CallState.DENIED:
        tone, text = "bad", "was denied, and never runs"
    else:
        tone, text = "good", f"was approved, and is {state.value.replace('_', ' ')} now"
    return {"tone": tone, "text": text, "view": view}
