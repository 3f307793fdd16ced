"""What a worker's part in a call's trace says of it: names after OpenTelemetry's conventions."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from registry.calls import TOOLS_CALL, CallState, Claim, Ending
from registry.database import to_json
from registry.telemetry import (
    ARGUMENTS_BYTES,
    ATTEMPT,
    CALL_ID,
    RESULT_BYTES,
    RUN_ID,
    SERVER,
    TENANT,
    TOOL,
    Kind,
    Step,
    Trace,
)
from workers.session import Session, ToolResult

_WELL: Final = frozenset({CallState.SUCCEEDED, CallState.QUEUED})


def begin(trace: Trace, claim: Claim, received: float) -> None:
    """Describe the call that was just claimed; ``received`` is on the trace's clock."""
    now, trace.began = trace.began, queued_at(claim.queue_wait_s, received, trace.began)
    trace.attributes = {
        CALL_ID: claim.id,
        RUN_ID: claim.run_id,
        TENANT: claim.tenant_id,
        SERVER: claim.server_name,
        TOOL: claim.tool if claim.method == TOOLS_CALL else claim.method,
        ATTEMPT: claim.attempts,
    }
    trace.step("queue wait", began=trace.began).ended = received
    trace.step("claim", began=received).ended = now


def queued_at(wait_s: float, received: float, claimed: float) -> float:
    """Return when a call was queued, on the clock that read when it was received and claimed.

    Its wait is the record's, whose clock stopped while it was claimed: counted back from when it
    was received, a slow claim would have it queued before the request that queued it.
    """
    return min(received, claimed - max(wait_s, 0.0))


def asking(trace: Trace, method: str, name: str, session: Session) -> Step:
    """Begin the step in which a server is asked; ``name`` is that of the tool, if it is one."""
    is_tool = method == TOOLS_CALL
    step = trace.step(f"{method} {name}" if is_tool else method, Kind.CLIENT)
    about = {
        "mcp.method.name": method,
        "mcp.protocol.version": session.protocol_version,
        "network.transport": "tcp" if session.over_http else "pipe",
    }
    if session.id:
        about["mcp.session.id"] = session.id
    if is_tool:
        about |= {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
    step.attributes = about
    return step


def answered(step: Step, result: ToolResult) -> None:
    """End the step in which a server was asked, and has answered."""
    step.end(attributes={RESULT_BYTES: result.size_bytes})
    if result.is_error:
        step.error = "tool_error"


def end(trace: Trace, claim: Claim, ending: Ending) -> None:
    """Say how the call ended."""
    if ending.state not in _WELL:
        trace.error = str((ending.error or {}).get("code", ending.state.value))
    trace.own = {"toolfleet.call.state": ending.state.value}
    if trace.sampled or trace.error:
        with suppress(ValueError):  # what Postgres takes for a number may be none here
            trace.own[ARGUMENTS_BYTES] = len(to_json(claim.arguments))
