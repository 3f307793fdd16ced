"""What the fleet offers now: every served version with its tools, and who gets which of them.

The record counts each change of it (`registry_state.generation`). A process keeps the offer of the
generation it saw last, and what it made of single versions, so that after a change only what
changed is read anew, and while nothing changes nothing is.

Invariants:
 1. An offer is what one instant of the record says, never a mixture of two.
 2. A tool of which a change is held is offered by the version before, where that has it, else not.
 3. Equal generation and equal tenants' policies give the same snapshot, in every process.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.catalog import LOOKED_AT
from registry.database import Database
from registry.definitions import ServerDefinition
from registry.errors import Code, FleetError
from registry.policy import TenantPolicy
from registry.rollouts import RolloutPlan
from registry.snapshots import Entry, Snapshot
from registry.tiers import Access
from registry.tools import ToolVersion, refuse_collisions, snapshot_tools

MOST_VIEWS: Final = 128


@dataclass(frozen=True)
class OfferedVersion:
    """A server version with the tools that runs may be offered of it, hidden ones left out."""

    id: int
    definition: ServerDefinition
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class OfferedServer:
    """A served server: its stable version, and the canary of a rollout once that was listed."""

    name: str
    stable: OfferedVersion
    canary: OfferedVersion | None
    plan: RolloutPlan | None

    def version_for(self, policy: TenantPolicy) -> OfferedVersion:
        """Return the version that a tenant sees."""
        if self.canary is None or self.plan is None:
            return self.stable
        return self.canary if self.plan.takes(self.name, policy) else self.stable


@dataclass(frozen=True)
class Offer:
    """What is offered in one generation of the record."""

    generation: int
    servers: Mapping[str, OfferedServer]
    blocked: frozenset[tuple[int, str]]
    """(server version id, tool as the server names it) that may not be called now."""

    def versions_for(
        self, policy: TenantPolicy, wanted: Sequence[str] | None
    ) -> list[OfferedVersion]:
        """Return the versions that a tenant sees, of the wanted servers only, if any are named.

        Raises `unknown_server`, or `policy_denied` for a wanted one that it may not use.
        """
        for name in wanted or ():
            if name not in self.servers:
                raise FleetError(
                    Code.UNKNOWN_SERVER,
                    f"there is no server named {name!r}",
                    hint="`toolfleet servers list` shows the registered servers",
                )
            policy.refuse_server(self.servers[name].version_for(policy).definition)
        versions = [
            server.version_for(policy)
            for server in self.servers.values()
            if wanted is None or server.name in wanted
        ]
        return [version for version in versions if policy.may_use(version.definition)]


def snapshot_for(policy: TenantPolicy, versions: Iterable[OfferedVersion]) -> Snapshot:
    """Return the snapshot of what a tenant may call of some versions.

    Raises `name_collision` when two tools would have one model-facing name.
    """
    entries: list[Entry] = []
    for version in versions:
        for entry in version.entries:
            tool = entry.tool
            access = policy.access(version.definition, tool.upstream_name, tool.delivery)
            if access is Access.ALLOW:
                entries.append(entry)
            elif access is Access.APPROVE:
                entries.append(entry.needing_approval)
    refuse_collisions(entry.tool for entry in entries)
    return Snapshot(entries)


class Offers:
    """The offer as the record has it, kept until the record's generation moves on."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._offer: Offer | None = None
        self._read: dict[tuple[int, int], tuple[Entry, ...]] = {}
        self._definitions: dict[int, ServerDefinition] = {}
        self._views: OrderedDict[tuple[Any, ...], Snapshot] = OrderedDict()
        self._reading = asyncio.Lock()

    @property
    def latest(self) -> Offer | None:
        """Return the offer that was read last."""
        return self._offer

    async def current(self) -> Offer:
        """Return the offer of now: one short statement while nothing has changed."""
        rows = await self._database.statement("SELECT generation FROM registry_state")
        generation = rows[0]["generation"]
        if self._offer is None or self._offer.generation < generation:
            async with self._reading:
                if self._offer is None or self._offer.generation < generation:
                    await self._catch_up()
        assert self._offer is not None
        return self._offer

    async def snapshot(
        self, policy: TenantPolicy, wanted: Sequence[str] | None, *, of: Offer | None = None
    ) -> Snapshot:
        """Return what a tenant's run sees that starts now; raises as `Offer.versions_for`.

        Or of an offer that is the latest one.
        """
        offer = of or await self.current()
        versions = offer.versions_for(policy, wanted)
        # Everything that `snapshot_for` looks at; the generation stands for the definitions.
        view = (
            offer.generation,
            policy.tier.tools,
            policy.tier.classes,
            policy.tenant.tools,
            tuple(version.id for version in versions),
        )
        if view in self._views:
            self._views.move_to_end(view)
            return self._views[view]
        snapshot = await asyncio.to_thread(snapshot_for, policy, versions)
        self._views[view] = snapshot
        while len(self._views) > MOST_VIEWS:
            self._views.popitem(last=False)
        return snapshot

    async def _catch_up(self) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            generation = (
                await connection.execute(text("SELECT generation FROM registry_state"))
            ).scalar_one()
            rows = (await connection.execute(_VERSIONS)).all()
            held = (await connection.execute(_HOLDS)).all()
            await self._read_definitions(connection, [row.id for row in rows])
            await self._read_listings(connection, {(row.id, row.listing_id or 0) for row in rows})
        self._offer = _assemble(generation, rows, held, self._definitions, self._read)
        used = {(row.id, row.listing_id or 0) for row in rows}
        self._read = {key: entries for key, entries in self._read.items() if key in used}
        self._definitions = {id_: self._definitions[id_] for id_, _ in used}
        self._views.clear()

    async def _read_definitions(self, connection: AsyncConnection, ids: Iterable[int]) -> None:
        missing = [id_ for id_ in ids if id_ not in self._definitions]
        if missing:
            result = await connection.execute(
                text(f"{_LOOK} WHERE v.id = ANY(:ids)"),
                {"ids": missing},
            )
            for row in result:
                self._definitions[row.id] = ServerDefinition.model_validate(row.definition)

    async def _read_listings(
        self, connection: AsyncConnection, wanted: Iterable[tuple[int, int]]
    ) -> None:
        missing = {
            version: listing for version, listing in wanted if (version, listing) not in self._read
        }
        result = await connection.execute(
            text(
                "SELECT l.server_version_id AS version, t.id, t.name, t.digest, t.definition"
                " FROM listings l JOIN tool_versions t ON t.id = ANY(l.tool_version_ids)"
                " WHERE l.id = ANY(:ids)"
            ),
            {"ids": list(missing.values())},
        )
        tools: dict[int, list[tuple[int, ToolVersion]]] = {version: [] for version in missing}
        for row in result:
            tools[row.version].append((row.id, ToolVersion(row.name, row.digest, row.definition)))
        for version, listing in missing.items():
            entries = snapshot_tools(self._definitions[version], version, tools[version])
            self._read[version, listing] = tuple(Entry(tool) for tool in entries)


