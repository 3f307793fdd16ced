"""The HTTP client of one session: what the SDK's transport hides or leaves unbounded.

1. What happened to a request is noted in its own `Exchange`: status, Retry-After, a failed
   connection (the SDK makes one error of them all, and a failed request ends its whole session).
2. What cannot be an answer is refused at its head: another content type, a compressed body, a
   redirect, a bare 202.
3. A JSON body larger than ``max_body_bytes`` is cut off; an event stream is bounded by the size of
   each event instead (in `streamable_http_client`). Neither holds up the event loop.
4. At most `STREAMS_PER_EXCHANGE` event streams are opened for one request, whatever the server
   says, and none for one that is over.
5. A stream of notifications is read as a trickle, so that no server takes over the worker by it.
6. What we say aside (a cancellation, an answer to the server's own question) holds up no request
   and takes at most `ASIDE_LIMIT_S`, and so does taking leave; an answer with something in it
   takes at most `ANSWER_LIMIT_S`.
7. Redirects are not followed, and connections are made as `workers.guarded` says.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

import httpx2

from registry.addresses import Network
from registry.errors import FleetError
from workers.exchange import Breather, Exchange, Trickle, current_exchange
from workers.guarded import GuardedTransport
from workers.large import LargeMessages
from workers.large_http import Shrunk
from workers.retry_after import retry_after_s

ASIDE_LIMIT_S: Final = 1.0
ANSWER_LIMIT_S: Final = 10.0
_MAX_ASIDES: Final = 64
_MAX_ASIDE_BYTES: Final = 4096
_MAX_PING_BYTES: Final = 100  # of an answer with nothing in it
_REFUSAL_BYTES: Final = 64 * 1024
_REFUSAL_LIMIT_S: Final = 0.5
_SAID_CHARS: Final = 500
_LONGEST_SESSION_ID: Final = 128
_KEEPALIVE_S: Final = 120.0
_WRITE_LIMIT_S: Final = 30.0
# A peer that is gone without a word is noticed within a minute, on streams that are quiet too.
_PROBES: Final = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, option), value)
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, option)
    ),
]
_NOT_SENT: Final = (FleetError, httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_ANSWERS: Final = ("application/json", "text/event-stream")
_INITIALIZED: Final = "notifications/initialized"
_ANSWER: Final = "an answer"
# How the SDK writes a response; what a caller answered may be as large as a request.
_LARGE_ANSWER: Final = re.compile(rb'\{"jsonrpc": ?"2\.0", ?"id": ?[^,]{1,200}, ?"(result|error)":')


class BodyRefused(httpx2.StreamError):
    """Cut off a body; the SDK answers the request with a parse error when it meets this."""


class Wire(httpx2.AsyncBaseTransport):
    """An httpx2 transport that notes what happened to each request, and bounds it.

    A POST never raises: the SDK would end the session, and every other call in it.
    """

    def __init__(
        self,
        max_body_bytes: int,
        large: LargeMessages | None = None,
        networks: Iterable[Network] = (),
    ) -> None:
        self._inner = GuardedTransport(
            networks,
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE_S),
            socket_options=_PROBES,
        )
        self._max_body_bytes = max_body_bytes
        self._large = large
        self._asides: set[asyncio.Task[None]] = set()
        self.session_id = ""
        """What the server calls the session, if it does."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request in the way its kind asks for."""
        if request.method == "GET":
            return await self._listen(request, current_exchange())
        if request.method != "POST":
            async with asyncio.timeout(ASIDE_LIMIT_S):
                return await self._inner.handle_async_request(request)
        if not (aside := _aside(request)):
            return await self._ask(request, current_exchange())
        if aside == _INITIALIZED:
            await self._say(request)  # requests must not overtake it
        elif len(self._asides) < _MAX_ASIDES:
            large = len(request.content) > _MAX_PING_BYTES
            limit_s = ANSWER_LIMIT_S if aside == _ANSWER and large else ASIDE_LIMIT_S
            task = asyncio.create_task(self._say(request, limit_s))
            self._asides.add(task)
            task.add_done_callback(self._asides.discard)
        return httpx2.Response(202)

    async def _ask(self, request: httpx2.Request, exchange: Exchange) -> httpx2.Response:
        in_session = "mcp-session-id" in request.headers
        exchange.begin(in_session=in_session)
        request.headers.update(exchange.headers)
        try:
            response = await self._inner.handle_async_request(request)
        except Exception as error:  # noqa: BLE001 one failed request must not end the session
            exchange.sent = not isinstance(error, _NOT_SENT)
            exchange.failure = error
            return _in_its_place()
        exchange.status = response.status_code
        exchange.server_timing = response.headers.get("server-timing", "")
        if response.status_code >= 400:
            exchange.retry_after_s = retry_after_s(response.status_code, response.headers)
            exchange.challenge = response.headers.get("www-authenticate", "")
            return await self._refusal(response, exchange)
        if problem := _problem(response):
            exchange.problem = problem
            await response.aclose()
            return _in_its_place()
        if not in_session:
            self.session_id = response.headers.get("mcp-session-id", "")[:_LONGEST_SESSION_ID]
        response.stream = self._watched(exchange, response)
        return response

    async def _refusal(self, response: httpx2.Response, exchange: Exchange) -> httpx2.Response:
        """Read the beginning of a refusal, which is all that is ever needed of it."""
        body = bytearray()
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        try:
            with suppress(TimeoutError, httpx2.TransportError):
                async with asyncio.timeout(_REFUSAL_LIMIT_S):
                    async for chunk in response.stream:
                        body += chunk[: _REFUSAL_BYTES - len(body)]
                        if len(body) >= _REFUSAL_BYTES:
                            break
        finally:
            await response.aclose()
        exchange.said = bytes(body[: 4 * _SAID_CHARS]).decode(errors="replace")[:_SAID_CHARS]
        kept = {"content-type": response.headers.get("content-type", "")}
        return httpx2.Response(response.status_code, headers=kept, content=bytes(body))

    async def _listen(self, request: httpx2.Request, exchange: Exchange) -> httpx2.Response:
        if exchange.over:
            raise httpx2.ConnectError("nobody waits for this event stream any more")
        if exchange.streams_left == 0:
            raise httpx2.ConnectError("the server ends its event streams over and over")
        exchange.streams_left -= 1
        response = await self._inner.handle_async_request(request)
        if problem := _problem(response):
            await response.aclose()
            raise httpx2.ConnectError(problem)
        if exchange.on_stream is None:
            response.stream = self._watched(exchange, response)
        else:
            response.stream = _Told(self._watched(exchange, response), exchange.on_stream)
        return response

    def _watched(self, exchange: Exchange, response: httpx2.Response) -> httpx2.AsyncByteStream:
        watched = _Watched(exchange, response, self._max_body_bytes)
        if self._large is None:
            return watched
        events = not _content_type(response).startswith(_ANSWERS[0])
        return Shrunk(watched, exchange, self._large, events=events, max_bytes=self._max_body_bytes)

    async def _say(self, request: httpx2.Request, limit_s: float = ASIDE_LIMIT_S) -> None:
        with suppress(Exception):  # it was said in passing: who needs it asks again, or gives up
            async with asyncio.timeout(limit_s):
                response = await self._inner.handle_async_request(request)
                await response.aclose()

    async def aclose(self) -> None:
        """Finish what is being said aside, within its limit; close every connection."""
        try:
            if self._asides:
                await asyncio.wait(self._asides)
        finally:
            for task in self._asides:
                task.cancel()
            await self._inner.aclose()


