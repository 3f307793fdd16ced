"""The fleet over stdio (`toolfleet mcp`), by the lines that a client writes and reads."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from api.mcp.asked import META
from compose.api_client import Address, AskError
from compose.bridge.bridge import Bridge
from compose.bridge.endpoint import Endpoint
from compose.local import toolfleet_command
from tests.asking import Worker
from tests.mcp_clients import NEWEST, worker_of, working
from tests.requirements import requirement
from tests.serving import ECHO, Api
from tests.waiting import until

pytestmark = pytest.mark.anyio

LEGACY = "2025-11-25"
ERAS = pytest.mark.parametrize("revision", [LEGACY, NEWEST])
CALL = {"name": "demo_echo", "arguments": {"text": "hi"}}
ABOUT = {"name": "a desktop", "version": "1"}


@dataclass
class Desktop:
    """A client with a server over stdio: what it writes, and what it reads."""

    revision: str
    read: list[Any] = field(default_factory=list)
    lines: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)
    ids: Any = field(default_factory=count)

    async def write(self, line: bytes) -> None:
        """Take a line that the server writes."""
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        self.read.append(json.loads(line))

    async def written(self) -> AsyncIterator[str]:
        while (line := await self.lines.get()) is not None:
            yield line

    def tell(self, method: str, **params: Any) -> None:
        self.lines.put_nowait(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}))

    def ask(self, method: str, **params: Any) -> int:
        """Ask without waiting; return the request's id."""
        id_ = next(self.ids)
        if self.revision == NEWEST:
            params["_meta"] = {
                META + "protocolVersion": NEWEST,
                META + "clientInfo": ABOUT,
                META + "clientCapabilities": {},
                **params.get("_meta", {}),
            }
        said = {"jsonrpc": "2.0", "id": id_, "method": method, "params": params}
        self.lines.put_nowait(json.dumps(said))
        return id_

    async def answer(self, id_: int) -> dict[str, Any]:
        (answer,) = await until(lambda: [it for it in self.read if it.get("id") == id_])
        return answer

    async def result(self, method: str, **params: Any) -> dict[str, Any]:
        answer = await self.answer(self.ask(method, **params))
        assert "result" in answer, answer
        return answer["result"]

    async def error(self, method: str, **params: Any) -> dict[str, Any]:
        return (await self.answer(self.ask(method, **params)))["error"]

    def told(self, method: str) -> list[dict[str, Any]]:
        return [it.get("params", {}) for it in self.read if it.get("method") == method]

    async def shake_hands(self) -> None:
        about = {"protocolVersion": self.revision, "capabilities": {}, "clientInfo": ABOUT}
        assert (await self.result("initialize", **about))["protocolVersion"] == self.revision
        self.tell("notifications/initialized")


@asynccontextmanager
async def desktop(
    find: Callable[[], Address], revision: str, path: str = "/mcp", **headers: str
) -> AsyncIterator[Desktop]:
    """Run the bridge for a client, which has shaken hands if that is its revision's way."""
    client = Desktop(revision)
    async with Endpoint(find, path, headers) as endpoint:
        serving = asyncio.create_task(Bridge(endpoint, client.write).run(client.written()))
        try:
            if revision != NEWEST:
                await client.shake_hands()
            yield client
        finally:
            client.lines.put_nowait(None)
            await serving


async def door(api: Api) -> Callable[[], Address]:
    address = Address(api.url, await api.key())
    return lambda: address


async def session_ids(api: Api) -> list[str]:
    rows = await api.database.statement("SELECT id FROM mcp_sessions WHERE ended_at IS NULL")
    return [row["id"] for row in rows]


async def worker_behind(api: Api, client: Desktop) -> Worker:
    """Return the worker behind the run that a client's calls belong to."""
    if client.revision != NEWEST:
        return await worker_of(api, (await session_ids(api))[0])
    await client.result("tools/list")  # the caller's standing run begins with its first request
    (row,) = await api.database.statement("SELECT id FROM runs")
    return Worker(api.database, api.redis, row["id"])


@asynccontextmanager
async def dropping(api: Api) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """Run a proxy in front of an API; yield its port, and how to drop all its connections."""
    port, writers = int(api.url.rpartition(":")[2]), set[asyncio.StreamWriter]()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        further_reader, further = await asyncio.open_connection("127.0.0.1", port)
        writers.update({writer, further})
        await asyncio.gather(pump(reader, further), pump(further_reader, writer))

    def drop() -> None:
        for writer in writers:
            writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], drop


