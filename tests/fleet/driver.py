"""A whole fleet as its callers see it, and what the servers behind it wrote down."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import psutil

from compose.embedded import free_port
from compose.local import LocalFleet, toolfleet_command
from compose.process import Process
from registry import calls
from registry.database import Database
from registry.settings import Settings
from tests.waiting import until
from workers.mark import Mark

SERVERS = Path(__file__).parents[1] / "servers"
READ = ("echo", "add", "sleep", "meta", "header", "big", "block", "fail")
MAX_RESULT_BYTES = 4_000_000
ENVIRONMENT = {
    "TOOLFLEET_WORKER_LEASE": "3",
    "TOOLFLEET_RESEND_AFTER": "1",
    "TOOLFLEET_MAX_RESULT_BYTES": str(MAX_RESULT_BYTES),
}
LIMIT_S = 30


class Journal:
    """What an echo server did, by token."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def events(self, token: str) -> list[str]:
        """Return the events of one call, in order."""
        return [entry["event"] for entry in self.entries(token)]

    def sessions(self, token: str) -> list[Mark]:
        """Return the sessions, over stdio, in which a call was started."""
        started = [it["session"] for it in self.entries(token) if it["event"] == "started"]
        return [mark for session in started if (mark := Mark.parse(session)) is not None]

    def entries(self, token: str | None = None) -> list[dict[str, Any]]:
        """Return every entry, or those of one call."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        found = [json.loads(line) for line in lines]
        return [entry for entry in found if token in (None, entry["token"])]

    async def saw(self, event: str, *tokens: str) -> None:
        """Return once the server has noted an event of each of these calls."""
        await until(lambda: all(event in self.events(token) for token in tokens))


@dataclass
class Fleet:
    """A running fleet: its processes, an operator's client, and the record behind it.

    ``folder`` has the journals of its servers; its name goes into the versions of echo servers, so
    that modules that share a fleet can use each other's names.
    """

    local: LocalFleet
    http: httpx2.AsyncClient
    flower: httpx2.AsyncClient
    database: Database
    folder: Path
    credentials_file: Path

    def journal(self, server: str) -> Journal:
        """Return the journal of an echo server."""
        return Journal(self.folder / f"{server}.journal")

    def echo(self, name: str, *flags: str, **rest: Any) -> dict[str, Any]:
        """Return the definition of an echo server over stdio that keeps a journal."""
        return {
            "name": name,
            "version": self.folder.name,
            "transport": "stdio",
            "command": sys.executable,
            "args": [str(SERVERS / "echo.py"), "--journal", str(self.journal(name).path), *flags],
            "tools": {tool: {"delivery": "read"} for tool in READ},
            "pool": {"min_idle": 1, "max_size": 4},
            # A module may give the name to another server than the one before it did.
            "changes": {"breaking": "accept"},
            **rest,
        }

    def sleeper(self, name: str, **rest: Any) -> dict[str, Any]:
        """Return the definition of a server with some of an echo server's tools, quick to start."""
        definition = self.echo(name, **rest)
        _, *flags = definition["args"]
        return {**definition, "args": ["-I", "-S", str(SERVERS / "sleeper.py"), *flags]}

    @asynccontextmanager
    async def echo_http(self, name: str, *flags: str, **rest: Any) -> AsyncIterator[dict[str, Any]]:
        """Run an echo server over HTTP; yield its definition."""
        script = str(SERVERS / "echo.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable, script, "--http", "0", "--journal", self.journal(name).path, *flags,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(LIMIT_S):
                port = int(await process.stdout.readline())
            definition = self.echo(name, **rest)
            del definition["command"], definition["args"]
            where = {"url": f"http://127.0.0.1:{port}/mcp", "networks": ["127.0.0.0/8"]}
            yield {**definition, "transport": "http", **where}
        finally:
            process.kill()
            await process.wait()

    async def serve(self, *definitions: dict[str, Any], within_s: float = LIMIT_S) -> None:
        """Register servers; return once their workers are ready and their tools are listed."""
        names = [definition["name"] for definition in definitions]
        for definition in definitions:
            answer = await self.http.post("/v1/servers", json=definition)
            assert answer.status_code == 201, answer.text
        await self.local.wait_ready(names, within_s)
        for name in names:
            await until(partial(self.fresh, name), within_s=within_s)

    async def clear(self) -> None:
        """Remove every server; return once their workers have gone."""
        for server in (await self.http.get("/v1/servers")).json()["servers"]:
            await self.http.delete(f"/v1/servers/{server['name']}")
        await until(
            lambda: not any(name.startswith("worker:") for name in self.local.children),
            within_s=LIMIT_S,
        )

    async def fresh(self, name: str) -> bool:
        """Say whether a server's tools are known."""
        return not (await self.http.get(f"/v1/servers/{name}")).json()["stale"]

    async def run(self, tenant: str = "acme", **rest: Any) -> dict[str, Any]:
        """Start a run."""
        answer = await self.http.post("/v1/runs", json={"tenant": tenant, **rest})
        assert answer.status_code == 201, answer.text
        return answer.json()  # type: ignore[no-any-return]

    async def ask(
        self, run: dict[str, Any], tool: str, *, wait_s: int = 0, **arguments: Any
    ) -> httpx2.Response:
        """Submit a call; return the API's answer as it is."""
        return await self.http.post(
            f"/v1/runs/{run['id']}/calls",
            json={"tool": tool, "arguments": arguments},
            headers={"prefer": f"wait={wait_s}"} if wait_s else {},
        )

    async def submit(self, run: dict[str, Any], tool: str, **arguments: Any) -> str:
        """Submit a call; return its id."""
        answer = await self.ask(run, tool, **arguments)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def call(self, run: dict[str, Any], tool: str, **arguments: Any) -> dict[str, Any]:
        """Make a call; return it once it has ended."""
        answer = await self.ask(run, tool, wait_s=LIMIT_S, **arguments)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    async def ended(self, call_id: str) -> dict[str, Any]:
        """Return a call once it has ended."""
        answer = await self.http.get(f"/v1/calls/{call_id}", params={"wait": LIMIT_S})
        assert answer.json().get("ended_at"), answer.text
        return answer.json()  # type: ignore[no-any-return]

    async def cancel(self, call_id: str) -> str:
        """Stop a call; return the API's answer."""
        answer = await self.http.post(f"/v1/calls/{call_id}/cancel")
        return str(answer.json()["answer"])

    async def workers_of(self, *call_ids: str) -> list[str]:
        """Return the worker that had each call last."""
        rows = await calls.read(self.database, call_ids)
        return [rows[call_id]["worker_id"] for call_id in call_ids]

    def worker(self, server: str) -> psutil.Process:
        """Return the process of a server's one worker."""
        (pid,) = self.local.workers()[server]
        return psutil.Process(pid)

    @asynccontextmanager
    async def replica(self) -> AsyncIterator[httpx2.AsyncClient]:
        """Run one more API process of this fleet; yield an operator's client of it."""
        port = free_port()
        environment = {**self.local._child_environment(), "TOOLFLEET_API_PORT": str(port)}
        process = Process(
            toolfleet_command("api"), log=self.folder / "replica.log", env=environment, grace_s=10
        )
        await process.start()
        try:
            async with httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", headers=self.http.headers, timeout=60
            ) as http:
                await until(lambda: ready(http), within_s=LIMIT_S)
                yield http
        finally:
            await process.stop()

    @asynccontextmanager
    async def without(self, child: str) -> AsyncIterator[None]:
        """Keep a part of the fleet down for a while; it comes back at the end."""
        await self.local.children[child].stop()
        try:
            yield
        finally:
            await self.local.children[child].start()
            await until(lambda: ready(self.http), within_s=LIMIT_S)