class _Watched(httpx2.AsyncByteStream):
    """A body that is measured while it comes in, and that lets others run meanwhile."""

    def __init__(self, exchange: Exchange, response: httpx2.Response, max_bytes: int) -> None:
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        self._exchange = exchange
        self._inner = response.stream
        self._max_bytes = max_bytes
        self._is_json = _content_type(response).startswith(_ANSWERS[0])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        breather, trickle = Breather(), Trickle()
        left = self._max_bytes
        try:
            async for chunk in self._inner:
                left -= len(chunk)
                if self._is_json and left < 0:
                    exchange.oversize = True
                    raise BodyRefused(f"the body is larger than {self._max_bytes} bytes")
                if exchange.over:
                    raise BodyRefused("nobody waits for this body any more")
                yield chunk
                if exchange.endless:
                    await trickle.passed(len(chunk))
                await breather.breathe()
        except httpx2.TransportError as error:
            if self._is_json:  # of an event stream, the answer may still come in another one
                exchange.failure = error
            raise BodyRefused(str(error)) from error

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Told(httpx2.AsyncByteStream):
    """A stream whose beginning and end are told to somebody."""

    def __init__(self, inner: httpx2.AsyncByteStream, on_stream: Callable[[bool], None]) -> None:
        self._inner = inner
        self._on_stream = on_stream
        on_stream(True)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._inner.__aiter__()

    async def aclose(self) -> None:
        self._on_stream(False)
        await self._inner.aclose()


def open_client(
    wire: Wire, headers: Mapping[str, str], *, connect_timeout_s: float
) -> httpx2.AsyncClient:
    """Return the session's HTTP client; the time of an answer is bounded by its call, not here."""
    return httpx2.AsyncClient(
        transport=wire,
        headers={"accept-encoding": "identity", **headers},
        follow_redirects=False,
        max_redirects=0,
        trust_env=False,
        timeout=httpx2.Timeout(
            connect=connect_timeout_s, pool=connect_timeout_s, write=_WRITE_LIMIT_S, read=None
        ),
    )


def _aside(request: httpx2.Request) -> str:
    """Name what is no request of ours; an empty string for a request."""
    if len(request.content) > _MAX_ASIDE_BYTES:
        return _ANSWER if _LARGE_ANSWER.match(request.content) else ""
    message: dict[str, Any] = json.loads(request.content)
    method = str(message.get("method", _ANSWER))
    return "" if "id" in message and "method" in message else method


def _in_its_place() -> httpx2.Response:
    """Return what the SDK resolves the one request with; its exchange says what happened."""
    return httpx2.Response(503)


def _problem(response: httpx2.Response) -> str:
    """Say why a response that is no refusal cannot be an answer; an empty string if it can."""
    status = response.status_code
    if status != 200:
        moved = " (a redirect, which is not followed)" if 300 <= status < 400 else ""
        return f"HTTP {status}{moved}" if status < 400 else ""
    if (packed := response.headers.get("content-encoding", "identity")) != "identity":
        return f"a body packed with {packed[:40]}, which was not asked for"
    if not (found := _content_type(response)).startswith(_ANSWERS):
        return f"content of type {found[:80] or 'unknown'}, which is not MCP"
    return ""


def _content_type(response: httpx2.Response) -> str:
    return response.headers.get("content-type", "").lower()
