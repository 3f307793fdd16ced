"""What Flower asks, which lets people in by the console's sessions: who they are, stop this call.

It passes on what the browser, or a program, showed it, and is told no more than that one may know.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.auth import actor_of, operators_only
from api.console.frame import may_use_flower
from api.console.page import ConsoleRoute, PlainRoute
from api.rest import operations_of
from api.wire import answer

router = APIRouter(route_class=PlainRoute)
stopping = APIRouter(route_class=ConsoleRoute, dependencies=[Depends(operators_only)])


@router.get("/session", tags=["session"])
async def session(request: Request) -> Response:
    """Return who asks, and what a form of theirs has to carry."""
    actor = actor_of(request)
    return answer(
        {
            "name": actor.name,
            "role": actor.role.value,
            "flower": may_use_flower(actor),
            "csrf": request.scope["state"].get("csrf", ""),
        }
    )


@stopping.post("/session/calls/{call_id}/cancel", tags=["calls"])
async def stop_call(request: Request, call_id: str) -> Response:
    """Stop a call for an operator; `answer` says what that could still do."""
    said, row = await operations_of(request).stop_call(actor_of(request), call_id)
    return answer({"answer": said.value, "state": row["state"]})
