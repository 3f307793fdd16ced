"""What an operator says about a server: the definition, validated and canonical.

Pure values. The same model is what `servers add` and ``POST /v1/servers`` take, what the registry
stores for each version, and what a worker reads to size its pool.
"""

from __future__ import annotations

import hashlib
import json
import re
from enum import StrEnum
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from registry.environment import refuse_variables
from registry.errors import Code, FleetError

ServerName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
Prefix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{0,24}$")]


class Delivery(StrEnum):
    """How often a call of a tool may be dispatched (decided by the operator, design D5)."""

    READ = "read"
    IDEMPOTENT = "idempotent"
    KEYED = "keyed"
    WRITE = "write"

    @property
    def may_rerun(self) -> bool:
        """Say whether a call interrupted after dispatch may be dispatched again."""
        return self is not Delivery.WRITE


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolDefinition(_Strict):
    """Warm sessions of one worker process (guide: min 2 idle, max 8, 200 calls or 15 minutes)."""

    min_idle: int = Field(default=2, ge=0, le=256)
    max_size: int = Field(default=8, ge=1, le=256)
    max_calls: int = Field(default=200, ge=1)
    max_lifetime_s: float = Field(default=900, gt=0)
    max_idle_s: float = Field(default=300, gt=0)
    borrow_timeout_s: float = Field(default=30, gt=0)
    max_waiting: int = Field(default=64, ge=0)
    """Borrowers that may wait at once; the next one is refused (`pool_full`)."""
    calls_per_session: int = Field(default=1, ge=1, le=64)
    """Calls under way in one session at once; more than 1 only for servers that multiplex."""
    validate_after_s: float = Field(default=0.5, ge=0)
    """A session idle for longer is probed before it is lent (HikariCP: 500 ms)."""
    rebuild_per_s: float = Field(default=4, gt=0)
    """How many sessions a second may replace those that died unasked."""
    max_rss_mb: int | None = Field(default=None, ge=1)
    """A session whose process tree is larger (resident) is retired after its call (stdio)."""
    max_open_fds: int | None = Field(default=None, ge=1)
    """A session whose process tree has more open files is retired after its call (stdio)."""
    reset_tool: str | None = None
    """A tool without arguments that clears the session; called each time one is given back."""

    @model_validator(mode="after")
    def _idle_fits(self) -> PoolDefinition:
        if self.min_idle > self.max_size:
            raise ValueError(f"min_idle {self.min_idle} is larger than max_size {self.max_size}")
        if self.reset_tool and self.calls_per_session > 1:
            raise ValueError("reset_tool needs calls_per_session 1: it would reset other calls too")
        return self


class Timeouts(_Strict):
    """Seconds: to open a session, and for one ``tools/call``."""

    connect_s: float = Field(default=15, gt=0)
    call_s: float = Field(default=30, gt=0)


class Health(_Strict):
    """How the server is probed: every ``interval_s`` seconds, by HTTP ``path`` where it has one."""

    interval_s: float = Field(default=30, gt=0)
    path: str | None = None


class Credentials(_Strict):
    """How a tenant's credential enters a session at borrow."""

    inject: Literal["env", "header", "meta", "none"] = "none"
    name: str | None = None
    required: bool = False

    @model_validator(mode="after")
    def _named(self) -> Credentials:
        if self.inject != "none" and not self.name:
            raise ValueError(f"inject: {self.inject} needs a name")
        if self.inject == "env" and self.name:
            refuse_variables([self.name])
        return self


class Sandbox(_Strict):
    """Limits for a stdio child."""

    memory_mb: int | None = Field(default=None, ge=16)
    cpu_s: int | None = Field(default=None, ge=1)
    pids: int | None = Field(default=None, ge=1)
    network: bool = True


