"""An MCP server over HTTP, in the test's own process, that takes certain bearer tokens alone."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Container
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer

from tests.waiting import until


@dataclass
class Guarded:
    """What is admitted, and what was seen of every request."""

    admitted: Container[str]
    """Bearer tokens."""
    url: str = ""
    ran: int = 0
    """How often the tool ran."""
    refused: int = 0
    heard: list[bytes] = field(default_factory=list)
    """Each request: its line, headers and body."""
    challenge: str = ""
    """What a refusal says is to be shown."""
    resource_metadata: dict[str, Any] | None = None
    """What it says of itself as a protected resource."""


class _Gate:
    """ASGI middleware: writes everything down, and answers 401 to other tokens."""

    def __init__(self, app: Any, guarded: Guarded) -> None:
        self._app = app
        self._guarded = guarded

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        guarded = self._guarded
        headers = [name + b": " + value for name, value in scope["headers"]]
        guarded.heard.append(b"\n".join([scope["raw_path"], scope["query_string"], *headers]))

        async def hearing() -> Any:
            message = await receive()
            guarded.heard.append(message.get("body", b""))
            return message

        token = dict(scope["headers"]).get(b"authorization", b"").decode()
        if token.removeprefix("Bearer ") in guarded.admitted:
            await self._app(scope, hearing, send)
            return
        if guarded.resource_metadata is not None and scope["path"].startswith("/.well-known/"):
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            body = json.dumps(guarded.resource_metadata).encode()
            await send({"type": "http.response.body", "body": body})
            return
        guarded.refused += 1
        wanted = [(b"www-authenticate", guarded.challenge.encode())] if guarded.challenge else []
        await send({"type": "http.response.start", "status": 401, "headers": wanted})
        await send({"type": "http.response.body", "body": b"who are you?"})


@asynccontextmanager
async def guarded(admitted: Container[str], *, json_answers: bool = True) -> AsyncIterator[Guarded]:
    """Run the server on a free port of loopback; its tool `say` returns its text."""
    server = MCPServer("guarded", log_level="ERROR")
    mine = Guarded(admitted)

    @server.tool(structured_output=False)
    async def say(text: str) -> str:
        """Return the text."""
        mine.ran += 1
        return text

    app = server._lowlevel_server.streamable_http_app(json_response=json_answers)
    listener = socket.create_server(("127.0.0.1", 0))
    mine.url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    config = uvicorn.Config(_Gate(app, mine), log_level="error", timeout_graceful_shutdown=1)
    web = uvicorn.Server(config)
    running = asyncio.create_task(web.serve(sockets=[listener]))
    try:
        await until(lambda: web.started or running.done())
        yield mine
    finally:
        web.should_exit = True
        await running
