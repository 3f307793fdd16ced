"""HTTP on the wire: what a request's head may be, and how long a request may take to arrive.

The server parses heads of any size and waits for bodies for as long as they take; both are bounded
here, before the application sees anything. Whatever is wrong at this level is told as a problem,
and the connection is closed.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from http import HTTPStatus
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.encoding import encode
from api.errors import PROBLEM, problem_body
from registry.errors import Code, FleetError

MOST_HEADERS: Final = 100
LARGEST_HEAD: Final = 65_536
LONGEST_ADDRESS: Final = 8_192


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose requests have heads of a bounded size, and arrive in a bounded time."""

    receive_within_s: ClassVar[float] = 60.0

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._in_head = False
        self._head_bytes = 0
        self._refused = False
        self._too_late: asyncio.TimerHandle | None = None

    @property
    def _answered(self) -> RequestResponseCycle | None:
        """Return the request that is being answered, or was last; the server has none at first."""
        return self.cycle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as there
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, unless it makes the head of a request too large."""
        if self._refused:
            return
        super().data_received(data)
        if self._in_head:
            # A header that has not ended is with the parser, and told to nobody yet.
            self._head_bytes += len(data)
            if self._head_bytes > LARGEST_HEAD + LONGEST_ADDRESS:
                self._refuse(_head_too_large())
        elif self._too_late is None and self._is_idle():
            self._expect()  # what came began no request, and ended the wait for the next one

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self._expect()

    def on_headers_complete(self) -> None:
        """Have a request answered whose head is within its bounds."""
        self._in_head = False
        if self._refused:
            return
        size = sum(len(name) + len(value) for name, value in self.headers)
        if len(self.url) > LONGEST_ADDRESS:
            self._refuse(
                FleetError(
                    Code.ADDRESS_TOO_LONG,
                    f"the address is longer than {LONGEST_ADDRESS} bytes",
                    hint="send what is long in the body",
                )
            )
        elif len(self.headers) > MOST_HEADERS or size > LARGEST_HEAD:
            self._refuse(_head_too_large())
        else:
            self._name_every_host()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        if not self._refused:
            self._expect_nothing()
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Say that what came is no HTTP."""
        error = FleetError(Code.INVALID_REQUEST, msg, hint="send HTTP/1.1")
        self._refuse(error, status=HTTPStatus.BAD_REQUEST)

    def _is_idle(self) -> bool:
        cycle = self._answered
        return (
            cycle is not None and cycle.response_complete and self.timeout_keep_alive_task is None
        )

    def _name_every_host(self) -> None:
        """Show a host that the request line names beside `Host` as a second one."""
        if b"://" in self.url.partition(b"?")[0] and not self.url.startswith(b"/"):
            authority = self.url.partition(b"://")[2].partition(b"/")[0]
            if (b"host", authority) not in self.headers:
                self.headers.append((b"host", authority))

    def _expect(self) -> None:
        self._expect_nothing()
        self._too_late = self.loop.call_later(self.receive_within_s, self._give_up)

    def _expect_nothing(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None

    def _give_up(self) -> None:
        """Refuse a request that is not here yet; close a connection on which none began."""
        cycle = self._answered
        began = self._in_head or (cycle is not None and not cycle.response_started)
        if not began:
            self.transport.abort()
            return
        self._refuse(
            FleetError(
                Code.REQUEST_TOO_SLOW,
                f"the request was not whole after {self.receive_within_s:g} s",
                hint="send it again, faster",
            )
        )

    def _refuse(self, error: FleetError, *, status: int | None = None) -> None:
        """Answer with a problem and close; where another answer is under way, only close."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._expect_nothing()
        cycle = self._answered
        if cycle is not None and cycle.response_started:
            if not cycle.response_complete:
                self.transport.abort()
                return
        elif cycle is not None:
            cycle.disconnected = True  # the application's answer would come too late
            cycle.message_event.set()
        body = encode(problem_body(error, status))
        line = HTTPStatus(status or error.code.status)
        head = (
            f"HTTP/1.1 {line.value} {line.phrase}\r\ncontent-type: {PROBLEM}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def bounded(receive_within: timedelta) -> type[BoundedProtocol]:
    """Return the protocol whose requests arrive within a time."""

    class Bounded(BoundedProtocol):
        receive_within_s = receive_within.total_seconds()

    return Bounded


def _head_too_large() -> FleetError:
    return FleetError(
        Code.HEADERS_TOO_LARGE,
        f"the headers are more than {MOST_HEADERS}, or more than {LARGEST_HEAD} bytes",
        hint="send fewer and smaller ones",
    )
