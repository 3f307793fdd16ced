"""What an operator says about a server: the definition, validated and canonical.

Pure values. The same model is what `servers add` and ``POST /v1/servers`` take, what the registry
stores for each version, and what a worker reads to size its pool.
"""

from __future__ import annotations

import hashlib
import json
import re
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import rfc8785
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)

from registry import fields
from registry.addresses import Network, parse_network, refuse_host
from registry.command_options import RefusedCommand
from registry.commands import CommandPolicy, current_policy
from registry.environment import refuse_variables
from registry.errors import FleetError
from registry.fields import DAY_S, MOST_ENTRIES, MOST_TENANTS, MOST_TOOLS, at_most, entries, line
from registry.openapi import choose
from registry.openapi_references import DocumentError
from registry.problems import invalid, misplaced, validated
from registry.question_kinds import ELICITATION, ELICITATION_URL, ROOTS, SAMPLING
from registry.rates import RateLimit
from registry.sealed_definitions import hidden

TERABYTE_MB = 1_048_576
MOST_PIDS = 4_194_304
"""The most that a Linux kernel counts to."""

Count = Annotated[int, at_most(1_000_000_000)]
_NUL: Final = re.compile(r"(?<!\\)(\\\\)*\\u0000")  # in JSON; a pattern may name it, escaped
_WHAT: Final = "server definition"


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


class TaskUse(StrEnum):
    """When a tool's calls become tasks for MCP clients that know tasks (the Tasks extension)."""

    WHEN_SLOW = "when_slow"
    """Once they have taken a while (`Settings.task_after`), or wait for an approval."""
    ALWAYS = "always"
    NEVER = "never"
    REQUIRED = "required"
    """Always; clients that know no tasks are refused."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolDefinition(_Strict):
    """Warm sessions of one worker process (guide: min 2 idle, max 8, 200 calls or 15 minutes)."""

    min_idle: int = Field(default=2, ge=0, le=256)
    max_size: int = Field(default=8, ge=1, le=256)
    max_calls: Count = Field(default=200, ge=1)
    max_lifetime_s: fields.Lifetime = 900
    max_idle_s: fields.Lifetime = 300
    borrow_timeout_s: fields.Seconds = 30
    max_waiting: Annotated[int, at_most(100_000)] = Field(default=64, ge=0)
    """Borrowers that may wait at once; the next one is refused (`pool_full`)."""
    calls_per_session: int = Field(default=1, ge=1, le=64)
    """Calls under way in one session at once; more than 1 only for servers that multiplex."""
    validate_after_s: Annotated[float, at_most(DAY_S)] = Field(
        default=0.5, ge=0, allow_inf_nan=False
    )
    """A session idle for longer is probed before it is lent (HikariCP: 500 ms)."""
    rebuild_per_s: Annotated[float, at_most(1000)] = Field(default=4, gt=0, allow_inf_nan=False)
    """How many sessions a second may replace those that died unasked."""
    max_rss_mb: Annotated[int, at_most(TERABYTE_MB)] | None = Field(default=None, ge=1)
    """A session whose process tree is larger (resident) is retired after its call (stdio)."""
    max_open_fds: Count | None = Field(default=None, ge=1)
    """A session whose process tree has more open files is retired after its call (stdio)."""
    reset_tool: fields.ToolName | None = None
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

    connect_s: fields.Seconds = 15
    call_s: fields.Seconds = 30


class Health(_Strict):
    """How the server is probed: every ``interval_s`` seconds, by HTTP ``path`` where it has one."""

    interval_s: fields.Seconds = 30
    path: fields.UrlPath | None = None


class Credentials(_Strict):
    """How a tenant's credential enters a session at borrow."""

    inject: Literal["env", "header", "meta", "none"] = "none"
    name: Annotated[str, line()] | None = None
    required: bool = False

    @model_validator(mode="after")
    def _named(self, info: ValidationInfo) -> Credentials:
        if self.inject != "none" and not self.name:
            raise misplaced("name", f"is required: inject: {self.inject} needs a name")
        try:
            if self.inject == "env" and self.name:
                refuse_variables([self.name])
            if self.inject == "header" and self.name and fields.is_new(info):
                fields.refuse_header_name(self.name)
        except ValueError as error:
            raise misplaced("name", str(error)) from error
        return self


