"""Requests of the revisions that have sessions: 2025-03-26, 2025-06-18 and 2025-11-25.

A session is served by whichever process is asked. What a client breaks off runs on: it is stopped
by ``notifications/cancelled`` alone, and its answer is there for who comes back for it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Final

from api.mcp import calling, handshake, headers
from api.mcp.asked import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    Answered,
    Asked,
    ClientInfo,
    Revision,
    RpcError,
    rpc_error,
)
from api.mcp.changes import Subscription
from api.mcp.exchange import HEARTBEAT_EVERY_S, Exchange
from api.mcp.face import Face, Inbound
from api.mcp.messages import Id, Notification, Refusal, Request, Response
from api.mcp.methods import CALLS
from api.mcp.sessions import asked_by, call_id_of, new_id
from api.mcp.stateless import RUN_HEADER, trace_of, unsupported
from registry.errors import Code, FleetError
from registry.mcp_sessions import McpSession
from registry.runs import run_is_open

SESSION_HEADER: Final = "mcp-session-id"
CANCEL_EVERY_S: Final = 0.1
_REVISIONS: Final = frozenset(revision.value for revision in Revision if not revision.stateless)


async def initialize(
    face: Face, inbound: Inbound, request: Request, exchange: Exchange
) -> Answered:
    """Answer ``initialize``: begin a session, with a run of its own or the one a header names."""
    inbound.refuse(request.method)
    revision = handshake.negotiated(request.params)
    client = handshake.client_of(
        request.params.get("clientInfo"), request.params.get("capabilities", {})
    )
    stored, actor = handshake.stored(client), inbound.actor
    named = inbound.headers.get(RUN_HEADER)
    if named is not None:
        run = await face.operations.open_run(actor, named)
        run_is_open(run)
    else:
        run = await face.standing.start(actor, inbound.way)
    session = McpSession(
        id=new_id(),
        tenant_id=run.tenant,
        run_id=run.id,
        owns_run=named is None,
        actor=actor.label,
        server_name=inbound.server,
        revision=revision.value,
        client=stored,
    )
    await face.sessions.start(session)
    exchange.headers += ((SESSION_HEADER.encode(), session.id.encode()),)
    return handshake.initialized(revision, face.with_session)


async def session_of(face: Face, inbound: Inbound) -> McpSession:
    """Return the session that a request belongs to; raise `Refusal` where there is none."""
    version = inbound.headers.get(headers.VERSION)
    if version is not None and version not in _REVISIONS:
        error = unsupported(version)
        raise Refusal(400, error.code, error.message, data=error.data)
    session_id = inbound.headers.get(SESSION_HEADER)
    if session_id is None:
        raise Refusal(400, INVALID_REQUEST, "the header Mcp-Session-Id is missing: initialize")
    session = await face.sessions.find(inbound.actor, session_id, inbound.server)
    if session is None:
        raise Refusal(404, INVALID_REQUEST, "there is no such session: initialize again")
    return session


async def serve(
    face: Face, inbound: Inbound, session: McpSession, request: Request, exchange: Exchange
) -> Answered:
    """Return what answers a session's request; raise what is wrong with it."""
    inbound.refuse(request.method)
    if request.method == "logging/setLevel":
        await face.sessions.set_log_level(session, handshake.level_of(request.params.get("level")))
        return {}
    handler = face.with_session.get(request.method)
    if handler is None:
        raise RpcError(METHOD_NOT_FOUND, f"there is no method {request.method!r}")
    key = (session.id, request.id)
    if key in face.under_way:
        raise _reused(request.id)
    face.under_way.add(key)
    try:
        return await handler(asked_in(face, inbound, session, request, exchange))
    except RpcError as error:
        if _is_of_a_used_id(error):
            raise _reused(request.id) from error
        raise
    finally:
        face.under_way.discard(key)


