"""The HTTP client of a server that stands in front of an API.

1. The definition's headers, the credential's among them, replace what a call's arguments set.
2. An answer is read to its end, at most ``max_body_bytes`` of it; a packed one is unpacked first.
3. Nothing of one call is in the next: cookies are forgotten. Redirects are not followed, and
   connections are made as `workers.guarded` says.
4. How long an answer may take is the caller's business: it cancels the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import httpx2
from mcp.shared.exceptions import MCPError

from registry.addresses import parse_network
from registry.errors import Code, FleetError
from workers.guarded import GuardedTransport
from workers.openapi_wire import Brief, tell_failure
from workers.retry_after import TOO_MANY, retry_after_s

_WANTED: Final = "application/json, */*;q=0.8"
_KEPT: Final = (
    "content-type", "date", "location", "ratelimit", "ratelimit-reset", "retry-after",
    "x-ratelimit-reset",
)  # fmt: skip
_NOT_SENT: Final = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.UnsupportedProtocol,
)
_KEEPALIVE_S: Final = 30.0
_WRITE_LIMIT_S: Final = 30.0


class Api(httpx2.AsyncBaseTransport):
    """An httpx2 transport; what keeps an answer from coming is raised as `tell_failure` says."""

    def __init__(
        self, inner: httpx2.AsyncBaseTransport, headers: Mapping[str, str], max_body_bytes: int
    ) -> None:
        self._inner = inner
        self._headers = headers
        self._max_body_bytes = max_body_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; return its answer, read to the end."""
        request.headers.update(self._headers)
        try:
            response = await self._inner.handle_async_request(request)
            try:
                body = await self._read(response)
            finally:
                await response.aclose()
        except FleetError as error:
            raise tell_failure(error, dispatched=False) from error
        except httpx2.RequestError as error:
            raise _unreached(error) from error
        kept = {name: response.headers[name] for name in _KEPT if name in response.headers}
        return httpx2.Response(response.status_code, headers=kept, content=body)

    async def _read(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > self._max_body_bytes:
                raise too_large(self._max_body_bytes)
        return bytes(body)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()


def open_api(brief: Brief) -> httpx2.AsyncClient:
    """Return the client that requests are made with."""
    inner = GuardedTransport(
        map(parse_network, brief.networks),
        limits=httpx2.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE_S),
    )
    return httpx2.AsyncClient(
        base_url=brief.url,
        headers={"user-agent": "toolfleet", "accept": _WANTED},
        transport=Api(inner, brief.headers, brief.max_result_bytes),
        follow_redirects=False,
        trust_env=False,
        timeout=httpx2.Timeout(
            connect=brief.connect_timeout_s,
            pool=brief.connect_timeout_s,
            write=_WRITE_LIMIT_S,
            read=None,
        ),
    )


def too_large(limit_bytes: int) -> MCPError:
    """Return what is raised for an answer beyond the limit."""
    error = FleetError(
        Code.RESULT_TOO_LARGE,
        f"the API's answer is larger than {limit_bytes} bytes",
        hint="ask for less, or raise TOOLFLEET_MAX_RESULT_BYTES",
    )
    return tell_failure(error, dispatched=True)


def too_many(headers: Mapping[str, str]) -> MCPError:
    """Return what is raised when the API has no time for a call; it did nothing."""
    error = FleetError(
        Code.RATE_LIMITED,
        "the API answered HTTP 429: it is called too often",
        hint="call less often, or give the server a quota",
        retry_after_s=retry_after_s(TOO_MANY, headers),
    )
    return tell_failure(error, dispatched=False)


def _unreached(cause: httpx2.RequestError) -> MCPError:
    how = str(cause) or type(cause).__name__
    if isinstance(cause, _NOT_SENT):
        error = FleetError(
            Code.UPSTREAM_UNREACHABLE,
            f"the API could not be reached: {how}",
            hint="check the url of the definition, and whether the API is up",
        )
        return tell_failure(error, dispatched=False)
    error = FleetError(
        Code.UPSTREAM_FAILED,
        f"the connection with the API broke before its answer had come: {how}",
        hint="see whether the API, and what stands before it, is up",
    )
    return tell_failure(error, dispatched=True)
