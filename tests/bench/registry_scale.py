"""Starting runs over 10,000 tools in 200 servers: what it costs while nothing changes, and after.

``make registry-bench`` prints it. Everything real: Postgres, the API over HTTP on this machine.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
from pydantic import SecretStr

from api.app import create_app
from api.main import make_server
from compose.embedded import EmbeddedPostgres, EmbeddedRedis
from compose.migrate import upgrade_database
from registry import catalog, ingest, tenants
from registry.database import Database
from registry.definitions import ServerDefinition, parse_definition
from registry.runs import start_run
from registry.settings import Settings
from registry.tenants import Role
from workers.celery_app import make_app
from workers.client import FleetClient

SERVERS = 200
TOOLS_EACH = 50
ROUNDS = 200


def tool(server: int, number: int) -> dict[str, Any]:
    """Return a tool of usual size: six arguments, described."""
    properties = {
        f"argument_{n}": {
            "type": "string",
            "description": f"The {n}th thing that tool {number} needs",
        }
        for n in range(6)
    }
    return {
        "name": f"tool_{number}",
        "description": f"Do the {number}th thing of server {server} to whatever is named. " * 3,
        "inputSchema": {"type": "object", "properties": properties, "required": ["argument_0"]},
        "annotations": {"readOnlyHint": number % 2 == 0},
    }


def definition(server: int) -> ServerDefinition:
    return parse_definition({"name": f"server-{server}", "transport": "stdio", "command": "true"})


async def fill(database: Database) -> dict[int, int]:
    """Register the servers with their tools; return their versions' ids."""
    ids = {}
    for server in range(SERVERS):
        what = definition(server)
        ids[server] = await catalog.add_server(database, what, actor="bench")
        listed = [tool(server, number) for number in range(TOOLS_EACH)]
        await ingest.ingest(database, ids[server], what, listed)
    return ids


async def timed(what: Callable[[], Awaitable[Any]], rounds: int) -> list[float]:
    """Return how long each round took, in milliseconds."""
    took = []
    for _ in range(rounds):
        begun = time.perf_counter()
        await what()
        took.append((time.perf_counter() - begun) * 1000)
    return took


def show(name: str, took: list[float]) -> None:
    p50, p95 = statistics.median(took), sorted(took)[int(len(took) * 0.95)]
    print(f"{name:<52} p50 {p50:8.1f} ms   p95 {p95:8.1f} ms   ({len(took)} runs)")


async def measure(database: Database, settings: Settings) -> None:
    begun = time.perf_counter()
    ids = await fill(database)
    print(f"{SERVERS * TOOLS_EACH} tools in {SERVERS} servers: {time.perf_counter() - begun:.1f} s")
    app = create_app(settings, connect=lambda url: FleetClient(url, celery=make_app(settings)))
    server = make_server(settings, app)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    _, key = await tenants.create_key(database, name="bench", role=Role.OPERATOR)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120
    ) as http:

        async def start(**body: Any) -> None:
            answer = await http.post("/v1/runs", json={"tenant": "acme", **body})
            assert answer.status_code == 201, answer.text
            assert answer.content.count(b'"inputSchema"') == (2 if body else SERVERS * TOOLS_EACH)

        operations = app.state.operations

        async def start_inside() -> None:
            await start_run(
                database,
                tenant="acme",
                actor="bench",
                lifetime=settings.run_lifetime,
                offers=operations.offers,
                shelf=operations._shelf,
            )

        show("first run of a process (everything is read)", await timed(start, 1))
        show("snapshot for a run, nothing changed", await timed(start_inside, ROUNDS))
        show("POST /v1/runs, nothing changed, all tools sent", await timed(start, ROUNDS))
        show(
            "POST /v1/runs, exposure search", await timed(lambda: start(exposure="search"), ROUNDS)
        )

        async def start_after_change() -> None:
            changes = [tool(0, number) for number in range(TOOLS_EACH)]
            changes[0]["description"] += str(time.perf_counter())
            await ingest.ingest(database, ids[0], definition(0), changes)
            begun = time.perf_counter()
            await start_inside()
            after.append((time.perf_counter() - begun) * 1000)

        after: list[float] = []
        await timed(start_after_change, 10)
        show("snapshot for a run, one tool changed", after)
    server.should_exit = True
    await serving


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="toolfleet-bench-") as folder:
        postgres = EmbeddedPostgres(Path(folder), durable=True)
        redis = EmbeddedRedis(Path(folder), durable=False)
        url, redis_url = await postgres.start(), await redis.start()
        try:
            await asyncio.to_thread(upgrade_database, url)
            settings = Settings(
                database_url=url,
                redis_url=redis_url,
                secret_key=SecretStr("a secret of at least thirty-two bytes"),
                api_port=0,
            )
            database = Database(url)
            try:
                await measure(database, settings)
            finally:
                await database.close()
        finally:
            await redis.stop()
            await postgres.stop()


if __name__ == "__main__":
    asyncio.run(main())
