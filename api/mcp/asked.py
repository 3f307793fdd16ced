"""One request of an MCP client: who asks what, in which revision, and how it is told of things.

The transports (`api.mcp.endpoint`, and the `toolfleet mcp` command behind it) make an `Asked` of
each JSON-RPC request; a `Handler` answers it, and knows nothing of HTTP, sessions or streams.

Our errors (`FleetError`) are JSON-RPC errors by the table below, with our stable code in ``data``;
what the protocol itself names is an `RpcError`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from registry.errors import Code, FleetError

if TYPE_CHECKING:  # `toolfleet mcp` builds on this too, and has to start quickly
    from api.operations import Operations
    from registry.runs import Run
    from registry.tenants import Actor

TASKS: Final = "io.modelcontextprotocol/tasks"
META: Final = "io.modelcontextprotocol/"
"""What the members of ``_meta`` begin with that the protocol itself defines."""

INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
PARSE_ERROR: Final = -32700
HEADER_MISMATCH: Final = -32020
MISSING_CAPABILITY: Final = -32021
UNSUPPORTED_VERSION: Final = -32022
FLEET_ERROR: Final = -32010
"""What went wrong in or behind the fleet: ``data`` is the error as `FleetError.as_dict` has it."""

_BY_CODE: Final = {
    Code.INVALID_ARGUMENTS: INVALID_PARAMS,
    Code.INVALID_REQUEST: INVALID_PARAMS,
    Code.UNKNOWN_TOOL: INVALID_PARAMS,
    Code.NOT_FOUND: INVALID_PARAMS,
    Code.UNKNOWN_CALL: INVALID_PARAMS,
    Code.INTERNAL: INTERNAL_ERROR,
}


class Revision(StrEnum):
    """A revision of the protocol that is spoken here, the oldest first."""

    MARCH_2025 = "2025-03-26"
    JUNE_2025 = "2025-06-18"
    NOVEMBER_2025 = "2025-11-25"
    JULY_2026 = "2026-07-28"

    @property
    def stateless(self) -> bool:
        """Say whether each request stands for itself: no handshake, no session, no questions."""
        return self is Revision.JULY_2026


@dataclass(frozen=True)
class ClientInfo:
    """What a client said of itself: in its handshake, or in each request since 2026-07-28."""

    name: str = ""
    version: str = ""
    capabilities: dict[str, Any] = field(default_factory=dict)

    @property
    def has_tasks(self) -> bool:
        """Say whether it can be given a task in place of a result."""
        extensions = self.capabilities.get("extensions")
        return isinstance(extensions, dict) and TASKS in extensions

    @property
    def answers(self) -> frozenset[str]:
        """Return what a server may ask it: elicitation, elicitation.url, sampling, roots.

        An ``elicitation`` capability that names no mode means forms (spec, client/elicitation).
        """
        found = {name for name in ("sampling", "roots") if self._has(name)}
        modes = self.capabilities.get("elicitation")
        if isinstance(modes, dict):
            if "form" in modes or "url" not in modes:
                found.add("elicitation")
            if "url" in modes:
                found.add("elicitation.url")
        return frozenset(found)

    def _has(self, name: str) -> bool:
        return isinstance(self.capabilities.get(name), dict)


class RpcError(Exception):
    """An answer that is an error by the protocol's own codes."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    def as_dict(self) -> dict[str, Any]:
        """Return the ``error`` member of a JSON-RPC response."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        return body if self.data is None else {**body, "data": self.data}


def rpc_error(error: FleetError) -> RpcError:
    """Return one of our errors as a client sees it."""
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    return RpcError(_BY_CODE.get(error.code, FLEET_ERROR), message, error.as_dict())


Notify = Callable[[str, dict[str, Any]], Awaitable[None]]
"""Send a notification (method, params) that belongs to a request, on the stream of its answer."""
Ask = Callable[[str, str, dict[str, Any]], Awaitable[None]]
"""Send a request (id, method, params) of ours to the client, on the stream of a request's answer.

Its response may come to any process: it is handed to `Operations.answer` wherever it arrives."""


@dataclass(frozen=True)
class Asked:
    """A request, as its handler sees it."""

    operations: Operations
    actor: Actor
    client: ClientInfo
    revision: Revision
    id: str | int
    method: str
    params: dict[str, Any]
    run: Callable[[], Awaitable[Run]]
    """Return the run that the request belongs to: its session's, the one that its header names, or
    the caller's standing one."""
    server: str | None = None
    """The one server whose tools are meant (``/mcp/servers/{name}``), without their prefix."""
    call_id: str | None = None
    """The id that a call made for this request is to have; a session's requests have one, so that
    any process knows the call by the request."""
    log_level: str | None = None
    """From which level on the client wants to be told of log messages; None: of none."""
    traceparent: str | None = None
    notify: Notify | None = None
    """None where the client takes one answer only."""
    ask: Ask | None = None
    """None where servers' questions are part of an answer (2026-07-28), or there is no stream."""
    session: str | None = None
    """The session that it belongs to, by the revisions that have them."""

    @property
    def meta(self) -> dict[str, Any]:
        """Return the request's ``_meta``."""
        meta = self.params.get("_meta")
        return meta if isinstance(meta, dict) else {}

    @property
    def progress_token(self) -> str | int | None:
        """Return by which name the client wants to be told of progress."""
        token = self.meta.get("progressToken")
        return token if isinstance(token, str | int) and not isinstance(token, bool) else None


Answered = dict[str, Any] | bytes
"""The ``result`` of a response; bytes are JSON already, and have their ``resultType``."""
Handler = Callable[[Asked], Awaitable[Answered]]
