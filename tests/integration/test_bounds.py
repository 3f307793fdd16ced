"""What a request may be and take: over raw connections, as hostile clients send it."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psutil
import pytest

from registry.database import Database
from tests.requirements import requirement
from tests.serving import Api, problem_of, serving

pytestmark = pytest.mark.anyio

GIGABYTE = 10**9
MEGABYTE = 2**20


@pytest.fixture
def api(shared_api: Api) -> Api:
    """One API for all of these: nothing that they send changes anything that others look at."""
    return shared_api


class Wire:
    """One connection to the API."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, Any]:
        """Return status and body of what comes."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        lines = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
        body = await self.reader.readexactly(int(lines["content-length"]))
        if lines["content-type"] == "application/problem+json":
            assert json.loads(body)["status"] == int(head.split()[1])
        return int(head.split()[1]), json.loads(body)

    async def closed(self) -> bool:
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def wire(api: Api) -> AsyncIterator[Wire]:
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


def head(api: Api, *lines: str, request: str = "POST /v1/runs HTTP/1.1") -> bytes:
    given = [
        request,
        f"host: {api.url.removeprefix('http://')}",
        f"authorization: {api.http.headers['authorization']}",
        "content-type: application/json",
        *lines,
    ]
    return ("\r\n".join(given) + "\r\n\r\n").encode()


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


@requirement("door:bounds")
@pytest.mark.parametrize("route", ["/v1/runs", "/v1/servers", "/v1/nowhere", "/healthz"])
async def test_a_gigabyte_is_refused_when_it_is_declared(api: Api, route: str) -> None:
    async with wire(api) as caller:
        request = f"POST {route} HTTP/1.1"
        await caller.send(head(api, f"content-length: {GIGABYTE}", request=request))
        status, problem = await caller.answer()
    assert (status, problem["code"]) == (413, "request_too_large")


@requirement("door:bounds")
@pytest.mark.parametrize(
    ("request_line", "size"),
    [
        ("POST /v1/runs HTTP/1.1", 3_000_000),
        ("GET /v1/servers HTTP/1.1", 3_000_000),
        ("POST /v1/servers HTTP/1.1", 30_000_000),
    ],
)
async def test_what_is_more_than_the_route_takes_is_refused_when_it_is_declared(
    api: Api, request_line: str, size: int
) -> None:
    async with wire(api) as caller:
        await caller.send(head(api, f"content-length: {size}", request=request_line))
        status, problem = await caller.answer()
    assert (status, problem["code"]) == (413, "request_too_large")


@requirement("door:bounds")
async def test_a_gigabyte_that_is_not_declared_is_cut_off_and_not_kept(api: Api) -> None:
    before = resident()
    chunk = b"100000\r\n" + b"x" * MEGABYTE + b"\r\n"
    async with wire(api) as caller:
        await caller.send(head(api, "transfer-encoding: chunked"))
        answering = asyncio.create_task(caller.answer())
        sent = 0
        while sent < GIGABYTE and not answering.done():
            try:
                await caller.send(chunk)
            except ConnectionError:
                break
            sent += MEGABYTE
        status, problem = await answering
    assert (status, problem["code"]) == (413, "request_too_large")
    assert sent < 64 * MEGABYTE
    assert resident() - before < 64 * MEGABYTE


@requirement("door:bounds")
async def test_an_operators_route_reads_nothing_of_a_tenants_body(api: Api) -> None:
    tenant = await api.key()
    async with wire(api) as caller:
        line = head(api, "content-length: 60000000", request="PUT /v1/registry HTTP/1.1")
        operator = api.http.headers["authorization"].encode()
        await caller.send(line.replace(operator, f"Bearer {tenant}".encode()))
        status, problem = await caller.answer()
    assert (status, problem["code"]) == (403, "forbidden")


@requirement("door:bounds")
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 65 + b"]" * 65,
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b"[" * 1_000_000,
        b'{"arguments":' + b'[{"a":' * 40 + b"1" + b"}]" * 40 + b"}",
    ],
    ids=["lists", "objects", "endless", "mixed"],
)
async def test_json_that_nests_without_end_is_refused(api: Api, body: bytes) -> None:
    answer = await api.http.post(
        "/v1/runs", content=body, headers={"content-type": "application/json"}
    )
    problem = problem_of(answer)
    assert (problem["status"], problem["code"]) == (422, "invalid_request")
    assert "too deep" in problem["detail"]


@requirement("door:bounds")
async def test_json_of_sixty_levels_is_taken_however_wide(api: Api) -> None:
    await api.serve("deep")
    run = await api.run()
    deep = json.loads('{"a":' * 58 + "1" + "}" * 58)
    wide = {"tool": "deep_echo", "arguments": {"text": "[" * 500, "at": deep}}
    answer = await api.http.post(f"/v1/runs/{run['id']}/calls", json=wide)
    assert answer.status_code == 202, answer.text


@requirement("door:bounds")
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip", "x"])
async def test_a_compressed_body_is_refused(api: Api, encoding: str) -> None:
    bomb = gzip.compress(b"[" * 10_000_000)
    headers = {"content-type": "application/json", "content-encoding": encoding}
    problem = problem_of(await api.http.post("/v1/runs", content=bomb, headers=headers))
    assert (problem["status"], problem["code"]) == (415, "encoding_not_taken")
    plain = await api.http.post("/v1/runs", json={}, headers={"content-encoding": "identity"})
    assert plain.status_code == 201


@requirement("door:bounds")
@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([f"x-{number}: y" for number in range(101)], "headers_too_large"),
        ([f"x-{number}: y" for number in range(100_000)], "headers_too_large"),
        (["x: " + "y" * 70_000], "headers_too_large"),
        (["x: " + "y" * 50_000_000], "headers_too_large"),
        (["x" * 200_000 + ": y"], "headers_too_large"),
    ],
    ids=["many", "very many", "large", "endless", "long name"],
)
async def test_a_head_that_is_too_large_is_refused(api: Api, lines: list[str], code: str) -> None:
    before = resident()
    data = head(api, *lines, request="GET /v1/servers HTTP/1.1")
    async with wire(api) as caller:
        sending = asyncio.create_task(_send_all(caller, data))
        status, problem = await caller.answer()
        await sending
    assert (status, problem["code"]) == (431, code)
    assert resident() - before < 128 * MEGABYTE


@requirement("door:bounds")
async def test_a_head_without_end_is_refused_before_its_end(api: Api) -> None:
    async with wire(api) as caller:
        begun = head(api, "x: " + "y" * 200_000).removesuffix(b"\r\n\r\n")
        sending = asyncio.create_task(_send_all(caller, begun))
        status, problem = await caller.answer()
        await sending
    assert (status, problem["code"]) == (431, "headers_too_large")


async def _send_all(caller: Wire, data: bytes) -> None:
    try:
        for start in range(0, len(data), 65_536):
            await caller.send(data[start : start + 65_536])
    except ConnectionError:
        pass  # it was told enough


@requirement("door:bounds")
async def test_an_address_that_is_too_long_is_refused(api: Api) -> None:
    async with wire(api) as caller:
        request = f"GET /v1/servers?{'x' * 9000} HTTP/1.1"
        await caller.send(head(api, request=request))
        status, problem = await caller.answer()
    assert (status, problem["code"]) == (414, "address_too_long")


@requirement("door:bounds")
@pytest.mark.parametrize(
    "part", [b"", b"POST /v1/runs HT", b"head", b"body"], ids=["nothing", "line", "head", "body"]
)
async def test_a_request_that_does_not_arrive_in_time_is_given_up(
    database: Database, redis_url: str, part: bytes
) -> None:
    async with (
        serving(database, redis_url, receive_within=timedelta(seconds=0.5)) as api,
        wire(api) as caller,
    ):
        if part == b"head":
            part = head(api, "content-length: 9")[:-2]
        elif part == b"body":
            part = head(api, "content-length: 9") + b"{"
        await caller.send(part)
        if part:
            status, problem = await caller.answer()
            assert (status, problem["code"]) == (408, "request_too_slow")
        assert await caller.closed()
        assert (await api.http.get("/healthz")).status_code == 200


@requirement("door:bounds")
async def test_a_connection_is_not_kept_by_what_is_no_request(
    database: Database, redis_url: str
) -> None:
    async with (
        serving(database, redis_url, receive_within=timedelta(seconds=0.5)) as api,
        wire(api) as caller,
    ):
        await caller.send(head(api, request="GET /healthz HTTP/1.1"))
        assert (await caller.answer())[0] == 200
        await caller.send(b"\r\n")
        assert await caller.closed()


@requirement("door:bounds")
async def test_a_wait_is_no_slow_request(database: Database, redis_url: str) -> None:
    async with serving(database, redis_url, receive_within=timedelta(seconds=0.3)) as api:
        await api.serve()
        call = await api.submit(await api.run())
        answer = await api.http.get(f"/v1/calls/{call['id']}?wait=1")
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")


@requirement("door:bounds")
async def test_what_is_no_http_is_told_so(api: Api) -> None:
    async with wire(api) as caller:
        await caller.send(b"\x16\x03\x01\x02\x00 no http\r\n\r\n")
        status, problem = await caller.answer()
        assert (status, problem["code"]) == (400, "invalid_request")
        assert await caller.closed()


@requirement("door:busy")
async def test_one_request_too_many_is_told_to_come_back_and_health_answers(
    database: Database, redis_url: str
) -> None:
    async with serving(database, redis_url, max_requests=1) as api:
        await api.serve()
        call = await api.submit(await api.run())
        async with api.http.stream("GET", f"/v1/calls/{call['id']}/events"):
            answer = await api.http.get("/v1/servers")
            assert (problem_of(answer)["code"], answer.headers["retry-after"]) == ("busy", "1")
            assert (await api.http.get("/healthz")).status_code == 200


# -- hosts on the wire


@requirement("door:hosts")
@pytest.mark.parametrize(
    ("request_line", "lines", "status"),
    [
        ("GET /v1/servers HTTP/1.1", [], 200),
        ("GET http://{host}/v1/servers HTTP/1.1", [], 200),
        ("GET http://evil.example/v1/servers HTTP/1.1", [], 403),
        ("GET http://{host}@evil.example/v1/servers HTTP/1.1", [], 403),
        ("GET http://user@{host}/v1/servers HTTP/1.1", [], 403),
        ("GET /v1/servers HTTP/1.1", ["host: evil.example"], 403),
        ("GET /v1/servers HTTP/1.1", ["origin: null"], 403),
        ("GET /v1/servers HTTP/1.1", ["origin: http://{host}"], 200),
        ("GET /v1/servers HTTP/1.1", ["x-forwarded-host: evil.example"], 200),
        ("GET /openapi.json HTTP/1.1", ["host: evil.example"], 403),
        ("GET /healthz HTTP/1.1", ["host: evil.example"], 200),
    ],
)
async def test_hosts_and_origins_are_looked_at_before_anything_answers(
    api: Api, request_line: str, lines: list[str], status: int
) -> None:
    host = api.url.removeprefix("http://")
    async with wire(api) as caller:
        given = [line.format(host=host) for line in lines]
        await caller.send(head(api, *given, request=request_line.format(host=host)))
        answered, _ = await caller.answer()
    assert answered == status


@requirement("door:hosts")
async def test_an_old_client_that_names_no_host_is_refused(api: Api) -> None:
    async with wire(api) as caller:
        await caller.send(b"GET /v1/servers HTTP/1.0\r\n\r\n")
        status, problem = await caller.answer()
    assert (status, problem["code"]) == (403, "host_not_allowed")