class OpenApi(_Strict):
    """The document of an HTTP API, and which of its operations are tools."""

    document: dict[str, Any] | None = Field(default=None, repr=False)
    """OpenAPI 3.0 or 3.1; None in a definition that was read from the record to be looked at."""
    include: tuple[str, ...] = Field(default=(), max_length=200)
    """Patterns of operationIds or of ``METHOD /path``, with ``*`` for anything; none means all."""
    exclude: tuple[str, ...] = Field(default=(), max_length=200)
    check_results: bool = False
    """Refuse answers that do not fit the document's schemas (`result_invalid`).

    Off by default: the call has run by then, and few documents are exact about answers.
    """


class Sandbox(_Strict):
    """Limits for a stdio child."""

    memory_mb: Annotated[int, at_most(TERABYTE_MB)] | None = Field(default=None, ge=16)
    cpu_s: Count | None = Field(default=None, ge=1)
    pids: Annotated[int, at_most(MOST_PIDS)] | None = Field(default=None, ge=1)
    network: bool = True


class BreakerDefinition(_Strict):
    """When the server's breaker opens (guide: 10 consecutive timeouts, or 5 % over 5 minutes)."""

    consecutive_timeouts: Count = Field(default=10, ge=1)
    failure_rate: float = Field(default=0.05, gt=0, le=1, allow_inf_nan=False)
    window_s: fields.Seconds = 300
    minimum_calls: Count = Field(default=100, ge=1)
    open_for_s: fields.Seconds = 30
    probe_lease_s: fields.Seconds = 60


class Quota(RateLimit):
    """What the server, or the vendor behind it, allows the whole fleet, whoever calls.

    A burst is a second's worth unless it is given. What the server says itself (429, Retry-After)
    is kept to whether or not there is a quota.
    """

    concurrent_calls: Annotated[int, at_most(100_000)] | None = Field(default=None, ge=1)
    """Calls under way at once, in all workers together."""
    per: Literal["credential", "server"] = "credential"
    """Whose calls count, and pause, together: those made with one credential (all of them, for a
    server that takes none), or all."""


Reaction = Literal["accept", "alert", "hold"]


class ChangeReactions(_Strict):
    """What becomes of a change in what the server lists, by its kind (`registry.diff`).

    ``accept`` takes it in, ``alert`` takes it in and raises an alert, ``hold`` keeps it from every
    run, and refuses calls of a tool that changed under its runs, until an operator has decided.
    """

    added: Reaction = "accept"
    removed: Reaction = "alert"
    breaking: Reaction = "hold"
    widening: Reaction = "accept"
    description: Reaction = "alert"
    annotation_flip: Reaction = "hold"

    def to(self, kind: str) -> Reaction:
        """Return the reaction to a kind of change."""
        reaction: Reaction = getattr(self, kind)
        return reaction


class Questions(_Strict):
    """What the server may ask whoever calls its tools, while a call runs, if they can answer."""

    elicitation: bool = True
    sampling: bool = True
    roots: bool = True

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return them by their names in `registry.question_kinds`."""
        forms = (ELICITATION, ELICITATION_URL) if self.elicitation else ()
        return (*forms, *(SAMPLING,) * self.sampling, *(ROOTS,) * self.roots)


def _as_rule(value: Any) -> Any:
    return value if isinstance(value, dict | BaseModel) else {"required": value}


class ApprovalRule(_Strict):
    """Whether a tool's calls wait for people, for how many, and what these are not shown.

    ``approval: true`` stands for one approver who sees everything. Where ``required`` is false the
    rest is said about calls that wait because a tier wants it.
    """

    required: bool = True
    approvers: Annotated[int, at_most(5)] = Field(default=1, ge=1)
    """How many different people have to approve; one who denies is enough."""
    redact: Annotated[tuple[fields.JsonPointer, ...], entries(MOST_ENTRIES)] = ()
    """JSON pointers (RFC 6901) into the arguments: what is there is hidden from approvers."""


def _plainly(rule: ApprovalRule) -> bool | dict[str, Any]:
    # A plain yes or no stays one, so that what was registered before has the same digest.
    plain = rule == ApprovalRule(required=rule.required)
    return rule.required if plain else rule.model_dump(mode="json")


class ToolRule(_Strict):
    """What the operator says about one tool; absent fields fall back to the server's."""

    delivery: Delivery | None = None
    approval: Annotated[ApprovalRule, BeforeValidator(_as_rule), PlainSerializer(_plainly)] = (
        ApprovalRule(required=False)
    )
    timeout_s: fields.Seconds | None = None
    hidden: bool = False
    idempotency_argument: Annotated[str, line()] | None = None
    """The argument that a `keyed` tool takes the call id in."""
    task: TaskUse = TaskUse.WHEN_SLOW