def asked_in(
    face: Face, inbound: Inbound, session: McpSession, request: Request, exchange: Exchange
) -> Asked:
    """Return a session's request as its handler sees it."""
    client = ClientInfo(**session.client)
    streams = exchange.takes_stream
    return Asked(
        operations=face.operations,
        actor=inbound.actor,
        client=client,
        revision=Revision(session.revision),
        id=request.id,
        method=request.method,
        params=request.params,
        run=partial(face.operations.open_run, inbound.actor, session.run_id),
        server=session.server_name,
        call_id=call_id_of(face.key, session.id, request.id) if request.method in CALLS else None,
        log_level=session.log_level,
        traceparent=trace_of(inbound, request),
        notify=exchange.notify if streams else None,
        ask=exchange.ask if streams and client.answers else None,
        session=session.id,
    )


async def subscribe(
    face: Face, inbound: Inbound, session: McpSession, exchange: Exchange
) -> list[Subscription]:
    """Return a session's subscriptions to all that it can be told of."""
    asked = asked_in(face, inbound, session, Request(0, "GET", {}), exchange)
    return await face.subscriptions.to_all(asked)


async def listen(
    face: Face,
    inbound: Inbound,
    session: McpSession,
    exchange: Exchange,
    subscriptions: list[Subscription],
) -> None:
    """Tell a session what it did not ask for, until it ends or the process stops."""
    following = asyncio.create_task(face.subscriptions.watch(subscriptions, exchange.notify))
    older = face.listening.get(session.id)
    if older is not None:
        older.cancel()  # whoever opens a second stream has lost the first one
    face.listening[session.id] = following
    try:
        while not following.done():
            await asyncio.wait({following}, timeout=HEARTBEAT_EVERY_S)
            if await face.sessions.find(inbound.actor, session.id, inbound.server) is None:
                break
    finally:
        following.cancel()
        if face.listening.get(session.id) is following:
            del face.listening[session.id]
        await exchange.end()


async def resume(
    face: Face, inbound: Inbound, session: McpSession, request: Request, exchange: Exchange
) -> Answered:
    """Return what answers a request whose stream was lost; only calls take long enough for that."""
    inbound.refuse(request.method)
    try:
        return await calling.resume(asked_in(face, inbound, session, request, exchange))
    except FleetError as error:
        if error.code is Code.UNKNOWN_CALL:
            raise RpcError(INVALID_PARAMS, "there is no call to go on with") from error
        raise


async def hear(face: Face, inbound: Inbound, session: McpSession, told: Notification) -> None:
    """Take a notification of a session's client."""
    if told.method != "notifications/cancelled":
        return
    request_id = told.params.get("requestId")
    if not isinstance(request_id, str | int) or isinstance(request_id, bool):
        return
    inbound.refuse(told.method)
    await cancel(face, inbound, session, request_id)


async def cancel(face: Face, inbound: Inbound, session: McpSession, request_id: Id) -> None:
    """Stop the call of a session's request, in whatever process that is waited for."""
    call_id = call_id_of(face.key, session.id, request_id)
    while True:
        with suppress(FleetError):
            await face.operations.stop_call(inbound.actor, call_id)
            return
        if (session.id, request_id) not in face.under_way:
            return  # no call, or one that nobody here knows of
        await asyncio.sleep(CANCEL_EVERY_S)  # it is about to be committed


async def take_answer(face: Face, inbound: Inbound, response: Response) -> None:
    """Hand a client's answer on to the call whose server asked; raise `Refusal` for no answer."""
    inbound.refuse("tasks/update")
    named = asked_by(response.id)
    if named is None:
        raise Refusal(400, INVALID_REQUEST, "nobody asked what this is an answer to")
    call_id, number = named
    try:
        await face.operations.answer(inbound.actor, call_id, {number: response.body})
    except FleetError as error:
        told = rpc_error(error)
        raise Refusal(400, told.code, told.message, data=told.data) from error


def _is_of_a_used_id(error: RpcError) -> bool:
    data = error.data if isinstance(error.data, dict) else {}
    known = data.get("details") or {}
    return data.get("code") == Code.IDEMPOTENCY_MISMATCH.code and "call_id" in known


def _reused(request_id: Id) -> RpcError:
    return RpcError(INVALID_REQUEST, f"the id {request_id!r} was used in this session before")
