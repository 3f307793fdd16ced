"""A server that speaks MCP and a good deal besides; the tool called names the misbehaviour."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def say(data: bytes) -> None:
    """Write bytes to stdout as they are."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def reply(request: dict[str, Any], result: Any) -> bytes:
    """Return the line that answers a request."""
    message = {"jsonrpc": "2.0", "id": request["id"], "result": result}
    return json.dumps(message).encode() + b"\n"


def text(words: str) -> dict[str, Any]:
    """Return a tool result."""
    return {"content": [{"type": "text", "text": words}]}


def flood_stderr(good: bytes) -> None:
    """Write far more to stderr than a pipe holds, then answer."""
    for _ in range(1000):
        sys.stderr.write("x" * 10_000 + "\n")
    say(good)


def never_end_a_line(_good: bytes) -> None:
    """Write for ever."""
    while True:
        say(b"x" * 65536)


def slice_up(good: bytes) -> None:
    """Answer one byte at a time."""
    for byte in good:
        say(bytes([byte]))


NOTE = b'{"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}\n'
WAYS: dict[str, Callable[[bytes], None]] = {
    "banner": lambda good: say(b"\n\xef\xbb\xbfWelcome!\n{not json}\n[1]\n\x00\x01\n" + good),
    "invalid_utf8": lambda good: say(good.replace(b"here", b"he\xffre")),
    "line_separator": lambda good: say(good.replace(b"here", "he\u2028re".encode())),
    "crlf": lambda good: say(good.replace(b"\n", b"\r\n")),
    "strangers": lambda good: say(b'{"jsonrpc": "2.0", "id": 4711, "result": {}}\n' + good * 2),
    "stderr_flood": flood_stderr,
    "notifications": lambda good: say(NOTE * 2000 + good),
    "slices": slice_up,
    "endless_line": never_end_a_line,
    "not_a_result": lambda good: say(good.replace(b'[{"type": "text", "text": "here"}]', b'"no"')),
    "stdout_closed": lambda _good: os.close(1),
}


def call(request: dict[str, Any]) -> None:
    """Answer a call in the way its tool is named for."""
    WAYS[request["params"]["name"]](reply(request, text("here")))


def answer(request: dict[str, Any]) -> None:
    """Answer one request."""
    method = request["method"]
    if method == "initialize":
        server = {"name": "noisy", "version": "1"}
        result = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}},
            "serverInfo": server,
        }
        say(reply(request, result))
    elif method == "tools/list":
        cursor = (request.get("params") or {}).get("cursor", "0")
        tool = {"name": f"tool{cursor}", "inputSchema": {"type": "object"}, "x-kept": None}
        following = {"nextCursor": "0" if "--loop" in sys.argv else str(int(cursor) + 1)}
        last = "--loop" not in sys.argv and cursor == "2"
        say(reply(request, {"tools": [tool], **({} if last else following)}))
    elif method == "tools/call":
        call(request)
    else:
        error = {"code": -32601, "message": "Method not found"}
        say(json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}).encode() + b"\n")


if __name__ == "__main__":
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message:
            answer(message)
