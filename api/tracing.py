"""The API's part in a call's trace: the request that brought it, its check, its commit.

A trace begins with the request that submits a call, so requests that submit none have no trace,
and cost nothing. Of the calls of one request (a batch) the first is the request's, the others
begin with their own check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.calls import TOOLS_CALL, NewCall
from registry.telemetry import (
    ARGUMENTS_BYTES,
    CALL_ID,
    RUN_ID,
    SERVER,
    TENANT,
    TOOL,
    Kind,
    Trace,
    Tracer,
    code_of,
    current,
    work_on,
)

_SERVER_ERROR: Final = 500
_FAILED: Final = frozenset({"failed", "expired", "outcome_unknown"})
_ALONE: Final = "submit"
"""The first step of a trace that is no request's."""


class _Request:
    """An HTTP request under way, and the trace that it has once it submits a call."""

    __slots__ = ("began", "over", "status", "trace")

    def __init__(self, tracer: Tracer) -> None:
        self.began = tracer.clock()
        self.over = False
        self.status = 0
        self.trace: Trace | None = None


_request: Final[ContextVar[_Request | None]] = ContextVar("toolfleet_request", default=None)


class Traced:
    """ASGI middleware: what takes a request to submit a call is the first step of its trace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and end its trace with it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        tracer: Tracer = scope["app"].state.operations.client.tracer
        request = _Request(tracer)
        _request.set(request)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            if (trace := request.trace) is not None:
                _end(tracer, trace, scope, request.status)
            request.over = True


def _end(tracer: Tracer, trace: Trace, scope: Scope, status: int) -> None:
    route = getattr(scope.get("route"), "path", "")
    trace.own |= {
        "http.request.method": scope["method"],
        "http.route": route,
        "http.response.status_code": status,
    }
    trace.name = trace.name or f"{scope['method']} {route}"
    if status >= _SERVER_ERROR or not status:
        trace.error = trace.error or str(status)
    tracer.end(trace)


@contextmanager
def submitting(tracer: Tracer, traceparent: str | None) -> Iterator[Trace]:
    """Yield the trace of a call that is being checked: its caller's, or a new one.

    This task, and those it starts, work on the call from then on.
    """
    request = _request.get()
    if request is not None and not request.over and request.trace is None:
        trace = tracer.begin("", Kind.SERVER, traceparent, began=request.began)
        request.trace = trace
    else:
        trace = tracer.begin(_ALONE, Kind.SERVER, traceparent)
    work_on(trace)
    try:
        with trace.step("check"):
            yield trace
    except BaseException as error:
        if trace.name == _ALONE:
            trace.error = code_of(error)
            tracer.end(trace)
        raise


def describe(trace: Trace, call: NewCall) -> None:
    """Say which call a trace is of."""
    trace.attributes = {
        CALL_ID: call.id,
        RUN_ID: call.run_id,
        TENANT: call.tenant_id,
        SERVER: call.server_name,
        TOOL: call.tool if call.method == TOOLS_CALL else call.method,
    }
    trace.own[ARGUMENTS_BYTES] = call.arguments_bytes


@contextmanager
def committing(tracer: Tracer) -> Iterator[None]:
    """Note the commit of the call that this task works on."""
    trace = current()
    if trace is None:
        yield
        return
    try:
        with trace.step("submit"):
            yield
    except BaseException as error:
        trace.error = code_of(error)
        raise
    finally:
        if trace.name == _ALONE:
            tracer.end(trace)


def saw(row: Mapping[str, Any]) -> None:
    """Keep the trace of the call that this task works on if it was seen to fail."""
    if row["state"] in _FAILED and (trace := current()) is not None:
        trace.keep = True


def name_after_mcp(method: str, revision: str, session: str | None) -> None:
    """Call the request that this task answers what it is as a message of MCP."""
    trace = current()
    if trace is None or trace.closed:
        return
    tool = trace.attributes.get(TOOL) if method == TOOLS_CALL else None
    trace.name = f"{method} {tool}" if tool else method
    trace.own |= {"mcp.method.name": method, "mcp.protocol.version": revision}
    if session is not None:
        trace.own["mcp.session.id"] = session
    if tool:
        trace.own |= {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool}
