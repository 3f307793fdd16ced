"""How a call ended for whoever made it, which is what a server's success is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from registry.calls import CallState
from registry.database import Database
from registry.errors import BY_CODE, Code

UNKNOWN_TIER: Final = "unknown"
"""Of calls that ended before anybody had looked their tenant up."""


class Outcome(StrEnum):
    """What became of a call; a server is blamed for `failed` alone."""

    ANSWERED = "answered"
    TOOL_ERROR = "tool_error"
    """The tool answered, and said that it failed (``isError``)."""
    FAILED = "failed"
    """It got no answer: the server, the way to it, or the fleet let it down."""
    REFUSED = "refused"
    """It was not to be had: a policy, an approval, a held change, a missing credential."""
    STOPPED = "stopped"
    """Its caller or an operator wanted it no more, or an approver denied it."""


@dataclass(frozen=True)
class Ended:
    """A call that has ended."""

    server: str
    tier: str
    state: CallState
    code: str | None
    """Of its error, where it has one."""
    is_error: bool | None
    lasted_s: float
    """From its submission, or from its approval where it waited for one, to its end."""

    @property
    def outcome(self) -> Outcome:
        """Return what became of it."""
        return outcome_of(self.state, self.code, is_error=self.is_error)


def outcome_of(state: CallState, code: str | None, *, is_error: bool | None) -> Outcome:
    """Return what a final state means to the caller."""
    match state:
        case CallState.SUCCEEDED:
            return Outcome.TOOL_ERROR if is_error else Outcome.ANSWERED
        case CallState.STOPPED | CallState.DENIED:
            return Outcome.STOPPED
        case _:
            error = BY_CODE.get(code or "", Code.INTERNAL)
            # A status below 500 says that the request, and not who served it, has to change.
            own = error.status < 500 and error is not Code.RATE_LIMITED
            return Outcome.REFUSED if own else Outcome.FAILED


async def read_ended(database: Database, ids: Sequence[str]) -> list[Ended]:
    """Return those of the calls that have ended."""
    rows = await database.statement(
        "SELECT c.server_name AS server, COALESCE(t.definition ->> 'tier', 'default') AS tier,"
        " c.state, c.error ->> 'code' AS code, c.is_error, CAST(EXTRACT(EPOCH FROM c.ended_at"
        " - COALESCE(c.decided_at, c.created_at)) AS double precision) AS lasted_s"
        " FROM calls c LEFT JOIN tenants t ON t.id = c.tenant_id"
        " WHERE c.id = ANY(%(ids)s) AND c.ended_at IS NOT NULL",
        ids=list(ids),
    )
    return [_ended(row) for row in rows]


def _ended(row: dict[str, Any]) -> Ended:
    return Ended(**{**row, "state": CallState(row["state"])})
