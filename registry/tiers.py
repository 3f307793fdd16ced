"""What tenants are and may do, as values: tiers, tenants, and the policy the two make together.

A tier says what its tenants get: limits, a priority, and for each class of tool whether its calls
run, wait for an approval, or are denied. A tenant may be narrowed further, or given other limits.
Pure; `registry.tenants` keeps them.
"""

from __future__ import annotations

import re
from enum import StrEnum
from fnmatch import translate
from functools import lru_cache
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from registry.definitions import Delivery
from registry.output_rules import OutputRules, RedactionRules, ResultRules
from registry.problems import validated
from registry.rates import RateLimit, Rates

DEFAULT_TIER: Final = "default"
LOWEST_PRIORITY: Final = 0
HIGHEST_PRIORITY: Final = 9
DEFAULT_PRIORITY: Final = 5

MOST_TOOL_LIMITS: Final = 50

Concurrent = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Pattern = Annotated[
    str, StringConstraints(pattern=r"^(\*|[a-z0-9*?\[\]!-]+/[^/\x00-\x1f]{1,128})$")
]
"""``server/tool`` as the server calls it, with ``*``, ``?`` and ``[...]``; ``*`` alone is all."""

_ServerName = Annotated[str, StringConstraints(pattern=r"^[^\x00]+$")]


class Access(StrEnum):
    """What becomes of a call: it runs, waits for a person, or is refused."""

    ALLOW = "allow"
    APPROVE = "approve"
    DENY = "deny"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ToolLimits(RateLimit):
    """How much a tenant may ask of the tools of one pattern, together."""

    concurrent_calls: Concurrent | None = None
    """Calls of theirs that are queued or running at once."""


class TenantLimits(Rates):
    """How much a tenant may ask for; None means no limit of its own.

    Rates are of submissions; a burst is a minute's worth unless it is given.
    """

    concurrent_calls: Concurrent | None = None
    """Calls that are queued or running at once."""
    result_bytes: int | None = Field(default=None, ge=1, strict=True)
    """The largest result; a larger one fails its call (`result_too_large`)."""
    tools: dict[Pattern, ToolLimits] | None = Field(default=None, max_length=MOST_TOOL_LIMITS)
    """Limits for some tools, beside those for all: each pattern that names a tool holds."""


class ToolPatterns(_Strict):
    """Which tools: those that ``allow`` names (None: all) and ``deny`` does not."""

    allow: tuple[Pattern, ...] | None = None
    deny: tuple[Pattern, ...] = ()

    def admit(self, server: str, tool: str) -> bool:
        """Say whether a server's tool is among them."""
        name = f"{server}/{tool}"
        if any(matches(pattern, name) for pattern in self.deny):
            return False
        return self.allow is None or any(matches(pattern, name) for pattern in self.allow)


class ToolClasses(_Strict):
    """What the tools of each delivery class get."""

    read: Access = Access.ALLOW
    idempotent: Access = Access.ALLOW
    keyed: Access = Access.ALLOW
    write: Access = Access.ALLOW

    def of(self, delivery: Delivery) -> Access:
        """Return what tools of a class get."""
        access: Access = getattr(self, delivery.value)
        return access


class TierDefinition(_Strict):
    """What the tenants of a tier get."""

    name: Name
    priority: int = Field(
        default=DEFAULT_PRIORITY, ge=LOWEST_PRIORITY, le=HIGHEST_PRIORITY, strict=True
    )
    """Its share of a server's queue: higher is served more often, never exclusively."""
    limits: TenantLimits = TenantLimits()
    """What each of its tenants may ask for."""
    together: RateLimit | None = None
    """How often all of its tenants together may submit."""
    classes: ToolClasses = ToolClasses()
    tools: ToolPatterns = ToolPatterns()
    redaction: RedactionRules = RedactionRules()
    results: ResultRules = ResultRules()


class TenantDefinition(_Strict):
    """What an operator says about one tenant."""

    name: Name
    tier: Name = DEFAULT_TIER
    flags: tuple[Name, ...] = ()
    """Feature flags: the cohorts of servers and rollouts that it belongs to."""
    servers: dict[_ServerName, StrictBool] = Field(default_factory=dict)
    """Servers that are enabled or disabled for it, whatever their definitions say."""
    tools: ToolPatterns = ToolPatterns()
    limits: TenantLimits = TenantLimits()
    """Limits of its own; those left out are its tier's."""
    redaction: RedactionRules = RedactionRules()
    """Types of its own in the place of its tier's, and patterns besides its tier's."""
    results: ResultRules = ResultRules()
    """Reactions of its own; those left out are its tier's."""


def parse_tier(document: Any) -> TierDefinition:
    """Validate a tier; raise `invalid_definition` naming each field that is wrong."""
    return validated(TierDefinition, document, "tier")


def parse_tenant(document: Any) -> TenantDefinition:
    """Validate a tenant; raise `invalid_definition` naming each field that is wrong."""
    return validated(TenantDefinition, document, "tenant")


def limits_of(tier: TierDefinition, tenant: TenantDefinition) -> TenantLimits:
    """Return the limits that hold for a tenant: its own, else its tier's; so for each pattern."""
    own: dict[str, Any] = {
        name: value
        for name in TenantLimits.model_fields
        if (value := getattr(tenant.limits, name)) is not None
    }
    if "tools" in own and tier.limits.tools:
        own["tools"] = {**tier.limits.tools, **own["tools"]}
    return tier.limits.model_copy(update=own)


def output_of(tier: TierDefinition, tenant: TenantDefinition) -> OutputRules:
    """Return the rules that hold for a tenant's results."""
    return OutputRules.of((tier.redaction, tier.results), (tenant.redaction, tenant.results))


def matches(pattern: str, name: str) -> bool:
    """Say whether a pattern names a tool, ``server/tool``."""
    return pattern == "*" or _compiled(pattern).match(name) is not None


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))
