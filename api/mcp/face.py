"""What one process knows of its MCP clients, and how it answers one request of theirs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from api.mcp import handshake, messages
from api.mcp.asked import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    METHOD_NOT_FOUND,
    MISSING_CAPABILITY,
    UNSUPPORTED_VERSION,
    Answered,
    Asked,
    Handler,
    RpcError,
    rpc_error,
)
from api.mcp.changes import Changes, ToolChanges
from api.mcp.exchange import Accepted, Exchange
from api.mcp.headers import Headers
from api.mcp.messages import Id, Refusal, Request
from api.mcp.methods import STATELESS, VERBS, WITH_SESSION
from api.mcp.resource_changes import ListChanges, ResourceChanges
from api.mcp.sessions import Sessions
from api.mcp.standing import StandingRuns, Way, way_of
from api.mcp.subscriptions import Subscriptions
from api.mcp.task_changes import TaskChanges
from api.operations import Operations
from registry.errors import FleetError
from registry.tenants import Actor

_STATUSES: Final = {
    METHOD_NOT_FOUND: 404,
    HEADER_MISMATCH: 400,
    MISSING_CAPABILITY: 400,
    UNSUPPORTED_VERSION: 400,
}
"""Of errors that have an HTTP status of their own since 2026-07-28; the others are answers."""

LEFT_S: Final = 10.0

logger = logging.getLogger("toolfleet.mcp")


@dataclass(frozen=True)
class Inbound:
    """An HTTP request to the endpoint: who asks, at which address, with which headers."""

    actor: Actor
    headers: Headers
    accepted: Accepted
    server: str | None
    """The one server that the address names."""

    @property
    def way(self) -> Way:
        """Return how its headers say that it asks; raise `invalid_request`."""
        tenant = self.headers.get("toolfleet-tenant")
        return way_of(self.actor, tenant, self.server, self.headers.get("toolfleet-exposure"))

    def refuse(self, method: str) -> None:
        """Raise `out_of_scope` where the key is narrowed, and to other things than a method."""
        verb = VERBS.get(method)
        if verb is not None and self.actor.scopes is not None:
            self.actor.scopes.refuse_verb(verb)


class Face:
    """The MCP side of one API process."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self.sessions = Sessions(operations.database, note_open=operations.note_open)
        self.standing = StandingRuns(operations)
        self.changes = Changes(operations)
        self.resources = ResourceChanges(operations)
        self.subscriptions = Subscriptions(
            operations.room,
            [
                ToolChanges(self.changes),
                ListChanges(self.changes),
                self.resources,
                TaskChanges(),
            ],
        )
        self.with_session: Mapping[str, Handler] = WITH_SESSION
        self.stateless: Mapping[str, Handler] = {
            **STATELESS,
            "server/discover": self._discover,
            "subscriptions/listen": self.subscriptions.listen,
        }
        self.under_way: set[tuple[str, Id]] = set()
        """Which requests of which sessions this process works on."""
        self.listening: dict[str, asyncio.Task[None]] = {}
        """Who tells a session what it did not ask for."""
        self._left_behind: set[asyncio.Task[None]] = set()

    @property
    def key(self) -> bytes:
        """Return the secret that ids of calls are made with."""
        return self.operations.settings.secret_key.get_secret_value().encode()

    async def close(self) -> None:
        """Stop what runs in the background."""
        await self.changes.close()
        await self.resources.close()
        for task in self._left_behind:
            task.cancel()

    def leave(self, answering: asyncio.Task[None]) -> None:
        """Let a request be taken on, though nobody reads its answer any more.

        What it began goes on: a call is committed long before the time for that is over.
        """
        self._left_behind.add(answering)
        answering.add_done_callback(self._left_behind.discard)
        asyncio.get_running_loop().call_later(LEFT_S, answering.cancel)

    async def _discover(self, asked: Asked) -> Answered:
        return handshake.discovered(self.stateless)


async def answer(
    exchange: Exchange,
    request: Request,
    serve: Callable[[], Awaitable[Answered]],
    *,
    stateless: bool,
) -> None:
    """Answer a request with what serving it gives, or with what goes wrong."""
    try:
        answered = await serve()
    except Exception as error:  # noqa: BLE001 - each is told as the error that it is
        failed = as_rpc_error(error, request.method)
        body, status = messages.failure(request.id, failed), status_of(failed, stateless=stateless)
    else:
        if stateless and not isinstance(answered, bytes):
            answered = {"resultType": "complete", **answered}
        body, status = messages.result(request.id, answered), 200
    await exchange.answer(body, status)


def status_of(error: RpcError, *, stateless: bool) -> int:
    """Return the HTTP status of an error that answers a request."""
    if isinstance(error, Refusal):
        return error.status
    return _STATUSES.get(error.code, 200) if stateless else 200


def as_rpc_error(error: Exception, method: str) -> RpcError:
    """Return what went wrong as a client sees it; what is not ours is logged, and told as such."""
    if isinstance(error, RpcError):
        return error
    if isinstance(error, FleetError):
        return rpc_error(error)
    logger.error("%s failed", method, exc_info=error)
    return RpcError(INTERNAL_ERROR, "the request failed for a reason inside Toolfleet")
