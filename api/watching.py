"""The routes of whoever watches the fleet: how it is now, and what it needs; for operators."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api import shown
from api.auth import operators_only
from api.contract import fails_with
from api.fleet import SESSIONS, Server, read_fleet
from api.rest import PROBLEMS, operations_of
from api.wire import StrictRoute, answer
from registry import catalog, overview
from registry.capacity import NOTHING_ASKED, Target, plan
from registry.demand import demands
from registry.pulse import Beat, pulse

MOST_BEATS: Final = 240
LONGEST_WINDOW_S: Final = 7 * 86_400

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=PROBLEMS)


@router.get(
    "/fleet",
    tags=["health"],
    dependencies=[Depends(operators_only)],
    responses={200: {"model": shown.Fleet}},
)
async def show_fleet(
    request: Request,
    beats: Annotated[int, Query(ge=1, le=MOST_BEATS, description="How many of each server")] = 10,
    beat_s: Annotated[int, Query(ge=1, le=3600, description="How long each is")] = 60,
) -> Response:
    """Show servers, workers, pools, breakers and queues as they are now, and the last beats.

    A beat is what was submitted to a server within so many seconds, and how it went; the newest is
    the last one, which has not ended yet.
    """
    operations = operations_of(request)
    state = await read_fleet(operations)
    step = timedelta(seconds=beat_s)
    lately = await pulse(operations.database, window=beats * step, step=step)
    return answer(
        {
            "servers": [_server(it, lately.get(it.name, [])) for it in state.servers],
            "away": list(state.away),
            "unfinished": state.unfinished,
            "beat_s": beat_s,
        }
    )


def _server(server: Server, beats: list[Beat]) -> dict[str, Any]:
    pools = [pool for it in server.workers for pool in it.pools.values()]
    return {
        "name": server.name,
        "version": server.version.definition.version,
        "breaker": server.breaker,
        "queued": server.queued,
        "oldest_queued_s": round(server.oldest_queued_s, 3),
        "held_changes": server.held,
        "sessions": {state: server.sessions(state) for state in SESSIONS},
        "max_sessions": sum(pool.max_size for pool in pools),
        "waiting": sum(pool.waiting for pool in pools),
        "workers": [it.as_dict() for it in server.workers],
        "beats": [asdict(beat) for beat in beats],
    }


@router.get(
    "/capacity",
    tags=["health"],
    dependencies=[Depends(operators_only)],
    responses={200: {"model": shown.Capacity}, **fails_with(404)},
)
async def show_capacity(
    request: Request,
    p95_queue_wait_s: Annotated[
        float, Query(gt=0, le=3600, description="What 95 % of the calls may wait at most")
    ] = 0.2,
    window_s: Annotated[
        int, Query(ge=60, le=LONGEST_WINDOW_S, description="How far is looked back")
    ] = 3600,
    headroom: Annotated[
        float, Query(gt=0, le=1000, description="How many times the busiest minute to plan for")
    ] = 1.0,
    server: Annotated[list[str] | None, Query(description="Only these")] = None,
) -> Response:
    """Say how many sessions and workers each server needs, going by the calls of the window.

    Waiting is from queued to a session lent. `why` says in words what to do.
    """
    database = operations_of(request).database
    known = {it.definition.name: it.definition for it in await catalog.list_servers(database)}
    for name in server or ():
        if name not in known:
            raise catalog.unknown_server(name)
    workers = await overview.worker_counts(database)
    found = await demands(database, window=timedelta(seconds=window_s))
    target = Target(p95_queue_wait_s, headroom)
    rows = []
    for name in server or known:
        demand = found.get(name, NOTHING_ASKED)
        need = plan(known[name], workers.get(name, 0), demand, target)
        rows.append({**asdict(need), **asdict(demand)})
    return answer(
        {
            "p95_queue_wait_s": p95_queue_wait_s,
            "window_s": window_s,
            "headroom": headroom,
            "servers": rows,
        }
    )
