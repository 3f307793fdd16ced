"""What a key may do within its role: which verbs, on which servers, with which tools.

A key without scopes may do whatever its role may. Each scope that is there narrows it; none of them
ever gives it more. Pure; `registry.tenants` keeps them with the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from registry.errors import Code, FleetError
from registry.fields import ServerName
from registry.tiers import ToolPatterns

_MOST: Final = 256


class Verb(StrEnum):
    """What can be asked of the fleet: a subject, and whether it is read or changed."""

    RUNS_READ = "runs:read"
    RUNS_WRITE = "runs:write"
    """Start, close and cancel runs."""
    CALLS_READ = "calls:read"
    """See calls, their events and their large results."""
    CALLS_WRITE = "calls:write"
    CALLS_CANCEL = "calls:cancel"
    SERVERS_READ = "servers:read"
    SERVERS_WRITE = "servers:write"
    """Register servers; versions, rollouts, held changes, breakers, the registry as a document."""
    WORKERS_READ = "workers:read"
    WORKERS_WRITE = "workers:write"
    """Drain workers."""
    TENANTS_READ = "tenants:read"
    TENANTS_WRITE = "tenants:write"
    KEYS_READ = "keys:read"
    KEYS_WRITE = "keys:write"
    CREDENTIALS_READ = "credentials:read"
    CREDENTIALS_WRITE = "credentials:write"
    APPROVALS_READ = "approvals:read"
    APPROVALS_WRITE = "approvals:write"
    AUDIT_READ = "audit:read"
    HEALTH_READ = "health:read"
    """The checkup and the metrics."""


class Scopes(BaseModel):
    """To what a key is narrowed; None is no narrowing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verbs: Annotated[tuple[Verb, ...], Field(max_length=len(Verb))] | None = None
    servers: Annotated[tuple[ServerName, ...], Field(max_length=_MOST)] | None = None
    """The servers that its runs and calls may use."""
    tools: ToolPatterns = ToolPatterns()
    """The tools that it may call, as tiers name them: ``server/tool``."""

    def refuse_verb(self, verb: str) -> None:
        """Raise `out_of_scope` unless it may ask this."""
        if self.verbs is not None and verb not in self.verbs:
            raise FleetError(
                Code.OUT_OF_SCOPE,
                f"what is asked needs {verb}, and the key is narrowed to "
                + (", ".join(self.verbs) or "nothing"),
                hint="use a key that has this verb; an operator makes one",
                details={"verb": verb},
            )

    def refuse_tool(self, server: str, tool: str) -> None:
        """Raise `out_of_scope` unless it may call a server's tool, named as the server does."""
        if not self.admit(server, tool):
            raise FleetError(
                Code.OUT_OF_SCOPE,
                f"the key is narrowed, and may not call tool {tool!r} of server {server!r}",
                hint="use a key whose servers and tools name it; an operator makes one",
                details={"server": server, "tool": tool},
            )

    def admit(self, server: str, tool: str) -> bool:
        """Say whether it may call a server's tool, named as the server does."""
        named = self.servers is None or server in self.servers
        return named and self.tools.admit(server, tool)

    def narrow(self, servers: Sequence[str] | None) -> Sequence[str] | None:
        """Return the servers that a run may have; raise `out_of_scope` for one it may not."""
        if self.servers is None:
            return servers
        for server in servers or ():
            if server not in self.servers:
                raise FleetError(
                    Code.OUT_OF_SCOPE,
                    f"the key is narrowed, and may start no run with server {server!r}",
                    hint=f"its servers are {', '.join(self.servers) or 'none'}",
                    details={"server": server},
                )
        return list(self.servers) if servers is None else servers

    def refuse_wider(self, others: Scopes | None) -> None:
        """Raise `out_of_scope` for scopes that would allow what these do not."""
        theirs = others or Scopes()
        within = (
            _within(theirs.verbs, self.verbs)
            and _within(theirs.servers, self.servers)
            and self.tools in (ToolPatterns(), theirs.tools)
        )
        if not within:
            raise FleetError(
                Code.OUT_OF_SCOPE,
                "a narrowed key makes no key that may do more than it may itself",
                hint="narrow the new key to the same verbs, servers and tools, or to fewer",
            )

    def as_dict(self) -> dict[str, Any]:
        """Return them as they are stored and shown: what narrows nothing is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)


def _within(asked: Sequence[str] | None, had: Sequence[str] | None) -> bool:
    return had is None or (asked is not None and set(asked) <= set(had))
