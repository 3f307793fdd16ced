"""A real HTTP server that receives webhooks, checks their signatures, and misbehaves as told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

Manner = Literal["ok", "fails", "slow", "redirects", "breaks off"]
SECRET = "whsec_" + base64.b64encode(b"a webhook's key of thirty bytes").decode()


@dataclass
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> dict[str, Any]:
        """Return its body's JSON."""
        return dict(json.loads(self.body))

    def is_signed(self, secret: str = SECRET) -> bool:
        """Check its signature, as the specification of Standard Webhooks describes it."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        content = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode()
        expected = base64.b64encode(hmac.new(key, content + self.body, hashlib.sha256).digest())
        versions = [one.split(",") for one in self.headers["webhook-signature"].split(" ")]
        return ["v1", expected.decode()] in versions


@dataclass
class Receiver:
    """A receiver: how it answers, and what it got."""

    port: int = 0
    manner: Manner = "ok"
    got: list[Received] = field(default_factory=list)
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to end the answers that are slow."""

    @property
    def url(self) -> str:
        """Return where it listens."""
        return f"http://127.0.0.1:{self.port}/hook?token=in-the-url"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        exact = dict(line.split(": ", 1) for line in head[1:] if line)
        headers |= {name.lower(): value for name, value in exact.items()}
        body = await reader.readexactly(int(headers["content-length"]))
        self.got.append(Received(head[0].split(" ")[1], headers, body))
        if self.manner == "slow":
            await self.leave.wait()
        status = {"fails": "500 Broken", "redirects": "307 Elsewhere"}.get(self.manner, "204 Done")
        location = f"location: http://127.0.0.1:{self.port}/elsewhere\r\n"
        if self.manner != "breaks off":
            more = location if self.manner == "redirects" else ""
            writer.write(f"HTTP/1.1 {status}\r\n{more}content-length: 0\r\n\r\n".encode())
        writer.close()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Run a receiver on loopback."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver._answer, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        receiver.leave.set()
        server.close()
