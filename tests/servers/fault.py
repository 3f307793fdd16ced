"""A server that misbehaves on request, byte by byte: no MCP SDK, no HTTP library, nothing to help.

``python fault.py`` speaks over stdio, ``python fault.py --http`` over HTTP (the port, a free one
unless ``--port`` names it, is printed). The tool called names the misbehaviour; some happen before
any call and are named by ``--start MODE``. `MODES` is the table of them all. ``--era modern``
speaks 2026-07-28, ``legacy`` (the default) what was before it. ``--journal PATH`` gets one line per
call, effect, GET and subscription.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Literal

Face = Literal["stdio", "http"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Mode:
    """One misbehaviour: what it is, and over which transports it exists."""

    says: str
    faces: tuple[Face, ...] = ("stdio", "http")
    at: Literal["call", "start"] = "call"


BOTH: tuple[Face, ...] = ("stdio", "http")
STDIO: tuple[Face, ...] = ("stdio",)
HTTP: tuple[Face, ...] = ("http",)
REFUSALS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    418: "Teapot",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
SIZES = {"1mb": 1_000_000, "10mb": 10_000_000, "100mb": 100_000_000, "300mb": 300_000_000}
MODES: dict[str, Mode] = {
    "behave": Mode("answers"),
    # how it dies
    "die_before_effect": Mode("dies without having done anything"),
    "die_after_effect": Mode("dies after the effect, before the answer"),
    "exit_0": Mode("leaves politely in the middle of a call"),
    "reset": Mode("resets the connection in the middle of a call", HTTP),
    "short_body": Mode("closes the connection in the middle of a body", HTTP),
    "close_stdout": Mode("closes stdout, and nothing else", STDIO),
    # how it does not answer
    "hang": Mode("never answers"),
    "keep_alives": Mode("sends keep-alives and never an answer", HTTP),
    "half_line": Mode("sends its answer at a byte per 50 ms"),
    "chunked_stall": Mode("stops in the middle of a body", HTTP),
    "refusal_stall": Mode("says 502 and stops in the middle of the body", HTTP),
    "stop_reading": Mode("reads nothing more", STDIO),
    "wrong_id": Mode("answers another request only"),
    "ask_for_ever": Mode("asks without end, and reads no answer", STDIO),
    # what it says besides
    "garbage": Mode("sends what is no protocol at all"),
    "banner": Mode("prints a banner first", STDIO),
    "bom": Mode("begins with a byte order mark"),
    "nul": Mode("sends NUL bytes"),
    "invalid_utf8": Mode("sends invalid UTF-8"),
    "invalid_utf8_event": Mode("sends invalid UTF-8 in an event", HTTP),
    "line_separator": Mode("sends U+2028 as it is"),
    "crlf": Mode("ends its lines as Windows does"),
    "deep_json": Mode("nests its answer 100,000 deep"),
    "not_a_result": Mode("answers with a result that is not MCP"),
    "result_is_list": Mode("answers with a result that is no object"),
    "error_is_text": Mode("refuses with an error that is no object"),
    "duplicate_id": Mode("answers twice"),
    "future_id": Mode("answers the next request too, ahead of it"),
    "string_id": Mode("answers with its id as a string"),
    "progress_flood": Mode("sends 10,000 notifications of progress, then its answer"),
    "listing_flood": Mode("says 10,000 times that its tools changed, then answers"),
    "question_flood": Mode("asks 1,000 questions, then answers"),
    "stderr_flood": Mode("writes 100 MB to stderr, then answers", STDIO),
    "empty_lines": Mode("sends 10,000,000 empty lines, then its answer", STDIO),
    # how much it says
    **{f"size_{name}": Mode(f"answers with {size} bytes") for name, size in SIZES.items()},
    "event_10mb": Mode("answers with an event of 10 MB", HTTP),
    "endless_line": Mode("never ends a line or a body"),
    "endless_event": Mode("never ends an event", HTTP),
    "endless_comments": Mode("sends comments without end", HTTP),
    "endless_events": Mode("sends events without end, and never an answer", HTTP),
    "tiny_chunks": Mode("sends its answer in chunks of one byte", HTTP),
    "gzip_bomb": Mode("packs 20 MB into a small body that nobody asked to be packed", HTTP),
    "gzip_event": Mode("packs an event stream", HTTP),
    # how it refuses
    **{f"status_{status}": Mode(f"says HTTP {status}", HTTP) for status in REFUSALS},
    "redirect": Mode("points to an internal address", HTTP),
    "redirect_here": Mode("points to another path of its own", HTTP),
    "accepted": Mode("says 202 to a request", HTTP),
    "html": Mode("answers with a page for people", HTTP),
    "forget_404": Mode("forgets its sessions; says so with 404", HTTP),
    "forget_400": Mode("forgets its sessions; says so with 400", HTTP),
    "forget_200": Mode("forgets its sessions; says so with a JSON-RPC error", HTTP),
    # how it breaks off
    "drop_events": Mode("ends its event stream over and over, and says to come again", HTTP),
    "drop_then_answer": Mode("ends its event stream, and answers in the next one", HTTP),
    "expire_token": Mode("ends its event stream; the token is no longer good for the next", HTTP),
    # what it leaves behind
    "leak_fds": Mode("leaks a file descriptor"),
    "leak_memory": Mode("leaks a megabyte"),
    "deaf": Mode("ignores the end of stdin and SIGTERM from here on", STDIO),
    "fork": Mode("leaves a child behind, in its own group", STDIO),
    "setsid": Mode("leaves a child behind, in a session of its own", STDIO),
    # before any call
    "slow_start": Mode("takes 30 s to start", at="start"),
    "initialize_error": Mode("refuses to initialize", at="start"),
    "initialize_garbage": Mode("initializes with what is not MCP", at="start"),
    "version_mismatch": Mode("speaks a revision that nobody knows", at="start"),
    "start_banner": Mode("prints a banner before the handshake", STDIO, at="start"),
    "start_flood": Mode("never ends its first line", STDIO, at="start"),
    "start_exit": Mode("leaves at once, and politely", STDIO, at="start"),
    "start_401": Mode("lets nobody in", HTTP, at="start"),
    "start_403": Mode("lets this one not in", HTTP, at="start"),
    "start_404": Mode("is not there", HTTP, at="start"),
    "start_429": Mode("lets nobody in for 7 s", HTTP, at="start"),
    "start_503": Mode("is away for 2 s", HTTP, at="start"),
    "start_html": Mode("is a web site", HTTP, at="start"),
    "half_open": Mode("accepts connections and says nothing", HTTP, at="start"),
    "tls_reset": Mode("resets the connection at the first byte of TLS", HTTP, at="start"),
    "tls_garbage": Mode("answers TLS with something else", HTTP, at="start"),
    "endless_paging": Mode("never ends its list of tools", at="start"),
    "repeated_cursor": Mode("sends the same page of tools for ever", at="start"),
    "fat_pages": Mode("lists tools of 1 MB each, page after page", at="start"),
    "endless_page": Mode("never ends a page of tools", at="start"),
    "no_page": Mode("never sends its list of tools", at="start"),
    "many_tools": Mode("lists 10,000 tools in one page", at="start"),
    "many_pages": Mode("lists 300 tools in each page, page after page", at="start"),
    "many_bytes": Mode("lists tools of 1 MB in each page, page after page", at="start"),
    "hostile_page": Mode("lists tools with 4 MB of the worst JSON", at="start"),
    "page_is_list": Mode("sends a list in the place of a page of tools", at="start"),
    "large_page_is_list": Mode("sends a large list in the place of a page of tools", at="start"),
    "tools_are_text": Mode("sends a text in the place of its tools", at="start"),
    "tools_are_texts": Mode("lists texts in the place of tools", at="start"),
    "large_tools_are_texts": Mode("lists many texts in the place of tools", at="start"),
    "cursor_is_number": Mode("continues its list of tools at a number", at="start"),
    "long_cursor": Mode("continues its list of tools at a text of 100 kB", at="start"),
    "tools_change": Mode("no longer knows the tools that it listed", at="start"),
    "streams_end": Mode("ends its stream of notifications at once", HTTP, at="start"),
    "streams_flood": Mode("says in its stream all the time that its tools changed", HTTP, "start"),
    "tells_early": Mode("says that its tools changed right in the handshake", STDIO, at="start"),
    # what becomes of a subscription (2026-07-28)
    "listen_refused": Mode("does not know subscriptions", at="start"),
    "listen_silent": Mode("never confirms a subscription", at="start"),
    "listen_to_nothing": Mode("confirms a subscription to nothing", at="start"),
    "listen_ends": Mode("ends each subscription at once", at="start"),
    "listen_cancelled": Mode("cancels each subscription at once", STDIO, at="start"),
    "listen_drops": Mode("breaks the stream of each subscription off", HTTP, at="start"),
    "listen_dies": Mode("dies of a subscription", at="start"),
    "listen_429": Mode("lets nobody subscribe for 7 s", HTTP, at="start"),
    "listen_floods": Mode("says without end that its tools changed", at="start"),
}  # fmt: skip

UNENDING = {"endless_page", "no_page"}
BOMB = 20_000_000
LISTEN = "subscriptions/listen"
CHANGED = "notifications/tools/list_changed"
PAGE = b"<html><body>Please sign in</body></html>"
HOARD: list[Any] = []  # what the leaking modes never give back
options = argparse.Namespace(start="", journal=None, era="legacy")


def note(event: str) -> None:
    """Write an event to the journal; it is there when this returns."""
    if options.journal:
        with Path(options.journal).open("a") as file:
            file.write(event + "\n")


def result(words: str) -> Json:
    """Return a tool's result."""
    return {"content": [{"type": "text", "text": words}], **MODERN_FIELDS[options.era]}


