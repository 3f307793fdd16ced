"""The fleet as it is now: servers with their queues, workers, pools and breakers.

What workers hold is as they left it in Redis a second ago (`workers.figures`); the rest is read
from the record. A part that is away leaves a gap, which `away` names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from api.operations import Operations
from registry import catalog, holds, overview, rollouts
from registry.catalog import ServerVersion
from registry.errors import FleetError
from registry.rollouts import Rollout
from workers.client import BreakerSnapshot

BREAKERS: Final = {0.0: "closed", 1.0: "half_open", 2.0: "open"}
SESSIONS: Final = (
    "opening", "idle", "reserved", "validating", "in_use", "resetting", "closing",
)  # fmt: skip

_FIGURES: Final = tuple(
    f"toolfleet_{name}{{"
    for name in (
        "sessions", "pool_waiting", "pool_max_size", "breaker_state",
        "processes", "zombies", "open_fds",
    )
)  # fmt: skip


@dataclass
class Pool:
    """The sessions that one worker holds of one version of a server."""

    version: str
    sessions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SESSIONS, 0))
    waiting: int = 0
    max_size: int = 0
    breaker: str = "closed"


@dataclass
class Worker:
    """One worker process: what it holds, and how it has been counted."""

    id: str
    server: str
    hostname: str = ""
    pid: int = 0
    started_at: datetime | None = None
    drain_requested_at: datetime | None = None
    pools: dict[str, Pool] = field(default_factory=dict)
    """By version."""
    processes: int = 0
    zombies: int = 0
    open_fds: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as callers see it."""
        return {**asdict(self), "pools": [asdict(pool) for pool in self.pools.values()]}


@dataclass(frozen=True)
class Server:
    """A registered server, and what serves it."""

    version: ServerVersion
    workers: list[Worker]
    queued: int
    """Calls in the record that wait for a worker."""
    oldest_queued_s: float
    held: int
    """Changes of its tools that wait for an operator."""
    shared_breaker: BreakerSnapshot | None = None
    """That of its current version, as all workers share it; None while the broker is away."""
    rollout: Rollout | None = None
    """The active one."""
    canary_breaker: BreakerSnapshot | None = None
    """That of its canary's version; None without one, and while the broker is away."""

    @property
    def name(self) -> str:
        """Return the server's name."""
        return self.version.definition.name

    @property
    def breaker(self) -> str:
        """Return the state of its current version's breaker; else as the worst worker says."""
        if self.shared_breaker is not None:
            return self.shared_breaker.state.value
        current = self.version.definition.version
        states = {it.pools[current].breaker for it in self.workers if current in it.pools}
        return next((it for it in ("open", "half_open") if it in states), "closed")

    def sessions(self, state: str) -> int:
        """Return how many sessions of all its workers are in a state (`SESSIONS`)."""
        return sum(pool.sessions[state] for it in self.workers for pool in it.pools.values())


@dataclass(frozen=True)
class FleetState:
    """The whole fleet at one moment."""

    servers: list[Server]
    away: tuple[str, ...]
    """What could not be asked: ``broker``; a database that is away is an error."""
    unfinished: dict[str, int]
    """Calls by the states that are not final."""

    @property
    def workers(self) -> list[Worker]:
        """Return every worker, by server."""
        return [worker for server in self.servers for worker in server.workers]


async def read_fleet(operations: Operations) -> FleetState:
    """Return the fleet as it is now; raise `store_unavailable` while the record is away."""
    database = operations.database
    versions = await catalog.list_servers(database)
    running = {it.server: it for it in await rollouts.active_rollouts(database)}
    canaries = [
        canary
        for name in running
        for canary in await catalog.followed(database, name)
        if canary.id == running[name].canary_version_id
    ]
    away: list[str] = []
    try:
        figures = await operations.client.figures()
        breakers = await _breakers(operations, [*versions, *canaries])
    except FleetError:
        figures, breakers, away = {}, {}, ["broker"]
    living = {row["id"]: row for row in await overview.living_workers(database)}
    workers = _workers(figures, living)
    queued = await overview.queued_by_server(database)
    held: dict[str, int] = {}
    for (server, _), count in (await holds.counts(database)).items():
        held[server] = held.get(server, 0) + count
    canary_breakers = {it.definition.name: breakers[it.id] for it in canaries if it.id in breakers}
    servers = [
        Server(
            version,
            [it for it in workers if it.server == version.definition.name],
            *queued.get(version.definition.name, (0, 0.0)),
            held.get(version.definition.name, 0),
            breakers.get(version.id),
            running.get(version.definition.name),
            canary_breakers.get(version.definition.name),
        )
        for version in versions
    ]
    return FleetState(servers, tuple(away), await overview.unfinished_calls(database))


async def _breakers(
    operations: Operations, versions: Sequence[ServerVersion]
) -> dict[int, BreakerSnapshot]:
    """Return the breakers of server versions by version id."""
    wanted = [(it.definition.name, it.id, it.definition.breaker) for it in versions]
    states = await operations.client.breakers(wanted)
    return {version.id: state for version, state in zip(versions, states, strict=True)}


def _workers(figures: Mapping[str, str], living: Mapping[str, Mapping[str, Any]]) -> list[Worker]:
    """Return the workers whose lease holds, with what each left of its figures."""
    found = [
        Worker(
            id_, row["server_name"], row["hostname"], row["pid"],
            row["started_at"], row["drain_requested_at"],
        )
        for id_, row in living.items()
    ]  # fmt: skip
    for worker in found:
        for family in text_string_to_metric_families(_told(figures.get(worker.id, ""))):
            for sample in family.samples:
                _take(worker, family.name, sample.labels, sample.value)
    return found


def _told(exposition: str) -> str:
    """Return the lines that the fleet's state tells of: reading all takes six times as long."""
    return "".join(line for line in exposition.splitlines(True) if line.startswith(_FIGURES))


def _take(worker: Worker, name: str, labels: Mapping[str, str], value: float) -> None:
    """Take one figure of a worker over, if it is one that the fleet's state tells."""
    match name.removeprefix("toolfleet_"):
        case "sessions" if labels["state"] in SESSIONS:
            _pool(worker, labels).sessions[labels["state"]] = int(value)
        case "pool_waiting":
            _pool(worker, labels).waiting = int(value)
        case "pool_max_size":
            _pool(worker, labels).max_size = int(value)
        case "breaker_state":
            _pool(worker, labels).breaker = BREAKERS.get(value, "closed")
        case "processes" | "zombies" | "open_fds" as counted:
            setattr(worker, counted, int(value))


def _pool(worker: Worker, labels: Mapping[str, str]) -> Pool:
    return worker.pools.setdefault(labels["version"], Pool(labels["version"]))
