"""What is asked of a server beside its tools: by which methods, and who may.

Each such request is a call, of no tool of its run's snapshot: it is of the server version that its
tenant is offered now, and of class `read`. Rules for tools (of tiers, tenants, keys) name it by its
method: ``crm/resources/read`` is what ``crm/*`` and ``crm/resources*`` name.
"""

from __future__ import annotations

from typing import Final

from registry.definitions import Delivery, ServerDefinition
from registry.policy import TenantPolicy
from registry.scopes import Scopes
from registry.tiers import Access

RESOURCES_READ: Final = "resources/read"
PROMPTS_GET: Final = "prompts/get"
COMPLETE: Final = "completion/complete"
SUBSCRIBE: Final = "resources/subscribe"
UNSUBSCRIBE: Final = "resources/unsubscribe"
CLASS: Final = Delivery.READ


def may_ask(
    policy: TenantPolicy, definition: ServerDefinition, method: str, scopes: Scopes | None = None
) -> bool:
    """Say whether a tenant, by a key that is narrowed to some scopes, may ask a server this.

    What would need an approval may not be asked: approvals are bound to tools.
    """
    if scopes is not None and not scopes.admit(definition.name, method):
        return False
    return policy.access(definition, method, CLASS) is Access.ALLOW
