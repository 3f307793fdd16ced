"""The routes of what changes under runs: rollouts, and held changes of tools. For operators."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from api import shown
from api.administration import visible_server
from api.auth import actor_of, operators_only
from api.contract import written_as
from api.operations import label
from api.rest import PROBLEMS, operations_of
from api.wire import StrictRoute, answer
from registry import catalog, holds, ingest, judgement, rollouts
from registry.rollouts import RolloutPlan, RolloutState, parse_plan

_OPERATORS: Final = [Depends(operators_only)]
_Plan = Annotated[dict[str, Any], written_as(RolloutPlan)]
_Id = Annotated[int, Path(ge=1, lt=2**63)]

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=PROBLEMS)


@router.put(
    "/servers/{name}/rollout",
    tags=["rollouts"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Rollout}},
)
async def put_rollout(request: Request, name: str, body: _Plan) -> Response:
    """Have some tenants see another version of a server, or change which of them do."""
    plan = parse_plan(body)
    await visible_server(request, name)
    database = operations_of(request).database
    rollout = await rollouts.put_rollout(database, name, plan, actor=label(actor_of(request)))
    return answer(rollout.as_dict())


@router.get(
    "/servers/{name}/rollout",
    tags=["rollouts"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Rollout}},
)
async def get_rollout(request: Request, name: str) -> Response:
    """Show the active rollout of a server with its report as of now, else the last one."""
    await visible_server(request, name)
    database = operations_of(request).database
    rollout = await rollouts.get_rollout(database, name)
    shown = rollout.as_dict()
    if rollout.state is RolloutState.ACTIVE:
        _, shown["report"] = await judgement.report_on(database, rollout)
    return answer(shown)


@router.get(
    "/servers/{name}/rollouts",
    tags=["rollouts"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Rollouts}},
)
async def list_rollouts(request: Request, name: str) -> Response:
    """Show the rollouts of a server with their reports, newest first."""
    await visible_server(request, name)
    found = await rollouts.list_rollouts(operations_of(request).database, name)
    return answer({"rollouts": [rollout.as_dict() for rollout in found]})


@router.post(
    "/servers/{name}/rollout/promote",
    tags=["rollouts"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Rollout}},
)
async def promote(request: Request, name: str) -> Response:
    """Make the canary the version that all new runs see."""
    return await _end(request, name, rollouts.promote)


@router.post(
    "/servers/{name}/rollout/rollback",
    tags=["rollouts"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Rollout}},
)
async def roll_back(request: Request, name: str) -> Response:
    """Have all new runs see the stable version; runs that saw the canary keep it."""
    return await _end(request, name, rollouts.roll_back)


@router.post(
    "/servers/{name}/restore",
    tags=["rollouts"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Server}},
)
async def restore(request: Request, name: str) -> Response:
    """Serve the version again that was current before this one."""
    await visible_server(request, name)
    database = operations_of(request).database
    await catalog.serve_previous(database, name, actor=label(actor_of(request)))
    return answer((await catalog.get_server(database, name)).as_dict())


@router.get(
    "/servers/{name}/changes",
    tags=["changes"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Changes}},
)
async def list_changes(request: Request, name: str) -> Response:
    """Show what changed in a server's tools, newest first, and what of it is held.

    It quotes what was screened out, which agents and their orchestrators are not to read.
    """
    server = await visible_server(request, name)
    database, name = operations_of(request).database, server.definition.name
    held = await holds.list_holds(database, name)
    return answer(
        {
            "changes": await ingest.list_changes(database, name),
            "held": [hold.as_dict() for hold in held],
        }
    )


@router.post(
    "/servers/{name}/changes/{hold_id}/accept",
    tags=["changes"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Hold}},
)
async def accept(request: Request, name: str, hold_id: _Id) -> Response:
    """Take a held change in: new runs are offered what the server lists."""
    await visible_server(request, name)
    hold = await ingest.accept(
        operations_of(request).database, name, hold_id, actor=label(actor_of(request))
    )
    return answer(hold.as_dict())


@router.post(
    "/servers/{name}/changes/{hold_id}/reject",
    tags=["changes"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Hold}},
)
async def reject(request: Request, name: str, hold_id: _Id) -> Response:
    """Keep a held change out until the server changes the tool again."""
    await visible_server(request, name)
    hold = await ingest.reject(
        operations_of(request).database, name, hold_id, actor=label(actor_of(request))
    )
    return answer(hold.as_dict())


async def _end(request: Request, name: str, end: Any) -> Response:
    await visible_server(request, name)
    database = operations_of(request).database
    running = await rollouts.get_rollout(database, name)
    _, report = await judgement.report_on(database, running)
    ended = await end(
        database, name, actor=label(actor_of(request)), report=report, only=running.id
    )
    return answer(ended.as_dict())
