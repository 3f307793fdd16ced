"""What may run: pure decisions about tenant, server and tool, asked at submit and at dispatch."""

from __future__ import annotations

from dataclasses import dataclass

from registry.definitions import Delivery, ServerDefinition
from registry.errors import Code, FleetError
from registry.tiers import Access, TenantDefinition, TenantLimits, TierDefinition, limits_of


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

    @property
    def limits(self) -> TenantLimits:
        """Return the limits that hold."""
        return limits_of(self.tier, self.tenant)

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
        if access is Access.ALLOW and rule is not None and rule.approval:
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