_LOOK: Final = f"SELECT v.id, {LOOKED_AT} FROM server_versions v"  # noqa: S608 - a constant
_VERSIONS: Final = text(
    """
    WITH wanted AS (
        SELECT s.name, 'stable' AS role, s.current_version_id AS id, NULL::jsonb AS plan
        FROM servers s WHERE s.removed_at IS NULL
        UNION ALL
        SELECT r.server_name, 'canary', r.canary_version_id, r.plan FROM rollouts r
        JOIN servers s ON s.name = r.server_name AND s.removed_at IS NULL
        WHERE r.state = 'active'
        UNION ALL
        SELECT DISTINCT v.server_name, 'baseline', v.id, NULL::jsonb FROM holds h
        JOIN server_versions v ON v.id = h.baseline_version_id
        WHERE h.state IN ('open', 'rejected')
    )
    SELECT w.name, w.role, w.id, w.plan, (
        SELECT max(l.id) FROM listings l WHERE l.server_version_id = w.id) AS listing_id
    FROM wanted w ORDER BY w.name, w.id
    """
)
_HOLDS: Final = text(
    "SELECT server_version_id, tool, baseline_version_id FROM holds"
    " WHERE state IN ('open', 'rejected')"
)


def _assemble(
    generation: int,
    rows: Sequence[Any],
    held: Sequence[Any],
    definitions: Mapping[int, ServerDefinition],
    read: Mapping[tuple[int, int], tuple[Entry, ...]],
) -> Offer:
    blocked = frozenset((row.server_version_id, row.tool) for row in held)
    own = {
        row.id: {
            entry.tool.upstream_name: entry
            for entry in read[row.id, row.listing_id or 0]
            if (row.id, entry.tool.upstream_name) not in blocked
        }
        for row in rows
    }
    offered = {version: dict(entries) for version, entries in own.items()}
    for row in held:
        fallback = own.get(row.baseline_version_id, {}).get(row.tool)
        if row.server_version_id in offered and fallback is not None:
            offered[row.server_version_id][row.tool] = fallback

    def version(id_: int) -> OfferedVersion:
        return OfferedVersion(id_, definitions[id_], tuple(offered[id_].values()))

    listed_canaries = {
        row.name: row for row in rows if row.role == "canary" and row.listing_id is not None
    }
    servers = {}
    for row in rows:
        if row.role == "stable":
            canary = listed_canaries.get(row.name)
            servers[row.name] = OfferedServer(
                row.name,
                version(row.id),
                version(canary.id) if canary else None,
                RolloutPlan.model_validate(canary.plan) if canary else None,
            )
    return Offer(generation, servers, blocked)
