"""The verbs by which operators tend a running fleet: force a breaker, drain a worker.

The console's forms go through the same functions as the routes.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import ConfigDict, Field, JsonValue, model_validator
from starlette.responses import Response

from api import shown
from api.administration import visible_server
from api.auth import actor_of, operators_only
from api.fleet import read_fleet
from api.operations import Operations, label
from api.rest import PROBLEMS, operations_of
from api.wire import Label, Reason, StrictBody, StrictRoute, answer
from registry import audit, catalog, leases
from registry.catalog import ServerVersion
from registry.errors import Code, FleetError
from registry.fields import DAY_S
from registry.tenants import Actor
from workers.client import BreakerSnapshot

FORCED_FOR_S: Final = 300.0
_OPERATORS: Final = [Depends(operators_only)]
_Version = Annotated[
    str | None,
    Query(max_length=64, pattern=r"^[^\x00]*$", description="Another than the served version"),
]
_ONLY_OPEN_FOR_A_TIME: Final[dict[str, JsonValue]] = {
    "if": {"properties": {"state": {"const": "closed"}}},
    "then": {"properties": {"for_s": {"type": "null"}}},
}

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=PROBLEMS)


class ForceBreaker(StrictBody):
    """What becomes of a breaker: open for some seconds (300), or closed at once."""

    model_config = ConfigDict(json_schema_extra=_ONLY_OPEN_FOR_A_TIME)

    state: Literal["open", "closed"]
    for_s: float | None = Field(default=None, gt=0, le=DAY_S)
    version: Label | None = None
    reason: Reason | None = None

    @model_validator(mode="after")
    def _open_for_a_time(self) -> ForceBreaker:
        if self.state == "closed" and self.for_s is not None:
            raise ValueError("for_s is for a breaker that is opened")
        return self


@router.get(
    "/servers/{name}/breaker",
    tags=["servers"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Breaker}},
)
async def get_breaker(request: Request, name: str, version: _Version = None) -> Response:
    """Show the breaker of a server's current version, or of another, as all workers share it."""
    await visible_server(request, name)
    operations = operations_of(request)
    server = await _version_of(operations, name, version)
    (breaker,) = await operations.client.breakers([(name, server.id, server.definition.breaker)])
    return answer(_breaker(server, breaker))


@router.post(
    "/servers/{name}/breaker",
    tags=["servers"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Breaker}},
)
async def post_breaker(request: Request, name: str, body: ForceBreaker) -> Response:
    """Open a breaker for a while, or close it, whatever its calls said: for all workers at once.

    When its time is over one call tries the server, as after any opening.
    """
    await visible_server(request, name)
    server, breaker = await force_breaker(operations_of(request), actor_of(request), name, body)
    return answer(_breaker(server, breaker))


@router.get(
    "/workers",
    tags=["workers"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Workers}},
)
async def list_workers(request: Request) -> Response:
    """Show the workers whose leases hold, and their sessions; `away` says what cannot be known."""
    fleet = await read_fleet(operations_of(request))
    return answer({"workers": [it.as_dict() for it in fleet.workers], "away": fleet.away})


@router.post(
    "/workers/{worker_id}/drain",
    tags=["workers"],
    status_code=202,
    dependencies=_OPERATORS,
    responses={202: {"model": shown.DrainedWorker}},
)
async def post_drain(request: Request, worker_id: str) -> Response:
    """Have a worker take no more calls, let those that run finish, and end.

    Whatever keeps workers running starts another one in its place.
    """
    return answer(await drain_worker(operations_of(request), actor_of(request), worker_id), 202)


async def force_breaker(
    operations: Operations, actor: Actor, name: str, wish: ForceBreaker
) -> tuple[ServerVersion, BreakerSnapshot]:
    """Open or close a breaker by hand; return whose it is, and its state after that.

    It is in the audit if it was done. Raises `unknown_server`, `unknown_version`, and
    `store_unavailable` while Redis, or the record, is away: then nothing is pretended.
    """
    server = await _version_of(operations, name, wish.version)
    for_s = (wish.for_s or FORCED_FOR_S) if wish.state == "open" else 0.0
    why = f"by hand of {label(actor)}" + (f": {wish.reason}" if wish.reason else "")
    async with operations.database.transaction() as connection:
        await audit.record(
            connection,
            label(actor),
            f"breaker.forced_{wish.state}",
            {
                "server": name,
                "version": server.definition.version,
                "for_s": for_s or None,
                "reason": wish.reason,
            },
        )
        breaker = await operations.client.force_breaker(
            name, server.id, server.definition.breaker, open_for_s=for_s, why=why
        )
    return server, breaker


async def drain_worker(operations: Operations, actor: Actor, worker_id: str) -> dict[str, Any]:
    """Ask a worker to drain; return it as it is shown. Raises `unknown_worker`."""
    if "\0" in worker_id:
        raise FleetError(Code.UNKNOWN_WORKER, "no worker has such an id")
    row = await leases.ask_to_drain(operations.database, worker_id, actor=label(actor))
    return {"server" if name == "server_name" else name: value for name, value in row.items()}


async def _version_of(operations: Operations, name: str, version: str | None) -> ServerVersion:
    if version is None:
        return await catalog.get_server(operations.database, name)
    return await catalog.get_version(operations.database, name, version)


def _breaker(server: ServerVersion, breaker: BreakerSnapshot) -> dict[str, Any]:
    return {
        "server": server.definition.name,
        "version": server.definition.version,
        "state": breaker.state.value,
        "open_s": breaker.open_s,
        "why": breaker.why,
        "retry_after_s": breaker.retry_after_s,
        "calls": breaker.calls,
        "failures": breaker.failures,
        "consecutive_timeouts": breaker.consecutive_timeouts,
    }
