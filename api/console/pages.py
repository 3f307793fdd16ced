"""Every page of the console under one router, and the files that they are made with."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, RedirectResponse, Response

from api.console import (
    approval_pages,
    audit_pages,
    beside,
    call_pages,
    changes_pages,
    fleet_pages,
    rollout_pages,
    run_pages,
    sign_in,
    tenant_pages,
)
from api.console.page import FILES, STATIC, PlainRoute
from registry.errors import Code, FleetError

PARTS: Final[tuple[APIRouter, ...]] = (
    sign_in.router,
    beside.router,
    beside.stopping,
    fleet_pages.router,
    call_pages.router,
    run_pages.router,
    approval_pages.router,
    changes_pages.router,
    rollout_pages.router,
    tenant_pages.router,
    audit_pages.router,
)
"""The routers of the pages, each with `ConsoleRoute` as its route class."""

router = APIRouter(prefix="/console", route_class=PlainRoute, include_in_schema=False)


@router.get("/static/{name}", tags=["session"])
async def static(name: str) -> Response:
    """Return a style sheet, script or picture of the console; raise `not_found`."""
    if name not in FILES:
        raise FleetError(Code.NOT_FOUND, f"the console has no file {name!r}")
    return FileResponse(STATIC / name, headers={"cache-control": "max-age=300"})


@router.get("", tags=["session"])
async def start() -> Response:
    """Lead to where the console begins."""
    return RedirectResponse("/console/", 303)


for part in PARTS:
    router.include_router(part)


async def nothing_here(request: Request) -> Response:
    """Raise `not_found` for a path that no page has, whatever its method."""
    raise FleetError(
        Code.NOT_FOUND,
        f"the console has no page {request.url.path}",
        hint="the navigation leads to every page that there is for you",
    )


# The last one: whatever no part has.
rest = APIRouter(route_class=PlainRoute)
rest.add_api_route("/{path:path}", nothing_here, methods=["GET", "POST"], tags=["session"])
router.include_router(rest)
