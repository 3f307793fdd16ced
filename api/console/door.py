"""The console's door: who is let in by a session or a key, and where all others are sent.

Invariants:
 1. Without either nothing answers but the sign-in page and the files that pages are made with.
 2. Whatever is answered under the console's path carries `HEADERS`, unless it has its own.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote, urlsplit

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import CONSOLE, Keyring, credential_of
from api.console.page import FILES, HEADERS, page
from api.console.sessions import COOKIE, Sessions
from api.errors import problem
from registry.errors import Code, FleetError

SIGN_IN: Final = f"{CONSOLE}/sign-in"
OPEN: Final = frozenset({SIGN_IN, *(f"{CONSOLE}/static/{name}" for name in FILES)})
_LONGEST_TOKEN: Final = 128


class Door:
    """ASGI application before the console's pages: lets in, or answers where to sign in."""

    def __init__(self, app: ASGIApp, keyring: Keyring, sessions: Sessions) -> None:
        self._app = app
        self._keyring = keyring
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what carries a session or a key, and what needs neither."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["path"] not in OPEN:
            try:
                shown = await self._let_in(scope)
            except FleetError as error:
                await _refusal(scope, error)(scope, receive, with_headers)
                return
            scope.setdefault("state", {}).update(shown)
        await self._app(scope, receive, with_headers)

    async def _let_in(self, scope: Scope) -> dict[str, Any]:
        """Return what the pages are told of who asks; a key counts before a session."""
        source = (scope.get("client") or ("",))[0]
        headers = Headers(scope=scope)
        if "authorization" in headers:
            return {"actor": await self._keyring.actor(credential_of(scope), source)}
        token = session_of(headers)
        actor = await self._sessions.actor(token, source)
        return {"actor": actor, "session": token, "csrf": self._sessions.csrf(token)}


def session_of(headers: Headers) -> str:
    """Return the session that a request carries; raise `unauthenticated` for none, or two."""
    found = []
    for line in headers.getlist("cookie"):
        # By hand: one cookie that the standard library cannot read would hide all others.
        for pair in line.split(";"):
            name, _, value = pair.strip().partition("=")
            if name == COOKIE:
                found.append(value)
    if len(found) != 1 or not 0 < len(found[0]) <= _LONGEST_TOKEN:
        raise FleetError(Code.UNAUTHENTICATED, "nobody is signed in", hint=f"sign in at {SIGN_IN}")
    return found[0]


def _refusal(scope: Scope, error: FleetError) -> Response:
    """Return what a request is answered that was not let in: people are sent to the sign-in."""
    headers = Headers(scope=scope)
    partial = headers.get("hx-request") == "true"
    asks_for_page = "text/html" in headers.get("accept", "")
    if "authorization" in headers or not (partial or asks_for_page):
        return problem(error)
    if error.code is not Code.UNAUTHENTICATED:
        return page(Request(scope), "problem.html", status=error.code.status, error=error)
    if partial:
        place = sign_in_for(_path_of(headers.get("hx-current-url", "")))
        answer = Response(status_code=401, headers={"hx-redirect": place})
    else:
        asked = scope["path"] + (f"?{query}" if (query := scope["query_string"].decode()) else "")
        place = sign_in_for(asked if scope["method"] == "GET" else "")
        answer = RedirectResponse(place, 303)
    if COOKIE in headers.get("cookie", ""):
        answer.delete_cookie(COOKIE)
    return answer


def sign_in_for(place: str) -> str:
    """Return the address of the sign-in page that leads to a place afterwards."""
    return f"{SIGN_IN}?next={quote(place, safe='/')}" if place else SIGN_IN


def _path_of(url: str) -> str:
    """Return the path and query of an address; nothing for what is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return parts.path + (f"?{parts.query}" if parts.query else "")
