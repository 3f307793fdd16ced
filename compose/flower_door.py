"""The door of Flower: it lets in who is signed in to the console, and stops calls as we do.

Flower's process knows no key and no database: it asks the API who somebody is, with what that one
showed, and keeps the answer for seconds.

Invariants:
 1. Nothing but Flower's health and its own files answers whom the API does not name an operator, or
    who does not have the password of `Settings.flower_auth`, which reads and changes nothing.
 2. Its buttons Terminate and Revoke stop a call as `POST /v1/calls/{id}/cancel` does, in the record
    first and in the operator's name; a revoke of its own would be lost with the worker that got it.
 3. What changes anything is heard from Flower's own pages, or from who shows a key, alone.
"""

from __future__ import annotations

import hmac
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx2
from flower.api.control import TaskRevoke
from flower.urls import handlers
from flower.views.auth import LoginHandler, LogoutHandler
from flower.views.monitor import Healthcheck
from flower.views.tasks import TasksDataTable
from tornado.routing import URLSpec
from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from registry.addresses import as_asked
from registry.settings import Settings

KEPT_FOR_S: Final = 2.0
ASK_WITHIN_S: Final = 10.0
_MOST_KEPT: Final = 1024
_READS_ALONE: Final = "This password reads alone: sign in, or use an operator's key"
_OPEN: Final = (Healthcheck, StaticFileHandler)
_HEADERS: Final = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Visitor:
    """Who was let in: ``shown`` is what the API is asked with in their name, if it knows them."""

    name: str
    shown: Mapping[str, str] = field(default_factory=dict)
    csrf: str = ""


