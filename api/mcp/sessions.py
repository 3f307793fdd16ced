"""Sessions of the revisions that have them, so that any process can serve any request of them.

Invariants:
 1. A session is a row; what a process keeps of it is at most `KEPT_S` old.
 2. It is its key's alone: to every other one it is not there.
 3. A request's call has an id that session and request give together (`call_id_of`): whoever hears
    of the request, in whatever process, knows its call.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from api.encoding import encode
from api.mcp.messages import LONGEST_ID, Id
from registry import mcp_sessions
from registry.database import Database, GroupCommit
from registry.mcp_sessions import McpSession
from registry.tenants import Actor

KEPT_S: Final = 5.0
_MOST_KEPT: Final = 8192
_ID: Final = re.compile(r"[0-9a-f]{32}")
_QUESTION: Final = re.compile(
    r"toolfleet-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-([1-9][0-9]{0,8})"
)


class Sessions:
    """The sessions that this process was asked about lately, and the way to ask about others."""

    def __init__(
        self,
        database: Database,
        *,
        note_open: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._note_open = note_open
        self._clock = clock
        self._known: dict[str, tuple[float, McpSession]] = {}
        self._reads: GroupCommit[str, McpSession | None] = GroupCommit(self._read_batch)

    async def start(self, session: McpSession) -> None:
        """Store a session whose id is `new_id`."""
        await mcp_sessions.start_session(self._database, session)
        self._keep(session)

    async def find(self, actor: Actor, session_id: str, server: str | None) -> McpSession | None:
        """Return an actor's session at an endpoint; None where it has no such session."""
        if not _ID.fullmatch(session_id):
            return None
        kept_until, session = self._known.get(session_id, (0.0, None))
        if session is None or kept_until <= self._clock():
            session = await self._reads.add(session_id)
            self._known.pop(session_id, None)
            if session is not None:
                self._keep(session)
                if self._note_open is not None:
                    self._note_open(session.run_id)  # a session is there as long as its run is open
        if session is None or session.actor != actor.label:
            return None
        if actor.tenant not in (None, session.tenant_id) or session.server_name != server:
            return None
        return session

    async def set_log_level(self, session: McpSession, level: str) -> None:
        """Note from which level on a session's client wants log messages."""
        await mcp_sessions.set_log_level(self._database, session.id, level)
        self._keep(replace(session, log_level=level))

    async def end(self, session: McpSession) -> None:
        """End a session; other processes may serve it for `KEPT_S` more."""
        self._known.pop(session.id, None)
        await mcp_sessions.end_session(self._database, session.id)

    def forget(self) -> None:
        """Ask the record again for every session."""
        self._known.clear()

    def _keep(self, session: McpSession) -> None:
        if len(self._known) >= _MOST_KEPT:
            self._known.clear()
        self._known[session.id] = (self._clock() + KEPT_S, session)

    async def _read_batch(self, ids: Sequence[str]) -> list[McpSession | None]:
        found = await mcp_sessions.read_sessions(self._database, list(set(ids)))
        return [found.get(id_) for id_ in ids]


def new_id() -> str:
    """Return an id for a session: 128 random bits."""
    return secrets.token_hex(16)


def call_id_of(key: bytes, session_id: str, request_id: Id) -> str:
    """Return the id of the call that a session's request makes; nobody else can name it."""
    named = b"mcp-call\0" + session_id.encode() + b"\0" + encode(request_id)
    digest = hmac.digest(key, named, hashlib.sha256)
    return str(uuid.UUID(bytes=digest[:16], version=5))


def asked_by(request_id: Id) -> tuple[str, int] | None:
    """Return the call and the number of a question from its request's id; None for another id."""
    found = _QUESTION.fullmatch(request_id) if isinstance(request_id, str) else None
    return (found[1], int(found[2])) if found else None


# -- event ids: what a stream belongs to, so that any process can go on with it


def event_name(request_id: Id, progress_token: Id | None) -> str:
    """Return what the event ids of a request's stream begin with."""
    if isinstance(progress_token, str) and len(progress_token) > LONGEST_ID:
        progress_token = None
    return base64.urlsafe_b64encode(encode([request_id, progress_token])).decode().rstrip("=")


def request_of(event_id: str) -> tuple[Id, Id | None] | None:
    """Return the request id and progress token that an event id names; None where it names none."""
    name = event_id.rpartition(".")[0]
    try:
        value = json.loads(base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    match value:
        case [str() | int() as request_id, str() | int() | None as token]:
            return request_id, token
    return None
