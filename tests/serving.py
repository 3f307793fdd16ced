"""A running API for tests, over real HTTP, with a real Postgres and Redis behind it.

Where a call has to end, the test takes the worker's part in the ledger itself: it claims the row,
finishes it and gives the hint, as a worker does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from fastapi import FastAPI
from pydantic import SecretStr
from redis.asyncio import Redis

from api.app import create_app
from api.main import Server, make_server
from registry import calls, catalog, ingest, tenants
from registry.calls import CallState, Ending
from registry.database import Database
from registry.definitions import parse_definition
from registry.settings import Settings
from registry.tenants import Role
from tests.waiting import until
from workers.celery_app import make_app
from workers.client import FleetClient
from workers.signals import Signals

WORKER = "worker-of-the-test"
ECHO = {
    "name": "echo",
    "description": "Give back a text",
    "inputSchema": {
        "type": "object",
        "properties": {"text": {"type": "string"}, "at": {"type": "object"}},
        "required": ["text"],
        "additionalProperties": False,
    },
    "outputSchema": {"type": "object"},
    "annotations": {"readOnlyHint": True},
}


@dataclass
class Api:
    """A running API, an operator's client of it, and the ledger behind it."""

    server: Server
    app: FastAPI
    http: httpx2.AsyncClient
    url: str
    database: Database
    redis: Redis

    def client(self, key: str | None) -> httpx2.AsyncClient:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx2.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=20)

    @asynccontextmanager
    async def signed_in(self, key: str | None = None) -> AsyncIterator[httpx2.AsyncClient]:
        """Yield what is signed in to the console as a browser is, an operator unless told."""
        credential = key or await self.key("operator", None)
        async with self.client(None) as browser:
            browser.headers["accept"] = "text/html"
            answer = await browser.post("/console/sign-in", data={"credential": credential})
            assert answer.status_code == 303, answer.text
            yield browser

    async def key(self, role: str = "tenant", tenant: str | None = "acme", **rest: Any) -> str:
        _, key = await tenants.create_key(
            self.database, name="a key", role=Role(role), tenant=tenant, **rest
        )
        return key

    async def serve(self, name: str = "demo", *listed: dict[str, Any], **rest: Any) -> None:
        """Register a server and list its tools, as its worker would."""
        definition = parse_definition(
            {"name": name, "transport": "stdio", "command": "true", **rest}
        )
        version = await catalog.add_server(self.database, definition, actor="test")
        await ingest.ingest(self.database, version, definition, listed or (ECHO,))

    async def run(self, tenant: str = "acme") -> dict[str, Any]:
        answer = await self.http.post("/v1/runs", json={"tenant": tenant})
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def submit(self, run: dict[str, Any], text: str = "hi", **rest: Any) -> dict[str, Any]:
        answer = await self.http.post(
            f"/v1/runs/{run['id']}/calls",
            json={"tool": "demo_echo", "arguments": {"text": text}, **rest},
        )
        assert answer.status_code == 202, answer.text
        return answer.json()

    async def work(self, call_id: str, *, hint: bool = True) -> dict[str, Any]:
        """Take a worker's part: claim the call, finish it, give the hint; return the result."""
        (claim,) = await calls.claim(self.database, WORKER, [call_id])
        assert claim is not None
        result = {"content": [{"type": "text", "text": claim.arguments["text"]}]}
        ending = Ending(
            call_id, claim.fence, CallState.SUCCEEDED, result, False, timings={"call_s": 0.001}
        )
        assert await calls.finish(self.database, WORKER, [ending]) == [True]
        if hint:
            await Signals(self.redis).ended([call_id])
        return result

    async def queued(self, run: dict[str, Any]) -> str:
        """Return the id of the run's one call, once it is in the record."""

        async def look() -> list[dict[str, Any]]:
            answer = await self.http.get(f"/v1/runs/{run['id']}/calls")
            return answer.json()["calls"]

        (call,) = await until(look)
        return call["id"]


@asynccontextmanager
async def serving(database: Database, redis_url: str, **rest: Any) -> AsyncIterator[Api]:
    """Run the API on a free port, as its process does."""
    settings = Settings(
        **{
            "database_url": database.engine.url.render_as_string(hide_password=False),
            "redis_url": redis_url,
            "secret_key": SecretStr("a secret of at least thirty-two bytes"),
            "api_port": 0,
            **rest,
        }
    )
    app = create_app(settings, connect=lambda url: FleetClient(url, celery=make_app(settings)))
    server = make_server(settings, app)
    running = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started or running.done())
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        _, key = await tenants.create_key(database, name="operator", role=Role.OPERATOR)
        headers = {"authorization": f"Bearer {key}"}
        async with (
            httpx2.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=20) as http,
            Redis.from_url(redis_url) as redis,
        ):
            yield Api(server, app, http, url, database, redis)
    finally:
        server.should_exit = True
        await running


def problem_of(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["type"] == f"urn:toolfleet:error:{body['code']}"
    return body
