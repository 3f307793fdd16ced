"""Sessions of MCP clients, by the revisions that have them: what any API process has to know.

A session is a run with a client: it is there for as long as its run takes calls, and its client
has not ended it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from registry.database import Database, to_json


@dataclass(frozen=True)
class McpSession:
    """A session: whose it is, which run its calls belong to, and what its client said of itself."""

    id: str
    tenant_id: str
    run_id: str
    owns_run: bool
    """Whether the run was started for it, and so ends with it."""
    actor: str
    server_name: str | None
    """The one server that it is about; None: all that its run has."""
    revision: str
    client: dict[str, Any]
    log_level: str | None = None


async def start_session(database: Database, session: McpSession) -> None:
    """Store a session."""
    await database.statement(
        "INSERT INTO mcp_sessions"
        " (id, tenant_id, run_id, owns_run, actor, server_name, revision, client)"
        " VALUES (%(id)s, %(tenant_id)s, %(run_id)s, %(owns_run)s, %(actor)s, %(server_name)s,"
        " %(revision)s, CAST(%(client)s AS jsonb)) RETURNING id",
        **{**vars(session), "client": to_json(session.client)},
    )


async def read_sessions(database: Database, ids: Sequence[str]) -> dict[str, McpSession]:
    """Return those of some sessions that are there, by their ids."""
    rows = await database.statement(
        "SELECT s.id, s.tenant_id, s.run_id, s.owns_run, s.actor, s.server_name, s.revision,"
        " s.client, s.log_level FROM mcp_sessions s"
        " JOIN runs r ON r.id = s.run_id AND r.state = 'open' AND r.expires_at > now()"
        " WHERE s.id = ANY(%(ids)s) AND s.ended_at IS NULL",
        ids=list(ids),
    )
    return {row["id"]: McpSession(**row) for row in rows}


async def set_log_level(database: Database, session_id: str, level: str) -> None:
    """Store from which level on a session's client wants log messages."""
    await database.statement(
        "UPDATE mcp_sessions SET log_level = %(level)s WHERE id = %(id)s RETURNING id",
        id=session_id,
        level=level,
    )


async def end_session(database: Database, session_id: str) -> None:
    """End a session; its run is the caller's to end."""
    await database.statement(
        "UPDATE mcp_sessions SET ended_at = clock_timestamp()"
        " WHERE id = %(id)s AND ended_at IS NULL RETURNING id",
        id=session_id,
    )
