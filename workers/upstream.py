"""The HTTP client of one session: what the SDK's transport hides or leaves unbounded.

1. The status and Retry-After of a refused request are kept (the SDK makes one error of them all).
2. A JSON body larger than ``max_body_bytes`` is cut off; compressed bodies are refused.
3. At most `RECONNECTS_PER_CALL` event streams are opened for one call, whatever the server says.
4. Redirects are not followed; proxies and other settings are not taken from the environment.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Final

import httpx2

RECONNECTS_PER_CALL: Final = 5
_KEEPALIVE_S: Final = 120.0
_WRITE_LIMIT_S: Final = 30.0
_NOT_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class BodyTooLarge(httpx2.StreamError):
    """Cut off a body; the SDK answers the request with a parse error when it meets this."""


class Wire(httpx2.AsyncBaseTransport):
    """An httpx2 transport that remembers what happened to the session's latest request."""

    def __init__(self, max_body_bytes: int) -> None:
        self._inner = httpx2.AsyncHTTPTransport(
            verify=_tls(),
            trust_env=False,
            limits=httpx2.Limits(max_connections=8, keepalive_expiry=_KEEPALIVE_S),
        )
        self._max_body_bytes = max_body_bytes
        self.sent = 0
        self.begin()

    def begin(self) -> None:
        """Forget the previous call."""
        self.status: int | None = None
        self.retry_after_s: float | None = None
        self.oversize = False
        self._gets_left = RECONNECTS_PER_CALL

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; note its refusal; bound its body and the number of event streams."""
        is_post = request.method == "POST"
        if request.method == "GET":
            if self._gets_left == 0:
                raise httpx2.ConnectError("the server ends its event streams over and over")
            self._gets_left -= 1
        self.sent += is_post
        try:
            response = await self._inner.handle_async_request(request)
        except _NOT_SENT:
            self.sent -= is_post
            raise
        if is_post and response.status_code >= 400:
            self.status = response.status_code
            self.retry_after_s = _retry_after(response.headers)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            # An event stream is bounded by the size of each event instead.
            response.stream = _Bounded(self, response, self._max_body_bytes)
        return response

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, wire: Wire, response: httpx2.Response, limit: int) -> None:
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        self._wire = wire
        self._inner = response.stream
        self._limit = limit
        self._packed = response.headers.get("content-encoding", "identity") != "identity"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._limit
        async for chunk in self._inner:
            left -= len(chunk)
            if left < 0 or self._packed:
                self._wire.oversize = True
                raise BodyTooLarge(
                    "the body is compressed, which was not asked for"
                    if self._packed
                    else f"the body is larger than {self._limit} bytes"
                )
            yield chunk

    async def aclose(self) -> None:
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


@cache
def _tls() -> ssl.SSLContext:
    # Loading the certificate store takes longer than a handshake; once per process is enough.
    return httpx2.create_ssl_context()


def _retry_after(headers: httpx2.Headers) -> float | None:
    value = headers.get("retry-after")
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    date = headers.get("date")
    with suppress(ValueError, TypeError):
        # Both dates are the server's, so its clock need not agree with ours.
        later = parsedate_to_datetime(value) - parsedate_to_datetime(date or "")
        return max(0.0, later.total_seconds())
    return None
