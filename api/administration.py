"""The routes of servers and keys; what changes them is for operators."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.auth import actor_of, operators_only
from api.operations import label
from api.rest import PROBLEMS, operations_of
from api.wire import CreateKey, StrictRoute, answer, applied, preferred_wait
from registry import catalog, ingest, tenants
from registry.catalog import ServerVersion
from registry.definitions import parse_definition
from registry.errors import Code, FleetError
from registry.policy import may_use
from registry.tenants import Actor, Role

LOOK_EVERY_S: Final = 0.1
_OPERATORS: Final = [Depends(operators_only)]

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=PROBLEMS)


@router.post("/servers", tags=["servers"], status_code=201, dependencies=_OPERATORS)
async def add_server(request: Request, body: dict[str, Any]) -> Response:
    """Register a server by its definition; its worker starts and lists its tools."""
    database = operations_of(request).database
    definition = parse_definition(body)
    await catalog.add_server(database, definition, actor=label(actor_of(request)))
    server = await catalog.get_server(database, definition.name)
    return answer(server.as_dict(), 201, {"location": f"/v1/servers/{definition.name}"})


@router.post("/servers/{name}/versions", tags=["servers"], status_code=201, dependencies=_OPERATORS)
async def add_version(request: Request, name: str, body: dict[str, Any]) -> Response:
    """Add a version to a server and make it current; runs keep the version they started with."""
    database = operations_of(request).database
    definition = parse_definition({"name": name, **body})
    if definition.name != name:
        raise FleetError(
            Code.INVALID_DEFINITION,
            f"the definition names server {definition.name!r}, the address {name!r}",
            hint="a server keeps its name; add another server instead",
        )
    await catalog.add_version(database, definition, actor=label(actor_of(request)))
    return answer((await catalog.get_server(database, name)).as_dict(), 201)


@router.get("/servers", tags=["servers"])
async def list_servers(request: Request) -> Response:
    """Show the servers that the caller may use, by name."""
    servers = await catalog.list_servers(operations_of(request).database)
    actor = actor_of(request)
    return answer({"servers": [_shown(actor, it) for it in servers if _may_see(actor, it)]})


@router.get("/servers/{name}", tags=["servers"])
async def get_server(request: Request, name: str) -> Response:
    """Show a server; its definition is for operators."""
    return answer(_shown(actor_of(request), await _visible(request, name)))


@router.delete("/servers/{name}", tags=["servers"], status_code=204, dependencies=_OPERATORS)
async def remove_server(request: Request, name: str) -> Response:
    """Take a server out of the fleet; its calls stay in the record."""
    server = await _visible(request, name)
    await catalog.remove_server(
        operations_of(request).database, server.definition.name, actor=label(actor_of(request))
    )
    return Response(status_code=204)


@router.post("/servers/{name}/refresh", tags=["servers"], status_code=202, dependencies=_OPERATORS)
async def refresh_server(request: Request, name: str) -> Response:
    """Have a server's tools listed anew: 202, or with ``Prefer: wait=N`` 200 once it is done.

    A server that cannot list them in that time answers with what kept it from it.
    """
    operations = operations_of(request)
    before = await _visible(request, name)
    await ingest.mark_stale(operations.database, before.definition.name)
    wait_s = preferred_wait(request.headers, operations.settings.max_wait)
    server = await _fresh(request, name, wait_s or 0)
    return answer(server.as_dict(), 202 if server.stale else 200, applied(wait_s))


@router.get("/servers/{name}/changes", tags=["servers"])
async def list_changes(request: Request, name: str) -> Response:
    """Show what changed in a server's tools, newest first."""
    server = await _visible(request, name)
    changes = await ingest.list_changes(operations_of(request).database, server.definition.name)
    return answer({"changes": changes})


@router.post("/keys", tags=["keys"], status_code=201, dependencies=_OPERATORS)
async def create_key(request: Request, body: CreateKey) -> Response:
    """Create an API key; the answer is the one time that it is shown."""
    lifetime = None if body.lifetime_s is None else timedelta(seconds=body.lifetime_s)
    if (body.role == "tenant") != (body.tenant is not None):
        raise FleetError(
            Code.INVALID_REQUEST,
            "a key of role tenant names its tenant, and one of role operator names none",
        )
    key_id, plaintext = await tenants.create_key(
        operations_of(request).database,
        name=body.name,
        role=Role(body.role),
        tenant=body.tenant,
        lifetime=lifetime,
    )
    shown = {"id": key_id, "key": plaintext, **body.model_dump(exclude={"lifetime_s"})}
    return answer(shown, 201)


@router.get("/keys", tags=["keys"], dependencies=_OPERATORS)
async def list_keys(request: Request) -> Response:
    """Show every key without its secret."""
    return answer({"keys": await tenants.list_keys(operations_of(request).database)})


@router.delete("/keys/{key_id}", tags=["keys"], status_code=204, dependencies=_OPERATORS)
async def revoke_key(request: Request, key_id: str) -> Response:
    """Revoke a key; the last process knows it two seconds later."""
    if not (key_id.isascii() and key_id.isalnum()):
        raise FleetError(Code.NOT_FOUND, f"there is no API key {key_id!r}")
    await tenants.revoke_key(operations_of(request).database, key_id)
    request.app.state.keyring.forget()
    return Response(status_code=204)


async def _visible(request: Request, name: str) -> ServerVersion:
    """Return a server that the caller may know of; raise `unknown_server`."""
    if "\0" in name:
        raise catalog.unknown_server(name)
    server = await catalog.get_server(operations_of(request).database, name)
    if not _may_see(actor_of(request), server):
        raise catalog.unknown_server(name)
    return server


async def _fresh(request: Request, name: str, wait_s: float) -> ServerVersion:
    operations = operations_of(request)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while True:
        server = await catalog.get_server(operations.database, name)
        if server.refresh_error is not None and wait_s:
            raise FleetError.from_dict(server.refresh_error)
        if not server.stale or loop.time() >= deadline or operations.room.dismissed:
            return server
        await asyncio.sleep(LOOK_EVERY_S)


def _may_see(actor: Actor, server: ServerVersion) -> bool:
    return actor.tenant is None or may_use(actor.tenant, server.definition)


def _shown(actor: Actor, server: ServerVersion) -> dict[str, Any]:
    body = server.as_dict()
    if actor.tenant is not None:
        # Command lines, addresses and what a server wrote to stderr are the operator's.
        del body["definition"], body["refresh_error"]
    return body
