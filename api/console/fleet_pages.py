"""The pages of the fleet and of each server, and the forms by which operators tend them.

A form goes through the function of the HTTP verb that does the same, as whoever is signed in.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.administration import visible_server
from api.auth import actor_of, operators_only
from api.console import glance
from api.console.lookout import Card, Lookout
from api.console.page import ConsoleRoute, back_to, form_of, page
from api.operations import Operations
from api.rest import operations_of
from api.tending import ForceBreaker, drain_worker, force_breaker
from registry import catalog, holds, ingest, overview
from registry.catalog import ServerVersion
from registry.definitions import ServerDefinition
from registry.errors import Code, FleetError
from registry.problems import validated
from registry.tools import ToolVersion, delivery_of

_OPERATORS: Final = [Depends(operators_only)]
LIVE: Final = "live"
"""The part of a page that is fetched again and again: asked for, it comes alone."""

router = APIRouter(route_class=ConsoleRoute)


@router.get("/", tags=["servers"], dependencies=_OPERATORS)
async def fleet(request: Request, part: str = "") -> Response:
    """Show the fleet at a glance: what needs a person, then every server."""
    template = "fleet_live.html" if part == LIVE else "fleet.html"
    seen = await lookout_of(request).glance()
    return page(request, template, seen=seen, strip=glance.strip, in_words=glance.in_words)


@router.get("/servers/{name}", tags=["servers"], dependencies=_OPERATORS)
async def server(request: Request, name: str, part: str = "") -> Response:
    """Show a server: how it is now, its tools, and what can be done about it."""
    await visible_server(request, name)
    operations = operations_of(request)
    card = await lookout_of(request).card(name)
    if card is None:  # registered since somebody last looked
        lookout_of(request).forget()
        card = await lookout_of(request).card(name)
    if card is None:
        raise catalog.unknown_server(name)
    now: dict[str, Any] = {
        "card": card,
        "strip": glance.strip,
        "in_words": glance.in_words,
        "breakers": await _breakers(operations, name),
        "failures": await overview.newest_failures(operations.database, name),
    }
    if part == LIVE:
        return page(request, "server_live.html", **now)
    return page(request, "server.html", **now, **await _about(operations, card))


@router.post("/servers/{name}/breaker", tags=["servers"], dependencies=_OPERATORS)
async def set_breaker(request: Request, name: str) -> Response:
    """Force a breaker open or closed."""
    await visible_server(request, name)
    wish = _wish(await form_of(request))
    await force_breaker(operations_of(request), actor_of(request), name, wish)
    return _back(request, name)


@router.post("/servers/{name}/refresh", tags=["servers"], dependencies=_OPERATORS)
async def refresh(request: Request, name: str) -> Response:
    """Have a server's tools listed anew."""
    await visible_server(request, name)
    await ingest.mark_stale(operations_of(request).database, name)
    return _back(request, name)


@router.post("/workers/{worker_id}/drain", tags=["workers"], dependencies=_OPERATORS)
async def drain(request: Request, worker_id: str) -> Response:
    """Have a worker finish what it runs, and end."""
    worker = await drain_worker(operations_of(request), actor_of(request), worker_id)
    return _back(request, worker["server"])


def lookout_of(request: Request) -> Lookout:
    """Return what looks at the fleet for the pages of this process."""
    lookout: Lookout = request.app.state.lookout
    return lookout


def _back(request: Request, server: str) -> Response:
    lookout_of(request).forget()
    return back_to(f"/console/servers/{quote(server, safe='')}")


def _wish(form: Mapping[str, str]) -> ForceBreaker:
    """Return what a posted form wants of a breaker; raise `invalid_request`."""
    body: dict[str, Any] = {name: form[name] for name in ("state", "version") if form.get(name)}
    if for_s := form.get("for_s"):
        body["for_s"] = int(for_s) if for_s.isdecimal() and len(for_s) < 10 else for_s
    return validated(ForceBreaker, body, "form", code=Code.INVALID_REQUEST)


async def _breakers(operations: Operations, name: str) -> list[dict[str, Any]]:
    """Return the breakers of the versions that new runs see; none while the broker is away."""
    versions = await catalog.followed(operations.database, name)
    wanted = [(name, it.id, it.definition.breaker) for it in versions]
    try:
        states = await operations.client.breakers(wanted)
    except FleetError:
        return []
    return [
        {"version": version.definition.version, "is": state}
        for version, state in zip(versions, states, strict=True)
    ]


async def _about(operations: Operations, card: Card) -> dict[str, Any]:
    """Return what is said of a server beside how it is at the moment."""
    current, name = card.server.version, card.server.name
    versions, tools, held = await asyncio.gather(
        catalog.list_versions(operations.database, name),
        overview.listed_tools(operations.database, current.id),
        holds.list_holds(operations.database, name),
    )
    blocked = {it.tool for it in held if it.server_version_id == current.id}
    return {
        "versions": versions,
        "tools": [_tool(current.definition, it, held=it.name in blocked) for it in tools],
        "held": sorted(blocked),
        "definition": current.as_dict()["definition"],
        "command": _command(current),
    }


def _command(version: ServerVersion) -> str:
    """Return what is started, or where it is: without the secrets that are in it."""
    shown = version.as_dict()["definition"]
    if shown.get("url"):
        return str(shown["url"])
    return shlex.join([str(shown.get("command", "")), *map(str, shown.get("args", ()))])


def _tool(definition: ServerDefinition, tool: ToolVersion, *, held: bool) -> dict[str, Any]:
    rule = definition.tools.get(tool.name)
    return {
        "name": tool.name,
        "listed": tool.definition,
        "delivery": delivery_of(definition, tool).value,
        "approval": rule is not None and rule.approval.required,
        "hidden": rule is not None and rule.hidden,
        "timeout_s": (rule and rule.timeout_s) or definition.timeouts.call_s,
        "held": held,
    }
