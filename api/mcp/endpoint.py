"""The fleet as an MCP server over Streamable HTTP: ``/mcp``, and ``/mcp/servers/{name}``.

Invariants:
 1. Whoever is not let in, or not for this (`api.auth`), is refused before a body is read.
 2. Every request is answered under its id, or its client is told by HTTP why it is not.
 3. A client that goes stops what it asked for by the revision without sessions, else nothing.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from functools import partial
from typing import Final

from fastapi import APIRouter
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from api.auth import CALLERS, still_let_in
from api.mcp import headers, messages, sessionful, stateless
from api.mcp.asked import INVALID_PARAMS, INVALID_REQUEST, Revision
from api.mcp.exchange import Accepted, Exchange, OtherEnd, TooLarge, see_through
from api.mcp.face import Face, Inbound, answer
from api.mcp.headers import Headers
from api.mcp.messages import Message, Notification, Refusal, Request, Response
from api.mcp.methods import CALLS
from api.mcp.sessions import event_name, request_of
from registry.errors import Code, FleetError
from registry.mcp_sessions import McpSession
from registry.tenants import Actor

PATIENCE_S: Final = 5.0
RESUMABLE_AFTER_S: Final = 0.25
"""When a stream begins that its client can come back to: it has to know of it before it is lost."""
_LISTENING: Final = "listening"

WITHOUT_MEDIA: Final = "the header Content-Type has to be application/json"
WITHOUT_ACCEPT: Final = "the header Accept has to name application/json and text/event-stream"


class Endpoint:
    """The endpoint as an ASGI application, at a ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request of an MCP client."""
        scope["route"] = self  # what was matched, for whoever counts and traces requests
        face: Face = scope["app"].state.mcp
        actor: Actor = scope["state"]["actor"]
        CALLERS.refuse(actor)
        sent = Headers(scope["headers"])
        server = scope.get("path_params", {}).get("name")
        inbound = Inbound(actor, sent, Accepted(sent.get("accept")), server)
        exchange = Exchange(send, inbound.accepted)
        client = OtherEnd(receive, partial(still_let_in, scope["app"].state.keyring, scope))
        try:
            if scope["method"] == "POST":
                await _post(face, inbound, exchange, client)
            elif scope["method"] == "DELETE":
                await _delete(face, inbound, exchange)
            else:
                await _get(face, inbound, exchange, client)
        except Refusal as refusal:
            await exchange.answer(messages.failure(refusal.id, refusal), refusal.status)


async def _post(face: Face, inbound: Inbound, exchange: Exchange, client: OtherEnd) -> None:
    media = (inbound.headers.get("content-type") or "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise Refusal(415, INVALID_REQUEST, WITHOUT_MEDIA)
    if not (inbound.accepted.json or inbound.accepted.stream):
        raise Refusal(406, INVALID_REQUEST, WITHOUT_ACCEPT)
    try:
        body = await client.body(face.operations.settings.max_arguments_bytes * 2)
    except TooLarge:
        raise FleetError(
            Code.REQUEST_TOO_LARGE,
            "the body is larger than what is taken here",
            hint="pass large data by reference",
        ) from None
    if body is None:
        return
    message = messages.read(body)
    if stateless.is_stateless(inbound, message):
        await _post_stateless(face, inbound, exchange, client, message)
    elif isinstance(message, Request) and message.method == "initialize":
        serve = partial(sessionful.initialize, face, inbound, message, exchange)
        answering = asyncio.create_task(answer(exchange, message, serve, stateless=False))
        # The session's id is in the answer's head, which has to wait for it.
        if not await see_through(exchange, answering, client, patience_s=None):
            face.leave(answering)
    else:
        session = await sessionful.session_of(face, inbound)
        await _post_in_session(face, inbound, exchange, client, message, session)


async def _post_stateless(
    face: Face,
    inbound: Inbound,
    exchange: Exchange,
    client: OtherEnd,
    message: Message | list[Message],
) -> None:
    if isinstance(message, Notification):
        await exchange.accept()  # there is none that would mean something here
        return
    if not isinstance(message, Request):
        what = "what is posted is one request or one notification"
        raise Refusal(400, INVALID_REQUEST, what)
    call_id = str(uuid.uuid4()) if message.method in CALLS else None
    serve = partial(stateless.serve, face, inbound, message, exchange, call_id)
    answering = asyncio.create_task(answer(exchange, message, serve, stateless=True))
    if not await see_through(exchange, answering, client, patience_s=PATIENCE_S):
        answering.cancel()
        await asyncio.wait([answering])


async def _post_in_session(
    face: Face,
    inbound: Inbound,
    exchange: Exchange,
    client: OtherEnd,
    message: Message | list[Message],
    session: McpSession,
) -> None:
    revision = Revision(session.revision)
    batch = message if isinstance(message, list) else [message]
    if isinstance(message, list) and revision is not Revision.MARCH_2025:
        what = "batches were taken out of the protocol with 2025-06-18"
        raise Refusal(400, INVALID_REQUEST, what)
    for told in batch:
        if isinstance(told, Notification):
            await sessionful.hear(face, inbound, session, told)
        elif isinstance(told, Response):
            await sessionful.take_answer(face, inbound, told)
    requests = [request for request in batch if isinstance(request, Request)]
    if not requests:
        await exchange.accept()
        return
    primed = revision is Revision.NOVEMBER_2025
    if isinstance(message, list):
        exchange.expect(len(requests))
    else:
        token = requests[0].meta.get("progressToken")
        exchange.name_events(event_name(requests[0].id, token), primed=primed)
    answering = asyncio.create_task(_answer_all(face, inbound, exchange, session, requests))
    patience_s = RESUMABLE_AFTER_S if primed else PATIENCE_S
    longest_s = _longest_s(face) if primed else None
    if not await see_through(
        exchange, answering, client, patience_s=patience_s, longest_s=longest_s
    ):
        face.leave(answering)


async def _answer_all(
    face: Face,
    inbound: Inbound,
    exchange: Exchange,
    session: McpSession,
    requests: list[Request],
) -> None:
    async with asyncio.TaskGroup() as answering:
        for request in requests:
            serve = partial(sessionful.serve, face, inbound, session, request, exchange)
            answering.create_task(answer(exchange, request, serve, stateless=False))


async def _get(face: Face, inbound: Inbound, exchange: Exchange, client: OtherEnd) -> None:
    """Stream to a session what it did not ask for, or what it lost of an answer."""
    if inbound.headers.get(headers.VERSION) == Revision.JULY_2026:
        exchange.headers += ((b"allow", b"POST"),)
        raise Refusal(405, INVALID_REQUEST, "this revision has nothing to GET")
    session = await sessionful.session_of(face, inbound)
    if not inbound.accepted.stream:
        raise Refusal(406, INVALID_REQUEST, "the header Accept has to name text/event-stream")
    primed = session.revision == Revision.NOVEMBER_2025
    last = inbound.headers.get("last-event-id")
    if last is None or last.startswith(_LISTENING):
        inbound.refuse("subscriptions/listen")
        exchange.name_events(f"{_LISTENING}-{secrets.token_hex(4)}", primed=primed)
        # What happens once the stream has begun is told on it: it begins after this.
        subscriptions = await sessionful.subscribe(face, inbound, session, exchange)
        listening = sessionful.listen(face, inbound, session, exchange, subscriptions)
        answering = asyncio.create_task(listening)
        await see_through(exchange, answering, client, patience_s=0)
        answering.cancel()
        await asyncio.wait([answering])
        return
    lost = request_of(last)
    if lost is None:
        raise Refusal(400, INVALID_PARAMS, "Last-Event-ID names no stream of this session")
    exchange.name_events(event_name(*lost), primed=primed)
    request = Request(lost[0], "tools/call", {"_meta": {"progressToken": lost[1]}})
    serve = partial(sessionful.resume, face, inbound, session, request, exchange)
    answering = asyncio.create_task(answer(exchange, request, serve, stateless=False))
    longest_s = _longest_s(face) if primed else None
    if not await see_through(exchange, answering, client, patience_s=0, longest_s=longest_s):
        face.leave(answering)


def _longest_s(face: Face) -> float:
    return face.operations.settings.mcp_stream.total_seconds()


async def _delete(face: Face, inbound: Inbound, exchange: Exchange) -> None:
    """End a session, and the run that was started for it, with its calls."""
    session = await sessionful.session_of(face, inbound)
    inbound.refuse("initialize")
    await face.sessions.end(session)
    if (listening := face.listening.get(session.id)) is not None:
        listening.cancel()
    if session.owns_run:
        await face.operations.end_run(inbound.actor, session.run_id, cancel=True)
    await exchange.done()


def _route(path: str) -> Route:
    route = Route(path, Endpoint(path), methods=["POST", "GET", "DELETE"], include_in_schema=False)
    assert route.methods is not None
    route.methods.discard("HEAD")  # added beside GET, which streams here
    return route


router = APIRouter(routes=[_route("/mcp"), _route("/mcp/servers/{name}")])
