"""How many calls of a tenant may be queued or running at once: counted in the record itself.

So the count is exact whatever becomes of processes: a call that ended makes room, however it
ended. It is weighed and the calls are inserted while the tenant is locked, so that no number of
API processes grants more than there is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.errors import Code, FleetError
from registry.tiers import matches

RETRY_WHEN_FULL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Cap:
    """How many calls of the tools that a pattern names a tenant may have at once."""

    pattern: str
    most: int


async def unfinished(connection: AsyncConnection, tenant: str) -> Counter[str]:
    """Return how many calls of each ``server/tool`` a tenant has queued or running.

    The tenant is locked until the transaction ends.
    """
    await connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtext('toolfleet.concurrency'), hashtext(:tenant))"),
        {"tenant": tenant},
    )
    result = await connection.execute(
        text(
            "SELECT c.server_name || '/' || COALESCE(t.name, c.method) AS tool, count(*) AS calls"
            " FROM calls c LEFT JOIN tool_versions t ON t.id = c.tool_version_id"
            " WHERE c.tenant_id = :tenant AND c.state IN ('queued', 'running') GROUP BY 1"
        ),
        {"tenant": tenant},
    )
    return Counter({row.tool: row.calls for row in result})


def full(caps: Iterable[Cap], counts: Mapping[str, int]) -> Cap | None:
    """Return a cap that has no room for one more call, if there is one."""
    for cap in caps:
        if sum(count for tool, count in counts.items() if matches(cap.pattern, tool)) >= cap.most:
            return cap
    return None


def refusal(tenant: str, cap: Cap) -> FleetError:
    """Return the error for a call that a cap has no room for."""
    of_what = "calls" if cap.pattern == "*" else f"calls of {cap.pattern}"
    return FleetError(
        Code.TENANT_LIMITED,
        f"tenant {tenant!r} has {of_what} queued or running up to its limit, {cap.most}",
        hint="send it again after retry_after_s, or ask an operator for another tier",
        retry_after_s=RETRY_WHEN_FULL_S,
    )