@ERAS
@requirement("stdio:passes-on")
async def test_what_a_client_asks_at_once_is_each_answered(api: Api, revision: str) -> None:
    await api.serve()
    async with desktop(await door(api), revision) as client, working(api):
        tools = (await client.result("tools/list"))["tools"]
        assert tools[0]["name"] == "demo_echo"
        asked = {
            client.ask("tools/call", name="demo_echo", arguments={"text": f"{n}\n\u2028"}): n
            for n in range(10)
        }
        for id_, number in asked.items():
            answer = await client.answer(id_)
            assert answer["result"]["content"][0]["text"] == f"{number}\n\u2028"
        assert (await client.error("no/such"))["code"] == -32601
        assert (await client.error("tools/call", name="nobody"))["data"]["code"] == "unknown_tool"


@ERAS
@requirement("stdio:passes-on")
async def test_one_server_is_offered_alone(api: Api, revision: str) -> None:
    await api.serve()
    await api.serve("other")
    async with desktop(await door(api), revision, "/mcp/servers/other") as client:
        tools = (await client.result("tools/list"))["tools"]
    assert [tool["name"] for tool in tools if "call_" not in tool["name"]] == ["echo"]


@ERAS
@requirement("stdio:passes-on")
async def test_progress_comes_before_the_answer(api: Api, revision: str) -> None:
    await api.serve()
    async with desktop(await door(api), revision) as client:
        worker = await worker_behind(api, client)
        id_ = client.ask("tools/call", **CALL, _meta={"progressToken": "far"})
        claim = await worker.claim()
        await worker.report(claim, {"progress": 1, "total": 2})
        await until(lambda: client.told("notifications/progress"))
        await worker.end(claim)
        await client.answer(id_)
    assert client.told("notifications/progress") == [
        {"progressToken": "far", "progress": 1, "total": 2}
    ]


@ERAS
@requirement("stdio:cancel")
async def test_what_is_cancelled_is_stopped_and_has_no_answer(api: Api, revision: str) -> None:
    await api.serve()
    async with desktop(await door(api), revision) as client:
        worker = await worker_behind(api, client)
        id_ = client.ask("tools/call", **CALL)
        claim = await worker.claim()
        client.tell("notifications/cancelled", requestId=id_)
        client.tell("notifications/cancelled", requestId="nobody's")
        client.tell("notifications/cancelled", requestId=[])
        await until(lambda: worker.stop_requested(claim))
        await worker.end(claim)
        assert await client.result("tools/list")
        assert not [it for it in client.read if it.get("id") == id_]


@ERAS
@requirement("stdio:leaves-nothing")
async def test_a_client_that_leaves_stops_what_it_asked_for(api: Api, revision: str) -> None:
    await api.serve()
    async with desktop(await door(api), revision) as client:
        worker = await worker_behind(api, client)
        client.ask("tools/call", **CALL)
        claim = await worker.claim()
    await until(lambda: worker.stop_requested(claim))
    assert await session_ids(api) == []


@requirement("stdio:passes-on")
async def test_a_servers_question_goes_to_the_client_and_its_answer_back(api: Api) -> None:
    await api.serve()
    client = Desktop(LEGACY)
    async with Endpoint(await door(api), "/mcp") as endpoint:
        serving = asyncio.create_task(Bridge(endpoint, client.write).run(client.written()))
        asks = {"capabilities": {"elicitation": {}}, "clientInfo": ABOUT}
        await client.result("initialize", protocolVersion=LEGACY, **asks)
        worker = await worker_of(api, (await session_ids(api))[0])
        id_ = client.ask("tools/call", **CALL)
        claim = await worker.claim()
        (question,) = await worker.ask(claim)
        (asked,) = await until(
            lambda: [it for it in client.read if it.get("method") == "elicitation/create"]
        )
        given = {"action": "accept", "content": {"city": "Oslo"}}
        answer = {"jsonrpc": "2.0", "id": asked["id"], "result": given}
        client.lines.put_nowait(json.dumps(answer))
        await until(lambda: worker.answered(claim, question))
        await worker.end(claim)
        await client.answer(id_)
        client.lines.put_nowait(None)
        await serving


