"""Requests since 2026-07-28: each stands for itself, and says who asks in which revision."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from api.mcp import handshake, headers
from api.mcp.asked import (
    INVALID_PARAMS,
    META,
    METHOD_NOT_FOUND,
    UNSUPPORTED_VERSION,
    Answered,
    Asked,
    ClientInfo,
    Revision,
    RpcError,
)
from api.mcp.exchange import Exchange
from api.mcp.face import Face, Inbound
from api.mcp.headers import Repeated
from api.mcp.messages import Message, Refusal, Request
from api.mcp.methods import CALLS
from api.mcp.naming import full_names
from registry.runs import Exposure, Run
from registry.snapshots import Snapshot
from registry.trace import traceparent_of

RUN_HEADER: Final = "toolfleet-run"

_VERSION: Final = META + "protocolVersion"
_INFO: Final = META + "clientInfo"
_CAPABILITIES: Final = META + "clientCapabilities"
_LOG_LEVEL: Final = META + "logLevel"

_repeated: WeakKeyDictionary[Snapshot, dict[str, tuple[Repeated, ...]]] = WeakKeyDictionary()


def is_stateless(inbound: Inbound, message: Message | list[Message]) -> bool:
    """Say whether what came stands for itself: by its header, or by what it says of itself."""
    if inbound.headers.get(headers.VERSION) == Revision.JULY_2026:
        return True
    return isinstance(message, Request) and _VERSION in message.meta


async def serve(
    face: Face, inbound: Inbound, request: Request, exchange: Exchange, call_id: str | None
) -> Answered:
    """Return what answers a request; raise what is wrong with it."""
    client = _checked(inbound, request)
    handler = face.stateless.get(request.method)
    if handler is None:
        raise RpcError(METHOD_NOT_FOUND, f"there is no method {request.method!r}")
    inbound.refuse(request.method)
    level = request.meta.get(_LOG_LEVEL)
    run = run_of(face, inbound, request)
    if request.method == "tools/call":
        _check_parameters(inbound, request, await run())
    return await handler(
        Asked(
            operations=face.operations,
            actor=inbound.actor,
            client=client,
            revision=Revision.JULY_2026,
            id=request.id,
            method=request.method,
            params=request.params,
            run=run,
            server=inbound.server,
            call_id=call_id,
            log_level=None if level is None else handshake.level_of(level),
            traceparent=trace_of(inbound, request),
            notify=exchange.notify if exchange.takes_stream else None,
        )
    )


def _checked(inbound: Inbound, request: Request) -> ClientInfo:
    """Return who asks; raise what is wrong with how a request says it, in headers and body."""
    meta = request.meta
    version, said = meta.get(_VERSION), inbound.headers.said(headers.VERSION)
    if not isinstance(version, str):
        raise _incomplete(request, _VERSION)
    if said is None:
        raise headers.mismatch("the header MCP-Protocol-Version is missing")
    if said != version:
        raise headers.mismatch(f"MCP-Protocol-Version is {said!r}, and the body's {version!r}")
    if version != Revision.JULY_2026:
        raise unsupported(version)
    if _CAPABILITIES not in meta:
        raise _incomplete(request, _CAPABILITIES)
    headers.check(inbound.headers, request)
    try:
        return handshake.client_of(meta.get(_INFO), meta[_CAPABILITIES])
    except RpcError as error:
        raise Refusal(400, error.code, error.message, request.id) from error


def unsupported(version: str) -> RpcError:
    """Return the error for a revision that is not spoken here, or not in this way."""
    data = {"supported": handshake.SUPPORTED, "requested": version}
    return RpcError(UNSUPPORTED_VERSION, "Unsupported protocol version", data)


def _incomplete(request: Request, name: str) -> Refusal:
    return Refusal(400, INVALID_PARAMS, f"params._meta lacks {name!r}", request.id)


def run_of(face: Face, inbound: Inbound, request: Request) -> Callable[[], Awaitable[Run]]:
    """Return how to come by the run that a request belongs to."""
    known: list[Run] = []

    async def run() -> Run:
        if not known:
            known.append(await _run_of(face, inbound, request))
        return known[0]

    return run


async def _run_of(face: Face, inbound: Inbound, request: Request) -> Run:
    named = inbound.headers.get(RUN_HEADER)
    if named is not None:
        return await face.operations.open_run(inbound.actor, named)
    way = inbound.way
    if request.method not in CALLS:
        return await face.standing.get(inbound.actor, way, now=True)
    run = await face.standing.get(inbound.actor, way)
    name = request.params.get("name")
    if request.method == "tools/call" and isinstance(name, str) and not _has(run, way.server, name):
        # It may have come within the last second.
        run = await face.standing.get(inbound.actor, way, now=True)
    return run


def _has(run: Run, server: str | None, name: str) -> bool:
    if run.exposure is Exposure.SEARCH:
        return True
    return name in (run.tools if server is None else full_names(run.manifest, server))


def trace_of(inbound: Inbound, request: Request) -> str | None:
    """Return the trace that a request belongs to, from its ``_meta`` or else its headers."""
    found = traceparent_of(request.meta)
    return found or traceparent_of({"traceparent": inbound.headers.get("traceparent")})


def _check_parameters(inbound: Inbound, request: Request, run: Run) -> None:
    """Raise `HeaderMismatch` where headers do not say what a call's arguments say."""
    name, arguments = request.params.get("name"), request.params.get("arguments")
    if run.exposure is Exposure.SEARCH or not isinstance(name, str):
        return
    if inbound.server is not None:
        name = full_names(run.manifest, inbound.server).get(name, "")
    tool = run.tools.get(name)
    if tool is None:
        return
    known = _repeated.setdefault(run.manifest, {})
    if name not in known:
        known[name] = headers.repeated_in(tool.input_schema)
    if known[name]:
        given: dict[str, Any] = arguments if isinstance(arguments, dict) else {}
        headers.check_parameters(inbound.headers, given, known[name])
