"""An MCP server with honest and dishonest tools; it writes down what it observes.

``python echo.py`` speaks over stdio, ``python echo.py --http PORT`` over streamable HTTP at /mcp
(port 0 takes a free one; it is printed on stdout). It speaks 2026-07-28 and the revisions before;
with ``--legacy`` only those before. ``--json`` answers HTTP with JSON bodies, not event streams.

``--journal PATH`` (or $JOURNAL) names a file that gets one JSON line per event:
``{"event": "started" | "finished" | "cancelled" | "effect", "tool", "token", "session"}``, where
the session is the mark that a worker gave to this process (its process id is its own idea only).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
from mcp.server.mcpserver import Context, MCPServer
from mcp.shared.exceptions import MCPError
from serving import serve_http, serve_stdio

server = MCPServer("echo", log_level="ERROR")
journal: list[Path] = []  # the one file of --journal, if any


def note(event: str, tool: str, token: str) -> None:
    """Append one event to the journal; it is in the file when this returns."""
    session = os.environ.get("TOOLFLEET_SESSION")
    line = json.dumps({"event": event, "tool": tool, "token": token, "session": session})
    for path in journal:
        with path.open("a") as file:
            file.write(line + "\n")


async def work(tool: str, seconds: float, token: str, ctx: Context[Any, Any]) -> str:
    """Sleep, reporting progress every 100 ms, and note how it ended."""
    note("started", tool, token)
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    try:
        while (left := end - loop.time()) > 0:
            await asyncio.sleep(min(0.1, left))
            await ctx.report_progress(seconds - max(0.0, end - loop.time()), seconds)
    except asyncio.CancelledError:
        note("cancelled", tool, token)
        raise
    note("finished", tool, token)
    return token


@server.tool(structured_output=False)
async def echo(text: str) -> str:
    """Return the text."""
    return text


@server.tool()
async def add(a: int, b: int) -> int:
    """Return the sum, as structured content."""
    return a + b


@server.tool(structured_output=False)
async def sleep(seconds: float, token: str, ctx: Context[Any, Any]) -> str:
    """Sleep, reporting progress; return the token."""
    return await work("sleep", seconds, token, ctx)


@server.tool(structured_output=False)
async def write(token: str, ctx: Context[Any, Any], seconds: float = 0.0) -> str:
    """Have an effect, then sleep; return the token."""
    note("effect", "write", token)
    return await work("write", seconds, token, ctx)


@server.tool(structured_output=False)
async def fail(text: str) -> str:
    """Fail, as a tool does."""
    raise RuntimeError(text)


@server.tool(structured_output=False)
async def refuse(text: str) -> str:
    """Fail, as a protocol does."""
    raise MCPError(code=types.INTERNAL_ERROR, message=text)


@server.tool(structured_output=False)
async def crash() -> str:
    """End the process at once."""
    os._exit(1)


@server.tool(structured_output=False)
async def block(seconds: float) -> str:
    """Hold up the whole server, deaf to everything."""
    import time

    time.sleep(seconds)
    return "done"


@server.tool(structured_output=False)
async def big(size: int) -> str:
    """Return so many bytes."""
    return "x" * size


@server.tool(structured_output=False)
async def around(text: str, size: int) -> str:
    """Return so many bytes with a text in the middle of them."""
    half = "so many words " * (size // 28)
    return f"{half}{text} {half}"


@server.tool(structured_output=False)
async def repeat(unit: str, count: int) -> types.CallToolResult:
    """Return a JSON value as often as that, as structured content."""
    content = {"values": [json.loads(unit)] * count}
    return types.CallToolResult(content=[], structured_content=content)


@server.tool(structured_output=False)
async def environment(name: str) -> str:
    """Return an environment variable, empty if it is not set."""
    return os.environ.get(name, "")


@server.tool(structured_output=False)
async def header(name: str, ctx: Context[Any, Any]) -> str:
    """Return a header of the HTTP request, empty if there is none."""
    headers = ctx.headers or {}
    return headers.get(name, "")


@server.tool(structured_output=False)
async def meta(ctx: Context[Any, Any]) -> str:
    """Return the request's _meta as JSON."""
    return json.dumps(ctx.request_context.meta or {})


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", type=int, metavar="PORT")
    parser.add_argument("--legacy", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--journal", type=Path, default=os.environ.get("JOURNAL"))
    options = parser.parse_args()
    journal.extend([Path(options.journal)] if options.journal else [])
    lowlevel = server._lowlevel_server
    if options.http is None:
        anyio.run(lambda: serve_stdio(lowlevel, legacy=options.legacy))
    else:
        anyio.run(
            lambda: serve_http(
                lowlevel, options.http, legacy=options.legacy, json_answers=options.json
            )
        )


if __name__ == "__main__":
    main()
