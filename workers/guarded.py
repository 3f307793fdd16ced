"""The guard on every way out: where an HTTP connection may lead is decided when it is made.

1. A host is resolved once for each connection, and the connection is made to an address that was
   checked: nothing resolves the name a second time. TLS and the Host header keep the name.
2. Public addresses are reached over https alone; the networks that the caller allows over http too.
3. What is refused is refused before the first packet, as `address_refused`: it names the host as it
   was written, and the kind of address that it leads to.
4. A connection that is kept alive stays what it is: nothing is looked up for the next request.
5. Proxies and other settings are not taken from the environment.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from ipaddress import ip_address
from typing import Any, Final

import httpcore2
import httpx2

from registry.addresses import Address, Network, reachable, refuse_host
from registry.errors import Code, FleetError

Resolve = Callable[[str, int], Awaitable[list[Address]]]
Dial = Callable[..., Awaitable[httpcore2.AsyncNetworkStream]]
SocketOptions = Iterable[tuple[int, int, int]]

_MOST_ADDRESSES: Final = 4
_NEXT_AFTER_S: Final = 2.0
"""How long one of several addresses has to answer before the next one is tried."""
_HINT: Final = (
    "if it is meant to be reached, allow its network: under networks in the server's definition, "
    "or in TOOLFLEET_OUTBOUND_NETWORKS for what the fleet itself asks"
)


async def resolve(host: str, port: int) -> list[Address]:
    """Return the addresses of a host, the preferred one first; raise OSError if it has none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # A dictionary is a set in order: a resolver may name an address twice.
    return list(dict.fromkeys(ip_address(str(it[4][0])) for it in found))


class Guard(httpcore2.AsyncNetworkBackend):
    """Makes connections, to addresses that may be reached.

    Without ``public`` only ``networks`` may be. ``resolve`` and ``dial`` are the two ways in which
    it touches the network.
    """

    def __init__(
        self,
        networks: Iterable[Network],
        *,
        public: bool,
        resolve: Resolve = resolve,
        dial: Dial | None = None,
    ) -> None:
        self._networks = tuple(networks)
        self._public = public
        self._resolve = resolve
        self._dial = dial or httpcore2.AnyIOBackend().connect_tcp

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that answers; raise `address_refused` before any is tried.

        It takes ``timeout`` seconds at most, the name's resolution among them.
        """
        loop = asyncio.get_running_loop()
        ends_at = None if timeout is None else loop.time() + timeout
        addresses = await self._addresses(host, port, timeout)
        for address in addresses:
            left_s = None if ends_at is None else max(0.0, ends_at - loop.time())
            if address is not addresses[-1]:
                left_s = _NEXT_AFTER_S if left_s is None else min(left_s, _NEXT_AFTER_S)
            try:
                return await self._dial(
                    str(address),
                    port,
                    timeout=left_s,
                    local_address=local_address,
                    socket_options=socket_options,
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if address is addresses[-1]:
                    raise
        raise httpcore2.ConnectError(f"{host} has no address")

    async def _addresses(self, host: str, port: int, limit_s: float | None) -> list[Address]:
        try:
            refuse_host(host, self._networks)
            async with asyncio.timeout(limit_s):
                found = await self._resolve(host, port)
            found = reachable(host, found, self._networks, public=self._public)
        except TimeoutError:
            raise httpcore2.ConnectTimeout(f"{host} was not resolved in time") from None
        except OSError as error:
            raise httpcore2.ConnectError(f"{host} cannot be resolved: {error}") from error
        except UnicodeError as error:  # a ValueError too; what no resolver takes
            raise httpcore2.ConnectError(f"{host} is no name of a host") from error
        except ValueError as error:
            raise refused(host, str(error)) from None
        return found[:_MOST_ADDRESSES]

    async def sleep(self, seconds: float) -> None:
        """Wait, between attempts of which this product makes none."""
        await asyncio.sleep(seconds)


class GuardedTransport(httpx2.AsyncBaseTransport):
    """An httpx2 transport that reaches public addresses over https, and ``networks``."""

    def __init__(
        self,
        networks: Iterable[Network] = (),
        *,
        limits: httpx2.Limits | None = None,
        socket_options: SocketOptions | None = None,
        resolve: Resolve = resolve,
        dial: Dial | None = None,
    ) -> None:
        networks = tuple(networks)
        self._ways = {
            scheme: _Way(
                Guard(networks, public=scheme == "https", resolve=resolve, dial=dial),
                limits or httpx2.Limits(),
                socket_options,
            )
            for scheme in ("https", "http")
        }
        self._networks = networks

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; raise `address_refused` for one that may not go where it leads."""
        url = request.url
        way = self._ways.get(url.scheme)
        if way is None:
            raise refused(url.host, f"{url.scheme}:// is no way that is taken: https:// is")
        if url.userinfo:
            raise refused(url.host, "a URL with a user name or password in it is not followed")
        if url.scheme == "http" and not self._networks:
            raise refused(url.host, f"http://{url.host} is not encrypted: use https://")
        return await way.handle_async_request(request)

    async def aclose(self) -> None:
        """Close every connection."""
        for way in self._ways.values():
            await way.aclose()


class _Way(httpx2.AsyncHTTPTransport):
    """httpx2's own transport, on connections that a guard makes."""

    def __init__(
        self, guard: Guard, limits: httpx2.Limits, socket_options: SocketOptions | None
    ) -> None:
        super().__init__(verify=tls(), trust_env=False)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls(),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=guard,
            socket_options=socket_options,
        )


@cache
def tls() -> ssl.SSLContext:
    """Return what TLS is spoken with, the same for all connections."""
    # Loading the certificate store takes longer than a handshake; once per process is enough.
    return httpx2.create_ssl_context()


def refused(host: str, why: str) -> FleetError:
    """Return `address_refused` for a host, as it was written."""
    return FleetError(Code.ADDRESS_REFUSED, why, hint=_HINT, details={"host": host[:253]})