class Door:
    """Who may use Flower, as the API says it."""

    def __init__(
        self,
        settings: Settings,
        *,
        connect: Callable[[str], httpx2.AsyncClient],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        host = settings.api_host
        # What is bound to every address answers at this machine's own.
        host = "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host  # noqa: S104 - it binds nothing
        api_url = settings.flower_api_url or f"http://{host}:{settings.api_port}"
        self._api = connect(api_url)
        self._console = settings.public_url or api_url
        self._url = settings.flower_url.rstrip("/")
        self._password = settings.flower_auth.get_secret_value()
        self._clock = clock
        self._known: dict[tuple[tuple[str, str], ...], tuple[float, Visitor | None]] = {}

    async def visitor(self, headers: Mapping[str, str]) -> Visitor | None:
        """Return who asks; None for nobody that the API knows.

        Raises `HTTPError`: 403 for somebody who may not use Flower, 503 while the API is away.
        """
        said = headers.get("Authorization", "")
        if self._password and hmac.compare_digest(_basic(said).encode(), self._password.encode()):
            return Visitor(self._password.partition(":")[0])
        shown = _shown(said, headers.get("Cookie", ""))
        if shown is None:
            return None
        kept = tuple(shown.items())
        until, visitor = self._known.get(kept, (0.0, None))
        if until <= self._clock():
            visitor = await self._ask(shown)
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            self._known[kept] = (self._clock() + KEPT_FOR_S, visitor)
        return visitor

    async def stop(self, visitor: Visitor, call_id: str) -> str:
        """Stop a call in a visitor's name; return what that could still do, in words.

        Raises `HTTPError` with what the API says.
        """
        if not visitor.shown:
            raise HTTPError(403, _READS_ALONE)
        path = f"/console/session/calls/{quote(call_id, safe='')}/cancel"
        answer = await self._request("POST", path, visitor.shown, data={"csrf": visitor.csrf})
        if not answer.is_success:
            raise HTTPError(answer.status_code, _problem(answer))
        return str(answer.json()["answer"]).replace("_", " ")

    def sign_in(self, host: str, uri: str) -> str:
        """Return where to sign in, and be led back to ``uri`` of this Flower."""
        back = f"{as_asked(self._url, host)}{uri}" if self._url else ""
        console = as_asked(self._console.rstrip("/"), host)
        return f"{console}/console/sign-in" + (f"?next={quote(back, safe='')}" if back else "")

    async def _ask(self, shown: Mapping[str, str]) -> Visitor | None:
        answer = await self._request("GET", "/console/session", shown)
        if answer.status_code == 401:
            return None
        if not answer.is_success:
            raise HTTPError(answer.status_code, _problem(answer))
        said = answer.json()
        if not said["flower"]:
            raise HTTPError(403, f"Flower is for operators, and {said['name']} is none")
        return Visitor(said["name"], dict(shown), said["csrf"])

    async def _request(
        self, method: str, path: str, shown: Mapping[str, str], **rest: Any
    ) -> httpx2.Response:
        try:
            headers = {**shown, "accept": "application/json"}
            return await self._api.request(method, path, headers=headers, **rest)
        except httpx2.HTTPError as error:
            raise HTTPError(
                503, "The API does not answer, so it is not known who you are"
            ) from error


class Doored(RequestHandler):
    """A handler that knows the door."""

    door: Door


class Guarded(Doored):
    """What is put before each handler of Flower."""

    visitor: Visitor

    async def prepare(self) -> None:
        """Let in whom the API names an operator; send people to the sign-in, refuse programs."""
        visitor = await self.door.visitor(self.request.headers)
        if visitor is not None:
            if not visitor.shown and not self._reads():
                raise HTTPError(403, _READS_ALONE)
            self.visitor, self.current_user = visitor, visitor.name
            return
        wants_page = "text/html" in self.request.headers.get("Accept", "")
        if self.request.method == "GET" and wants_page:
            self.redirect(self.door.sign_in(self.request.host, self.request.uri or "/"))
            return
        self.set_status(401)
        if "Sec-Fetch-Mode" not in self.request.headers:  # a browser would ask for a password
            self.set_header("WWW-Authenticate", 'Basic realm="Flower"')
        self.finish("Sign in to the console, or show an operator's key as password")

    def _reads(self) -> bool:
        """Say whether the request changes nothing: the list of tasks is asked for by POST."""
        return self.request.method in {"GET", "HEAD"} or isinstance(self, TasksDataTable)

    def set_default_headers(self) -> None:
        """Let no other page frame this one, nor any cache keep it."""
        super().set_default_headers()
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    def get_current_user(self) -> str | None:
        """Return nobody: `prepare` says who it is."""
        return None

    def check_xsrf_cookie(self) -> None:
        """Raise `HTTPError` for what changes something and is not from one of these pages."""
        headers = self.request.headers
        site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
        elsewhere = origin is not None and urlsplit(origin).netloc != self.request.host
        if site not in {None, "same-origin"} or elsewhere:
            raise HTTPError(403, "A page of elsewhere changes nothing here")
        if "Authorization" not in headers:
            RequestHandler.check_xsrf_cookie(self)


class Stop(Guarded, TaskRevoke):  # type: ignore[misc] # Flower carries no types
    """Its buttons Terminate and Revoke."""

    async def post(self, taskid: str) -> None:
        """Stop a call."""
        said = await self.door.stop(self.visitor, taskid)
        self.write({"message": f"Call {taskid}: {said}"})


class ToConsole(Doored):
    """Its own pages to sign in and out."""

    def get(self) -> None:
        """Lead to the console's."""
        self.redirect(self.door.sign_in(self.request.host, "/"))


def close_doors(settings: Settings) -> None:
    """Put the door before every handler of the Flower that this process is about to start."""
    door = Door(
        settings,
        connect=lambda url: httpx2.AsyncClient(base_url=url, timeout=ASK_WITHIN_S, trust_env=False),
    )
    replaced = {TaskRevoke: Stop, LoginHandler: ToConsole, LogoutHandler: ToConsole}
    for place, entry in enumerate(handlers):
        spec = entry if isinstance(entry, URLSpec) else URLSpec(*entry)
        if issubclass(spec.handler_class, _OPEN):
            continue
        handler = spec.handler_class
        bases = (replaced[handler],) if handler in replaced else (Guarded, handler)
        doored = type(handler.__name__, bases, {"door": door})
        handlers[place] = URLSpec(spec.regex.pattern, doored, spec.kwargs, spec.name)


def _shown(said: str, cookies: str) -> dict[str, str] | None:
    """Return what the API is shown of a visitor's Authorization header and cookies; None: nothing.

    Cookies of others, which browsers send here too, may be what no header can hold.
    """
    if said:
        scheme, _, rest = said.partition(" ")
        key = rest.strip() if scheme.lower() == "bearer" else _basic(said).partition(":")[2]
        return {"authorization": f"Bearer {key}"} if key and _sendable(key) else None
    sent = ";".join(cookie for cookie in cookies.split(";") if _sendable(cookie))
    return {"cookie": sent.strip()} if sent.strip() else None


def _sendable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _basic(said: str) -> str:
    """Return ``user:password`` of an Authorization header; nothing for what is none."""
    scheme, _, credentials = said.partition(" ")
    try:
        return b64decode(credentials, validate=True).decode() if scheme.lower() == "basic" else ""
    except ValueError:
        return ""


def _problem(answer: httpx2.Response) -> str:
    try:
        problem = answer.json()
        return f"{problem['detail']}. {problem.get('hint', '')}".strip()
    except (ValueError, KeyError, TypeError):
        return "The API refused it"
