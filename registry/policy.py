"""What may run: pure decisions about tenant, server and tool, asked at submit and at dispatch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from registry.concurrency import Cap
from registry.definitions import Delivery, ServerDefinition
from registry.errors import Code, FleetError
from registry.output_rules import OutputRules
from registry.rates import Bucket, buckets
from registry.tiers import (
    Access,
    TenantDefinition,
    TenantLimits,
    TierDefinition,
    ToolLimits,
    limits_of,
    matches,
    output_of,
)


def is_named(tenant: str, definition: ServerDefinition) -> bool:
    """Say whether a server's definition is for a tenant, as far as its name says."""
    if definition.tenants is None:
        return definition.cohorts is None
    return tenant in definition.tenants


@dataclass(frozen=True)
class TenantPolicy:
    """What one tenant may do: its own definition, its tier's, and its place among tenants."""

    tenant: TenantDefinition
    tier: TierDefinition
    ordinal: int
    """Which tenant it was, counted from the first: its place in every rollout."""

    @cached_property
    def limits(self) -> TenantLimits:
        """Return the limits that hold."""
        return limits_of(self.tier, self.tenant)

    @cached_property
    def output(self) -> OutputRules:
        """Return the rules that hold for its results."""
        return output_of(self.tier, self.tenant)

    def buckets(self, server: str, tool: str) -> tuple[Bucket, ...]:
        """Return the buckets that a submission takes from; none for a tenant without limits."""
        return self._own_buckets + tuple(
            bucket
            for pattern, limits in self._tool_limits
            if matches(pattern, f"{server}/{tool}")
            for bucket in buckets(limits, f"tool:{self.tenant.name}:{pattern}")
        )

    def caps(self, server: str, tool: str) -> tuple[Cap, ...]:
        """Return the limits on calls at once that a submission falls under."""
        most = self.limits.concurrent_calls
        return (() if most is None else (Cap("*", most),)) + tuple(
            Cap(pattern, limits.concurrent_calls)
            for pattern, limits in self._tool_limits
            if limits.concurrent_calls is not None and matches(pattern, f"{server}/{tool}")
        )

    @cached_property
    def _own_buckets(self) -> tuple[Bucket, ...]:
        of_tier = self.tier.together
        shared = buckets(of_tier, f"tier:{self.tier.name}") if of_tier is not None else ()
        return buckets(self.limits, f"tenant:{self.tenant.name}") + shared

    @cached_property
    def _tool_limits(self) -> tuple[tuple[str, ToolLimits], ...]:
        return tuple((self.limits.tools or {}).items())

    def may_use(self, definition: ServerDefinition) -> bool:
        """Say whether it may use a server: its own switch decides, else the server's definition."""
        switch = self.tenant.servers.get(definition.name)
        if switch is not None:
            return switch
        cohorts = definition.cohorts or ()
        return is_named(self.tenant.name, definition) or any(
            flag in cohorts for flag in self.tenant.flags
        )

    def access(self, definition: ServerDefinition, tool: str, delivery: Delivery) -> Access:
        """Return what becomes of its calls of a server's tool, named as the server does.

        The stricter of the operator's rule for the tool and what the tier and the tenant say.
        """
        if not self.may_use(definition):
            return Access.DENY
        access = self.tool_access(definition.name, tool, delivery)
        rule = definition.tools.get(tool)
        if access is Access.ALLOW and rule is not None and rule.approval.required:
            return Access.APPROVE
        return access

    def tool_access(self, server: str, tool: str, delivery: Delivery) -> Access:
        """Return what tier and tenant say of a tool: patterns and switches deny, classes decide."""
        if self.tenant.servers.get(server) is False:
            return Access.DENY
        if not (self.tier.tools.admit(server, tool) and self.tenant.tools.admit(server, tool)):
            return Access.DENY
        return self.tier.classes.of(delivery)

    def refuse_server(self, definition: ServerDefinition) -> None:
        """Raise `policy_denied` unless it may use the server."""
        if not self.may_use(definition):
            raise FleetError(
                Code.POLICY_DENIED,
                f"tenant {self.tenant.name!r} may not use server {definition.name!r}",
                hint="an operator can enable the server for the tenant, or add the tenant to the "
                "server's definition",
            )

    def refuse_call(
        self, definition: ServerDefinition, tool: str, delivery: Delivery, *, approved: bool
    ) -> None:
        """Raise `policy_denied` unless a call may be dispatched, as the policy is now."""
        self.refuse_server(definition)
        access = self.access(definition, tool, delivery)
        if access is Access.DENY:
            raise self.denied(definition.name, tool, delivery)
        if access is Access.APPROVE and not approved:
            raise FleetError(
                Code.POLICY_DENIED,
                f"calls of tool {tool!r} of server {definition.name!r} need an approval, and this "
                "one has none",
                hint="start a new run and submit the call again: it then waits for its approval",
            )

    def denied(self, server: str, tool: str, delivery: Delivery) -> FleetError:
        """Return the error for a tool that its tier or its own definition denies."""
        return FleetError(
            Code.POLICY_DENIED,
            f"tenant {self.tenant.name!r} of tier {self.tier.name!r} may not call tool {tool!r} "
            f"({delivery.value}) of server {server!r}",
            hint="an operator can change the tier's classes and patterns, or the tenant's",
        )