class ServerDefinition(_Strict):
    """One version of one MCP server, as its operator describes it."""

    name: fields.ServerName
    version: Annotated[str, line()] = Field(default="1", min_length=1, max_length=64)
    transport: Literal["stdio", "http", "sse", "openapi"]
    command: fields.Program | None = None
    args: Annotated[tuple[fields.Text, ...], entries(MOST_ENTRIES)] = ()
    env: Annotated[dict[fields.Variable, fields.Text], entries(MOST_ENTRIES)] = Field(
        default_factory=dict
    )
    cwd: fields.Folder | None = None
    url: fields.Endpoint | None = None
    headers: Annotated[dict[fields.HeaderName, fields.HeaderValue], entries(MOST_ENTRIES)] = Field(
        default_factory=dict
    )
    openapi: OpenApi | None = None
    networks: Annotated[tuple[fields.NetworkName, ...], entries(MOST_ENTRIES)] = ()
    """Networks that are not public and that ``url`` may lead into, such as ``127.0.0.0/8``."""
    tool_prefix: fields.Prefix | None = None
    cost_tag: Annotated[str, line(64)] | None = None
    """Who pays for it: a label of the server's metrics (`toolfleet_server_info`)."""
    pool: PoolDefinition = PoolDefinition()
    timeouts: Timeouts = Timeouts()
    health: Health = Health()
    credentials: Credentials = Credentials()
    sandbox: Sandbox = Sandbox()
    breaker: BreakerDefinition = BreakerDefinition()
    quota: Quota | None = None
    tenants: Annotated[tuple[fields.Tenant, ...], entries(MOST_TENANTS)] | None = None
    """Tenants that may use the server; None means all, unless `cohorts` says which."""
    cohorts: Annotated[tuple[fields.Tenant, ...], entries(MOST_TENANTS)] | None = None
    """Feature flags whose tenants may use the server, beside those of `tenants`."""
    changes: ChangeReactions = ChangeReactions()
    tools: Annotated[dict[fields.ToolName, ToolRule], entries(MOST_TOOLS)] = Field(
        default_factory=dict
    )
    annotations: Literal["trusted", "untrusted"] = "untrusted"
    questions: Questions = Questions()

    @model_validator(mode="after")
    def _transport_fits(self) -> ServerDefinition:
        if self.transport == "sse":
            raise misplaced("transport", f"{self.transport} is not served by this release")
        wanted, other = ("command", "url") if self.transport == "stdio" else ("url", "command")
        if not getattr(self, wanted):
            raise misplaced(wanted, f"is required: transport {self.transport} needs a {wanted}")
        if getattr(self, other):
            raise misplaced(other, f"transport {self.transport} takes a {wanted}, not a {other}")
        if self.transport == "openapi":
            self._refuse_what_no_api_has()
        elif self.openapi:
            raise misplaced("openapi", f"transport {self.transport} takes no openapi")
        inject = self.credentials.inject
        if (inject == "env" and not self.command) or (inject == "header" and not self.url):
            raise misplaced(
                "credentials/inject", f"inject: {inject} does not fit transport {self.transport}"
            )
        return self

    def _refuse_what_no_api_has(self) -> None:
        if not self.openapi:
            raise misplaced("openapi", "is required: transport openapi needs the API's document")
        if self.url and (self.url.query or self.url.fragment):
            raise misplaced("url", "is a base for paths: it takes no query or fragment")
        if self.credentials.inject == "meta":
            raise misplaced("credentials/inject", "meta does not fit transport openapi")
        if not self.sandbox.network:
            raise misplaced("sandbox/network", "has to be true for the API to be reached")

    @model_validator(mode="after")
    def _address_is_allowed(self, info: ValidationInfo) -> ServerDefinition:
        if self.networks and self.url is None:
            raise misplaced("networks", "is about a url; sandbox.network is what a command may use")
        if self.url is not None and fields.is_new(info):
            try:
                refuse_host(self.url.host or "", self.reachable)
            except ValueError as error:
                raise misplaced("url", str(error)) from error
            if self.url.scheme == "http" and not self.networks:
                raise misplaced(
                    "url", "is not encrypted: use https://, or name under networks where it leads"
                )
        return self

    @field_validator("headers")
    @classmethod
    def _told_apart(cls, headers: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if fields.is_new(info):
            fields.refuse_twins(headers)
        return headers

    @property
    def prefix(self) -> str:
        """Return what stands before each tool's name for the model, ``name_`` by default."""
        if self.tool_prefix is None:
            return re.sub(r"[^A-Za-z0-9]", "_", self.name) + "_"
        return self.tool_prefix

    @property
    def reachable(self) -> tuple[Network, ...]:
        """Return the networks that are not public and that ``url`` may lead into."""
        return tuple(map(parse_network, self.networks))

    @property
    def queue(self) -> str:
        """Return the name of this server's Celery queue: its bulkhead."""
        return queue_name(self.name)


def queue_name(server: str) -> str:
    """Return the Celery queue of a server."""
    return f"mcp.{server}"


def parse_definition(document: Any, policy: CommandPolicy | None = None) -> ServerDefinition:
    """Validate a definition to be registered; raise `invalid_definition` naming what is wrong.

    Its command is held to ``policy``, by default to the one in force; `policy_denied` says that
    there is none that can be used. Nothing is started, opened or looked up for that.
    """
    definition = validated(ServerDefinition, document, _WHAT, context=fields.NEW)
    if definition.command is not None:
        try:
            (policy or current_policy()).refuse(definition.command, definition.args)
        except RefusedCommand as error:
            raise invalid(_WHAT, [{"path": error.place, "problem": error.problem}]) from error
    try:
        if definition.openapi is not None:
            _refuse_unserved(definition.openapi)
    except DocumentError as error:
        raise invalid_document(error) from error
    return definition


def invalid_document(error: DocumentError) -> FleetError:
    """Return `invalid_definition`, naming the place in the document of a definition."""
    path = "/".join(str(part) for part in ("openapi", *error.place))
    return invalid(_WHAT, [{"path": path, "problem": str(error)}])


def _refuse_unserved(openapi: OpenApi) -> None:
    if openapi.document is None:
        raise DocumentError("it is missing")
    try:
        if _NUL.search(json.dumps(openapi.document, default=str)):
            raise DocumentError("it holds a NUL character (U+0000): nothing can use it")
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    choose(openapi.document, openapi.include, openapi.exclude)


def content_digest(definition: ServerDefinition) -> str:
    """Return the digest of all that a definition says openly; equal content, equal digest.

    Secrets count by their names alone, so that nobody can try out by it what they are. A document
    counts by its own digest: it may be large, and hold numbers that RFC 8785 does not know.
    """
    body = hidden(definition.model_dump(mode="json", exclude={"openapi": {"document"}}))
    if definition.quota is None:
        del body["quota"]  # so that what was registered before there was this field is the same
    if definition.questions == Questions():
        del body["questions"]  # likewise
    if definition.cost_tag is None:
        del body["cost_tag"]  # likewise
    for rule in body["tools"].values():
        if rule["task"] == TaskUse.WHEN_SLOW:
            del rule["task"]
    if definition.openapi is None:
        del body["openapi"]
    else:
        text = json.dumps(definition.openapi.document, sort_keys=True)
        body["openapi"]["document"] = hashlib.sha256(text.encode()).hexdigest()
    return digest(body)


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of a value (RFC 8785)."""
    return rfc8785.dumps(value)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()
