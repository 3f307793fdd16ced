"""What is attacked: a real API and real workers in this process, with real servers behind them.

Messages are delivered by hand, as whoever reaches the broker could: an attack decides which.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx2
import psutil
from redis import Redis

from registry.calls import CallState
from registry.database import Database
from registry.settings import Settings
from tests.conftest import fresh_database
from tests.jobs import make_job
from tests.serving import Api, serving
from tests.waiting import until
from workers.invoke import invoke
from workers.runtime import WorkerRuntime

SERVERS: Final = Path(__file__).parents[1] / "servers"
LIMIT_S: Final = 20


@dataclass
class Target:
    """A fleet under attack: its API, its record, and its workers by server."""

    api: Api
    database: Database
    settings: Settings
    stack: AsyncExitStack
    workers: dict[str, WorkerRuntime] = field(default_factory=dict)

    # -- who asks

    async def tenant(self, name: str, role: str = "tenant") -> httpx2.AsyncClient:
        """Return a client with a fresh key of a tenant."""
        client = self.api.client(await self.api.key(role, name))
        return await self.stack.enter_async_context(client)

    async def run(self, client: httpx2.AsyncClient, **rest: Any) -> dict[str, Any]:
        answer = await client.post("/v1/runs", json=rest)
        assert answer.status_code == 201, answer.text
        return answer.json()  # type: ignore[no-any-return]

    # -- what is asked for

    async def serve(self, definition: dict[str, Any]) -> WorkerRuntime:
        """Register a server as an operator; return its worker once it has listed its tools."""
        name = definition["name"]
        answer = await self.api.http.post("/v1/servers", json=definition)
        assert answer.status_code == 201, answer.text
        worker = self.workers[name] = WorkerRuntime(name, self.settings)
        await worker.open()
        self.stack.push_async_callback(worker.close)
        await until(lambda: self._listed(name))
        return worker

    async def _listed(self, name: str) -> bool:
        server = (await self.api.http.get(f"/v1/servers/{name}")).json()
        assert server["refresh_error"] is None, server["refresh_error"]
        return not server["stale"]

    async def ask(
        self, client: httpx2.AsyncClient, run: dict[str, Any], tool: str, **arguments: Any
    ) -> httpx2.Response:
        """Submit a call; return the API's answer as it is."""
        body = {"tool": tool, "arguments": arguments}
        return await client.post(f"/v1/runs/{run['id']}/calls", json=body)

    async def call(
        self, client: httpx2.AsyncClient, run: dict[str, Any], tool: str, **arguments: Any
    ) -> dict[str, Any]:
        """Make a call; return it once it has ended."""
        answer = await self.ask(client, run, tool, **arguments)
        assert answer.status_code == 202, answer.text
        return await self.work(client, answer.json())

    async def work(self, client: httpx2.AsyncClient, call: dict[str, Any]) -> dict[str, Any]:
        """Have a queued call's worker get its message; return the call as it ended."""
        await self.deliver(call["server"], call["id"])
        return (await client.get(f"/v1/calls/{call['id']}")).json()  # type: ignore[no-any-return]

    async def deliver(self, server: str, call_id: str) -> CallState | None:
        """Give a worker a message about a call, as Celery would; return how it took it."""
        job = make_job()
        job.task = asyncio.create_task(invoke(self.workers[server], call_id, job))
        async with asyncio.timeout(LIMIT_S):
            return await job.task  # type: ignore[no-any-return]


@asynccontextmanager
async def target(postgres_url: str, redis_url: str) -> AsyncIterator[Target]:
    """Run an API on a database of its own; the workers come with their servers."""
    with fresh_database(postgres_url) as url:
        with Redis.from_url(redis_url) as redis:
            redis.flushall()
        settings = Settings(
            database_url=url,
            redis_url=redis_url,
            drain_grace=timedelta(0),
            stop_grace=timedelta(seconds=0.2),
        )
        database = Database(url, application="toolfleet tests")
        async with AsyncExitStack() as stack:
            stack.push_async_callback(database.close)
            api = await stack.enter_async_context(serving(database, redis_url))
            yield Target(api, database, settings, stack)


def echo(name: str, *flags: str, **rest: Any) -> dict[str, Any]:
    """Return the definition of an echo server over stdio."""
    return {
        "name": name,
        "transport": "stdio",
        "command": sys.executable,
        "args": [str(SERVERS / "echo.py"), *flags],
        "pool": {"min_idle": 1, "max_size": 2},
        **rest,
    }


def text_of(call: dict[str, Any]) -> str:
    """Return the text that a call was answered with."""
    assert call["state"] == "succeeded", call["error"]
    return str(call["result"]["content"][0]["text"])


def everything_of(answer: httpx2.Response) -> str:
    """Return the head and the body of an answer as one text."""
    return json.dumps([dict(answer.headers), answer.text])


def command_lines() -> set[str]:
    """Return the command line of every process of this machine."""
    lines = set()
    for process in psutil.process_iter(["cmdline"]):
        lines.add(" ".join(process.info["cmdline"] or ()))
    return lines


@asynccontextmanager
async def echo_over_http(name: str, *flags: str, **rest: Any) -> AsyncIterator[dict[str, Any]]:
    """Run an echo server over HTTP behind a wire that keeps what it was sent; see `Wire`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SERVERS / "echo.py"), "--http", "0", *flags,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            port = int(await process.stdout.readline())
        definition = echo(name, **rest)
        del definition["command"], definition["args"]
        where = {"url": f"http://127.0.0.1:{port}/mcp", "networks": ["127.0.0.0/8"]}
        yield {**definition, "transport": "http", **where}
    finally:
        process.kill()
        await process.wait()


class Wiretap:
    """A listener on loopback that keeps every byte it gets, and passes it on if it is told where.

    ``connections`` counts who came: for a listener that nobody has any business with it stays 0.
    """

    def __init__(self, port: int | None = None, answer: bytes = b"") -> None:
        self._to = port
        self._answer = answer
        self.connections = 0
        self.heard = bytearray()
        self.port = 0
        self._open: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def listening(self, host: str = "127.0.0.1") -> AsyncIterator[Wiretap]:
        server = await asyncio.start_server(self._serve, host, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in self._open:
                writer.transport.abort()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            if self._to is None:
                self.heard += await reader.read(65536)
                writer.write(self._answer)
                await writer.drain()
                return
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._to)
            self._open.add(inner_writer)
            back = asyncio.create_task(_pump(inner_reader, writer))
            await _pump(reader, inner_writer, self.heard)
            await back
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None = None
) -> None:
    while data := await reader.read(65536):
        if kept is not None:
            kept += data
        writer.write(data)
        await writer.drain()
    writer.close()
