"""A library server (`tests.servers.library`) behind an API and a worker, both in this process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import text

from registry import catalog
from registry.database import Database
from registry.definitions import parse_definition
from registry.settings import Settings
from tests.changing import PATIENCE_S, Kind
from tests.jobs import make_job
from tests.waiting import until
from workers.invoke import invoke
from workers.runtime import WorkerRuntime

SCRIPT: Final = str(Path(__file__).parent / "servers" / "library.py")
TEXT: Final = "This is the content of the static text resource."
SAID: Final[dict[str, Any]] = {
    "resources": {
        "test://static-text": TEXT,
        "test://card?of=ada#back": "write to ada@example.com",
    },
    "prompts": ["greet", "part"],
}


@dataclass
class Library:
    """A library server: what it says, and what it has noted."""

    kind: Kind
    folder: Path
    said: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(SAID)))
    port: int = 0

    def says(self, **changes: Any) -> None:
        """Have it say this from now on."""
        self.said |= changes
        self.folder.mkdir(exist_ok=True)
        new = self.folder / "new"
        new.write_text(json.dumps(self.said))
        new.replace(self.folder / "says")

    @property
    def journal(self) -> list[str]:
        """Return what it has noted."""
        path = self.folder / "journal"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def arguments(self) -> list[str]:
        legacy = ["--legacy"] if self.kind.endswith("legacy") else []
        says, journal = self.folder / "says", self.folder / "journal"
        return [SCRIPT, str(says), "--journal", str(journal), *legacy]

    def definition(self, name: str = "library", **rest: Any) -> dict[str, Any]:
        """Return its definition."""
        if self.kind.startswith("http"):
            where: dict[str, Any] = {
                "transport": "http",
                "url": f"http://127.0.0.1:{self.port}/mcp",
                "networks": ["127.0.0.0/8"],
            }
        else:
            where = {"transport": "stdio", "command": sys.executable, "args": self.arguments}
        return {"name": name, **where, "pool": {"min_idle": 1, "max_size": 2}, **rest}


@asynccontextmanager
async def library(kind: Kind, folder: Path) -> AsyncIterator[Library]:
    """Have a library server of one's own."""
    server = Library(kind, folder)
    server.says()
    if not kind.startswith("http"):
        yield server
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable, *server.arguments, "--http", "0", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            server.port = int(await process.stdout.readline())
        yield server
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def served(
    database: Database, redis_url: str, server: Library, **rest: Any
) -> AsyncIterator[WorkerRuntime]:
    """Register a library and serve it: a worker lists what it has, and does its calls."""
    definition = parse_definition(server.definition(**rest))
    await catalog.add_server(database, definition, actor="test")
    url = database.engine.url.render_as_string(hide_password=False)
    worker = WorkerRuntime(definition.name, Settings(database_url=url, redis_url=redis_url))
    await worker.open()
    working = asyncio.create_task(_work(worker))
    try:
        await until(lambda: listed(database, definition.name))
        yield worker
    finally:
        working.cancel()
        await asyncio.wait([working])
        await worker.close()


async def listed(database: Database, server: str) -> dict[str, Any]:
    """Return what the record has of a server beside its tools, by kind."""
    rows = await database.statement(
        "SELECT o.kind, o.body FROM offerings o JOIN servers s"
        " ON s.current_version_id = o.server_version_id WHERE s.name = %(name)s",
        name=server,
    )
    return {row["kind"]: row["body"] for row in rows}


async def _work(worker: WorkerRuntime) -> None:
    """Take the calls of a worker's server out of the record, as its messages would have it do."""
    running: set[asyncio.Task[Any]] = set()
    taken: set[str] = set()
    try:
        while True:
            async with worker.database.transaction() as connection:
                found = await connection.execute(
                    text("SELECT id FROM calls WHERE state = 'queued' AND server_name = :server"),
                    {"server": worker.server},
                )
                ids = {row.id for row in found} - taken
            for call_id in ids:
                job = make_job()
                job.task = asyncio.create_task(invoke(worker, call_id, job))
                running.add(job.task)
            taken |= ids
            await asyncio.sleep(0.01)
    finally:
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
