"""The one way out: an HTTP client for every request that the fleet makes of its own accord.

1. It reaches what `workers.guarded` lets it reach.
2. An answer is bounded in time and in size, and is none when it is packed.
3. No cookie is kept, and nothing is taken from the environment.
4. A redirect is an answer like any other. Only a client that was told to follows some, and then
   only for a GET that carries nothing but what `_PLAIN` names: so no secret and no body. Where it
   leads to another origin, that has to be public, whatever networks the client may reach.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Final

import httpx2

from registry.addresses import Network
from registry.errors import Code, FleetError
from workers.guarded import Dial, GuardedTransport, Resolve, resolve

MAX_BODY_BYTES: Final = 1_000_000
_PLAIN: Final = frozenset(
    {"accept", "accept-encoding", "connection", "host", "if-none-match", "user-agent"}
)
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def open_client(
    *,
    networks: Iterable[Network] = (),
    timeout_s: float,
    max_body_bytes: int = MAX_BODY_BYTES,
    follow: int = 0,
    resolve: Resolve = resolve,
    dial: Dial | None = None,
) -> httpx2.AsyncClient:
    """Return a client that reaches public addresses over https, and those of ``networks``.

    ``timeout_s`` is for a whole request, until its answer is read; ``follow`` is how many redirects
    are followed. Requests raise httpx2's errors, and `address_refused` for where they may not go.
    """
    transport = Outbound(
        partial(GuardedTransport, resolve=resolve, dial=dial),
        tuple(networks),
        timeout_s=timeout_s,
        max_body_bytes=max_body_bytes,
        follow=follow,
    )
    return httpx2.AsyncClient(
        transport=transport,
        headers={"accept-encoding": "identity", "user-agent": "toolfleet"},
        follow_redirects=False,
        max_redirects=0,  # so that no single request can ask for it
        trust_env=False,
        timeout=httpx2.Timeout(timeout_s),
    )


class Outbound(httpx2.AsyncBaseTransport):
    """An httpx2 transport that bounds answers, and follows the redirects that may be followed."""

    def __init__(
        self,
        guarded: partial[GuardedTransport],
        networks: tuple[Network, ...],
        *,
        timeout_s: float,
        max_body_bytes: int,
        follow: int,
    ) -> None:
        self._inner = guarded(networks)
        self._elsewhere = guarded(()) if networks else self._inner
        self._timeout_s = timeout_s
        self._max_body_bytes = max_body_bytes
        self._follow = follow

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; return its answer, whose body raises when it is too large or too slow."""
        ends_at = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(ends_at):
                response = await self._ask(request)
        except TimeoutError:
            raise httpx2.ReadTimeout("there was no answer in time", request=request) from None
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise _unusable(request, "packed, which was not asked for")
        response.headers.pop("set-cookie", None)
        response.stream = _Bounded(response, request, ends_at, self._max_body_bytes)
        return response

    async def _ask(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        asked = request
        for _ in range(self._follow if _is_plain(request) else 0):
            if (location := _location(response, asked.url)) is None:
                break
            await response.aclose()
            headers = {name: value for name, value in request.headers.items() if name != "host"}
            asked = httpx2.Request("GET", location, headers=headers, extensions=request.extensions)
            same = _origin(location) == _origin(request.url)
            response = await (self._inner if same else self._elsewhere).handle_async_request(asked)
        return response

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()
        await self._elsewhere.aclose()


class _Bounded(httpx2.AsyncByteStream):
    """A body that ends in an error where it goes beyond its limits."""

    def __init__(
        self, response: httpx2.Response, request: httpx2.Request, ends_at: float, max_bytes: int
    ) -> None:
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        self._inner = response.stream
        self._request = request
        self._ends_at = ends_at
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._max_bytes
        chunks = aiter(self._inner)
        while True:
            try:
                async with asyncio.timeout_at(self._ends_at):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                error = httpx2.ReadTimeout("the answer did not end in time", request=self._request)
                raise error from None
            left -= len(chunk)
            if left < 0:
                raise _unusable(self._request, f"larger than {self._max_bytes} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


def _is_plain(request: httpx2.Request) -> bool:
    return request.method == "GET" and _PLAIN.issuperset(request.headers)


def _location(response: httpx2.Response, base: httpx2.URL) -> httpx2.URL | None:
    """Return where a redirect leads to; None for what is no redirect, or leads nowhere."""
    if response.status_code not in _REDIRECTS or "location" not in response.headers:
        return None
    try:
        return base.join(response.headers["location"]).copy_with(fragment=None)
    except httpx2.InvalidURL:
        return None


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _unusable(request: httpx2.Request, what: str) -> FleetError:
    return FleetError(
        Code.UPSTREAM_FAILED,
        f"the answer of {request.url.host} is {what}",
        hint="see what answers there",
    )
