"""An MCP server whose tools are what a file says, also while it runs.

``python changing.py FILE`` speaks over stdio, ``--http PORT`` over streamable HTTP at /mcp (port 0
takes a free one; it is printed on stdout). It speaks 2026-07-28 and the revisions before; with
``--legacy`` only those before. It tells its clients when the tools change; with ``--silent`` it
says that it would and does not.

FILE is JSON: ``{"tools": [NAME, ...], "version": ..., "instructions": ...}``; the latter two are
read at the start. ``--journal PATH`` gets a line per event: ``listed``, ``listening``
(and ``as`` whom, by header x-token or _meta io.example/token), ``left``.
Each tool returns its own name. ``FILE.storm``, while it exists, has it tell all the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from serving import announce, serve_http, serve_stdio

LOOK_EVERY_S = 0.02
A_STORM = 20  # notifications at each look: 1,000 a second


class Changing:
    """The server's tools, and those who are told of them."""

    def __init__(self, path: Path, journal: Path | None) -> None:
        self.path = path
        self.journal = journal
        self.bus = InMemorySubscriptionBus()
        self.sessions: list[Any] = []  # of clients before 2026-07-28
        self._listen = ListenHandler(self.bus)

    def said(self) -> dict[str, Any]:
        """Return what the file says."""
        return dict(json.loads(self.path.read_text()))

    def note(self, event: str) -> None:
        """Write an event to the journal."""
        if self.journal:
            with self.journal.open("a") as file:
                file.write(event + "\n")

    async def list_tools(self, _ctx: Any, _params: Any) -> types.ListToolsResult:
        """Answer ``tools/list``."""
        self.note("listed")
        schema = {"type": "object"}
        return types.ListToolsResult(
            tools=[types.Tool(name=name, input_schema=schema) for name in self.said()["tools"]]
        )

    async def call_tool(self, _ctx: Any, params: Any) -> types.CallToolResult:
        """Answer ``tools/call``."""
        if params.name not in self.said()["tools"]:
            return types.CallToolResult(content=[], is_error=True)
        return types.CallToolResult(content=[types.TextContent(type="text", text=params.name)])

    async def listen(self, ctx: Any, params: Any) -> types.SubscriptionsListenResult:
        """Serve ``subscriptions/listen``."""
        self.note("listening")
        self.note(f"as {self._secret(ctx)}")
        try:
            return await self._listen(ctx, params)
        finally:
            self.note("left")

    @staticmethod
    def _secret(ctx: Any) -> str:
        """Return by which credential a client listens."""
        headers = ctx.request.headers if ctx.request else {}
        return str((ctx.meta or {}).get("io.example/token") or headers.get("x-token", "nobody"))

    async def initialized(self, ctx: Any, _params: Any) -> None:
        """Remember a client that has to be told without having asked."""
        self.sessions.append(ctx.session)

    async def tell(self) -> None:
        """Tell every client that the tools changed."""
        await self.bus.publish(ToolsListChanged())
        for session in self.sessions:
            with suppress(Exception):  # it may be gone
                await session.send_tool_list_changed()

    async def watch(self) -> None:
        """Tell whenever the file changes."""
        storm = Path(f"{self.path}.storm")
        before = self.path.read_bytes()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if (now := self.path.read_bytes()) != before:
                before = now
                await self.tell()
            for _ in range(A_STORM if storm.exists() else 0):
                await self.tell()


def made(changing: Changing) -> Server[Any]:
    """Return the server."""
    said = changing.said()
    server: Server[Any] = Server(
        "changing",
        version=said.get("version", "1"),
        instructions=said.get("instructions"),
        on_list_tools=changing.list_tools,
        on_call_tool=changing.call_tool,
        on_subscriptions_listen=changing.listen,
    )
    server.add_notification_handler(
        "notifications/initialized", types.NotificationParams, changing.initialized
    )
    announce(server, tools_changed=True)
    return server


async def serve(options: argparse.Namespace) -> None:
    """Serve until the client leaves, or for ever."""
    changing = Changing(options.file, options.journal)
    server = made(changing)
    async with anyio.create_task_group() as tasks:
        if not options.silent:
            tasks.start_soon(changing.watch)
        if options.http is None:
            await serve_stdio(server, legacy=options.legacy)
        else:
            await serve_http(server, options.http, legacy=options.legacy)
        tasks.cancel_scope.cancel()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--http", type=int, metavar="PORT")
    parser.add_argument("--legacy", action="store_true")
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("--journal", type=Path)
    anyio.run(serve, parser.parse_args())


if __name__ == "__main__":
    main()
