"""Rollouts: which tenants see a server's new version, and how that ends.

A rollout has a stable and a canary version of one server. Pinned tenants and cohorts see the
canary; of the others a percentage does. Who that is never changes while the percentage grows, and
is exact: of every hundred tenants, in the order in which they came, ``percent`` are chosen by hash.

Invariants:
 1. A server has at most one active rollout, and that ends once, along `TRANSITIONS`.
 2. Names that models see never depend on the version (`registry.tools.model_name`).
 3. A version of which changes are held cannot become the stable one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import catalog
from registry.database import Database, to_json
from registry.errors import Code, FleetError
from registry.policy import TenantPolicy
from registry.problems import validated
from registry.tiers import Name
from registry.verdict import VerdictRule

_BLOCK: Final = 100


class RolloutState(StrEnum):
    """Where a rollout is; the last three are final."""

    ACTIVE = "active"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    REPLACED = "replaced"


TRANSITIONS: Final[dict[RolloutState, frozenset[RolloutState]]] = {
    RolloutState.ACTIVE: frozenset(
        {RolloutState.PROMOTED, RolloutState.ROLLED_BACK, RolloutState.REPLACED}
    ),
    RolloutState.PROMOTED: frozenset(),
    RolloutState.ROLLED_BACK: frozenset(),
    RolloutState.REPLACED: frozenset(),
}


class RolloutPlan(BaseModel):
    """Who sees the canary, and what judges it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    """The canary, a registered version of the server."""
    percent: float = Field(default=0, ge=0, le=100)
    """How many of a hundred tenants see it."""
    tenants: tuple[Name, ...] = ()
    """Tenants that see it whatever the percentage."""
    cohorts: tuple[Name, ...] = ()
    """Feature flags whose tenants see it whatever the percentage."""
    verdict: VerdictRule = VerdictRule()

    def takes(self, server: str, policy: TenantPolicy) -> bool:
        """Say whether a tenant sees the canary: the same answer always, but for the plan."""
        tenant = policy.tenant
        if tenant.name in self.tenants or any(flag in self.cohorts for flag in tenant.flags):
            return True
        return position(f"{server}@{self.version}", policy.ordinal) < self.percent


@dataclass(frozen=True)
class Rollout:
    """One rollout of a server, as the record has it."""

    id: int
    server: str
    stable: str
    canary: str
    stable_version_id: int
    canary_version_id: int
    plan: RolloutPlan
    state: RolloutState
    report: dict[str, Any] | None
    stale: bool
    refresh_error: dict[str, Any] | None
    started_at: datetime
    ended_at: datetime | None
    ended_by: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the rollout as shown to operators."""
        shown = {**vars(self), "state": self.state.value, "plan": self.plan.model_dump(mode="json")}
        del shown["stable_version_id"], shown["canary_version_id"]
        return shown


def position(salt: str, ordinal: int) -> float:
    """Return where a tenant stands among a hundred, from 0 up to 100, for one rollout.

    A hundred consecutive tenants have a hundred different whole parts, shuffled by ``salt``.
    """
    block, offset = divmod(ordinal, _BLOCK)
    return _shuffled(salt, block)[offset]


@lru_cache(maxsize=1024)
def _shuffled(salt: str, block: int) -> tuple[float, ...]:
    drawn = [
        hashlib.sha256(f"{salt}/{block}/{offset}".encode()).digest() for offset in range(_BLOCK)
    ]
    order = sorted(range(_BLOCK), key=lambda offset: drawn[offset][:16])
    place = {offset: rank for rank, offset in enumerate(order)}
    # The fraction has bytes of its own: it must not go with the rank.
    return tuple(
        place[offset] + int.from_bytes(drawn[offset][16:22], "big") / 2**48
        for offset in range(_BLOCK)
    )


def parse_plan(document: Any) -> RolloutPlan:
    """Validate a rollout's plan; raise `invalid_request` naming each field that is wrong."""
    return validated(RolloutPlan, document, "rollout", code=Code.INVALID_REQUEST)


# -- the record

_ROLLOUT: Final = """
    SELECT r.*, stable.version AS stable, canary.version AS canary FROM rollouts r
    JOIN server_versions stable ON stable.id = r.stable_version_id
    JOIN server_versions canary ON canary.id = r.canary_version_id
"""


