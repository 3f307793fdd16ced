"""The command: an MCP server over stdio, as a desktop client starts one."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import Annotated
from urllib.parse import quote

import typer


def add_to(app: typer.Typer) -> None:
    """Add this command to the `toolfleet` command."""
    app.command("mcp")(mcp)


def mcp(
    url: Annotated[str, typer.Option(help="The fleet's address (TOOLFLEET_URL).")] = "",
    server: Annotated[
        str, typer.Option(help="Offer one server alone, its tools without their prefix.")
    ] = "",
    tenant: Annotated[str, typer.Option(help="The tenant to ask for, with a key for all.")] = "",
    search: Annotated[
        bool, typer.Option("--search", help="Offer two tools that find and call all others.")
    ] = False,
) -> None:
    """Be an MCP server over stdio that passes everything on to the fleet (for desktop clients).

    The key is TOOLFLEET_KEY, else the local operator's.
    """
    path = f"/mcp/servers/{quote(server, safe='')}" if server else "/mcp"
    headers = {"toolfleet-tenant": tenant} if tenant else {}
    if search:
        headers["toolfleet-exposure"] = "search"
    asyncio.run(_serve(url, path, headers))


async def _serve(url: str, path: str, headers: dict[str, str]) -> None:
    """Serve until stdin ends, or a signal comes."""
    from compose.api_client import find_address
    from compose.bridge.bridge import Bridge
    from compose.bridge.endpoint import Endpoint
    from compose.bridge.stdio import Stdio

    stdio, loop = Stdio(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stdio.stop)
    async with Endpoint(partial(find_address, url), path, headers) as endpoint:
        await Bridge(endpoint, stdio.write).run(stdio.lines())
