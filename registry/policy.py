"""What may run: pure decisions about tenant, server and tool, asked at submit and at dispatch."""

from __future__ import annotations

from registry.definitions import ServerDefinition
from registry.errors import Code, FleetError


def may_use(tenant: str, definition: ServerDefinition) -> bool:
    """Say whether a tenant may use a server."""
    return definition.tenants is None or tenant in definition.tenants


def refuse_tenant(tenant: str, definition: ServerDefinition) -> None:
    """Raise `policy_denied` unless ``tenant`` may use the server."""
    if not may_use(tenant, definition):
        raise FleetError(
            Code.POLICY_DENIED,
            f"tenant {tenant!r} may not use server {definition.name!r}",
            hint="an operator has to add the tenant to the server's definition",
        )


def refuse_unapproved(tool: str, *, approval: bool) -> None:
    """Raise `policy_denied` for a tool whose calls need a person's approval.

    Approvals are not served by this release; a gate that cannot open must stay shut.
    """
    if approval:
        raise FleetError(
            Code.POLICY_DENIED,
            f"calls of {tool} need an approval, and this release has no approvers",
            hint="an operator can set approval: false for the tool",
        )
