"""Real servers that misbehave (`tests.servers.fault`), and sessions with them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from registry.definitions import ServerDefinition, parse_definition
from workers.large import LargeReader
from workers.session import Session

SERVERS: Final = Path(__file__).parent / "servers"
PATIENCE_S: Final = 20.0
MAX_RESULT_BYTES: Final = 10_000_000
# legacy is what was before 2026-07-28; the stdio server speaks that, too.
Face = Literal["stdio", "http", "http-legacy"]
FACES: Final[tuple[Face, ...]] = ("stdio", "http", "http-legacy")


@dataclass
class Faulty:
    """A faulty server that can be reached, and its journal."""

    definition: ServerDefinition
    journal: Path
    reader: LargeReader | None = None
    sessions: list[Session] = field(default_factory=list)

    async def open(self, **options: Any) -> Session:
        """Open a session; `faulty` closes it."""
        settings: dict[str, Any] = {
            "connect_timeout_s": PATIENCE_S,
            "stop_grace_s": 0.1,
            "max_result_bytes": MAX_RESULT_BYTES,
            "large": self.reader,
        }
        session = await Session.open(self.definition, **{**settings, **options})
        self.sessions.append(session)
        return session

    def count(self, event: str) -> int:
        """Return how often an event is in the journal."""
        return self.journal.read_text().split("\n").count(event) if self.journal.exists() else 0


def over_stdio(*args: str) -> ServerDefinition:
    """Define a server of tests/servers that is a child."""
    command = [str(SERVERS / args[0]), *args[1:]]
    return parse_definition(
        {"name": "faulty", "transport": "stdio", "command": sys.executable, "args": command}
    )


@asynccontextmanager
async def over_http(*args: str, scheme: str = "http") -> AsyncIterator[ServerDefinition]:
    """Run the faulty server over HTTP."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SERVERS / "fault.py"),
        "--http",
        *args,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            port = int(await process.stdout.readline())
        where = {"url": f"{scheme}://127.0.0.1:{port}/mcp", "networks": ["127.0.0.0/8"]}
        yield parse_definition({"name": "faulty", "transport": "http", **where})
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def faulty(
    face: Face, journal: Path, *args: str, scheme: str = "http"
) -> AsyncIterator[Faulty]:
    """Have a faulty server of one's own; every session with it is closed at the end."""
    args = ("--journal", str(journal), *args)
    async with AsyncExitStack() as stack:
        if face == "stdio":
            definition = over_stdio("fault.py", *args)
        else:
            era = "legacy" if face == "http-legacy" else "modern"
            definition = await stack.enter_async_context(
                over_http("--era", era, *args, scheme=scheme)
            )
        server = Faulty(definition, journal)
        yield server
        await asyncio.gather(*(session.close() for session in server.sessions))
