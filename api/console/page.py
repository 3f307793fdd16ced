"""How a page is made: one environment of templates, what every template knows, how times look.

Invariants:
 1. Everything that a template shows is escaped; nothing is marked as safe.
 2. A page carries no script and no style of its own: its policy (`POLICY`) would not run them.
 3. With a session, nothing that changes anything is heard without what its own pages carry: a form
    of elsewhere changes nothing.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

import jinja2
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, RedirectResponse, Response

from api.console.frame import may_use_flower
from api.errors import INTERNAL, problem, refusal_of
from api.wire import StrictRoute
from registry.errors import Code, FleetError
from registry.hidden_text import pieces
from registry.tenants import Actor, Role

FOLDER: Final = Path(__file__).parent
STATIC: Final = FOLDER / "static"
FILES: Final = frozenset(path.name for path in STATIC.iterdir())
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
}
MOST_FIELDS: Final = 100
NOTHING: Final = "-"
_SAFE: Final = frozenset({"GET", "HEAD"})

logger = logging.getLogger("toolfleet.api")

_environment: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(request: Request, template: str, /, *, status: int = 200, **shown: Any) -> Response:
    """Return a page; its template extends `base.html` and sees ``shown``, `actor` and `path`.

    `actor` is None on the few pages that nobody has to be signed in for.
    """
    state, frame = request.scope.get("state", {}), request.app.state.frame
    actor = state.get("actor")
    known = {
        "actor": actor,
        "path": request.url.path,
        "query": dict(request.query_params),
        "csrf": state.get("csrf", ""),
        "links": frame.links(actor) if actor is not None else [],
        "flower": frame.flower(request) if may_use_flower(actor) else "",
    }
    text = _environment.get_template(template).render(**known, **shown)
    return HTMLResponse(text, status, headers=HEADERS)


def fragment(template: str, /, **shown: Any) -> str:
    """Return a part of a page, of a template that extends nothing and sees ``shown`` alone."""
    return _environment.get_template(template).render(**shown)


Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PlainRoute(APIRoute):
    """A route of the console for everybody whom its door lets in; errors are pages."""

    def get_route_handler(self) -> Handler:
        """Return the handler that answers an error with a page."""
        return _as_pages(_with_csrf(super().get_route_handler()))


class _PostedRoute(APIRoute):
    def get_route_handler(self) -> Handler:
        return _with_csrf(super().get_route_handler())


class ConsoleRoute(StrictRoute, _PostedRoute):
    """A route of the console: who may use it is said as for every route, errors are pages.

    Its first tag is the subject that a key may be narrowed to.
    """

    def get_route_handler(self) -> Handler:
        """Return the handler that answers an error with a page."""
        return _as_pages(super().get_route_handler())


def _as_pages(handle: Handler) -> Handler:
    """Answer an error with a page, unless it is JSON that is asked for."""

    async def shown(request: Request) -> Response:
        try:
            return await handle(request)
        except (FleetError, RequestValidationError, HTTPException) as refused:
            error, status = refusal_of(refused)
        except ClientDisconnect:
            raise
        except Exception:
            logger.exception("%s %s failed", request.method, request.url.path)
            error, status = INTERNAL, INTERNAL.code.status
        if request.headers.get("accept") == "application/json":
            return problem(error, status=status)
        return page(request, "problem.html", status=status, error=error)

    return shown


def _with_csrf(handle: Handler) -> Handler:
    """Hear what changes anything only from our own pages, where a session asks."""

    async def heard(request: Request) -> Response:
        expected = request.scope.get("state", {}).get("csrf")
        if expected is not None and request.method not in _SAFE:
            sent = (await form_of(request)).get("csrf", "")
            if not hmac.compare_digest(sent.encode(), expected.encode()):
                raise FleetError(
                    Code.FORBIDDEN,
                    "the form does not come from a page of this session",
                    hint="go back, load the page again, and repeat what you did",
                )
        return await handle(request)

    return heard


def may(actor: Actor, verb: str, *roles: Role) -> bool:
    """Say whether an actor of one of these roles may ask what needs a verb (`registry.scopes`)."""
    try:
        if actor.scopes is not None:
            actor.scopes.refuse_verb(verb)
    except FleetError:
        return False
    return actor.role in roles


def back_to(path: str) -> Response:
    """Return the answer to a form that did what it says: look at this page of ours."""
    return RedirectResponse(path, 303, headers={"cache-control": "no-store"})


async def form_of(request: Request) -> Mapping[str, str]:
    """Return the fields of a posted form, the last value of each; raise `invalid_request`."""
    body = (await request.body()).decode("utf-8", "replace")
    try:
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=MOST_FIELDS))
    except ValueError as error:
        raise FleetError(Code.INVALID_REQUEST, f"the form cannot be read: {error}") from None


def seconds(value: float | None) -> str:
    """Return a duration as people read it: ``840 µs``, ``12 ms``, ``3.4 s``, ``2 min``, ``5 h``."""
    if not value:
        return NOTHING if value is None else "0 s"
    for below, per, unit, digits in (
        (0.001, 1e6, "µs", 0), (1, 1e3, "ms", 0), (60, 1, "s", 1), (5_400, 1 / 60, "min", 0),
        (172_800, 1 / 3_600, "h", 0),
    ):  # fmt: skip
        if abs(value) < below:
            return f"{value * per:.{digits}f} {unit}"
    return f"{value / 86_400:.0f} d"


def ago(value: datetime | None) -> str:
    """Return how long ago an instant was, ``in 3 min`` for one to come."""
    if value is None:
        return NOTHING
    passed_s = (datetime.now(UTC) - value).total_seconds()
    return f"{seconds(passed_s)} ago" if passed_s >= 0 else f"in {seconds(-passed_s)}"


def instant(value: datetime | None) -> str:
    """Return an instant in UTC to the second."""
    return NOTHING if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def pretty(value: Any) -> str:
    """Return JSON as people read it."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def sentence(value: str) -> str:
    """Return what an error says as a sentence."""
    return value[:1].upper() + value[1:].rstrip(".") + "." if value else ""


def compact(value: Any) -> str:
    """Return JSON in one line."""
    return json.dumps(value, ensure_ascii=False, default=str)


_environment.filters |= {
    "seconds": seconds,
    "ago": ago,
    "instant": instant,
    "pretty": pretty,
    "pieces": pieces,
    "sentence": sentence,
    "compact": compact,
}
