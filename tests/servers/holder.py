"""Not a server: a worker as far as sessions are concerned; told what to do line by line, in JSON.

``{"open": FLAGS, "sandbox": {...}}`` opens a session with `light.py`; the answer is its mark, or
the error. ``{"close": MARK}`` and ``{"cancel": MARK}`` close it, the latter in a task that is
cancelled at once; ``{"leave": MARK}`` has the server exit in a call. The answer is the rung, or
null.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from registry.definitions import parse_definition
from registry.errors import FleetError
from workers.session import Session

LIGHT = Path(__file__).with_name("light.py")
LIMIT_S = 20.0
sessions: dict[str, Session] = {}


def definition(flags: list[str], sandbox: dict[str, Any]) -> dict[str, Any]:
    """Return the definition of a light server."""
    return {
        "name": "light",
        "transport": "stdio",
        "command": sys.executable,
        "args": ["-I", "-S", str(LIGHT), *flags],
        "sandbox": sandbox,
    }


async def obey(order: dict[str, Any]) -> str | None:
    """Do what a line says."""
    if "open" in order:
        try:
            session = await Session.open(
                parse_definition(definition(order["open"], order.get("sandbox", {}))),
                connect_timeout_s=LIMIT_S,
                stop_grace_s=0.2,
                max_result_bytes=1_000_000,
            )
        except FleetError as error:
            return error.message
        told = await session.call_tool("environment", {}, timeout_s=LIMIT_S)
        mark: str = json.loads(told.body["content"][0]["text"])["TOOLFLEET_SESSION"]
        sessions[mark] = session
        return mark
    ((what, mark),) = order.items()
    session = sessions[mark]
    if what == "leave":
        with suppress(FleetError):
            await session.call_tool("leave", {}, timeout_s=LIMIT_S)
        return None
    closing = asyncio.create_task(session.close())
    if what == "cancel":
        await asyncio.sleep(0)
        closing.cancel()
        return None
    return (await closing).rung


async def main() -> None:
    """Obey until stdin ends or somebody kills us."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        print(json.dumps(await obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