@requirement("stdio:passes-on")
async def test_a_batch_is_answered_by_one_line(api: Api) -> None:
    await api.serve()
    async with desktop(await door(api), "2025-03-26") as client:
        batch = [{"jsonrpc": "2.0", "id": id_, "method": "ping"} for id_ in ("a", "b")]
        client.lines.put_nowait(
            json.dumps([*batch, {"jsonrpc": "2.0", "method": "notifications/x"}])
        )
        (answers,) = await until(lambda: [it for it in client.read if isinstance(it, list)])
    assert sorted(it["id"] for it in answers) == ["a", "b"]


@requirement("stdio:sessions")
async def test_a_session_that_is_gone_is_begun_again(api: Api) -> None:
    await api.serve()
    async with desktop(await door(api), LEGACY) as client:
        (first,) = await session_ids(api)
        await api.database.statement("UPDATE mcp_sessions SET ended_at = now() RETURNING id")
        api.app.state.mcp.sessions.forget()
        assert (await client.result("tools/list"))["tools"]
        (second,) = await session_ids(api)
        assert second != first
        assert client.told("notifications/tools/list_changed")


@requirement("stdio:sessions")
async def test_a_call_survives_the_connection_that_it_was_made_on(api: Api) -> None:
    await api.serve()
    key = await api.key()
    async with (
        dropping(api) as (port, drop),
        desktop(
            lambda: Address(f"http://127.0.0.1:{port}", key),
            LEGACY,
            host=api.url.removeprefix("http://"),
        ) as client,
    ):
        worker = await worker_of(api, (await session_ids(api))[0])
        id_ = client.ask("tools/call", **CALL, _meta={"progressToken": 1})
        claim = await worker.claim()
        await worker.report(claim, {"progress": 1})
        await until(lambda: client.told("notifications/progress"))
        drop()
        await worker.end(claim)
        assert "result" in await client.answer(id_)


@requirement("stdio:headers")
async def test_headers_repeat_what_a_tool_marks_though_nobody_listed_it(api: Api) -> None:
    marked = {"text": {"type": "string", "x-mcp-header": "At"}}
    await api.serve("demo", {**ECHO, "inputSchema": {"type": "object", "properties": marked}})
    async with desktop(await door(api), NEWEST) as client, working(api):
        for text in ("plain", "Grüße\n", " padded ", "=?base64?x?="):
            call = {"name": "demo_echo", "arguments": {"text": text}}
            assert (await client.result("tools/call", **call))["content"][0]["text"] == text


@ERAS
@requirement("stdio:errors")
async def test_a_fleet_that_is_away_or_refuses_is_an_error_with_a_hint(
    api: Api, revision: str
) -> None:
    found = [AskError("no_fleet", "no fleet runs", "start one"), Address("http://127.0.0.1:1", "k")]

    def find() -> Address:
        address = found[0]
        if isinstance(address, AskError):
            raise address
        return address

    client = Desktop(revision)
    async with Endpoint(find, "/mcp") as endpoint:
        serving = asyncio.create_task(Bridge(endpoint, client.write).run(client.written()))
        for expected in ("no_fleet", "unreachable", "unauthenticated"):
            error = await client.error("initialize" if revision == LEGACY else "tools/list")
            assert (error["code"], error["data"]["code"]) == (-32010, expected)
            assert error["data"]["hint"]
            found[:] = [*found[1:], Address(api.url, "nobody's")]
        client.lines.put_nowait("no JSON")
        (wrong,) = await until(
            lambda: [it for it in client.read if it.get("error", {}).get("code") == -32700]
        )
        assert "id" not in wrong
        client.lines.put_nowait(None)
        await serving


@requirement("stdio:leaves-nothing")
@pytest.mark.parametrize("end", ["eof", pytest.param("sigterm", marks=pytest.mark.long)])
async def test_the_command_ends_with_its_client(api: Api, end: str) -> None:
    await api.serve()
    process = await asyncio.create_subprocess_exec(
        *toolfleet_command("mcp"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TOOLFLEET_URL": api.url, "TOOLFLEET_KEY": await api.key()},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    client = Desktop(LEGACY)
    client.ask("initialize", protocolVersion=LEGACY, capabilities={}, clientInfo=ABOUT)
    process.stdin.write(client.lines.get_nowait().encode() + b"\n")
    await client.write(await process.stdout.readline())
    assert client.read[0]["result"]["protocolVersion"] == LEGACY
    assert len(await session_ids(api)) == 1
    if end == "eof":
        process.stdin.close()
    else:
        process.send_signal(signal.SIGTERM)
    assert (await process.wait(), await process.stdout.read()) == (0, b"")
    assert await session_ids(api) == []
