"""A program that tries everything that takes a URL, in a network where each packet is seen.

It is run in network and mount namespaces of its own (see `tests.contract.test_outbound`), in which
every address there is leads back to it. It prints, as JSON, to which addresses connections were
attempted, part by part, and how many processes were started; with ``--unguarded`` the guard is
taken out first.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import quote, unquote

import httpx2

import workers.guarded
from registry.addresses import parse_network
from registry.definitions import OpenApi, ServerDefinition
from registry.errors import FleetError
from tests.forbidden import NAMES, URLS
from workers.openapi_http import open_api
from workers.openapi_wire import Brief
from workers.outbound import open_client
from workers.session import Session

HOME: Final = "127.0.0.9"
"""The one address that is not public and may be reached: of the servers that lure us away."""
_HERE: Final = (f"{HOME}/32",)
HERE: Final = [parse_network(it) for it in _HERE]
AT_ONCE: Final = 8
_OUTGOING: Final = 4
_STARTS: Final = ("subprocess.Popen", "os.exec", "os.fork", "os.posix_spawn", "os.system")
_FALLING: Final = {"http": 80, "https": 443}


class Sniffer:
    """Notes where connections are attempted to: each SYN, and each datagram."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.ntohs(3))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        self._socket.setblocking(False)

    def seen(self) -> dict[str, int]:
        """Return the addresses, and how many packets went to each, since it was asked last."""
        found: Counter[str] = Counter()
        with suppress(BlockingIOError):
            while True:
                packet, where = self._socket.recvfrom(256)
                if where[2] == _OUTGOING and (address := _attempted(packet)):
                    found[address] += 1
        return dict(found)


def _attempted(packet: bytes) -> str:
    if packet[0] >> 4 == 4:
        protocol, address, rest = packet[9], packet[16:20], packet[(packet[0] & 15) * 4 :]
    else:
        protocol, address, rest = packet[6], packet[24:40], packet[40:]
    syn = protocol == socket.IPPROTO_TCP and rest[13] & 0x12 == 0x02
    if syn or protocol == socket.IPPROTO_UDP:
        return str(ip_address(address))
    return ""


