"""The record of tiers and tenants, and the policy that holds for a tenant now."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import audit
from registry.database import Database, to_json
from registry.errors import Code, FleetError
from registry.policy import TenantPolicy
from registry.tiers import DEFAULT_TIER, TenantDefinition, TierDefinition

KNOWN_FOR_S: Final = 1.0
_MOST_KNOWN: Final = 10_000


# -- tiers


async def put_tier(database: Database, tier: TierDefinition, *, actor: str) -> None:
    """Add a tier, or change it for all its tenants."""
    async with database.transaction() as connection:
        await write_tier(connection, tier, actor=actor)


async def write_tier(connection: AsyncConnection, tier: TierDefinition, *, actor: str) -> None:
    """Add or change a tier within a transaction."""
    await connection.execute(
        text(
            "INSERT INTO tiers (name, definition) VALUES (:name, CAST(:definition AS jsonb))"
            " ON CONFLICT (name) DO UPDATE SET definition = EXCLUDED.definition"
        ),
        {"name": tier.name, "definition": to_json(tier.model_dump(mode="json"))},
    )
    await audit.record(connection, actor, "tier.changed", {"tier": tier.model_dump(mode="json")})


async def list_tiers(database: Database) -> list[TierDefinition]:
    """Return every tier by name, the built-in one among them."""
    async with database.transaction() as connection:
        return sorted((await read_tiers(connection)).values(), key=lambda tier: tier.name)


async def remove_tier(database: Database, name: str, *, actor: str) -> None:
    """Remove a tier that no tenant is in; raise `not_found` or `in_use`."""
    async with database.transaction() as connection:
        await delete_tier(connection, name, actor=actor)


async def delete_tier(connection: AsyncConnection, name: str, *, actor: str) -> None:
    """Remove a tier within a transaction."""
    await _one_at_a_time(connection)
    used = await connection.execute(
        text("SELECT id FROM tenants WHERE definition ->> 'tier' = :name ORDER BY id LIMIT 3"),
        {"name": name},
    )
    tenants = [row.id for row in used]
    if tenants:
        raise FleetError(
            Code.IN_USE,
            f"tier {name!r} has tenants: {', '.join(tenants)}",
            hint="move them to another tier first",
        )
    result = await connection.execute(
        text("DELETE FROM tiers WHERE name = :name RETURNING name"), {"name": name}
    )
    if result.first() is None:
        raise FleetError(Code.NOT_FOUND, f"there is no tier {name!r} to remove")
    await audit.record(connection, actor, "tier.removed", {"tier": name})


async def read_tiers(connection: AsyncConnection) -> dict[str, TierDefinition]:
    """Return every tier by name; the default one is there whether or not it was ever written."""
    result = await connection.execute(text("SELECT definition FROM tiers"))
    tiers = {DEFAULT_TIER: TierDefinition(name=DEFAULT_TIER)}
    for row in result:
        tier = TierDefinition.model_validate(row.definition)
        tiers[tier.name] = tier
    return tiers


# -- tenants


async def put_tenant(database: Database, tenant: TenantDefinition, *, actor: str) -> None:
    """Add a tenant, or change what it may do; raise `unknown_tier`."""
    async with database.transaction() as connection:
        await write_tenant(connection, tenant, actor=actor)


async def write_tenant(
    connection: AsyncConnection,
    tenant: TenantDefinition,
    *,
    actor: str,
    ordinal: int | None = None,
) -> None:
    """Add or change a tenant within a transaction.

    A new one may be given its ordinal, one that no other tenant has; later ones come after it.
    """
    await _one_at_a_time(connection)
    if tenant.tier not in await read_tiers(connection):
        raise FleetError(
            Code.UNKNOWN_TIER,
            f"tenant {tenant.name!r} is to be in tier {tenant.tier!r}, and there is none",
            hint="`toolfleet tenants tiers` shows the tiers; put the tier first",
        )
    body = tenant.model_dump(mode="json", exclude={"name"})
    await connection.execute(
        text(
            "INSERT INTO tenants (id, definition, ordinal) VALUES (:id, CAST(:definition AS jsonb),"
            " COALESCE(:ordinal, nextval(pg_get_serial_sequence('tenants', 'ordinal'))))"
            " ON CONFLICT (id) DO UPDATE SET definition = EXCLUDED.definition"
        ),
        {"id": tenant.name, "definition": to_json(body), "ordinal": ordinal},
    )
    if ordinal is not None:
        await connection.execute(
            text(
                "SELECT setval(pg_get_serial_sequence('tenants', 'ordinal'), max(ordinal))"
                " FROM tenants"
            )
        )
    details = {"tenant": tenant.name, **body}
    await audit.record(connection, actor, "tenant.changed", details, tenant=tenant.name)


async def list_tenants(database: Database) -> list[TenantPolicy]:
    """Return every tenant with its policy, in the order in which they came."""
    async with database.transaction() as connection:
        tiers = await read_tiers(connection)
        result = await connection.execute(
            text("SELECT id, ordinal, definition FROM tenants ORDER BY ordinal")
        )
        return [_policy(row.id, row.ordinal, row.definition, tiers) for row in result]


async def get_tenant(database: Database, name: str) -> TenantPolicy:
    """Return a tenant with its policy; raise `not_found`."""
    async with database.transaction() as connection:
        policy = await read_policy(connection, name)
    if policy is None:
        raise FleetError(
            Code.NOT_FOUND,
            f"there is no tenant {name!r}",
            hint="a tenant is known from its first run or key on, or when it is put",
        )
    return policy


async def read_policy(connection: AsyncConnection, tenant: str) -> TenantPolicy | None:
    """Return the policy of a tenant; None for one that is not known."""
    result = await connection.execute(
        text("SELECT id, ordinal, definition FROM tenants WHERE id = :id"), {"id": tenant}
    )
    row = result.first()
    if row is None:
        return None
    return _policy(row.id, row.ordinal, row.definition, await read_tiers(connection))


class Policies:
    """The tenants' policies as they were within the last second, without a statement a call."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[str, TenantPolicy] = {}
        self._generation = -1
        self._asked_at = float("-inf")

    async def of(self, tenant: str) -> TenantPolicy:
        """Return a tenant's policy, at most `KNOWN_FOR_S` old; raise `not_found`.

        While Postgres is away nobody can change a policy, so the one that is known holds.
        """
        if self._clock() - self._asked_at >= KNOWN_FOR_S:
            await self.catch_up()
        policy = self._known.get(tenant)
        if policy is None:
            policy = await get_tenant(self._database, tenant)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[tenant] = policy
        return policy

    async def catch_up(self) -> None:
        """Make sure that no policy is known that was changed before now."""
        self._asked_at = self._clock()
        try:
            rows = await self._database.statement("SELECT generation FROM registry_state")
        except FleetError:
            return
        if rows[0]["generation"] != self._generation:
            self._known.clear()
            self._generation = rows[0]["generation"]


def _policy(
    name: str, ordinal: int, definition: dict[str, Any], tiers: dict[str, TierDefinition]
) -> TenantPolicy:
    tenant = TenantDefinition.model_validate({**definition, "name": name})
    return TenantPolicy(tenant, tiers[tenant.tier], ordinal)


async def _one_at_a_time(connection: AsyncConnection) -> None:
    # So that no tenant enters a tier while that is being removed.
    await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('toolfleet.tiers'))"))
