"""The pages of runs: all of them, newest first, and each one with its calls and its tools."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.auth import CALLERS, actor_of
from api.console.lists import address, cursor_of, older, one_of, texts_of
from api.console.page import ConsoleRoute, back_to, may, page
from api.rest import operations_of
from registry import call_search, tenants
from registry.call_search import MOST_COUNTED
from registry.tenants import Role

STATES: Final = ("open", "closed", "cancelled", "expired")
MOST_TOOLS: Final = 300
_ENDED: Final = {
    "cancelled": "The run was cancelled: it takes no more calls, and those that were queued or "
    "waited never run. Each that was running was told to stop; below it says how it ended.",
    "closed": "The run was closed: it takes no more calls, and those that it has go on.",
}

router = APIRouter(route_class=ConsoleRoute, dependencies=[Depends(CALLERS)])


@router.get("/runs", tags=["runs"])
async def list_runs(request: Request) -> Response:
    """Show the newest runs that fit."""
    operations, actor = operations_of(request), actor_of(request)
    chosen = texts_of(request, "tenant", "state")
    start = cursor_of(request)
    found = await call_search.newest_runs(
        operations.database,
        tenant=actor.tenant or chosen.get("tenant"),
        state=one_of("state", chosen.get("state"), STATES),
        start=start,
    )
    return page(
        request,
        "runs.html",
        chosen=chosen,
        states=STATES,
        for_all=actor.tenant is None,
        runs=found.rows,
        older=older("/console/runs", chosen, found),
        back_to=found.back_to,
        first=start is None,
        here=address("/console/runs", chosen, start),
        most_counted=MOST_COUNTED,
    )


@router.get("/runs/{run_id}", tags=["runs"])
async def show_run(request: Request, run_id: str) -> Response:
    """Show a run: its calls, newest first, and the tools that it sees."""
    operations, actor = operations_of(request), actor_of(request)
    run = await operations.get_run(actor, run_id)
    start = cursor_of(request)
    calls = await call_search.calls_of_run(operations.database, run.id, start)
    counts = await call_search.call_counts(operations.database, [run.id])
    path = f"/console/runs/{run.id}"
    return page(
        request,
        "run.html",
        run=run,
        state="expired" if run.state == "open" and run.expired else run.state,
        counts=counts[run.id],
        most_counted=MOST_COUNTED,
        calls=calls.rows,
        older=older(path, {}, calls),
        first=start is None,
        here=address(path, {}, start),
        tools=_tools(request, run.tools.values()),
        tool_count=len(run.tools),
        may_end=may(actor, "runs:write", Role.OPERATOR, Role.TENANT),
        operates=actor.role is Role.OPERATOR,
        names=await tenants.key_names(operations.database, [run.actor]),
        said=_ENDED.get(request.query_params.get("ended", "")),
    )


@router.post("/runs/{run_id}/cancel", tags=["runs"])
async def cancel_run(request: Request, run_id: str) -> Response:
    """Cancel a run and stop its calls."""
    return await _end(request, run_id, "cancelled")


@router.post("/runs/{run_id}/close", tags=["runs"])
async def close_run(request: Request, run_id: str) -> Response:
    """Close a run: it takes no more calls."""
    return await _end(request, run_id, "closed")


async def _end(request: Request, run_id: str, how: str) -> Response:
    await operations_of(request).end_run(actor_of(request), run_id, cancel=how == "cancelled")
    return back_to(f"/console/runs/{run_id}?ended={how}")


def _tools(request: Request, tools: Any) -> list[Any]:
    """Return the tools to show; none where only what is live is fetched again, which has none."""
    if "hx-request" in request.headers:
        return []
    return sorted(tools, key=lambda it: it.name)[:MOST_TOOLS]