def prepare() -> None:
    """Make every address one of this machine, and let the resolver know the names."""
    run = subprocess.check_call
    run(["ip", "link", "set", "lo", "up"])
    run(["ip", "route", "add", "local", "0.0.0.0/0", "dev", "lo"])
    run(["ip", "-6", "route", "add", "local", "::/0", "dev", "lo"])
    lines = [f"{address} {name}" for name, them in NAMES.items() for address in them]
    files = {
        "hosts": "\n".join(lines),
        "host.conf": "multi on",
        "resolv.conf": f"nameserver {HOME}\noptions timeout:1 attempts:1",
    }
    with TemporaryDirectory() as folder:
        for name, text in files.items():
            (path := Path(folder, name)).write_text(text + "\n")
            run(["mount", "--bind", str(path), f"/etc/{name}"])  # in this namespace alone


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer in the way that the path asks for: as a canary, or with something that lures away."""
    with suppress(Exception, asyncio.CancelledError):
        if (first := await reader.read(1)) == b"\x16":  # TLS, which is not spoken here
            writer.close()
            return
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        _, path, _ = head.split(" ", 2)
        _, kind, *rest = path.split("/", 2)
        lure = unquote(rest[0]) if rest else ""
        extra = {
            "moved": ("307 Moved", f"location: {lure}\r\n"),
            "locked": ("401 No", f'www-authenticate: Bearer resource_metadata="{lure}"\r\n'),
        }
        status, more = extra.get(kind, ("200 OK", ""))
        body, media = b"{}", "application/json"
        if kind == "mcp" and (size := _length(head)):
            message = json.loads(await reader.readexactly(size))
            body = json.dumps(answer(message)).encode()
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-type: {media}\r\ncontent-length: {len(body)}\r\n{more}"
            "connection: close\r\n\r\n".encode("latin-1", "replace")
            + body
        )
        await writer.drain()
    writer.close()


def _length(head: str) -> int:
    return next(
        (
            int(it.partition(":")[2])
            for it in head.split("\r\n")
            if it.lower().startswith("content-l")
        ),
        0,
    )


def answer(message: dict[str, Any]) -> dict[str, Any]:
    """Speak MCP, with every forbidden URL in what is said."""
    links = [{"type": "resource_link", "uri": url, "name": "x"} for url in URLS]
    results: dict[str, Any] = {
        "initialize": {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}, "resources": {}},
            "serverInfo": {"name": "lure", "version": "1", "websiteUrl": URLS[0]},
            "instructions": " ".join(URLS),
        },
        "tools/list": {
            "tools": [
                {
                    "name": "lure",
                    "inputSchema": {"type": "object", "$ref": URLS[0], "$schema": URLS[1]},
                    "outputSchema": {"type": "object", "$ref": URLS[0]},
                    "icons": [{"src": url} for url in URLS],
                }
            ]
        },
        "tools/call": {
            "content": [*links, {"type": "text", "text": " ".join(URLS)}],
            "structuredContent": {"$ref": URLS[0]},
        },
    }
    if "id" not in message:
        return {}
    if (result := results.get(message["method"])) is None:
        return {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no"}}
    return {"jsonrpc": "2.0", "id": message["id"], "result": result}


async def each(attempt: Callable[[str], Awaitable[object]]) -> dict[str, int]:
    """Try each URL; return how the attempts ended."""
    gate = asyncio.Semaphore(AT_ONCE)
    endings: Counter[str] = Counter()

    async def one(url: str) -> None:
        async with gate:
            try:
                async with asyncio.timeout(10):
                    await attempt(url)
                endings["answered"] += 1
            except FleetError as error:
                endings[error.code.code] += 1
            except Exception as error:  # noqa: BLE001 - what matters is where packets went
                endings[type(error).__name__] += 1

    await asyncio.gather(*map(one, URLS))
    return dict(endings)


async def ask(url: str) -> None:
    """Make a request as the fleet does to identity providers, vaults and webhooks."""
    async with open_client(networks=HERE, timeout_s=2) as client:
        await client.post(url, json={}, headers={"authorization": "Bearer hush"})
        await client.get(url)


async def follow(url: str) -> None:
    """Follow redirects as far as a client may."""
    async with open_client(networks=HERE, timeout_s=2, follow=3) as client:
        await client.get(f"http://{HOME}/moved/{quote(url, safe='')}")


async def open_session(url: str, networks: tuple[str, ...]) -> Session:
    """Open a session of a definition that is in the record, whatever it says."""
    definition = ServerDefinition.model_validate(
        {"name": "x", "transport": "http", "url": url, "networks": networks}
    )
    return await Session.open(
        definition, connect_timeout_s=2, stop_grace_s=0.1, max_result_bytes=1_000_000
    )


async def session(url: str) -> None:
    """Open a session with a forbidden URL."""
    await (await open_session(url, _HERE)).close()


async def lured(url: str) -> None:
    """Open sessions with servers that answer with a redirect, and that ask for a token."""
    for kind in ("moved", "locked"):
        with suppress(FleetError):
            await (await open_session(f"http://{HOME}/{kind}/{quote(url, safe='')}", _HERE)).close()


async def api(url: str) -> None:
    """Make a request as the program does that stands in front of an API."""
    brief = Brief("x", url, _HERE, OpenApi(), {}, frozenset(), 2, 1_000_000)
    async with open_api(brief) as client:
        await client.get("/x")


async def api_moved(url: str) -> None:
    """Make a request to an API that answers with a redirect."""
    brief = Brief("x", f"http://{HOME}", _HERE, OpenApi(), {}, frozenset(), 2, 1_000_000)
    async with open_api(brief) as client:
        await client.get(f"/moved/{quote(url, safe='')}")


async def talk() -> dict[str, int]:
    """Use a server whose every word holds forbidden URLs."""
    it = await open_session(f"http://{HOME}/mcp", _HERE)
    tools = await it.list_tools()
    result = await it.call_tool("lure", {}, timeout_s=5)
    await it.close()
    return {"tools": len(tools), "content": len(result.body["content"])}


async def program() -> dict[str, int]:
    """Have an API served by the program that does it, at a name that is private."""
    document = {
        "openapi": "3.1.0",
        "info": {"title": "x", "version": "1"},
        "paths": {"/x": {"get": {"operationId": "x", "responses": {"200": {"description": ""}}}}},
    }
    ends: Counter[str] = Counter()
    for url in ("https://private.example", "https://six.example", "http://10.0.0.1"):
        definition = ServerDefinition.model_validate(
            {"name": "x", "transport": "openapi", "url": url, "openapi": {"document": document}}
        )
        it = await Session.open(
            definition, connect_timeout_s=20, stop_grace_s=0.1, max_result_bytes=1_000_000
        )
        try:
            await it.call_tool("x", {}, timeout_s=5)
        except FleetError as error:
            ends[error.code.code] += 1
        await it.close()
    return dict(ends)


async def rebound(url: str = "https://rebind.example/") -> dict[str, int]:
    """Reach a name that is public when it is looked up first, and private from then on."""
    real, asked = socket.getaddrinfo, 0

    def answers(host: Any, port: Any, *args: Any, **rest: Any) -> Any:
        nonlocal asked
        if host not in ("rebind.example", b"rebind.example"):
            return real(host, port, *args, **rest)
        asked += 1
        return real("8.8.8.8" if asked == 1 else "10.0.0.1", port, *args, **rest)

    socket.getaddrinfo = answers
    ends: Counter[str] = Counter()
    try:
        async with open_client(timeout_s=2) as client:
            for _ in range(3):
                try:
                    await client.get(url)
                except FleetError as error:
                    ends[error.code.code] += 1
                except httpx2.HTTPError as error:  # what listens at 8.8.8.8 here knows no TLS
                    ends[type(error).__name__] += 1
    finally:
        socket.getaddrinfo = real
    return {"asked": asked, **ends}


async def allowed() -> dict[str, int]:
    """Reach an address that is allowed."""
    async with open_client(networks=[parse_network("10.0.0.0/8")], timeout_s=2) as client:
        return {"answered": (await client.get("http://private.example/")).status_code}


PARTS: Final[dict[str, Callable[[], Awaitable[dict[str, int]]]]] = {
    "allowed": allowed,
    "asked": lambda: each(ask),
    "followed": lambda: each(follow),
    "session": lambda: each(session),
    "lured": lambda: each(lured),
    "api": lambda: each(api),
    "api_moved": lambda: each(api_moved),
    "talk": talk,
    "program": program,
    "rebound": rebound,
}


def unguard() -> None:
    """Take the guard out: what is found is what is connected to."""
    workers.guarded.refuse_host = lambda *_, **__: None
    workers.guarded.reachable = lambda host, found, *_, **__: list(found)


async def main() -> None:
    prepare()
    sniffer = Sniffer()
    servers = [await asyncio.start_server(serve, "::", port) for port in _FALLING.values()]
    servers += [await asyncio.start_server(serve, "0.0.0.0", port) for port in _FALLING.values()]
    if "--unguarded" in sys.argv:
        unguard()
    started: list[str] = []
    sys.addaudithook(lambda event, _: started.append(event) if event in _STARTS else None)
    told = {}
    for name in [it for it in sys.argv[1:] if it in PARTS] or PARTS:
        sniffer.seen()
        started.clear()
        ends = await PARTS[name]()
        told[name] = {"ends": ends, "packets": sniffer.seen(), "processes": len(started)}
    print(json.dumps(told))
    for server in servers:
        server.close()


if __name__ == "__main__":
    asyncio.run(main())
