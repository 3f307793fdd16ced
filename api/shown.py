"""What answers look like, for the OpenAPI document: nothing is validated by these at run time.

Each says what is always there; an answer may hold more.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Shown(BaseModel):
    model_config = ConfigDict(extra="allow")


class Problem(_Shown):
    """An error (RFC 9457): ``code`` is stable, ``hint`` says what to do."""

    type: str = Field(pattern=r"^urn:toolfleet:error:[a-z_]+$")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    code: str = Field(pattern=r"^[a-z_]+$")
    retryable: bool
    hint: str = ""
    retry_after_s: float = 0
    details: dict[str, Any] = Field(default_factory=dict)


class Tool(_Shown):
    """A tool as a model sees it (MCP)."""

    name: str


class Run(_Shown):
    """A run and its tools."""

    id: str
    tenant: str
    state: Literal["open", "closed", "cancelled", "expired"]
    snapshot: str
    exposure: Literal["all", "search"]
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    tools: list[Tool]


class StartedRun(Run):
    """A run that has just been started."""

    run_token: str | None


class EndedRun(Run):
    """A run that takes no more calls, and how its unfinished ones took it."""

    calls: dict[str, int]


class Question(_Shown):
    """What a call's server asks: a request of MCP; ``key`` names it in the answers."""

    key: str
    method: Literal["elicitation/create", "sampling/createMessage", "roots/list"]
    params: dict[str, Any]


class Call(_Shown):
    """A call as the record has it."""

    id: str
    run_id: str
    tool: str
    server: str
    state: Literal[
        "awaiting_approval",
        "queued",
        "running",
        "succeeded",
        "failed",
        "stopped",
        "expired",
        "outcome_unknown",
        "denied",
    ]
    is_error: bool | None
    result: Any
    error: dict[str, Any] | None
    delivery: Literal["read", "idempotent", "keyed", "write"]
    attempts: int
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    deadline_at: datetime | None
    stop_requested_at: datetime | None
    timings: dict[str, Any] | None
    questions: list[Question]


class Calls(_Shown):
    """Calls, newest first."""

    calls: list[Call]


class StoppedCall(_Shown):
    """What stopping a call could still do."""

    answer: Literal["stopped_before_dispatch", "stop_requested", "too_late"]
    call: Call


class AnsweredCall(_Shown):
    """Which answers were taken: those to questions that were open."""

    taken: list[str]
    call: Call


class FoundTools(_Shown):
    """Tools, the best first."""

    tools: list[Tool]


class Server(_Shown):
    """A server; its definition is shown to operators."""

    name: str
    version: str
    version_id: int
    stale: bool
    refreshed_at: datetime | None
    tools: list[str]
    queue: str


class AddedServer(_Shown):
    """A server that was registered."""

    name: str
    version: str


class TriedServer(AddedServer):
    """A server that could be registered, and was not."""

    added: Literal[False]


class Servers(_Shown):
    """Servers by name."""

    servers: list[Server]


class NewKey(_Shown):
    """A key with its plaintext, which is shown this once."""

    id: str
    key: str
    name: str
    role: str
    tenant: str | None
    scopes: dict[str, Any] | None


class RotatedKey(NewKey):
    """A key in the place of another."""

    replaces: str
    replaced_expires_at: datetime


class Key(_Shown):
    """A key without its secret."""

    id: str
    name: str
    role: str
    tenant_id: str | None
    scopes: dict[str, Any] | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class Keys(_Shown):
    """Keys, oldest first."""

    keys: list[Key]


class Rollout(_Shown):
    """A rollout of a server."""

    id: int
    stable: str
    canary: str
    state: Literal["active", "promoted", "rolled_back", "replaced"]
    plan: dict[str, Any]


class Rollouts(_Shown):
    """Rollouts, newest first."""

    rollouts: list[Rollout]


class Breaker(_Shown):
    """The breaker of a server version: ``open_s`` since it was closed, ``why`` it is not."""

    server: str
    version: str
    state: Literal["closed", "open", "half_open"]
    open_s: float
    why: str
    retry_after_s: float
    calls: int
    failures: int
    consecutive_timeouts: int


class DrainedWorker(_Shown):
    """A worker that takes no more calls."""

    id: str
    server: str
    hostname: str
    pid: int
    started_at: datetime
    drain_requested_at: datetime


class Worker(_Shown):
    """A worker process, and the sessions that it holds of each version."""

    id: str
    server: str
    hostname: str
    pid: int
    started_at: datetime
    drain_requested_at: datetime | None
    pools: list[dict[str, Any]]


class Workers(_Shown):
    """Workers by server and age."""

    workers: list[Worker]
    away: list[str]


class Changes(_Shown):
    """What changed in a server's tools, and what of it is held."""

    changes: list[dict[str, Any]]
    held: list[dict[str, Any]]


