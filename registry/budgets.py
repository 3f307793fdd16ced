"""Tenants' budgets: how many more calls a tenant may submit now.

Calls a minute are a token bucket: full it holds a minute's worth, and it fills steadily. Calls at
once are counted in the record itself. Both are weighed while the tenant's budget is locked, so
that no number of API processes grants more than there is.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.errors import Code, FleetError
from registry.tiers import TenantLimits

_MINUTE_S = 60.0
_RETRY_WHEN_FULL_S = 1.0


@dataclass(frozen=True)
class Room:
    """What a tenant's limits have room for."""

    calls: int
    tokens: float | None
    """In the bucket; None without a limit a minute."""
    unfinished: int
    """Calls of the tenant that are queued or running."""


def refilled(tokens: float, elapsed_s: float, per_minute: int) -> float:
    """Return what a bucket holds after a while; a clock that went back adds nothing."""
    return min(float(per_minute), tokens + max(elapsed_s, 0.0) * per_minute / _MINUTE_S)


async def room(connection: AsyncConnection, tenant: str, limits: TenantLimits) -> Room:
    """Return a tenant's room, its budget locked until the transaction ends."""
    await connection.execute(
        text(
            "INSERT INTO budgets (tenant_id, tokens, filled_at)"
            " VALUES (:tenant, :full, clock_timestamp()) ON CONFLICT DO NOTHING"
        ),
        {"tenant": tenant, "full": float(limits.calls_per_minute or 0)},
    )
    result = await connection.execute(
        text(
            "SELECT tokens, EXTRACT(EPOCH FROM clock_timestamp() - filled_at)::double precision"
            " AS elapsed_s FROM budgets WHERE tenant_id = :tenant FOR UPDATE"
        ),
        {"tenant": tenant},
    )
    row = result.one()
    counted = await connection.execute(
        text(
            "SELECT count(*) FROM calls WHERE tenant_id = :tenant"
            " AND state IN ('queued', 'running')"
        ),
        {"tenant": tenant},
    )
    unfinished = int(counted.scalar_one())
    rooms = []
    tokens = None
    if limits.calls_per_minute is not None:
        tokens = refilled(row.tokens, row.elapsed_s, limits.calls_per_minute)
        rooms.append(int(tokens))
    if limits.concurrent_calls is not None:
        rooms.append(max(0, limits.concurrent_calls - unfinished))
    return Room(min(rooms), tokens, unfinished)


async def spend(connection: AsyncConnection, tenant: str, was: Room, calls: int) -> None:
    """Take ``calls`` from a tenant's bucket, as it was found."""
    if was.tokens is not None:
        await connection.execute(
            text(
                "UPDATE budgets SET tokens = :tokens, filled_at = clock_timestamp()"
                " WHERE tenant_id = :tenant"
            ),
            {"tokens": was.tokens - calls, "tenant": tenant},
        )


def refusal(tenant: str, limits: TenantLimits, was: Room) -> FleetError:
    """Return the error for a call that a tenant's limits have no room for."""
    full = limits.concurrent_calls is not None and was.unfinished >= limits.concurrent_calls
    if full:
        problem = (
            f"{was.unfinished} calls of tenant {tenant!r} are queued or running; its limit is "
            f"{limits.concurrent_calls}"
        )
        retry_after_s = _RETRY_WHEN_FULL_S
    else:
        problem = f"tenant {tenant!r} may submit {limits.calls_per_minute} calls a minute"
        missing = 1.0 - ((was.tokens or 0.0) % 1.0)
        retry_after_s = missing * _MINUTE_S / (limits.calls_per_minute or 1)
    return FleetError(
        Code.TENANT_LIMITED,
        problem,
        hint="send it again after retry_after_s, or ask an operator for another tier",
        retry_after_s=retry_after_s,
    )
