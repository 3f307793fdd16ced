"""Signing in to the console with a key or a token, and signing out."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.auth import LONGEST_CREDENTIAL, Keyring
from api.console.door import SIGN_IN, session_of
from api.console.frame import Frame
from api.console.page import POLICY, PlainRoute, back_to, form_of, page
from api.console.sessions import COOKIE, Sessions
from registry.errors import Code, FleetError

_PLACE: Final = "next"

router = APIRouter(route_class=PlainRoute)


@router.get("/sign-in", tags=["session"])
async def sign_in_page(request: Request) -> Response:
    """Show the form."""
    return _form(request, request.query_params.get(_PLACE, ""))


@router.post("/sign-in", tags=["session"])
async def sign_in(request: Request) -> Response:
    """Begin a session of whom a key or token stands for; go to where they were going.

    A browser that was signed in already is signed out first.
    """
    form = await form_of(request)
    credential, place = form.get("credential", "").strip(), form.get(_PLACE, "")
    source = request.client.host if request.client is not None else ""
    keyring: Keyring = request.app.state.keyring
    sessions: Sessions = request.app.state.sessions
    try:
        if not 0 < len(credential) <= LONGEST_CREDENTIAL:
            raise FleetError(Code.UNAUTHENTICATED, "the API key is not known")
        actor = await keyring.actor(credential, source)
        await _end_of(request, sessions)
        left_s = await keyring.left_s(credential)
        token, lasts_s = await sessions.begin(actor, left_s=left_s, source=source)
    except FleetError as error:
        return _form(request, place, error)
    frame: Frame = request.app.state.frame
    reply = back_to(frame.safe(place, request) or frame.landing(actor))
    reply.set_cookie(
        COOKIE,
        token,
        max_age=int(lasts_s),
        secure=frame.secure or request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )
    return reply


@router.post("/sign-out", tags=["session"])
async def sign_out(request: Request) -> Response:
    """End the session in the record."""
    await _end_of(request, request.app.state.sessions)
    reply = back_to(SIGN_IN)
    reply.delete_cookie(COOKIE)
    return reply


def _form(request: Request, place: str, error: FleetError | None = None) -> Response:
    frame: Frame = request.app.state.frame
    place = frame.safe(place, request)
    status = 200 if error is None else error.code.status
    shown = page(request, "sign_in.html", status=status, place=place, error=error)
    if place and not place.startswith("/"):
        # Browsers hold the answer to a form to the policy of its page as well.
        policy = POLICY.replace("form-action 'self'", f"form-action 'self' {frame.flower(request)}")
        shown.headers["content-security-policy"] = policy
    return shown


async def _end_of(request: Request, sessions: Sessions) -> None:
    """End the session that a request carries, if it does."""
    with suppress(FleetError):
        token = session_of(request.headers)
        source = request.client.host if request.client is not None else ""
        await sessions.end(token, await sessions.actor(token, source))
