"""The routes of servers and keys; what changes them is for operators."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api import shown
from api.auth import actor_of, operators_only
from api.contract import fails_with, written_as
from api.operations import label
from api.rest import PREFER, PROBLEMS, keys_of, operations_of
from api.wire import CreateKey, RotateKey, StrictRoute, answer, applied, preferred_wait
from registry import catalog, holds, ingest, rollouts, tenants
from registry.catalog import ServerVersion
from registry.definitions import ServerDefinition, parse_definition
from registry.errors import Code, FleetError
from registry.openapi import MAX_DOCUMENT_BYTES
from registry.rollouts import RolloutPlan, RolloutState
from registry.tenants import Actor, Role

LOOK_EVERY_S: Final = 0.1
# A document may be escaped in JSON, so its text may be longer than what is measured.
_MAX_DEFINITION_BYTES: Final = MAX_DOCUMENT_BYTES * 2
_OPERATORS: Final = [Depends(operators_only)]
_Definition = Annotated[dict[str, Any], written_as(ServerDefinition)]
_Version = Annotated[dict[str, Any], written_as(ServerDefinition, in_place=True)]

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=PROBLEMS)


@router.post(
    "/servers",
    tags=["servers"],
    status_code=201,
    dependencies=_OPERATORS,
    max_body_size=_MAX_DEFINITION_BYTES,
    responses={
        200: {"description": "It could be added, and was not", "model": shown.TriedServer},
        201: {"model": shown.Server},
    },
)
async def add_server(request: Request, body: _Definition, *, dry_run: bool = False) -> Response:
    """Register a server by its definition; its worker starts and lists its tools.

    With ``dry_run`` it is only found out whether that would succeed.
    """
    database = operations_of(request).database
    definition = await asyncio.to_thread(parse_definition, body)  # an API's document takes a while
    await catalog.add_server(
        database,
        definition,
        actor=label(actor_of(request)),
        keys=keys_of(request),
        dry_run=dry_run,
    )
    if dry_run:
        return answer({"name": definition.name, "version": definition.version, "added": False})
    server = await catalog.get_server(database, definition.name)
    return answer(server.as_dict(), 201, {"location": f"/v1/servers/{definition.name}"})


@router.post(
    "/servers/{name}/versions",
    tags=["servers"],
    status_code=201,
    dependencies=_OPERATORS,
    max_body_size=_MAX_DEFINITION_BYTES,
    responses={201: {"model": shown.Server}},
)
async def add_version(
    request: Request,
    name: str,
    body: _Version,
    percent: Annotated[
        float, Query(ge=0, le=100, description="Of a hundred tenants, how many see it")
    ] = 100,
) -> Response:
    """Add a version to a server; runs keep the version they started with.

    It becomes the current one, or with a smaller ``percent`` the canary of a rollout.
    """
    database = operations_of(request).database
    definition = await asyncio.to_thread(parse_definition, {"name": name, **body})
    if definition.name != name:
        raise FleetError(
            Code.INVALID_DEFINITION,
            f"the definition names server {definition.name!r}, the address {name!r}",
            hint="a server keeps its name; add another server instead",
        )
    actor = label(actor_of(request))
    await catalog.add_version(
        database, definition, actor=actor, keys=keys_of(request), serve=percent == 100
    )
    if percent < 100:
        plan = RolloutPlan(version=definition.version, percent=percent)
        await rollouts.put_rollout(database, name, plan, actor=actor)
    return answer(await _whole(request, await catalog.get_server(database, name)), 201)


@router.get("/servers", tags=["servers"], responses={200: {"model": shown.Servers}})
async def list_servers(request: Request) -> Response:
    """Show the servers that the caller may use, by name."""
    servers = await catalog.list_servers(operations_of(request).database)
    actor = actor_of(request)
    may_see = await _seen_by(request)
    return answer({"servers": [_shown(actor, it) for it in servers if may_see(it)]})


@router.get("/servers/{name}", tags=["servers"], responses={200: {"model": shown.Server}})
async def get_server(request: Request, name: str) -> Response:
    """Show a server; its definition, versions and rollout are for operators."""
    server = await visible_server(request, name)
    if actor_of(request).tenant is not None:
        return answer(_shown(actor_of(request), server))
    return answer(await _whole(request, server))


@router.delete("/servers/{name}", tags=["servers"], status_code=204, dependencies=_OPERATORS)
async def remove_server(request: Request, name: str) -> Response:
    """Take a server out of the fleet; its calls stay in the record."""
    server = await visible_server(request, name)
    await catalog.remove_server(
        operations_of(request).database, server.definition.name, actor=label(actor_of(request))
    )
    return Response(status_code=204)


@router.post(
    "/servers/{name}/refresh",
    tags=["servers"],
    status_code=202,
    dependencies=_OPERATORS,
    responses={
        200: {"description": "They were listed", "model": shown.Server},
        202: {"description": "They will be listed", "model": shown.Server},
        **fails_with(502, 504),
    },
    openapi_extra=PREFER,
)
async def refresh_server(request: Request, name: str) -> Response:
    """Have a server's tools listed anew: 202, or with ``Prefer: wait=N`` 200 once it is done.

    A server that cannot list them in that time answers with what kept it from it.
    """
    operations = operations_of(request)
    before = await visible_server(request, name)
    await ingest.mark_stale(operations.database, before.definition.name)
    wait_s = preferred_wait(request.headers, operations.settings.max_wait)
    server = await _fresh(request, name, wait_s or 0)
    return answer(server.as_dict(), 202 if server.stale else 200, applied(wait_s))


@router.post(
    "/keys",
    tags=["keys"],
    status_code=201,
    dependencies=_OPERATORS,
    responses={201: {"model": shown.NewKey}},
)
async def create_key(request: Request, body: CreateKey) -> Response:
    """Create an API key; the answer is the one time that it is shown."""
    if (body.role == "tenant" and not body.tenant) or (body.role == "operator" and body.tenant):
        raise FleetError(
            Code.INVALID_REQUEST,
            "a key of role tenant names its tenant, and one of role operator names none",
        )
    actor = actor_of(request)
    if actor.scopes is not None:
        actor.scopes.refuse_wider(body.scopes)
    key_id, plaintext = await tenants.create_key(
        operations_of(request).database,
        name=body.name,
        role=Role(body.role),
        tenant=body.tenant,
        lifetime=_lifetime(body.lifetime_s),
        scopes=body.scopes,
        actor=label(actor),
    )
    made = {"id": key_id, "key": plaintext, **body.model_dump(exclude={"lifetime_s", "scopes"})}
    return answer({**made, "scopes": body.scopes and body.scopes.as_dict()}, 201)


@router.get("/keys", tags=["keys"], dependencies=_OPERATORS, responses={200: {"model": shown.Keys}})
async def list_keys(request: Request) -> Response:
    """Show every key without its secret."""
    return answer({"keys": await tenants.list_keys(operations_of(request).database)})


@router.post(
    "/keys/{key_id}/rotate",
    tags=["keys"],
    status_code=201,
    dependencies=_OPERATORS,
    responses={201: {"model": shown.RotatedKey}},
)
async def rotate_key(request: Request, key_id: str, body: RotateKey) -> Response:
    """Make a key that may do what this one may; this one expires once the overlap is over."""
    actor = actor_of(request)
    key, plaintext = await tenants.rotate_key(
        operations_of(request).database,
        _key_id(key_id),
        overlap=timedelta(seconds=body.overlap_s),
        lifetime=_lifetime(body.lifetime_s),
        within=actor.scopes,
        actor=label(actor),
    )
    _ask_again(request)
    return answer({**key, "key": plaintext}, 201)


@router.delete("/keys/{key_id}", tags=["keys"], status_code=204, dependencies=_OPERATORS)
async def revoke_key(request: Request, key_id: str) -> Response:
    """Revoke a key; the last process knows it two seconds later."""
    database = operations_of(request).database
    await tenants.revoke_key(database, _key_id(key_id), actor=label(actor_of(request)))
    _ask_again(request)
    return Response(status_code=204)


def _ask_again(request: Request) -> None:
    """Have whoever was let in asked for anew: a key changed."""
    request.app.state.keyring.forget()
    request.app.state.sessions.forget()


def _key_id(text: str) -> str:
    if not (text.isascii() and text.isalnum()):
        raise FleetError(Code.NOT_FOUND, f"there is no API key {text!r}")
    return text


def _lifetime(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


async def visible_server(request: Request, name: str) -> ServerVersion:
    """Return a server that the caller may know of; raise `unknown_server`."""
    if "\0" in name:
        raise catalog.unknown_server(name)
    server = await catalog.get_server(operations_of(request).database, name)
    if not (await _seen_by(request))(server):
        raise catalog.unknown_server(name)
    return server


async def _whole(request: Request, server: ServerVersion) -> dict[str, Any]:
    """Return a server with its versions, its rollout and the changes that are held."""
    database, name = operations_of(request).database, server.definition.name
    running = await rollouts.list_rollouts(database, name, limit=1)
    active = [it.as_dict() for it in running if it.state is RolloutState.ACTIVE]
    held = await holds.list_holds(database, name)
    return {
        **server.as_dict(),
        "versions": await catalog.list_versions(database, name),
        "rollout": active[0] if active else None,
        "held": [{"id": it.id, "tool": it.tool, "change": it.kind} for it in held],
    }


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


async def _seen_by(request: Request) -> Callable[[ServerVersion], bool]:
    """Return which servers the caller may know of."""
    tenant = actor_of(request).tenant
    if tenant is None:
        return lambda _: True
    policy = await operations_of(request).policies.of(tenant)
    return lambda server: policy.may_use(server.definition)


def _shown(actor: Actor, server: ServerVersion) -> dict[str, Any]:
    body = server.as_dict()
    if actor.tenant is not None:
        # Command lines, addresses and what a server wrote to stderr are the operator's.
        del body["definition"], body["refresh_error"]
    return body