async def put_rollout(
    database: Database, server: str, plan: RolloutPlan, *, actor: str, only: int | None = None
) -> Rollout:
    """Start a server's rollout, or change the plan of the one of that version.

    Another version's rollout is replaced; ``only`` names the one that is meant, by id. Raises
    `unknown_server`, `unknown_version`, `rollout_conflict` for the version that is the stable one,
    or `not_found` where the one that is meant has ended.
    """
    async with database.transaction() as connection:
        await catalog.lock(connection)
        if only is not None:
            await _wanted(connection, server, only)
        return await write_rollout(connection, server, plan, actor=actor)


async def write_rollout(
    connection: AsyncConnection, server: str, plan: RolloutPlan, *, actor: str
) -> Rollout:
    """Put a rollout within a transaction that holds the catalog's lock."""
    stable_id = await catalog.current_version_id(connection, server)
    canary_id = await catalog.version_id(connection, server, plan.version)
    if canary_id == stable_id:
        raise FleetError(
            Code.ROLLOUT_CONFLICT,
            f"version {plan.version} of server {server!r} is the stable one already",
            hint="roll out another version, or promote nothing",
        )
    running = await _active(connection, server)
    if running is not None and running.canary_version_id == canary_id:
        await connection.execute(
            text("UPDATE rollouts SET plan = CAST(:plan AS jsonb) WHERE id = :id"),
            {"plan": to_json(plan.model_dump(mode="json")), "id": running.id},
        )
        event = "rollout.changed"
    else:
        if running is not None:
            await _end(connection, running, RolloutState.REPLACED, actor, running.report)
        await connection.execute(
            text(
                "INSERT INTO rollouts (server_name, stable_version_id, canary_version_id, plan)"
                " VALUES (:server, :stable, :canary, CAST(:plan AS jsonb))"
            ),
            {
                "server": server,
                "stable": stable_id,
                "canary": canary_id,
                "plan": to_json(plan.model_dump(mode="json")),
            },
        )
        event = "rollout.started"
    await catalog.announce(connection, server, actor, event, plan=plan.model_dump(mode="json"))
    rollout = await _active(connection, server)
    assert rollout is not None
    return rollout


async def promote(
    database: Database,
    server: str,
    *,
    actor: str,
    report: dict[str, Any] | None = None,
    only: int | None = None,
) -> Rollout:
    """Make the canary the stable version and end the rollout.

    ``only`` names the rollout that is meant, by id. Raises `not_found` without an active rollout,
    `changes_held` while an operator has to decide about changes that the canary brings.
    """
    async with database.transaction() as connection:
        await catalog.lock(connection)
        rollout = await _wanted(connection, server, only)
        held = await held_tools(connection, rollout.canary_version_id)
        if held:
            raise FleetError(
                Code.CHANGES_HELD,
                f"version {rollout.canary} of server {server!r} cannot become the stable one: "
                f"changes of {', '.join(held[:5])} are held",
                hint=f"accept them (`toolfleet servers changes {server}`), or roll back",
                details={"tools": held},
            )
        await _end(connection, rollout, RolloutState.PROMOTED, actor, report or rollout.report)
        await catalog.switch(connection, server, rollout.canary_version_id)
        await connection.execute(
            text(
                "UPDATE servers SET stale = r.stale, refresh_error = r.refresh_error,"
                " refreshed_at = r.refreshed_at FROM rollouts r WHERE r.id = :id AND name = :name"
            ),
            {"id": rollout.id, "name": server},
        )
        return await _by_id(connection, rollout.id)


async def roll_back(
    database: Database,
    server: str,
    *,
    actor: str,
    report: dict[str, Any] | None = None,
    only: int | None = None,
) -> Rollout:
    """End the rollout: new runs see the stable version; runs that saw the canary keep it.

    Raises `not_found` without an active rollout.
    """
    async with database.transaction() as connection:
        await catalog.lock(connection)
        rollout = await _wanted(connection, server, only)
        await _end(connection, rollout, RolloutState.ROLLED_BACK, actor, report or rollout.report)
        return await _by_id(connection, rollout.id)


async def get_rollout(database: Database, server: str) -> Rollout:
    """Return a server's active rollout, else its last one; raise `not_found`."""
    found = await list_rollouts(database, server, limit=1)
    if not found:
        raise _none(server)
    return found[0]