async def ready(http: httpx2.AsyncClient) -> bool:
    """Say whether an API process takes calls."""
    with suppress(httpx2.TransportError):
        return (await http.get("/readyz")).is_success
    return False


@asynccontextmanager
async def running(
    folder: Path, *, credentials_file: Path | None = None, redis_url: str = "", **options: Any
) -> AsyncIterator[Fleet]:
    """Run a fleet; ``options`` are those of `LocalFleet`."""
    if credentials_file is None:
        credentials_file = folder / "credentials.json"
        credentials_file.touch(mode=0o600)
        credentials_file.write_text("{}")
    settings = Settings(
        data_dir=folder / "data",
        database_url="",
        redis_url=redis_url,
        credentials_file=credentials_file,
    )
    options = {"environment": ENVIRONMENT, **options}
    local = LocalFleet(settings, free_ports=True, durable=False, **options)
    async with local:
        headers = {"authorization": f"Bearer {local.operator_key}"}
        database = Database(local.database_url)
        async with (
            httpx2.AsyncClient(base_url=local.api_url, headers=headers, timeout=60) as http,
            httpx2.AsyncClient(
                base_url=local.flower_url,
                auth=httpx2.BasicAuth("operator", local.operator_key),
                timeout=60,
            ) as flower,
        ):
            yield Fleet(local, http, flower, database, folder, credentials_file)
        await database.close()


async def script(code: str, *arguments: str) -> str:
    """Run Python in a process of its own that knows nothing of this product; return its output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", code, *arguments, cwd="/", stdout=subprocess.PIPE
    )
    async with asyncio.timeout(LIMIT_S):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


def family() -> set[psutil.Process]:
    """Return every living process that descends from this one."""
    return {it for it in psutil.Process().children(recursive=True) if _lives(it)}


def living(processes: Sequence[psutil.Process] | set[psutil.Process]) -> set[psutil.Process]:
    """Return those of these processes that still live."""
    return {it for it in processes if _lives(it)}


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
