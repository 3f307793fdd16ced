"""Health: alive, and ready to take calls. The two routes that answer without a key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from api import shown
from api.rest import operations_of
from api.wire import answer
from registry.errors import FleetError

CHECK_WITHIN_S: Final = 2.0

router = APIRouter(tags=["health"])


@router.get("/healthz", responses={200: {"model": shown.Alive}})
async def healthz() -> Response:
    """Say that the process runs."""
    return answer({"status": "ok"})


@router.get(
    "/readyz",
    responses={
        200: {"model": shown.Ready},
        503: {"description": "Not ready: see which part is away", "model": shown.Ready},
    },
)
async def readyz(request: Request) -> Response:
    """Say whether calls can be taken, and which part is away if not."""
    operations = operations_of(request)
    database, broker = await asyncio.gather(
        answers(operations.database.check()), answers(operations.room.check_broker())
    )
    parts = {"database": database, "broker": broker}
    ready = all(parts.values())
    body = {"ready": ready, **{name: "ok" if up else "away" for name, up in parts.items()}}
    return answer(body, 200 if ready else 503)


async def answers(check: Awaitable[None]) -> bool:
    """Say whether a part answers in time."""
    try:
        async with asyncio.timeout(CHECK_WITHIN_S):
            await check
    except (FleetError, TimeoutError):
        return False
    return True
