"""Real servers whose tools change while they run (`tests.servers.changing`), over any transport."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

SCRIPT: Final = str(Path(__file__).parent / "servers" / "changing.py")
PATIENCE_S: Final = 20.0
Kind = Literal["stdio", "http", "stdio-legacy", "http-legacy"]
KINDS: Final[tuple[Kind, ...]] = ("stdio", "http", "stdio-legacy", "http-legacy")


@dataclass
class Changing:
    """A changing server: what it says of itself, and what it has noted of its clients."""

    kind: Kind
    folder: Path
    flags: tuple[str, ...] = ()
    port: int = 0
    process: asyncio.subprocess.Process | None = None

    def says(self, *tools: str, **said: Any) -> None:
        """Have it list these tools from now on; the rest is said by what is started later."""
        self.folder.mkdir(exist_ok=True)
        new = self.folder / "new"
        new.write_text(json.dumps({"tools": tools, **said}))
        new.replace(self.folder / "says")

    def storm(self, *, on: bool) -> None:
        """Have it tell all the time, or no more."""
        path = self.folder / "says.storm"
        path.touch() if on else path.unlink()

    def count(self, event: str) -> int:
        """Return how often an event is in its journal."""
        journal = self.folder / "journal"
        return journal.read_text().split("\n").count(event) if journal.exists() else 0

    def definition(self, name: str = "changing", **rest: Any) -> dict[str, Any]:
        """Return its definition."""
        if self.kind.startswith("http"):
            where: dict[str, Any] = {
                "transport": "http",
                "url": f"http://127.0.0.1:{self.port}/mcp",
                "networks": ["127.0.0.0/8"],
            }
        else:
            where = {"transport": "stdio", "command": sys.executable, "args": self._arguments()}
        return {"name": name, **where, "pool": {"min_idle": 1, "max_size": 4}, **rest}

    def _arguments(self) -> list[str]:
        legacy = ["--legacy"] if self.kind.endswith("legacy") else []
        files = [str(self.folder / "says"), "--journal", str(self.folder / "journal")]
        return [SCRIPT, *files, *legacy, *self.flags]

    async def start(self) -> None:
        """Start it over HTTP, at the port that it had before."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *self._arguments(), "--http", str(self.port),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            self.port = int(await self.process.stdout.readline())

    async def stop(self, *, gently: bool = False) -> None:
        """End it over HTTP, in the middle of everything unless ``gently``."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.terminate() if gently else self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def changing(kind: Kind, folder: Path, *flags: str) -> AsyncIterator[Changing]:
    """Have a server of one's own that lists a tool ``first``."""
    server = Changing(kind, folder, flags)
    server.says("first")
    if kind.startswith("http"):
        await server.start()
    try:
        yield server
    finally:
        await server.stop()
