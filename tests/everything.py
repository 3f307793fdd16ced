"""The everything-server, started: a server with all that MCP has, at an address of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent / "servers" / "everything.py"
LIMIT_S = 30


@asynccontextmanager
async def running_everything() -> AsyncIterator[str]:
    """Run the server over HTTP on loopback; yield its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), "--http", "0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def everything_definition(url: str, **rest: Any) -> dict[str, Any]:
    """Return how an operator registers the server."""
    return {
        "name": "everything",
        "transport": "http",
        "url": url,
        "networks": ["127.0.0.0/8"],
        "annotations": "trusted",
        **rest,
    }