class BreakerDefinition(_Strict):
    """When the server's breaker opens (guide: 10 consecutive timeouts, or 5 % over 5 minutes)."""

    consecutive_timeouts: int = Field(default=10, ge=1)
    failure_rate: float = Field(default=0.05, gt=0, le=1)
    window_s: float = Field(default=300, gt=0)
    minimum_calls: int = Field(default=100, ge=1)
    open_for_s: float = Field(default=30, gt=0)
    probe_lease_s: float = Field(default=60, gt=0)


class ToolRule(_Strict):
    """What the operator says about one tool; absent fields fall back to the server's."""

    delivery: Delivery | None = None
    approval: bool = False
    timeout_s: float | None = Field(default=None, gt=0)
    hidden: bool = False
    idempotency_argument: str | None = None
    """The argument that a `keyed` tool takes the call id in."""


class ServerDefinition(_Strict):
    """One version of one MCP server, as its operator describes it."""

    name: ServerName
    version: Annotated[str, StringConstraints(min_length=1, max_length=64)] = "1"
    transport: Literal["stdio", "http", "sse", "openapi"]
    command: str | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    url: HttpUrl | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    tool_prefix: Prefix | None = None
    pool: PoolDefinition = PoolDefinition()
    timeouts: Timeouts = Timeouts()
    health: Health = Health()
    credentials: Credentials = Credentials()
    sandbox: Sandbox = Sandbox()
    breaker: BreakerDefinition = BreakerDefinition()
    tenants: tuple[str, ...] | None = None
    """Tenants that may use the server; None means all."""
    tools: dict[str, ToolRule] = Field(default_factory=dict)
    annotations: Literal["trusted", "untrusted"] = "untrusted"

    @model_validator(mode="after")
    def _transport_fits(self) -> ServerDefinition:
        if self.transport == "stdio" and not self.command:
            raise ValueError("transport stdio needs a command")
        if self.transport == "stdio" and self.url:
            raise ValueError("transport stdio takes a command, not a url")
        if self.transport == "http" and not self.url:
            raise ValueError("transport http needs a url")
        if self.transport == "http" and self.command:
            raise ValueError("transport http takes a url, not a command")
        if self.transport in ("sse", "openapi"):
            raise ValueError(f"transport {self.transport} is not served by this release")
        inject = self.credentials.inject
        if (inject == "env" and not self.command) or (inject == "header" and not self.url):
            raise ValueError(
                f"credentials.inject: {inject} does not fit transport {self.transport}"
            )
        return self

    @field_validator("env")
    @classmethod
    def _harmless(cls, env: dict[str, str]) -> dict[str, str]:
        refuse_variables(env)
        return env

    @property
    def prefix(self) -> str:
        """Return what stands before each tool's name for the model, ``name_`` by default."""
        if self.tool_prefix is None:
            return re.sub(r"[^A-Za-z0-9]", "_", self.name) + "_"
        return self.tool_prefix

    @property
    def queue(self) -> str:
        """Return the name of this server's Celery queue: its bulkhead."""
        return queue_name(self.name)


def queue_name(server: str) -> str:
    """Return the Celery queue of a server."""
    return f"mcp.{server}"


def parse_definition(document: Any) -> ServerDefinition:
    """Validate a definition; raise `invalid_definition` naming each field that is wrong."""
    if "\\u0000" in json.dumps(document, default=str):
        raise FleetError(
            Code.INVALID_DEFINITION,
            "the server definition holds a NUL character: nothing can use it",
        )
    try:
        return ServerDefinition.model_validate(document)
    except ValidationError as error:
        problems = [
            {"path": "/".join(str(part) for part in item["loc"]), "problem": item["msg"]}
            for item in error.errors()
        ]
        first = problems[0]
        raise FleetError(
            Code.INVALID_DEFINITION,
            f"the server definition is not valid: {first['path'] or 'it'}: {first['problem']}",
            hint="correct the fields listed in details and send it again",
            details={"problems": problems},
        ) from error


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of a value (RFC 8785)."""
    return rfc8785.dumps(value)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()
