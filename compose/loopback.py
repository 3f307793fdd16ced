"""Where a person's browser comes back to after a consent: a port of this machine, once.

It listens on loopback alone, answers one path, and is gone with its block. A request that does not
belong to what is waited for is turned away and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from registry.consent import Redirect

_HOST: Final = "127.0.0.1"
_PATH: Final = "/callback"
_LONGEST_HEAD: Final = 16_384
_MOST_PARAMETERS: Final = 32
_READ_LIMIT_S: Final = 5.0
_TAKEN: Final = "Toolfleet has the answer. You may close this page: the command says how it went."
_FOREIGN: Final = "This page belongs to no consent that Toolfleet waits for."


class Loopback:
    """One redirect that is waited for; make one with `loopback`."""

    def __init__(self, port: int) -> None:
        self.uri = f"http://{_HOST}:{port}{_PATH}"
        """The address that a redirect has to go to."""
        self._belongs: Callable[[Redirect], bool] | None = None
        self._redirect: asyncio.Future[Redirect] = asyncio.get_running_loop().create_future()

    async def receive(self, belongs: Callable[[Redirect], bool]) -> Redirect:
        """Return the first redirect that belongs; others are turned away."""
        self._belongs = belongs
        return await self._redirect

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        try:
            with suppress(OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError):
                async with asyncio.timeout(_READ_LIMIT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_answer(200, _TAKEN) if self._takes(head) else _GONE)
                    await writer.drain()
        finally:
            writer.close()

    def _takes(self, head: bytes) -> bool:
        redirect = _read(head)
        if redirect is None or self._belongs is None or self._redirect.done():
            return False
        if not self._belongs(redirect):
            return False
        self._redirect.set_result(redirect)
        return True


@asynccontextmanager
async def loopback(port: int = 0) -> AsyncIterator[Loopback]:
    """Listen on a port of loopback, by default any free one; raise OSError where it is not free."""
    opened: list[Loopback] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await opened[0].serve(reader, writer)

    server = await asyncio.start_server(
        serve, _HOST, port, limit=_LONGEST_HEAD, start_serving=False
    )
    async with server:
        opened.append(Loopback(server.sockets[0].getsockname()[1]))
        await server.start_serving()
        yield opened[0]


def _read(head: bytes) -> Redirect | None:
    """Return the parameters of a redirect; None for what is none, or says something twice."""
    method, _, rest = head.partition(b"\r\n")[0].decode("ascii").partition(" ")
    parts = urlsplit(rest.partition(" ")[0])
    if method != "GET" or parts.path != _PATH:
        return None
    found = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    if any(count > 1 for count in Counter(name for name, _ in found).values()):
        return None
    return dict(found)


def _answer(status: int, text: str) -> bytes:
    body = f"<!doctype html><title>Toolfleet</title><p>{text}</p>\n".encode()
    head = (
        f"HTTP/1.1 {status} {'OK' if status == 200 else 'Bad Request'}\r\n"
        "content-type: text/html; charset=utf-8\r\n"
        f"content-length: {len(body)}\r\n"
        "cache-control: no-store\r\n"
        "content-security-policy: default-src 'none'\r\n"
        "referrer-policy: no-referrer\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body


_GONE: Final = _answer(400, _FOREIGN)
