"""What one request may take: its size as declared, its encoding, and one of so many places.

What cannot be known from the head alone is bounded where it is read: the head itself and the time
that a request takes by `api.protocol`, a body that declares no length by its route, the depth of
its JSON by `api.wire`.
"""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import OPEN_PATHS
from api.errors import problem
from registry.errors import Code, FleetError

LARGEST_BODY: Final = 64_000_000
"""Bytes of the largest body that any route takes."""


class Bounds:
    """ASGI middleware: refuses what is too much, before anything of it is read.

    ``usual_body`` is what most routes take: whatever declares no more than that needs no watching.
    """

    def __init__(self, app: ASGIApp, *, most_requests: int, usual_body: int) -> None:
        self._app = app
        self._most_requests = most_requests
        self._usual_body = usual_body
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is within the bounds."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            declared = self._declared(scope)
        except FleetError as error:
            await problem(error)(scope, receive, send)
            return
        answering = _Typed(scope, receive, send).send if declared > self._usual_body else send
        self._under_way += 1
        try:
            await self._app(scope, receive, answering)
        finally:
            self._under_way -= 1

    def _declared(self, scope: Scope) -> int:
        """Return the bytes that a request says it has; raise what is wrong with its head."""
        declared = 0
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                declared = int(value)
            elif name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
                raise FleetError(
                    Code.ENCODING_NOT_TAKEN,
                    "the body is compressed, and bodies are taken as they are",
                    hint="send it without Content-Encoding",
                )
        if declared > LARGEST_BODY:
            raise _too_large()
        if self._under_way >= self._most_requests and scope["path"] not in OPEN_PATHS:
            raise FleetError(
                Code.BUSY,
                f"this API process works on {self._most_requests} requests already",
                hint="add API processes, or raise TOOLFLEET_MAX_REQUESTS",
                retry_after_s=1,
            )
        return declared


class _Typed:
    """Sends an answer on, and the framework's plain refusal of a body as the problem that it is."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._told = False

    async def send(self, message: Message) -> None:
        """Send a message of the answer."""
        if message["type"] == "http.response.start" and message["status"] == 413:
            self._told = True
            await problem(_too_large())(self._scope, self._receive, self._send)
        elif not self._told:
            await self._send(message)


def _too_large() -> FleetError:
    return FleetError(
        Code.REQUEST_TOO_LARGE,
        "the body is larger than what is taken here",
        hint="pass large data by reference",
    )