class Hold(_Shown):
    """A held change."""

    id: int
    state: str


class Tier(_Shown):
    """A tier."""

    name: str
    priority: int


class Tiers(_Shown):
    """Tiers by name."""

    tiers: list[Tier]


class Tenant(_Shown):
    """A tenant, its own limits and those that hold."""

    name: str
    tier: str
    own_limits: dict[str, Any]
    limits: dict[str, Any]
    priority: int
    ordinal: int


class Tenants(_Shown):
    """Tenants, in the order in which they came."""

    tenants: list[Tenant]


class Decision(_Shown):
    """What one approver said."""

    decided_by: str
    approve: bool
    decided_at: datetime
    holds_until: datetime
    reason: str | None


class Approval(_Shown):
    """A call that waits or waited, as its approvers see it; ``binding`` stands for all of it."""

    id: str
    tenant_id: str
    run_id: str
    tool: str
    server_name: str
    server_version: str
    tool_version_id: int
    delivery: Literal["read", "idempotent", "keyed", "write"]
    requested_by: str
    started_by: str
    state: str
    created_at: datetime
    expires_at: datetime | None
    arguments: Any
    hidden: list[str]
    approvers: int
    decisions: list[Decision]
    binding: str = Field(pattern=r"^[0-9a-f]{64}$")


class Approvals(_Shown):
    """Calls that wait or were decided about; ``next`` is the ``after`` of the next page."""

    approvals: list[Approval]
    next: str | None


class DecidedOne(_Shown):
    """What became of one of many decisions: the call as it is now, or an error."""

    id: str
    approval: Approval | None = None
    error: Problem | None = None


class DecidedMany(_Shown):
    """What became of many decisions, in their order."""

    results: list[DecidedOne]


class AuditEntries(_Shown):
    """Entries of the audit, newest first."""

    entries: list[dict[str, Any]]


class StoredCredential(_Shown):
    """A stored credential without its secrets: of those, only which there are."""

    tenant: str
    server: str
    kind: str
    state: Literal["ready", "needs_consent"]
    definition: dict[str, Any]
    secrets: list[str]
    problem: dict[str, Any] | None
    expires_at: datetime | None
    changed_at: datetime


class StoredCredentials(_Shown):
    """Stored credentials, by server and tenant."""

    credentials: list[StoredCredential]


class Rewrapped(_Shown):
    """How many data keys were wrapped anew, and how many each encryption key wraps now.

    Beside them: the server versions whose secrets were sealed, and those left for the next time
    because a call of them waits for its approval or has one.
    """

    rewrapped: int
    wrapped_by: dict[str, int]
    definitions_sealed: int
    definitions_left: int


class Registry(_Shown):
    """The registry as one document."""


class AppliedRegistry(_Shown):
    """What a document changed, or would change."""

    steps: list[dict[str, Any]]
    applied: bool


class Differences(_Shown):
    """How the tools of two snapshots differ."""

    before: str
    after: str
    changes: list[dict[str, Any]]


class Checkup(_Shown):
    """How the fleet is."""

    well: bool
    findings: list[dict[str, Any]]


class FleetServer(_Shown):
    """A server as it is now: what its workers hold of it, and what it was asked lately."""

    name: str
    version: str
    breaker: Literal["closed", "half_open", "open"]
    queued: int
    oldest_queued_s: float
    held_changes: int
    sessions: dict[str, int]
    max_sessions: int
    waiting: int
    workers: list[dict[str, Any]]
    beats: list[dict[str, Any]]


class Fleet(_Shown):
    """The fleet as it is now; ``away`` names what could not be asked."""

    servers: list[FleetServer]
    away: list[Literal["broker"]]
    unfinished: dict[str, int]
    beat_s: int


class ServerCapacity(_Shown):
    """What a server has and needs; null where that cannot be said, or has no end."""

    server: str
    workers: int
    max_size: int
    calls_per_session: int
    calls: int
    mean_per_minute: float
    peak_per_minute: float
    burstiness: float
    served: int
    service_s: float | None
    p95_service_s: float | None
    p95_wait_s: float | None
    utilisation: float | None
    expected_p95_wait_s: float | None
    needed_sessions: int | None
    needed_workers: int | None
    utilisation_then: float | None
    expected_p95_wait_then_s: float | None
    advice: Literal[
        "nothing", "add_workers", "raise_max_size", "shrink", "raise_quota", "look_again"
    ]
    why: str


class Capacity(_Shown):
    """What each server needs for a wait."""

    p95_queue_wait_s: float
    window_s: int
    headroom: float
    servers: list[ServerCapacity]


class Alive(_Shown):
    """The process runs."""

    status: Literal["ok"]


class Ready(_Shown):
    """Whether calls can be taken, and which part is away if not."""

    ready: bool
    database: Literal["ok", "away"]
    broker: Literal["ok", "away"]
