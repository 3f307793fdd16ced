"""The routes of approvals: what waits, what was decided, and decisions, one by one or many at once.

A decision names the binding that its maker was shown. Nothing but the path and the body of a
request says what is decided about.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api import shown
from api.auth import actor_of, only
from api.errors import problem_body
from api.rest import PROBLEMS, operations_of
from api.wire import Decide, DecideMany, DecideOne, StrictRoute, answer
from registry import approvals
from registry.approvals import Verdict
from registry.errors import FleetError
from registry.tenants import Role

_APPROVERS: Final = [Depends(only(Role.OPERATOR, Role.APPROVER))]
_READERS: Final = [Depends(only(Role.OPERATOR, Role.APPROVER, Role.TENANT))]
_ONE: Final[dict[int | str, dict[str, Any]]] = {200: {"model": shown.Approval}}
_Text = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$")]

router = APIRouter(prefix="/v1", tags=["approvals"], route_class=StrictRoute, responses=PROBLEMS)


@router.get("/approvals", dependencies=_READERS, responses={200: {"model": shown.Approvals}})
async def list_approvals(
    request: Request,
    state: Literal["waiting", "decided"] = "waiting",
    tenant: _Text = None,
    server: _Text = None,
    tool: _Text = None,
    after: _Text = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> Response:
    """Show the calls that wait, oldest first, or that were decided about, newest first.

    Who acts for one tenant sees that tenant's. ``next`` is what to send as ``after`` for more.
    """
    operations, own = operations_of(request), actor_of(request).tenant
    if own is not None and tenant not in (None, own):
        return answer({"approvals": [], "next": None})
    found = await approvals.listed(
        operations.database,
        operations.sealer,
        state=state,
        tenant=own or tenant,
        server=server,
        tool=tool,
        after=after,
        limit=limit,
    )
    return answer({"approvals": found, "next": found[-1]["id"] if len(found) == limit else None})


@router.get("/approvals/{call_id}", dependencies=_READERS, responses=_ONE)
async def get_approval(request: Request, call_id: str) -> Response:
    """Show a call that waits or waited, with its arguments and the binding of all that is shown."""
    return answer(await operations_of(request).approval(actor_of(request), call_id))


@router.post(
    "/approvals/decide", dependencies=_APPROVERS, responses={200: {"model": shown.DecidedMany}}
)
async def decide_many(request: Request, body: DecideMany) -> Response:
    """Decide about up to 100 calls; each has its own answer, and fails or succeeds alone."""
    return answer({"results": [await _one_of_many(request, it) for it in body.decisions]})


@router.post("/approvals/{call_id}/approve", dependencies=_APPROVERS, responses=_ONE)
async def approve(request: Request, call_id: str, body: Decide) -> Response:
    """Let a waiting call run: its deadline begins now. Never who asked for it: another has to."""
    return await _decide(request, call_id, body, approve=True)


@router.post("/approvals/{call_id}/deny", dependencies=_APPROVERS, responses=_ONE)
async def deny(request: Request, call_id: str, body: Decide) -> Response:
    """End a waiting call as denied."""
    return await _decide(request, call_id, body, approve=False)


async def _decide(request: Request, call_id: str, body: Decide, *, approve: bool) -> Response:
    verdict = Verdict(call_id, body.binding, approve, body.reason)
    return answer(await operations_of(request).decide(actor_of(request), verdict))


async def _one_of_many(request: Request, wanted: DecideOne) -> dict[str, Any]:
    verdict = Verdict(wanted.id, wanted.binding, wanted.approve, wanted.reason)
    try:
        view = await operations_of(request).decide(actor_of(request), verdict)
    except FleetError as error:
        return {"id": wanted.id, "error": problem_body(error)}
    return {"id": wanted.id, "approval": view}
