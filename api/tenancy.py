"""The routes of tiers, tenants, and the registry as one document."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from api import shown
from api.auth import actor_of, operators_only
from api.contract import written_as
from api.operations import label
from api.rest import PROBLEMS, keys_of, operations_of
from api.wire import StrictRoute, answer
from registry import document, policies
from registry.document import RegistryDocument
from registry.errors import Code, FleetError
from registry.policy import TenantPolicy
from registry.tiers import TenantDefinition, TierDefinition, parse_tenant, parse_tier

_OPERATORS: Final = [Depends(operators_only)]
_Tier = Annotated[dict[str, Any], written_as(TierDefinition, in_place=True)]
_Tenant = Annotated[dict[str, Any], written_as(TenantDefinition, in_place=True)]
_Registry = Annotated[dict[str, Any], written_as(RegistryDocument)]
_MOST: Final = 1_000
MAX_REGISTRY_BYTES: Final = 64_000_000
_Limit = Annotated[int, Query(ge=1, le=_MOST)]
_Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
_Text = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$")]

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=PROBLEMS)


@router.get(
    "/tiers", tags=["tenants"], dependencies=_OPERATORS, responses={200: {"model": shown.Tiers}}
)
async def list_tiers(request: Request) -> Response:
    """Show every tier by name."""
    tiers = await policies.list_tiers(operations_of(request).database)
    return answer({"tiers": [tier.model_dump(mode="json") for tier in tiers]})


@router.put(
    "/tiers/{name}",
    tags=["tenants"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Tier}},
)
async def put_tier(request: Request, name: str, body: _Tier) -> Response:
    """Add a tier, or change it for all its tenants: within a second it holds everywhere."""
    tier = parse_tier(_named(name, body, "tier"))
    await policies.put_tier(operations_of(request).database, tier, actor=label(actor_of(request)))
    return answer(tier.model_dump(mode="json"))


@router.delete("/tiers/{name}", tags=["tenants"], status_code=204, dependencies=_OPERATORS)
async def remove_tier(request: Request, name: str) -> Response:
    """Remove a tier that no tenant is in."""
    if "\0" in name:
        raise FleetError(Code.NOT_FOUND, f"there is no tier {name!r} to remove")
    await policies.remove_tier(
        operations_of(request).database, name, actor=label(actor_of(request))
    )
    return Response(status_code=204)


@router.get(
    "/tenants", tags=["tenants"], dependencies=_OPERATORS, responses={200: {"model": shown.Tenants}}
)
async def list_tenants(request: Request) -> Response:
    """Show every tenant, in the order in which they came."""
    tenants = await policies.list_tenants(operations_of(request).database)
    return answer({"tenants": [_shown(policy) for policy in tenants]})


@router.get("/tenants/{name}", tags=["tenants"], responses={200: {"model": shown.Tenant}})
async def get_tenant(request: Request, name: str) -> Response:
    """Show a tenant and the limits that hold for it; a tenant's key sees its own."""
    if "\0" in name or actor_of(request).tenant not in {None, name}:
        raise FleetError(Code.NOT_FOUND, f"there is no tenant {name!r}")
    return answer(_shown(await policies.get_tenant(operations_of(request).database, name)))


@router.put(
    "/tenants/{name}",
    tags=["tenants"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Tenant}},
)
async def put_tenant(request: Request, name: str, body: _Tenant) -> Response:
    """Add a tenant, or change what it may do: within a second it holds everywhere."""
    tenant = parse_tenant(_named(name, body, "tenant"))
    database = operations_of(request).database
    await policies.put_tenant(database, tenant, actor=label(actor_of(request)))
    return answer(_shown(await policies.get_tenant(database, tenant.name)))


@router.get(
    "/registry",
    tags=["registry"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Registry}},
)
async def export_registry(request: Request) -> Response:
    """Show the whole registry as one document, secrets in definitions included."""
    found = await document.export(operations_of(request).database, keys_of(request))
    return answer(found.as_dict())


@router.put(
    "/registry",
    tags=["registry"],
    dependencies=_OPERATORS,
    max_body_size=MAX_REGISTRY_BYTES,
    responses={200: {"model": shown.AppliedRegistry}},
)
async def apply_registry(request: Request, body: _Registry, dry_run: bool = False) -> Response:
    """Make a document so, in one transaction, or only show how; what it does not name goes."""
    wanted = await asyncio.to_thread(document.parse_document, body)
    steps = await document.apply(
        operations_of(request).database,
        wanted,
        actor=label(actor_of(request)),
        keys=keys_of(request),
        dry_run=dry_run,
    )
    return answer({"steps": [vars(step) for step in steps], "applied": not dry_run})


@router.get(
    "/snapshots/{before}/changes/{after}",
    tags=["registry"],
    dependencies=_OPERATORS,
    responses={200: {"model": shown.Differences}},
)
async def compare_snapshots(request: Request, before: _Digest, after: _Digest) -> Response:
    """Show how the tools of two snapshots differ."""
    operations = operations_of(request)
    changes = await operations.compare_snapshots(before, after)
    return answer({"before": before, "after": after, "changes": changes})


def _named(name: str, body: dict[str, Any], what: str) -> dict[str, Any]:
    if body.get("name", name) != name:
        raise FleetError(
            Code.INVALID_DEFINITION,
            f"the definition names {what} {body['name']!r}, the address {name!r}",
        )
    return {**body, "name": name}


def _shown(policy: TenantPolicy) -> dict[str, Any]:
    return {
        **policy.tenant.model_dump(mode="json"),
        "own_limits": policy.tenant.limits.model_dump(mode="json"),
        "limits": policy.limits.model_dump(mode="json"),
        "output": policy.output.as_dict(),
        "priority": policy.tier.priority,
        "ordinal": policy.ordinal,
    }
