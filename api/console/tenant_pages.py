"""The page of tenants: their tiers, the limits that hold, how much of them is used, and today."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.auth import operators_only
from api.console.page import ConsoleRoute, page
from api.rest import operations_of
from registry import policies
from registry.policy import TenantPolicy
from registry.tenant_usage import Usage, read_usage

MOST_SHOWN: Final = 100
_OPERATORS: Final = [Depends(operators_only)]

router = APIRouter(route_class=ConsoleRoute)


@dataclass(frozen=True)
class Used:
    """How much of a limit is used: ``share`` of a hundred, 100 at most."""

    what: str
    used: int
    most: int

    @property
    def share(self) -> float:
        """Return how much of the limit is used, as a bar shows it."""
        return min(100.0, 100 * self.used / self.most)

    @property
    def full(self) -> bool:
        """Say whether nothing is left."""
        return self.used >= self.most


@dataclass(frozen=True)
class ShownTenant:
    """A tenant with what it uses."""

    policy: TenantPolicy
    usage: Usage

    @property
    def limits(self) -> list[Used]:
        """Return the limits that hold for all of its calls, and what of them is used."""
        limits, usage = self.policy.limits, self.usage
        found = (
            ("at once", usage.at_once, limits.concurrent_calls),
            ("a second", usage.last_second, limits.calls_per_second),
            ("a minute", usage.last_minute, limits.calls_per_minute),
            ("an hour", usage.last_hour, limits.calls_per_hour),
        )
        return [Used(what, used, most) for what, used, most in found if most is not None]


@router.get("/tenants", tags=["tenants"], dependencies=_OPERATORS)
async def tenants(request: Request) -> Response:
    """Show tenants, those that did most today first; ``name`` is a part of their names."""
    database = operations_of(request).database
    usage = await read_usage(database)
    wanted = request.query_params.get("name", "").strip()
    found = [
        ShownTenant(policy, usage.get(policy.tenant.name, Usage()))
        for policy in await policies.list_tenants(database)
        if wanted in policy.tenant.name
    ]
    found.sort(key=lambda it: (-it.usage.calls_today, it.policy.tenant.name))
    shown, more = found[:MOST_SHOWN], max(0, len(found) - MOST_SHOWN)
    return page(request, "tenants.html", tenants=shown, more=more, wanted=wanted)
