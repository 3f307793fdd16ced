"""The routes of stored credentials: secrets go in, and never come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from api import shown
from api.auth import actor_of, operators_only
from api.contract import written_as
from api.operations import label
from api.rest import PROBLEMS, keys_of, operations_of
from api.wire import StrictRoute, answer
from registry import credential_store
from registry.credential_kinds import AnyCredential, parse_credential

_OPERATORS: Final = [Depends(operators_only)]
_Tenant = Annotated[
    str, Path(pattern=r"^(\*|[^\x00*]{1,64})$", description="A tenant, or * for all others")
]
_Credential = Annotated[dict[str, Any], written_as(AnyCredential)]
_Server = Annotated[str, Path(pattern=r"^[^\x00]{1,64}$")]

router = APIRouter(
    prefix="/v1/credentials",
    route_class=StrictRoute,
    responses=PROBLEMS,
)


@router.get(
    "",
    tags=["credentials"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.StoredCredentials}},
)
async def list_credentials(request: Request) -> Response:
    """Show every stored credential without its secrets, by server and tenant."""
    found = await credential_store.list_all(operations_of(request).database)
    return answer({"credentials": [_shown(row) for row in found]})


@router.post(
    "/rewrap",
    tags=["credentials"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Rewrapped}},
)
async def rewrap(request: Request) -> Response:
    """Have every data key wrapped by the current encryption key; no credential is touched.

    Secrets that an earlier release left in definitions in the clear are sealed.
    """
    operations = operations_of(request)
    done = await credential_store.rewrap(
        operations.database, keys_of(request), actor=label(actor_of(request))
    )
    return answer(done)


@router.get(
    "/{tenant}/{server}",
    tags=["credentials"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.StoredCredential}},
)
async def get_credential(request: Request, tenant: _Tenant, server: _Server) -> Response:
    """Show a stored credential without its secrets, and how its renewal stands."""
    found = await credential_store.get(operations_of(request).database, tenant, server)
    return answer(_shown(found))


@router.put(
    "/{tenant}/{server}",
    tags=["credentials"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.StoredCredential}},
)
async def put_credential(
    request: Request, tenant: _Tenant, server: _Server, body: _Credential
) -> Response:
    """Set a credential in place of whatever there was, secrets and all."""
    operations = operations_of(request)
    set_now = await credential_store.put(
        operations.database,
        keys_of(request),
        parse_credential(body),
        tenant=tenant,
        server=server,
        actor=label(actor_of(request)),
    )
    return answer(_shown(set_now))


@router.delete("/{tenant}/{server}", tags=["credentials"], status_code=204, dependencies=_OPERATORS)
async def remove_credential(request: Request, tenant: _Tenant, server: _Server) -> Response:
    """Remove a credential: its secrets are gone, and within seconds the sessions that had them."""
    await credential_store.remove(
        operations_of(request).database, tenant, server, actor=label(actor_of(request))
    )
    return Response(status_code=204)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tenant": row["tenant_id"],
        "server": row["server_name"],
        "kind": row["kind"],
        "state": row["state"],
        "definition": row["definition"],
        "secrets": row["secret_names"],
        "problem": row["problem"],
        "failures": row["failures"],
        "retry_at": row["retry_at"],
        "renewed_at": row["renewed_at"],
        "renew_at": row["renew_at"],
        "expires_at": row["expires_at"],
        "created_at": row["created_at"],
        "changed_at": row["changed_at"],
        "changed_by": row["changed_by"],
    }
