"""How the test servers that are made with the MCP SDK are served: stdio or HTTP, new or old."""

from __future__ import annotations

import socket
from typing import Any, Self

import mcp_types as types
import uvicorn
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage


class _LegacyOnly:
    """A read stream that answers `server/discover` as a server does that never heard of it."""

    def __init__(self, inner: Any, write: Any) -> None:
        self._inner = inner
        self._write = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __aiter__(self) -> _LegacyOnly:
        return self

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> Any:
        return await self._inner.__aexit__(*error)

    async def __anext__(self) -> Any:
        while True:
            item = await self._inner.__anext__()
            message = getattr(item, "message", None)
            if not isinstance(message, types.JSONRPCRequest) or message.method != "server/discover":
                return item
            error = types.ErrorData(code=types.METHOD_NOT_FOUND, message="Method not found")
            answer = types.JSONRPCError(jsonrpc="2.0", id=message.id, error=error)
            await self._write.send(SessionMessage(answer))


def announce(server: Server[Any], **changed: bool) -> None:
    """Have a server declare in its handshake that it tells of changed lists."""
    options = server.create_initialization_options

    def announcing(*_: Any, **__: Any) -> Any:
        return options(NotificationOptions(**changed))

    server.create_initialization_options = announcing  # type: ignore[method-assign] # HTTP has no other way


async def serve_stdio(server: Server[Any], *, legacy: bool) -> None:
    """Serve one client on stdin and stdout."""
    async with stdio_server() as (read, write):
        stream: Any = _LegacyOnly(read, write) if legacy else read
        await server.run(stream, write, server.create_initialization_options())


async def serve_http(
    server: Server[Any], port: int, *, legacy: bool, json_answers: bool = False
) -> None:
    """Serve on loopback; print the port once it is bound."""
    if legacy:

        async def no_discover(_ctx: Any, _params: Any) -> Any:
            raise MCPError(code=types.METHOD_NOT_FOUND, message="Method not found")

        server.add_request_handler("server/discover", types.RequestParams, no_discover)
    app = server.streamable_http_app(json_response=json_answers)
    listener = socket.create_server(("127.0.0.1", port))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve(sockets=[listener])
