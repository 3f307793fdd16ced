"""Errors on the wire: each is an RFC 9457 problem with our code, and never an inside view."""

from __future__ import annotations

import logging
import math
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.encoding import encode
from api.rate_headers import headers_of_refusal
from registry.errors import Code, FleetError

logger = logging.getLogger("toolfleet.api")

PROBLEM: Final = "application/problem+json"
INTERNAL: Final = FleetError(
    Code.INTERNAL,
    "the request failed for a reason inside Toolfleet",
    hint="the log of the API process has the details",
)
_OF_STATUS: Final = {
    401: Code.UNAUTHENTICATED,
    403: Code.FORBIDDEN,
    404: Code.NOT_FOUND,
    413: Code.REQUEST_TOO_LARGE,
}
_HINTS: Final = {
    404: "GET /openapi.json lists the routes",
    405: "the Allow header says which methods the route takes",
    413: "pass large data by reference",
}


def problem_body(error: FleetError, status: int | None = None) -> dict[str, Any]:
    """Return an error as a problem document; ``status`` replaces the code's own."""
    stored = error.as_dict()
    return {
        "type": f"urn:toolfleet:error:{error.code.code}",
        "title": error.code.code.replace("_", " ").capitalize(),
        "status": status or error.code.status,
        "detail": stored.pop("message"),
        **stored,
    }


def problem(
    error: FleetError, *, status: int | None = None, headers: dict[str, str] | None = None
) -> Response:
    """Return the response that tells a caller about an error."""
    body = problem_body(error, status)
    sent = {**headers_of_refusal(error), **(headers or {})}
    if error.retry_after_s is not None:
        sent["retry-after"] = str(math.ceil(error.retry_after_s))
    if body["status"] == 401:
        sent["www-authenticate"] = "Bearer"
    return Response(encode(body), body["status"], sent, PROBLEM)


def install(app: FastAPI) -> None:
    """Make every error of the app a problem."""
    app.add_middleware(LastResort)
    app.add_exception_handler(FleetError, _fleet_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)


async def _fleet_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, FleetError)
    return problem(error)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    refusal, _ = refusal_of(error)
    return problem(refusal)


def refusal_of(
    error: FleetError | RequestValidationError | HTTPException,
) -> tuple[FleetError, int]:
    """Return what the framework refused as an error of ours, and its status."""
    if isinstance(error, FleetError):
        return error, error.code.status
    if isinstance(error, HTTPException):
        status = error.status_code
        code, hint = _OF_STATUS.get(status, Code.INVALID_REQUEST), _HINTS.get(status, "")
        return FleetError(code, str(error.detail), hint=hint), status
    # What was sent is left out: it may hold arguments and secrets.
    problems = [_problem_of(item) for item in error.errors()]
    first = problems[0]
    refusal = FleetError(
        Code.INVALID_REQUEST,
        f"the request is not valid: {first['path']}: {first['problem']}",
        hint="correct what details lists; the schema is in GET /openapi.json",
        details={"problems": problems},
    )
    return refusal, refusal.code.status


def _problem_of(item: dict[str, Any]) -> dict[str, str]:
    if item["type"] == "json_invalid":
        at = f"character {item['loc'][-1]}"
        return {"path": "body", "problem": f"not valid JSON: {item['ctx']['error']} at {at}"}
    return {"path": ".".join(str(part) for part in item["loc"]), "problem": item["msg"]}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods_of(request)))
    refusal, status = refusal_of(error)
    return problem(refusal, status=status, headers=headers)


def _methods_of(request: Request) -> set[str]:
    """Return what the routes of an address take: the framework names those of the first.

    Where one has the address word for word, those that take a part of it for an id do not count.
    """
    routes = [
        route
        for part in request.app.parts
        for route in part.routes
        if route.matches(request.scope)[0] is not Match.NONE
    ]
    literal = [route for route in routes if route.path == request.scope["path"]]
    return {
        method for route in literal or routes for method in getattr(route, "methods", None) or ()
    }


class LastResort:
    """ASGI middleware: whatever goes wrong inside is logged, and told as `internal`.

    Left to the framework it would be raised once more behind the answer, and the server would cut
    a connection that the client may be using for its next request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; answer for it if it fails before its answer has begun."""
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except ClientDisconnect:
            logger.debug("%s %s: the client went before its request was whole", *_what(scope))
        except Exception:
            if scope["type"] != "http" or begun:
                raise
            logger.exception("%s %s failed", *_what(scope))
            await problem(INTERNAL)(scope, receive, send)


def _what(scope: Scope) -> tuple[str, str]:
    return scope["method"], scope["path"]