async def list_rollouts(database: Database, server: str, limit: int = 50) -> list[Rollout]:
    """Return a server's rollouts: the active one, then the others, newest first."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                _ROLLOUT + " WHERE r.server_name = :server"
                " ORDER BY (r.state = 'active') DESC, r.id DESC LIMIT :limit"
            ),
            {"server": server, "limit": limit},
        )
        return [_rollout(row) for row in result.mappings()]


async def active_rollouts(database: Database) -> list[Rollout]:
    """Return every active rollout of a served server."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                _ROLLOUT + " JOIN servers s ON s.name = r.server_name"
                " WHERE r.state = 'active' AND s.removed_at IS NULL ORDER BY r.id"
            )
        )
        return [_rollout(row) for row in result.mappings()]


async def ended_rollouts(database: Database, limit: int = 20) -> list[Rollout]:
    """Return the rollouts of all servers that ended last, the latest first."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                _ROLLOUT + " WHERE r.state <> 'active' ORDER BY r.ended_at DESC, r.id DESC"
                " LIMIT :limit"
            ),
            {"limit": limit},
        )
        return [_rollout(row) for row in result.mappings()]


async def keep_report(database: Database, rollout: Rollout, report: dict[str, Any]) -> None:
    """Keep what is known of an active rollout's canary so far."""
    async with database.transaction() as connection:
        await connection.execute(
            text(
                "UPDATE rollouts SET report = CAST(:report AS jsonb)"
                " WHERE id = :id AND state = 'active'"
            ),
            {"report": to_json(report), "id": rollout.id},
        )


async def held_tools(connection: AsyncConnection, version_id: int) -> list[str]:
    """Return the tools of a version of which a change is not decided about."""
    result = await connection.execute(
        text(
            "SELECT tool FROM holds WHERE server_version_id = :id AND state = 'open' ORDER BY tool"
        ),
        {"id": version_id},
    )
    return [row.tool for row in result]


async def _wanted(connection: AsyncConnection, server: str, only: int | None) -> Rollout:
    """Return the active rollout; ``only`` that of this id, if one is given."""
    await catalog.current_version_id(connection, server)
    rollout = await _active(connection, server)
    if rollout is None or only not in {None, rollout.id}:
        raise _none(server)
    return rollout


async def _active(connection: AsyncConnection, server: str) -> Rollout | None:
    result = await connection.execute(
        text(_ROLLOUT + " WHERE r.server_name = :server AND r.state = 'active' FOR UPDATE OF r"),
        {"server": server},
    )
    row = result.mappings().first()
    return _rollout(row) if row is not None else None


async def _by_id(connection: AsyncConnection, rollout_id: int) -> Rollout:
    result = await connection.execute(text(_ROLLOUT + " WHERE r.id = :id"), {"id": rollout_id})
    return _rollout(result.mappings().one())


async def _end(
    connection: AsyncConnection,
    rollout: Rollout,
    state: RolloutState,
    actor: str,
    report: dict[str, Any] | None,
) -> None:
    if state not in TRANSITIONS[rollout.state]:
        raise ValueError(f"a rollout that is {rollout.state.value} cannot become {state.value}")
    await connection.execute(
        text(
            "UPDATE rollouts SET state = :state, ended_at = clock_timestamp(), ended_by = :actor,"
            " report = CAST(:report AS jsonb) WHERE id = :id"
        ),
        {"state": state.value, "actor": actor, "report": to_json(report), "id": rollout.id},
    )
    await catalog.announce(
        connection,
        rollout.server,
        actor,
        f"rollout.{state.value}",
        version=rollout.canary,
        report=report,
    )


def _rollout(row: RowMapping) -> Rollout:
    return Rollout(
        id=row["id"],
        server=row["server_name"],
        stable=row["stable"],
        canary=row["canary"],
        stable_version_id=row["stable_version_id"],
        canary_version_id=row["canary_version_id"],
        plan=RolloutPlan.model_validate(row["plan"]),
        state=RolloutState(row["state"]),
        report=row["report"],
        stale=row["stale"],
        refresh_error=row["refresh_error"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        ended_by=row["ended_by"],
    )


def _none(server: str) -> FleetError:
    return FleetError(
        Code.NOT_FOUND,
        f"server {server!r} has no rollout",
        hint=f"start one: `toolfleet servers rollout {server} --version VERSION --percent 5`",
    )
