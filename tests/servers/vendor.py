"""An MCP server over HTTP with a limit of its own, as a vendor's: it says 429, and counts.

Nothing but the standard library. Each ``tools/call`` becomes a line of the journal when it
arrives: ``{"at": seconds, "status": 200 | 429, "key": Authorization, "under_way": count}``. With
``--trip N`` the Nth call is refused and so is every other until ``--retry-after`` seconds later
(once); with ``--most N`` those beyond N in any second are. ``--refusal`` is the status of refusals
in place of 429. Its port is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import deque
from pathlib import Path
from typing import Any

Json = dict[str, Any]
TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in ("look", "write")]
INITIALIZED = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "vendor", "version": "1"},
}


class Vendor:
    """What the vendor counts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.calls = 0
        self.under_way = 0
        self.closed_until = 0.0
        self.closed_for = ""
        self.latest: deque[float] = deque()

    def admits(self, key: str) -> bool:
        """Count a call; say whether it is within the limit."""
        now = time.monotonic()
        self.calls += 1
        if self.calls == self.options.trip:
            lasts_s = max(0.5, self.options.retry_after)
            self.closed_until, self.closed_for = now + lasts_s, key
        if now < self.closed_until and key == self.closed_for:
            return False
        if self.options.most:
            while self.latest and self.latest[0] <= now - 1.0:
                self.latest.popleft()
            if len(self.latest) >= self.options.most:
                return False
            self.latest.append(now)
        return True

    async def call(self, request: Json, key: str) -> tuple[int, Json]:
        """Answer a call."""
        admitted = self.admits(key)
        self.under_way += 1
        self.note(200 if admitted else self.options.refusal, key)
        try:
            await asyncio.sleep(self.options.delay)
        finally:
            self.under_way -= 1
        if not admitted:
            return self.options.refusal, {}
        said = {"content": [{"type": "text", "text": "here"}]}
        return 200, {"jsonrpc": "2.0", "id": request["id"], "result": said}

    def note(self, status: int, key: str) -> None:
        """Write a call into the journal."""
        entry = {
            "at": time.monotonic(),
            "status": status,
            "key": key,
            "under_way": self.under_way,
        }
        with self.options.journal.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    async def answer(self, method: str, headers: dict[str, str], body: bytes) -> tuple[int, Json]:
        """Answer a request."""
        if method != "POST":
            return 405, {}
        request = json.loads(body)
        if "id" not in request:
            return 202, {}
        if request["method"] == "tools/call":
            return await self.call(request, headers.get("authorization", ""))
        results: dict[str, Json] = {
            "initialize": INITIALIZED,
            "tools/list": {"tools": TOOLS},
            "ping": {},
        }
        if request["method"] not in results:
            error = {"code": -32601, "message": "Method not found"}
            return 200, {"jsonrpc": "2.0", "id": request["id"], "error": error}
        return 200, {"jsonrpc": "2.0", "id": request["id"], "result": results[request["method"]]}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                first, *lines = head.strip().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, said = await self.answer(first.split()[0], headers, body)
                content = json.dumps(said).encode() if said else b""
                told = f"HTTP/1.1 {status} So\r\ncontent-length: {len(content)}\r\n"
                told += "content-type: application/json\r\n"
                if status == self.options.refusal and self.options.retry_after >= 0:
                    told += f"retry-after: {self.options.retry_after:g}\r\n"
                writer.write(told.encode() + b"\r\n" + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--trip", type=int, default=0)
    parser.add_argument("--retry-after", type=float, default=1)
    parser.add_argument("--refusal", type=int, default=429)
    parser.add_argument("--most", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0)
    vendor = Vendor(parser.parse_args())
    server = await asyncio.start_server(vendor.serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
