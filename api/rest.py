"""The routes of runs and calls."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from api.auth import actor_of
from api.errors import PROBLEM
from api.events import EventStream, story
from api.operations import Operations, label
from api.wire import (
    StartRun,
    StrictRoute,
    SubmitCall,
    answer,
    applied,
    call_answer,
    call_body,
    idempotency_key,
    preferred_wait,
    run_answer,
    traceparent,
)
from registry import artifacts, overview
from registry.discovery import LARGEST_LIMIT, LONGEST_INTENT
from registry.runs import Exposure, sign_run_token
from registry.submission import Wish

PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"description": "Refused: see `code` and `hint`", "content": {PROBLEM: {}}},
    "5XX": {"description": "Failed: see `code` and `retryable`", "content": {PROBLEM: {}}},
}
_PREFER: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "Prefer",
            "in": "header",
            "schema": {"type": "string"},
            "example": "wait=30",
            "description": "Seconds to await the end (RFC 7240); without it the answer is 202",
        },
        {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string"}},
    ]
}

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=PROBLEMS)


def operations_of(request: Request) -> Operations:
    """Return the verbs of this process."""
    operations: Operations = request.app.state.operations
    return operations


# A request is matched against the routes in this order: the busiest come first.


@router.post("/runs/{run_id}/calls", tags=["calls"], status_code=202, openapi_extra=_PREFER)
async def submit_call(request: Request, run_id: str, body: SubmitCall) -> Response:
    """Submit a call: 200 with the finished call, else 202 with where to ask for it."""
    operations = operations_of(request)
    wait_s = preferred_wait(request.headers, operations.settings.max_wait)
    actor = actor_of(request)
    wish = Wish(
        tool=body.tool,
        arguments=body.arguments,
        actor=label(actor),
        idempotency_key=idempotency_key(request.headers, body.idempotency_key),
        timeout_s=body.timeout_s,
        traceparent=traceparent(request.headers),
    )
    row = await operations.submit(actor, run_id, wish, wait_s=wait_s or 0)
    return call_answer(row, applied(wait_s))


@router.get("/calls/{call_id}", tags=["calls"])
async def get_call(
    request: Request,
    call_id: str,
    wait: Annotated[float, Query(ge=0, description="Seconds to await the end")] = 0,
) -> Response:
    """Show a call, at its end or after ``wait`` seconds."""
    operations = operations_of(request)
    wait_s = min(wait, operations.settings.max_wait.total_seconds())
    return answer(call_body(await operations.get_call(actor_of(request), call_id, wait_s=wait_s)))


@router.post("/calls/{call_id}/cancel", tags=["calls"])
async def cancel_call(request: Request, call_id: str) -> Response:
    """Stop a call; `answer` says what that could still do."""
    said, row = await operations_of(request).stop_call(actor_of(request), call_id)
    return answer({"answer": said.value, "call": call_body(row)})


@router.get(
    "/calls/{call_id}/events",
    tags=["calls"],
    responses={
        200: {"description": "`state` and `progress`", "content": {"text/event-stream": {}}}
    },
)
async def call_events(request: Request, call_id: str) -> Response:
    """Follow a call to its end (server-sent events); leaving does not stop the call."""
    operations = operations_of(request)
    row = await operations.get_call(actor_of(request), call_id)
    return EventStream(story(operations.room, row))


@router.get(
    "/artifacts/{artifact_id}",
    tags=["calls"],
    responses={
        200: {"description": "A large result, redacted", "content": {"application/json": {}}},
        304: {"description": "It is what If-None-Match names: artifacts never change"},
    },
)
async def get_artifact(
    request: Request, artifact_id: str, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """Send a result that was too large for its call; the call's `_meta` has the address."""
    database, tenant = operations_of(request).database, actor_of(request).tenant
    artifact = await artifacts.find(database, artifact_id, tenant=tenant)
    headers = {"etag": f'"{artifact.sha256}"', "x-content-type-options": "nosniff"}
    if if_none_match == headers["etag"]:
        return Response(status_code=304, headers=headers)
    headers["content-length"] = str(artifact.size_bytes)
    content = artifacts.read(database, artifact)
    return StreamingResponse(content, headers=headers, media_type=artifact.media_type)


@router.get("/runs/{run_id}/calls", tags=["calls"])
async def list_calls(request: Request, run_id: str) -> Response:
    """Show the newest 100 calls of a run, newest first."""
    operations = operations_of(request)
    run = await operations.get_run(actor_of(request), run_id)
    rows = await overview.calls_of_run(operations.database, run.id)
    return answer({"calls": [call_body(row) for row in rows]})


@router.post("/runs", tags=["runs"], status_code=201)
async def start_run(request: Request, body: StartRun) -> Response:
    """Start a run, pinned to the tools that its tenant may use now."""
    operations = operations_of(request)
    run = await operations.start_run(
        actor_of(request),
        tenant=body.tenant,
        servers=body.servers,
        intent=body.intent,
        limit=body.limit,
        exposure=Exposure(body.exposure),
    )
    token = sign_run_token(run, operations.settings.secret_key.get_secret_value())
    location = {"location": f"/v1/runs/{run.id}"}
    return await run_answer(run, 201, location, run_token=token)


@router.get("/runs/{run_id}", tags=["runs"])
async def get_run(request: Request, run_id: str) -> Response:
    """Show a run and its tools."""
    return await run_answer(await operations_of(request).get_run(actor_of(request), run_id))


@router.get("/runs/{run_id}/tools", tags=["runs"])
async def find_tools(
    request: Request,
    run_id: str,
    query: Annotated[str, Query(min_length=1, max_length=LONGEST_INTENT)],
    limit: Annotated[int, Query(ge=1, le=LARGEST_LIMIT)] = 10,
) -> Response:
    """Show the tools of a run that fit a task best, the best first."""
    operations = operations_of(request)
    run = await operations.get_run(actor_of(request), run_id)
    return answer({"tools": await operations.find_tools(run, query, limit)})


@router.post("/runs/{run_id}/cancel", tags=["runs"])
async def cancel_run(request: Request, run_id: str) -> Response:
    """Cancel a run: its queued calls never run, its running calls are stopped."""
    return await _end_run(request, run_id, cancel=True)


@router.post("/runs/{run_id}/close", tags=["runs"])
async def close_run(request: Request, run_id: str) -> Response:
    """Close a run: it takes no more calls; those it has go on."""
    return await _end_run(request, run_id, cancel=False)


async def _end_run(request: Request, run_id: str, *, cancel: bool) -> Response:
    operations, actor = operations_of(request), actor_of(request)
    stopped = await operations.end_run(actor, run_id, cancel=cancel)
    run = await operations.get_run(actor, run_id)
    calls = {answer_.value: count for answer_, count in stopped.items()}
    return await run_answer(run, calls=calls)
