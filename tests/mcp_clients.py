"""MCP clients for tests, over real HTTP, that show each byte of what they are answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import httpx2

from api.mcp.asked import META
from tests.asking import Worker
from tests.serving import Api

NEWEST: Final = "2026-07-28"
LEGACY: Final = ("2025-03-26", "2025-06-18", "2025-11-25")
BOTH_KINDS: Final = "application/json, text/event-stream"


@dataclass
class Event:
    """A server-sent event: its id, and its data as JSON, if it has any."""

    id: str | None
    data: Any


@dataclass
class Stream:
    """A stream of events as it comes."""

    answer: httpx2.Response
    _lines: AsyncIterator[str]

    async def next(self) -> Event | None:
        """Return the next event; None at the stream's end."""
        id_, data, begun = None, [], False
        async for line in self._lines:
            if not line and begun:
                text = "\n".join(data)
                return Event(id_, json.loads(text) if text else None)
            name, _, value = line.partition(":")
            if name in {"id", "data"}:
                begun = True
                if name == "id":
                    id_ = value.strip()
                else:
                    data.append(value.strip())
        return None

    async def rest(self) -> list[Any]:
        """Return what all events to the end say."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event.data)
        return found


@dataclass
class Stateless:
    """A client of the newest revision."""

    http: httpx2.AsyncClient
    path: str = "/mcp"
    capabilities: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    ids: Any = field(default_factory=count)

    def request(
        self, method: str, params: dict[str, Any] | None = None, **meta: Any
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the body and the headers of a request as the specification wants them."""
        params = dict(params or {})
        params["_meta"] = {
            META + "protocolVersion": NEWEST,
            META + "clientInfo": {"name": "a test", "version": "1"},
            META + "clientCapabilities": self.capabilities,
            **meta,
        }
        headers = {
            "accept": BOTH_KINDS,
            "mcp-protocol-version": NEWEST,
            "mcp-method": method,
            **self.headers,
        }
        named = params.get("name", params.get("uri", params.get("taskId")))
        if isinstance(named, str):
            headers["mcp-name"] = named
        return {"jsonrpc": "2.0", "id": next(self.ids), "method": method, "params": params}, headers

    async def ask(
        self, method: str, params: dict[str, Any] | None = None, **headers: str
    ) -> httpx2.Response:
        body, usual = self.request(method, params)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post(self.path, json=body, headers={**usual, **named})

    async def result(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return result_of(await self.ask(method, params))

    @asynccontextmanager
    async def stream(
        self, method: str, params: dict[str, Any] | None = None, **meta: Any
    ) -> AsyncIterator[Stream]:
        body, headers = self.request(method, params, **meta)
        async with streaming(self.http, "POST", self.path, headers, body) as stream:
            yield stream


@dataclass
class Session:
    """A client of a revision that has sessions; ``http`` may change, as behind a load balancer."""

    http: httpx2.AsyncClient
    path: str
    revision: str
    id: str
    about: dict[str, Any]
    ids: Any = field(default_factory=lambda: count(1))

    @classmethod
    async def start(
        cls,
        http: httpx2.AsyncClient,
        revision: str = "2025-11-25",
        path: str = "/mcp",
        capabilities: dict[str, Any] | None = None,
        **headers: str,
    ) -> Session:
        params = {
            "protocolVersion": revision,
            "capabilities": capabilities or {},
            "clientInfo": {"name": "a test", "version": "1"},
        }
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await http.post(
            path,
            json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params},
            headers={"accept": BOTH_KINDS, **named},
        )
        about = result_of(answer)
        id_ = answer.headers["mcp-session-id"]
        session = cls(http, path, about["protocolVersion"], id_, about)
        told = await session.tell("notifications/initialized")
        assert told.status_code == 202
        return session

    @property
    def headers(self) -> dict[str, str]:
        said = {"accept": BOTH_KINDS, "mcp-session-id": self.id}
        if self.revision != "2025-03-26":
            said["mcp-protocol-version"] = self.revision
        return said

    def request(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        body = {"jsonrpc": "2.0", "id": next(self.ids), "method": method}
        return body if params is None else {**body, "params": params}

    async def post(self, body: Any, **headers: str) -> httpx2.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post(self.path, json=body, headers={**self.headers, **named})

    async def ask(self, method: str, params: dict[str, Any] | None = None) -> httpx2.Response:
        return await self.post(self.request(method, params))

    async def result(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return result_of(await self.ask(method, params))

    async def tell(self, method: str, params: dict[str, Any] | None = None) -> httpx2.Response:
        body: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        return await self.post(body if params is None else {**body, "params": params})

    async def end(self) -> httpx2.Response:
        return await self.http.delete(self.path, headers=self.headers)

    @asynccontextmanager
    async def stream(self, body: Any) -> AsyncIterator[Stream]:
        async with streaming(self.http, "POST", self.path, self.headers, body) as stream:
            yield stream

    @asynccontextmanager
    async def listen(self, last_event_id: str | None = None) -> AsyncIterator[Stream]:
        headers = {**self.headers, "accept": "text/event-stream"}
        if last_event_id is not None:
            headers["last-event-id"] = last_event_id
        async with streaming(self.http, "GET", self.path, headers) as stream:
            yield stream


@asynccontextmanager
async def streaming(
    http: httpx2.AsyncClient, method: str, path: str, headers: dict[str, str], body: Any = None
) -> AsyncIterator[Stream]:
    async with http.stream(method, path, headers=headers, json=body) as answer:
        yield Stream(answer, answer.aiter_lines())


def result_of(answer: httpx2.Response) -> dict[str, Any]:
    """Return the result that an answer is, whichever kind of body it has."""
    body = body_of(answer)
    assert "result" in body, body
    result: dict[str, Any] = body["result"]
    return result


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """Return the error that an answer is."""
    error: dict[str, Any] = body_of(answer)["error"]
    return error


def body_of(answer: httpx2.Response) -> Any:
    """Return the last message of an answer."""
    if answer.headers["content-type"] == "text/event-stream":
        lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
        return json.loads(lines[-1].removeprefix("data: "))
    assert answer.headers["content-type"] == "application/json", answer.text
    return json.loads(answer.content)


async def worker_of(api: Api, session_id: str) -> Worker:
    """Return the worker behind a session's run."""
    rows = await api.database.statement(
        "SELECT run_id FROM mcp_sessions WHERE id = %(id)s", id=session_id
    )
    return Worker(api.database, api.redis, rows[0]["run_id"])


@asynccontextmanager
async def working(api: Api) -> AsyncIterator[None]:
    """Let a worker run whatever is queued: it gives back each text."""

    async def work() -> None:
        while True:
            for row in await api.database.statement("SELECT id FROM calls WHERE state = 'queued'"):
                await api.work(row["id"])
            await asyncio.sleep(0.01)

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
