"""The routes of runs and calls."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from api import shown
from api.auth import actor_of
from api.events import EventStream, story
from api.operations import Operations, label
from api.rate_headers import headers_of
from api.waiting import Row, needs_attention
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
from registry.envelope import KeyWrapper
from registry.errors import FleetError
from registry.runs import Exposure, sign_run_token
from registry.submission import Wish
from registry.trace import trace_of
from workers.client import Standing

PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    500: {"description": "A failure inside", "model": shown.Problem}
}
"""Every route answers with problems; `api.contract` says with which."""
PREFER: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "Prefer",
            "in": "header",
            "schema": {"type": "string"},
            "example": "wait=30",
            "description": "Seconds to await the end (RFC 7240); without it the answer is 202",
        }
    ]
}
_EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"event": {"enum": ["state", "progress", "log"]}, "data": {"type": "string"}},
    "required": ["event", "data"],
}
_SUBMIT: Final[dict[str, Any]] = {
    "parameters": [
        *PREFER["parameters"],
        {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        },
    ]
}

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=PROBLEMS)


def operations_of(request: Request) -> Operations:
    """Return the verbs of this process."""
    operations: Operations = request.app.state.operations
    return operations


def keys_of(request: Request) -> KeyWrapper:
    """Return the encryption keys of this process."""
    keys: KeyWrapper = request.app.state.encryption_keys
    return keys


# A request is matched against the routes in this order: the busiest come first.


@router.post(
    "/runs/{run_id}/calls",
    tags=["calls"],
    status_code=202,
    openapi_extra=_SUBMIT,
    responses={
        200: {"description": "It has ended", "model": shown.Call},
        202: {"description": "It has not ended yet", "model": shown.Call},
    },
)
async def submit_call(request: Request, run_id: str, body: SubmitCall) -> Response:
    """Submit a call: 200 with the finished call, else 202 with where to ask for it.

    Where its server asks something, 202 comes at once, with the `questions`.
    """
    operations = operations_of(request)
    wait_s = preferred_wait(request.headers, operations.settings.max_wait)
    actor = actor_of(request)
    wish = Wish(
        tool=body.tool,
        arguments=body.arguments,
        actor=label(actor),
        scopes=actor.scopes,
        idempotency_key=idempotency_key(request.headers, body.idempotency_key),
        timeout_s=body.timeout_s,
        traceparent=traceparent(request.headers),
        trace=trace_of(request.headers),
        answers=frozenset(body.answers),
        log_level=body.log_level,
    )
    standings: list[Standing] = []
    row = await operations.submit(
        actor, run_id, wish, wait_s=wait_s or 0, on_standing=standings.extend, until=needs_attention
    )
    row = await operations.with_questions(actor, row)
    return call_answer(row, {**applied(wait_s), **headers_of(standings)})


@router.get("/calls/{call_id}", tags=["calls"], responses={200: {"model": shown.Call}})
async def get_call(
    request: Request,
    call_id: str,
    wait: Annotated[float, Query(ge=0, description="Seconds to await the end")] = 0,
) -> Response:
    """Show a call: at its end, when its server asks something, or after ``wait`` seconds."""
    operations = operations_of(request)
    wait_s = min(wait, operations.settings.max_wait.total_seconds())
    actor = actor_of(request)
    row = await operations.get_call(actor, call_id, wait_s=wait_s, until=needs_attention)
    return answer(call_body(await operations.with_questions(actor, row)))


@router.post(
    "/calls/{call_id}/cancel", tags=["calls"], responses={200: {"model": shown.StoppedCall}}
)
async def cancel_call(request: Request, call_id: str) -> Response:
    """Stop a call; `answer` says what that could still do."""
    said, row = await operations_of(request).stop_call(actor_of(request), call_id)
    return answer({"answer": said.value, "call": call_body(row)})


@router.get(
    "/calls/{call_id}/events",
    tags=["calls"],
    status_code=200,
    response_class=EventStream,
    responses={
        200: {
            "description": "Events `state`, `progress` and `log`",
            "content": {"text/event-stream": {"schema": _EVENT}},
        }
    },
)
async def call_events(request: Request, call_id: str) -> Response:
    """Follow a call to its end (server-sent events); leaving does not stop the call."""
    operations = operations_of(request)
    actor = actor_of(request)
    row = await operations.get_call(actor, call_id)

    async def whole(row: Row) -> Row:
        with suppress(FleetError):  # the next look may succeed
            row = await operations.with_questions(actor, row)
        return row

    return EventStream(story(operations.room, row, whole))


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


@router.get("/runs/{run_id}/calls", tags=["calls"], responses={200: {"model": shown.Calls}})
async def list_calls(request: Request, run_id: str) -> Response:
    """Show the newest 100 calls of a run, newest first."""
    operations, actor = operations_of(request), actor_of(request)
    run = await operations.get_run(actor, run_id)
    rows = await overview.calls_of_run(operations.database, run.id)
    return answer(
        {"calls": [call_body(await operations.with_questions(actor, row)) for row in rows]}
    )


@router.post("/runs", tags=["runs"], status_code=201, responses={201: {"model": shown.StartedRun}})
async def start_run(request: Request, body: StartRun) -> Response:
    """Start a run, pinned to the tools that its tenant may use now.

    Its `run_token` lets raw Celery clients call its tools; a narrowed key gets none.
    """
    operations, actor = operations_of(request), actor_of(request)
    run = await operations.start_run(
        actor,
        tenant=body.tenant,
        servers=body.servers,
        intent=body.intent,
        limit=body.limit,
        exposure=Exposure(body.exposure),
    )
    token = None
    if actor.scopes is None:  # a token knows of no scopes, and so would reach past them
        token = sign_run_token(run, operations.settings.secret_key.get_secret_value())
    location = {"location": f"/v1/runs/{run.id}"}
    return await run_answer(run, 201, location, run_token=token)


@router.get("/runs/{run_id}", tags=["runs"], responses={200: {"model": shown.Run}})
async def get_run(request: Request, run_id: str) -> Response:
    """Show a run and its tools."""
    return await run_answer(await operations_of(request).get_run(actor_of(request), run_id))


@router.get("/runs/{run_id}/tools", tags=["runs"], responses={200: {"model": shown.FoundTools}})
async def find_tools(
    request: Request,
    run_id: str,
    query: Annotated[str, Query(min_length=1, max_length=LONGEST_INTENT, pattern=r"^[^\x00]*$")],
    limit: Annotated[int, Query(ge=1, le=LARGEST_LIMIT)] = 10,
) -> Response:
    """Show the tools of a run that fit a task best, the best first."""
    operations = operations_of(request)
    run = await operations.get_run(actor_of(request), run_id)
    return answer({"tools": await operations.find_tools(run, query, limit)})


@router.post("/runs/{run_id}/cancel", tags=["runs"], responses={200: {"model": shown.EndedRun}})
async def cancel_run(request: Request, run_id: str) -> Response:
    """Cancel a run: its queued calls never run, its running calls are stopped."""
    return await _end_run(request, run_id, cancel=True)


@router.post("/runs/{run_id}/close", tags=["runs"], responses={200: {"model": shown.EndedRun}})
async def close_run(request: Request, run_id: str) -> Response:
    """Close a run: it takes no more calls; those it has go on."""
    return await _end_run(request, run_id, cancel=False)


async def _end_run(request: Request, run_id: str, *, cancel: bool) -> Response:
    operations, actor = operations_of(request), actor_of(request)
    stopped = await operations.end_run(actor, run_id, cancel=cancel)
    run = await operations.get_run(actor, run_id)
    calls = {answer_.value: count for answer_, count in stopped.items()}
    return await run_answer(run, calls=calls)
