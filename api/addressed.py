"""Which names the API answers to, and which web pages may ask it: `Host` and `Origin`, each alone.

A page whose name was made to lead here (DNS rebinding) sends its own name as the host, and a page
of somewhere else its own origin; neither reaches anything that answers data. `OPEN_PATHS` answer to
any host, so that probes by address work: what they say is no secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth import OPEN_PATHS
from api.errors import problem
from registry.addresses import is_loopback
from registry.errors import Code, FleetError
from registry.settings import Settings

_NAME: Final = r"(?P<name>\[[0-9a-f:.]{2,45}\]|[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_])?)"
_HOST: Final = re.compile(_NAME + r"(:(?P<port>[0-9]{1,5}))?")
_ALLOWED_HOST: Final = re.compile(_NAME + r"(:(?P<port>[0-9]{1,5}|\*))?")
_ORIGIN: Final = re.compile(r"(?P<scheme>https?)://(?P<host>[^/?#@\s]+)")
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")

Name = tuple[str, str]
"""A host's name and its port; port ``*`` is any, an empty one that of the scheme."""


class Addresses:
    """The hosts and origins of one API."""

    def __init__(self, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self._hosts = {_allowed_host(host) for host in hosts}
        self._origins = {_allowed_origin(origin) for origin in origins}

    def refuse(self, scope: Scope) -> None:
        """Raise `host_not_allowed` or `origin_not_allowed` for a request that is not for us."""
        host, origin = None, None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value if host is None else b""  # two are none
            elif name == b"origin":
                origin = value if origin is None else b""
        local, port = scope.get("server") or ("", None)
        if scope["path"] not in OPEN_PATHS and not self._answers_to(host or b"", local, port):
            raise FleetError(
                Code.HOST_NOT_ALLOWED,
                "the request is for a host that this API does not answer to",
                hint="set TOOLFLEET_ALLOWED_HOSTS to the names that lead to it",
            )
        if origin is not None and not self._takes(origin, local, port):
            raise FleetError(
                Code.ORIGIN_NOT_ALLOWED,
                "the request comes from a web page that may not ask this API",
                hint="set TOOLFLEET_ALLOWED_ORIGINS to the origins that may",
            )

    def _answers_to(self, host: bytes, local: str, port: int | None) -> bool:
        found = _HOST.fullmatch(host.decode("latin-1").lower())
        return found is not None and self._knows(
            found["name"], found["port"] or "", "http", local, port
        )

    def _takes(self, origin: bytes, local: str, port: int | None) -> bool:
        found = _ORIGIN.fullmatch(origin.decode("latin-1").lower())
        host = _HOST.fullmatch(found["host"]) if found is not None else None
        if found is None or host is None:
            return False
        if self._origins:
            return (found["scheme"], host["name"], host["port"] or "") in self._origins
        return self._knows(host["name"], host["port"] or "", found["scheme"], local, port)

    def _knows(self, name: str, asked: str, scheme: str, local: str, port: int | None) -> bool:
        if {(name, asked), (name, "*")} & self._hosts:
            return True
        if asked == _DEFAULT_PORTS[scheme] and (name, "") in self._hosts:
            return True
        return (
            name in _LOOPBACK_NAMES
            and scheme == "http"
            and (asked or _DEFAULT_PORTS[scheme]) == str(port)
            and is_loopback(local)
        )


class Addressed:
    """ASGI middleware: refuses what is not for this API, before anything looks at it."""

    def __init__(self, app: ASGIApp, addresses: Addresses) -> None:
        self._app = app
        self._addresses = addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is for us."""
        if scope["type"] == "http":
            try:
                self._addresses.refuse(scope)
            except FleetError as error:
                await problem(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def check_binding(settings: Settings) -> None:
    """Raise `ValueError` for an API that others could reach under any name."""
    if not is_loopback(settings.api_host) and not settings.allowed_hosts:
        raise ValueError(
            f"TOOLFLEET_API_HOST is {settings.api_host!r}, which others can reach, and "
            "TOOLFLEET_ALLOWED_HOSTS is empty: set it to the names that lead here, such as "
            "'[\"fleet.example\"]', or bind to 127.0.0.1"
        )


def _allowed_host(text: str) -> Name:
    found = _ALLOWED_HOST.fullmatch(text.lower())
    if found is None:
        raise ValueError(f"TOOLFLEET_ALLOWED_HOSTS: {text!r} is no host, host:port or host:*")
    return found["name"], found["port"] or ""


def _allowed_origin(text: str) -> tuple[str, str, str]:
    found = _ORIGIN.fullmatch(text.lower())
    host = _HOST.fullmatch(found["host"]) if found is not None else None
    if found is None or host is None:
        raise ValueError(f"TOOLFLEET_ALLOWED_ORIGINS: {text!r} is no origin: https://host[:port]")
    port = host["port"] or ""
    return found["scheme"], host["name"], "" if port == _DEFAULT_PORTS[found["scheme"]] else port
