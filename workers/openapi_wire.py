"""What a worker and the program that serves an HTTP API (`workers.openapi_server`) tell each other.

1. Before MCP begins the worker writes to the program's stdin which API to serve, and how. So the
   document and the credential are in no command line, environment or file.
2. A call that could not reach the API, or whose answer is too large, ends in a JSON-RPC error that
   holds the typed one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import FileIO
from struct import Struct
from typing import Any, Final

from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter

from registry.definitions import OpenApi
from registry.errors import FleetError

_API_FAILED: Final = -32050
"""Of the range that JSON-RPC leaves to servers; nobody else's, as both ends are ours."""


@dataclass(frozen=True, slots=True)
class Brief:
    """Which API is to be served, and how.

    ``headers`` go with every request; ``own_headers`` are the names, in lower case, that no call's
    arguments may set: these, and that of a credential even if there is none.
    """

    server: str
    url: str
    networks: tuple[str, ...]
    openapi: OpenApi
    headers: dict[str, str] = field(repr=False)
    own_headers: frozenset[str]
    connect_timeout_s: float
    max_result_bytes: int

    def encode(self) -> bytes:
        """Return it as bytes that say where they end."""
        body = _BRIEF.dump_json(self)
        return _LENGTH.pack(len(body)) + body

    @classmethod
    def read(cls, stream: FileIO) -> Brief:
        """Read it, and nothing of what comes after it; raise EOFError when it is not whole."""
        (size,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
        return _BRIEF.validate_json(_exactly(stream, size))


_BRIEF: Final = TypeAdapter(Brief)
_LENGTH: Final = Struct(">I")


def _exactly(stream: FileIO, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        if not (part := stream.read(size)):
            raise EOFError("stdin ended before it was said what to serve")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def tell_failure(error: FleetError, *, dispatched: bool) -> MCPError:
    """Return an error as the JSON-RPC error that tells of it."""
    return MCPError(_API_FAILED, error.message, {**error.as_dict(), "dispatched": dispatched})


def told_failure(error: MCPError) -> tuple[FleetError, bool] | None:
    """Return the typed error that a JSON-RPC error tells of, and whether the API may have acted."""
    body: Any = error.data
    if error.code != _API_FAILED or not isinstance(body, dict):
        return None
    return FleetError.from_dict(body), bool(body.get("dispatched", True))