MODERN_FIELDS: dict[str, Json] = {"legacy": {}, "modern": {"resultType": "complete"}}
CACHED: dict[str, Json] = {
    "legacy": {},
    "modern": {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"},
}


def message(id_: Any, **body: Any) -> bytes:
    """Return a JSON-RPC response."""
    return json.dumps({"jsonrpc": "2.0", "id": id_, **body}).encode()


def note_of(method: str, **params: Any) -> bytes:
    """Return a JSON-RPC notification."""
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode()


def floods(request: Json) -> dict[str, Iterator[bytes]]:
    """Return what the flooding modes say before they answer."""
    token = (request["params"].get("_meta") or {}).get("progressToken", 0)
    progress = "notifications/progress"
    question = {"jsonrpc": "2.0", "method": "roots/list"}
    return {
        "progress_flood": (
            note_of(progress, progressToken=token, progress=n, total=10_000) for n in range(10_000)
        ),
        "listing_flood": (note_of(CHANGED) for _ in range(10_000)),
        "question_flood": (json.dumps({**question, "id": n}).encode() for n in range(1_000)),
    }


def oddities(request: Json) -> dict[str, bytes]:
    """Return the answers of the modes that differ in their bytes alone."""
    good = message(request["id"], result=result("here"))
    return {
        "invalid_utf8": good.replace(b"here", b"he\xffre"),
        "line_separator": good.replace(b"here", "he\u2028re".encode()),
        "nul": good.replace(b"here", b"he\0re"),
        "deep_json": good.replace(b'"here"', b"[" * 100_000 + b"]" * 100_000),
        "not_a_result": message(request["id"], result={**result(""), "content": "none"}),
        "result_is_list": message(request["id"], result=["here"]),
        "error_is_text": message(request["id"], error="not today"),
        "wrong_id": message(4711, result=result("strange")),
        "string_id": message(str(request["id"]), result=result("here")),
        "bom": b"\xef\xbb\xbf" + good,
    }


def sized(request: Json, size: int) -> Iterator[bytes]:
    """Yield an answer of so many bytes and a few, in pieces."""
    head, tail = message(request["id"], result=result("@")).split(b"@")
    yield head
    for start in range(0, size, 65_536):
        yield b"x" * min(65_536, size - start)
    yield tail


def leak(mode: str) -> None:
    """Leak what a mode is named for."""
    if mode == "leak_fds":
        HOARD.append(Path(os.devnull).open())  # noqa: SIM115 it is never closed, on purpose
    else:
        HOARD.append(b"x" * 1_000_000)


# -- everything but calls, over either transport


def answer(request: Json) -> bytes:
    """Answer a request that is no call."""
    id_, method, params = request["id"], request["method"], request.get("params") or {}
    if method == {"legacy": "initialize", "modern": "server/discover"}[options.era]:
        return welcome(id_)
    if method == "tools/list":
        return listing(id_, params.get("cursor"))
    if method == "ping":
        return message(id_, result={})
    if method == LISTEN and options.era == "modern":
        return b"\n".join(subscribed(id_))
    return message(id_, error={"code": -32601, "message": "Method not found"})


def subscribed(id_: Any) -> list[bytes]:
    """Return what a subscription begins with, and ends, in the modes that say anything at all."""
    meta = {"io.modelcontextprotocol/subscriptionId": id_}
    honored = {} if options.start == "listen_to_nothing" else {"toolsListChanged": True}
    confirmed = note_of(
        "notifications/subscriptions/acknowledged", _meta=meta, notifications=honored
    )
    changed = note_of(CHANGED, _meta=meta)
    return {
        "listen_refused": [message(id_, error={"code": -32601, "message": "Method not found"})],
        "listen_silent": [],
        "listen_ends": [confirmed, message(id_, result={"resultType": "complete", "_meta": meta})],
        "listen_cancelled": [confirmed, note_of("notifications/cancelled", requestId=id_)],
        "listen_floods": [confirmed, changed],
    }.get(options.start, [confirmed])


def welcome(id_: Any) -> bytes:
    """Return the answer to ``initialize``, or to ``server/discover``."""
    if options.start == "initialize_error":
        return message(id_, error={"code": -32603, "message": "no database"})
    if options.start == "initialize_garbage":
        return message(id_, result={"protocolVersion": 7})
    known = {"legacy": "2025-11-25", "modern": "2026-07-28"}[options.era]
    version = "1999-01-01" if options.start == "version_mismatch" else known
    common = {"capabilities": {"tools": {"listChanged": True}}, **CACHED[options.era]}
    if options.era == "modern":
        return message(id_, result={"supportedVersions": [version], **common})
    server = {"name": "fault", "version": "1"}
    said = message(id_, result={"protocolVersion": version, "serverInfo": server, **common})
    return said + (b"\n" + note_of(CHANGED) if options.start == "tells_early" else b"")


def page(cursor: str | None) -> Any:
    """Return a page of ``tools/list``."""
    number, mode = int(cursor or 0), options.start
    schema: Json = {"type": "object"}
    tool: Json = {"name": f"tool_{number}", "inputSchema": schema}
    following: dict[str, Any] = {
        "endless_paging": str(number + 1),
        "repeated_cursor": "0",
        "fat_pages": str(number + 1),
        "many_pages": str(number + 1),
        "many_bytes": str(number + 1),
        "cursor_is_number": 1,
        "long_cursor": "0" * 100_000,
    }
    worst = {**schema, "x-worst": [[]] * 60_000}
    tools: dict[str, Any] = {
        "fat_pages": [{**tool, "description": "x" * 1_000_000}],
        "many_tools": [{**tool, "name": f"tool_{n}"} for n in range(10_000)],
        "many_pages": [{**tool, "name": f"tool_{number}_{n}"} for n in range(300)],
        "many_bytes": [
            {**tool, "name": f"tool_{number}_{n}", "description": "x" * 100_000} for n in range(10)
        ],
        "hostile_page": [{"name": f"tool_{n}", "inputSchema": worst} for n in range(24)],
        "tools_are_text": "behave",
        "tools_are_texts": list(MODES),
        "large_tools_are_texts": list(MODES) * 1_000,
    }
    if mode in following:
        return {"tools": tools.get(mode, [tool]), "nextCursor": following[mode]}
    if mode in {"page_is_list", "large_page_is_list"}:
        return list(MODES) * (1_000 if mode.startswith("large") else 1)
    return {"tools": tools.get(mode) or [{**tool, "name": name} for name in MODES]}


def listing(id_: Any, cursor: str | None) -> bytes:
    """Return the answer to ``tools/list``."""
    listed = page(cursor)
    return message(id_, result={**listed, **CACHED[options.era]} if is_page(listed) else listed)


def is_page(listed: Any) -> bool:
    """Say whether a page is an object."""
    return isinstance(listed, dict)


# -- stdio


def say(data: bytes) -> None:
    """Write bytes to stdout as they are."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def say_for_ever(data: bytes) -> None:
    """Write without end."""
    while True:
        say(data)


def drip(data: bytes) -> None:
    """Write a byte at a time."""
    for byte in data:
        say(bytes([byte]))
        time.sleep(0.05)


def flood_stderr() -> None:
    """Write 100 MB to stderr."""
    for _ in range(1600):
        sys.stderr.buffer.write(b"x" * 65_535 + b"\n")
    sys.stderr.buffer.flush()


def leave_child(good: bytes, *, session: bool) -> None:
    """Start what outlives a call; answer with its process id."""
    child = subprocess.Popen(
        ["sleep", "1000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=session,
    )
    say(good.replace(b"here", str(child.pid).encode()) + b"\n")


def ask_for_ever() -> None:
    """Ask, and read nothing."""
    for number in range(10**9):
        say(message(number, method="roots/list") + b"\n")


def turn_deaf(good: bytes) -> None:
    """Ignore SIGTERM and, once stdin has ended, that too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    options.start = "deaf"
    say(good + b"\n")


def on_stdio(mode: str, request: Json) -> None:
    """Misbehave in one mode, or answer."""
    good = message(request["id"], result=result("here"))
    note(f"call {mode}")
    if mode == "die_after_effect":
        note("effect")
    if mode.startswith("leak_"):
        leak(mode)
    ways: dict[str, Callable[[], object]] = {
        "die_before_effect": lambda: os._exit(1),
        "die_after_effect": lambda: os._exit(1),
        "exit_0": lambda: os._exit(0),
        "close_stdout": lambda: os.close(1),
        "hang": lambda: None,
        "half_line": lambda: drip(good + b"\n"),
        "stop_reading": lambda: (say(good + b"\n"), signal.pause()),
        "ask_for_ever": ask_for_ever,
        "garbage": lambda: say(b"%!PS \x07\n}{\n[1]\n42\nnull\n\n" + good + b"\n"),
        "banner": lambda: say(b"\n  Welcome to FAULT\n  =======\n" + good + b"\n"),
        "crlf": lambda: say(good + b"\r\n"),
        "nul": lambda: say(b"\0\0\n" + good + b"\n"),
        "duplicate_id": lambda: say((good + b"\n") * 2),
        "future_id": lambda: say(
            good + b"\n" + message(request["id"] + 1, result=result("stale")) + b"\n"
        ),
        "stderr_flood": lambda: (flood_stderr(), say(good + b"\n")),
        "empty_lines": lambda: ([say(b"\n" * 100_000) for _ in range(100)], say(good + b"\n")),
        "endless_line": lambda: say_for_ever(b"x" * 65_536),
        "deaf": lambda: turn_deaf(good),
        "fork": lambda: leave_child(good, session=False),
        "setsid": lambda: leave_child(good, session=True),
    }
    if mode in ways:
        ways[mode]()
    elif mode in (odd := oddities(request)):
        say(odd[mode] + b"\n")
    elif mode in (flood := floods(request)):
        for line in flood[mode]:
            sys.stdout.buffer.write(line + b"\n")
        say(good + b"\n")
    elif mode.startswith("size_"):
        for piece in sized(request, SIZES[mode.removeprefix("size_")]):
            sys.stdout.buffer.write(piece)
        say(b"\n")
    else:
        say(good + b"\n")


def answer_on_stdio(request: Json) -> None:
    """Answer a request that is no call."""
    mode, method = options.start, request["method"]
    if method == LISTEN:
        note("listen")
        if mode == "listen_dies":
            os._exit(1)
    if method == "tools/list" and mode in UNENDING:
        if mode == "endless_page":
            say_for_ever(b"x" * 65_536)
        return
    if said := answer(request):
        say(said + b"\n")
    if method == LISTEN and mode == "listen_floods":
        changed = said.split(b"\n")[-1] + b"\n"
        Thread(target=lambda: say_for_ever(changed * 100), daemon=True).start()


def serve_stdio() -> None:
    """Serve one client on stdin and stdout."""
    if options.start == "slow_start":
        time.sleep(30)
    if options.start == "start_banner":
        say(b"\xef\xbb\xbfWelcome!\r\n\0\n{not json}\n\xff\xfe\n")
    if options.start == "start_flood":
        say_for_ever(b"x" * 65_536)
    if options.start == "start_exit":
        return
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request or "method" not in request:
            continue
        if request["method"] != "tools/call":
            answer_on_stdio(request)
        elif options.start == "tools_change":
            changed = note_of(CHANGED)
            error = {"code": -32602, "message": "Unknown tool"}
            say(changed + b"\n" + message(request["id"], error=error) + b"\n")
        else:
            on_stdio(request["params"]["name"], request)
    while options.start == "deaf":
        signal.pause()


# -- HTTP


@dataclass
class Connection:
    """One HTTP request and the way back to who sent it."""

    writer: asyncio.StreamWriter
    verb: str
    headers: dict[str, str]
    body: Json = field(default_factory=dict)

    async def send(
        self, body: bytes, status: str = "200 OK", kind: str = "application/json", head: str = ""
    ) -> None:
        """Send a whole response."""
        first = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{head}content-length: {len(body)}"
        await self.raw(first.encode() + b"\r\n\r\n" + body)

    async def begin(self, kind: str = "text/event-stream", head: str = "") -> None:
        """Begin a chunked response."""
        await self.raw(
            f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{head}"
            "transfer-encoding: chunked\r\n\r\n".encode()
        )

    async def chunk(self, data: bytes) -> None:
        """Send a chunk; an empty one ends the response."""
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, data: bytes) -> None:
        """Send an event."""
        await self.chunk(b"data: " + data + b"\n\n")

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """End the connection with a reset."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def close(self) -> None:
        """End the connection."""
        self.writer.close()


Way = Callable[[Connection, bytes], Awaitable[object]]
ways_over_http: dict[str, Way] = {}


def over_http(name: str) -> Callable[[Way], Way]:
    """Register a way to misbehave over HTTP; it gets the connection and the good answer."""

    def register(way: Way) -> Way:
        ways_over_http[name] = way
        return way

    return register


async def repeat(to: Connection, data: bytes, pause_s: float = 0.0) -> None:
    """Send chunks without end."""
    while True:
        await to.chunk(data)
        await asyncio.sleep(pause_s)


@over_http("die_before_effect")
@over_http("die_after_effect")
async def _(to: Connection, good: bytes) -> None:
    os._exit(1)


@over_http("exit_0")
async def _(to: Connection, good: bytes) -> None:
    os._exit(0)


@over_http("hang")
async def _(to: Connection, good: bytes) -> None:
    await asyncio.sleep(3600)


@over_http("half_line")
async def _(to: Connection, good: bytes) -> None:
    for byte in b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + good:
        await to.raw(bytes([byte]))
        await asyncio.sleep(0.05)


@over_http("keep_alives")
async def _(to: Connection, good: bytes) -> None:
    await to.begin()
    await repeat(to, b": still here\n\n", 0.02)


@over_http("chunked_stall")
async def _(to: Connection, good: bytes) -> None:
    await to.begin("application/json")
    await to.chunk(good[:20])
    await asyncio.sleep(3600)


@over_http("refusal_stall")
async def _(to: Connection, good: bytes) -> None:
    await to.raw(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 1000\r\n\r\nThe backend")
    await asyncio.sleep(3600)


@over_http("short_body")
async def _(to: Connection, good: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(good)}"
    await to.raw(head.encode() + b"\r\n\r\n" + good[:20])
    await to.close()


@over_http("reset")
async def _(to: Connection, good: bytes) -> None:
    to.reset()


@over_http("garbage")
async def _(to: Connection, good: bytes) -> None:
    await to.raw(b"%!PS-Adobe \x07\r\n\r\n" + good)
    await to.close()


@over_http("timed")
async def _(to: Connection, good: bytes) -> None:
    await to.send(good, head="server-timing: db;dur=0.1, total;dur=0.25\r\n")


@over_http("crlf")
async def _(to: Connection, good: bytes) -> None:
    await to.begin()
    await to.chunk(b": hello\r\n\r\nevent: message\r\ndata: " + good + b"\r\n\r\n")
    await to.chunk(b"")


@over_http("invalid_utf8_event")
async def _(to: Connection, good: bytes) -> None:
    await to.begin()
    await to.event(good.replace(b"here", b"he\xffre"))
    await to.chunk(b"")


@over_http("duplicate_id")
async def _(to: Connection, good: bytes) -> None:
    await to.begin()
    await to.event(good)
    await to.event(good)
    await to.chunk(b"")


@over_http("future_id")
async def _(to: Connection, good: bytes) -> None:
    await to.begin()
    await to.chunk(b"data: " + good + b"\n\n" + b"data: " + message(to.body["id"] + 1) + b"\n\n")
    await to.chunk(b"")


@over_http("event_10mb")
async def _(to: Connection, good: bytes) -> None:
    await to.begin()
    await to.chunk(b"data: ")
    for piece in sized(to.body, SIZES["10mb"]):
        await to.chunk(piece)
    await to.chunk(b"\n\n")
    await to.chunk(b"")


@over_http("endless_line")
async def _(to: Connection, good: bytes) -> None:
    await to.begin("application/json")
    await repeat(to, b"x" * 65_536)


@over_http("endless_event")
async def _(to: Connection, good: bytes) -> None:
    await to.begin()
    await to.chunk(b"data: ")
    await repeat(to, b"x" * 65_536)


@over_http("endless_comments")
async def _(to: Connection, good: bytes) -> None:
    await to.begin()
    await repeat(to, b":\n" * 32_768)


@over_http("endless_events")
async def _(to: Connection, good: bytes) -> None:
    await to.begin()
    await repeat(to, b"data: " + note_of(CHANGED) + b"\n\n")


@over_http("tiny_chunks")
async def _(to: Connection, good: bytes) -> None:
    await to.begin()
    event = b"data: " + good.replace(b"here", b"x" * 50_000) + b"\n\n"
    await to.raw(b"".join(b"1\r\n%c\r\n" % byte for byte in event))
    await to.chunk(b"")


@over_http("gzip_bomb")
async def _(to: Connection, good: bytes) -> None:
    packed = gzip.compress(good.replace(b"here", b"x" * BOMB), 1)
    await to.send(packed, head="content-encoding: gzip\r\n")


@over_http("gzip_event")
async def _(to: Connection, good: bytes) -> None:
    await to.begin(head="content-encoding: gzip\r\n")
    await to.chunk(gzip.compress(b"data: " + good.replace(b"here", b"x" * BOMB), 1))
    await to.chunk(b"")


@over_http("redirect")
async def _(to: Connection, good: bytes) -> None:
    where = "location: http://169.254.169.254/latest/meta-data?token=1\r\n"
    await to.send(b"", "307 Temporary Redirect", head=where)


@over_http("redirect_here")
async def _(to: Connection, good: bytes) -> None:
    await to.send(b"", "307 Temporary Redirect", head="location: /elsewhere\r\n")


@over_http("accepted")
async def _(to: Connection, good: bytes) -> None:
    await to.send(b"", "202 Accepted")


@over_http("html")
async def _(to: Connection, good: bytes) -> None:
    await to.send(PAGE, kind="text/html; charset=utf-8")


@over_http("forget_404")
async def _(to: Connection, good: bytes) -> None:
    await to.send(b"", "404 Not Found")


@over_http("forget_400")
async def _(to: Connection, good: bytes) -> None:
    error = {"code": -32000, "message": "Bad Request: No valid session ID provided"}
    await to.send(message(None, error=error), "400 Bad Request")


@over_http("forget_200")
async def _(to: Connection, good: bytes) -> None:
    error = {"code": -32600, "message": "Session not found"}
    await to.send(message(to.body["id"], error=error))


@over_http("drop_events")
@over_http("drop_then_answer")
@over_http("expire_token")
async def _(to: Connection, good: bytes) -> None:
    await to.begin()
    dropped[str(to.body["id"])] = to.body
    await to.chunk(b"id: %d\nretry: 10\ndata:\n\n" % to.body["id"])
    await to.chunk(b"")


sessions: set[str] = set()
dropped: dict[str, Json] = {}  # by event id, the calls whose event streams were broken off


async def listen(to: Connection) -> None:
    """Answer a GET: the stream of notifications, or one that was broken off."""
    note("get again" if "last-event-id" in to.headers else "get")
    last = to.headers.get("last-event-id", "")
    if not options.start and (request := dropped.get(last)):
        mode = request["params"]["name"]
        if mode == "expire_token":
            await to.send(b"", "401 Unauthorized")
            return
        await to.begin()
        if mode == "drop_then_answer":
            await to.event(message(request["id"], result=result("here")))
        else:
            await to.chunk(f"id: {last}\nretry: 10\ndata:\n\n".encode())
        await to.chunk(b"")
    elif options.start == "streams_end":
        await to.begin()
        await to.chunk(b"retry: 10\nid: 1\ndata:\n\n")
        await to.chunk(b"")
    elif options.start == "streams_flood":
        await to.begin()
        await repeat(to, (b"data: " + note_of(CHANGED) + b"\n\n") * 100)
    else:
        await to.send(b"", "405 Method Not Allowed")


async def answer_on_http(to: Connection) -> None:
    """Answer a request that is no call."""
    method = to.body["method"]
    if method == LISTEN and options.era == "modern":
        await listen_on_http(to)
    elif method == "tools/list" and options.start in UNENDING:
        await to.begin("application/json")
        if options.start == "endless_page":
            await repeat(to, b"x" * 65_536)
        await asyncio.sleep(3600)
    else:
        begins = method == "initialize"
        if begins:
            sessions.add(session := os.urandom(8).hex())
        head = f"mcp-session-id: {session}\r\n" if begins else ""
        await to.send(answer(to.body), head=head)


async def listen_on_http(to: Connection) -> None:
    """Answer a subscription with a stream."""
    note("listen")
    if options.start == "listen_dies":
        os._exit(1)
    if options.start == "listen_429":
        await refuse(to, 429)
        return
    lines = subscribed(to.body["id"])
    await to.begin()
    for line in lines:
        await to.event(line)
    if options.start in {"listen_refused", "listen_ends"}:
        await to.chunk(b"")
    elif options.start == "listen_drops":
        await to.close()
    elif options.start == "listen_floods":
        await repeat(to, (b"data: " + lines[-1] + b"\n\n") * 100)
    else:
        await asyncio.sleep(3600)


async def on_http(mode: str, to: Connection) -> None:
    """Misbehave in one mode, or answer."""
    good = message(to.body["id"], result=result("here"))
    note(f"call {mode}")
    if mode == "die_after_effect":
        note("effect")
    if mode.startswith("leak_"):
        leak(mode)
    if mode in ways_over_http:
        await ways_over_http[mode](to, good)
    elif mode in (flood := floods(to.body)):
        await to.begin()
        events = [b"data: " + data + b"\n\n" for data in flood[mode]]
        for start in range(0, len(events), 100):
            await to.chunk(b"".join(events[start : start + 100]))
        await to.event(good)
        await to.chunk(b"")
    elif mode.startswith("size_"):
        await to.begin("application/json")
        for piece in sized(to.body, SIZES[mode.removeprefix("size_")]):
            await to.chunk(piece)
        await to.chunk(b"")
    elif mode.startswith("status_"):
        await refuse(to, int(mode.removeprefix("status_")))
    else:
        await to.send(oddities(to.body).get(mode, good))


async def refuse(to: Connection, status: int) -> None:
    """Refuse a request."""
    wait_s = {429: 7, 503: 2}.get(status)
    head = f"retry-after: {wait_s}\r\n" if wait_s else ""
    await to.send(PAGE, f"{status} {REFUSALS[status]}", "text/html", head)


async def respond(to: Connection) -> None:
    """Answer one HTTP request."""
    if to.verb == "DELETE":
        await to.send(b"")
    elif to.verb == "GET":
        await listen(to)
    elif "id" not in to.body or "method" not in to.body:
        note("aside")
        await to.send(b"", "202 Accepted")
    elif options.start == "start_html":
        await to.send(PAGE, kind="text/html")
    elif options.start.startswith("start_"):
        await refuse(to, int(options.start.removeprefix("start_")))
    elif to.headers.get("mcp-session-id", "") not in {*sessions, ""}:
        await to.send(b"", "404 Not Found")
    elif to.body["method"] != "tools/call":
        await answer_on_http(to)
    elif options.start == "tools_change":
        error = {"code": -32602, "message": "Unknown tool"}
        await to.send(message(to.body["id"], error=error), "400 Bad Request")
    else:
        await on_http(to.body["params"]["name"], to)


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection for as long as it lasts."""
    try:
        if options.start in {"slow_start", "half_open"}:
            await asyncio.sleep(30)
        if options.start.startswith("tls_"):
            await reader.read(1)
            to = Connection(writer, "", {})
            if options.start == "tls_reset":
                to.reset()
            else:
                await to.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                await to.close()
            return
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            await respond(
                Connection(writer, first.split()[0], headers, json.loads(body) if body else {})
            )
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def serve_http() -> None:
    """Serve on a free port of the loopback; print the port."""
    server = await asyncio.start_server(converse, "127.0.0.1", options.port)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", action="store_true")
    parser.add_argument("--era", choices=["legacy", "modern"], default="legacy")
    parser.add_argument("--start", default="", choices=["", *MODES])
    parser.add_argument("--journal")
    parser.add_argument("--port", type=int, default=0)
    parser.parse_args(namespace=options)
    if options.http:
        asyncio.run(serve_http())
    else:
        serve_stdio()


if __name__ == "__main__":
    main()
