"""The Tasks extension (``io.modelcontextprotocol/tasks``): calls as tasks, from the record alone.

A task is a call; its id is the call's, so there is nothing to make and nothing to lose: the row was
committed before the client heard of it, and any process answers for it. Calls are kept, so a task
has no end of its own (``ttlMs`` is null).

Specification: modelcontextprotocol/ext-tasks, specification/draft/tasks.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from api.mcp.asked import (
    INVALID_PARAMS,
    MISSING_CAPABILITY,
    TASKS,
    Asked,
    ClientInfo,
    Revision,
    RpcError,
)
from api.mcp.request_state import responses
from api.mcp.results import result_of
from api.mcp.uris import shown_result
from api.waiting import Row, ended
from registry.calls import CallState
from registry.errors import Code, FleetError
from registry.questions import Question

NAMED_BY: Final = {"tasks/get": "taskId", "tasks/update": "taskId", "tasks/cancel": "taskId"}
"""The parameter that the header ``Mcp-Name`` repeats, by method."""

_CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
_POLL_MS: Final = 1_000
_POLL_APPROVAL_MS: Final = 5_000
_INSTANTS: Final = ("created_at", "started_at", "stop_requested_at", "decided_at", "ended_at")
_ACKNOWLEDGED: Final = {"resultType": "complete"}


# -- whether the client knows tasks


def declared(asked: Asked) -> bool:
    """Say whether this very request declares the extension: nothing else counts."""
    if asked.revision.stateless:
        return asked.client.has_tasks
    named = asked.meta.get(_CAPABILITIES)
    return isinstance(named, dict) and ClientInfo(capabilities=named).has_tasks


def missing_capability() -> RpcError:
    """Return the error for a client that does not declare the extension, where that is needed."""
    return RpcError(
        MISSING_CAPABILITY,
        f"this needs a client that declares the extension {TASKS}",
        {"requiredCapabilities": {"extensions": {TASKS: {}}}},
    )


# -- a call as a task


def created(row: Row, revision: Revision) -> dict[str, Any]:
    """Return the ``CreateTaskResult`` for a call that is in the record."""
    status, _ = _status(row, [], revision)
    return {**_task(row, status), "resultType": "task"}


def detailed(row: Row, questions: Sequence[Question], revision: Revision) -> dict[str, Any]:
    """Return a call as a ``DetailedTask``, with its result, its error or what it asks."""
    status, said = _status(row, questions, revision)
    return {**_task(row, status), **said}


def input_requests(questions: Sequence[Question]) -> dict[str, Any]:
    """Return questions as the protocol hands them to whoever is to answer."""
    return {it.key: {"method": it.method, "params": it.params} for it in questions}


def _status(
    row: Row, questions: Sequence[Question], revision: Revision
) -> tuple[str, dict[str, Any]]:
    """Return a call's status as a task, and what is said beside it."""
    state = CallState(row["state"])
    if state is CallState.STOPPED:
        return "cancelled", {}
    if state.final:
        try:
            return "completed", {"result": result_of(row, revision)}
        except RpcError as error:
            return "failed", {"error": error.as_dict(), "statusMessage": error.message}
    if questions:
        return "input_required", {"inputRequests": input_requests(questions)}
    return "working", {}


def _task(row: Row, status: str) -> dict[str, Any]:
    awaits = row["state"] == CallState.AWAITING_APPROVAL
    body = {
        "taskId": row["id"],
        "status": status,
        "createdAt": _iso(row["created_at"]),
        "lastUpdatedAt": _iso(max(row[name] for name in _INSTANTS if row.get(name) is not None)),
        "ttlMs": None,
        "pollIntervalMs": _POLL_APPROVAL_MS if awaits else _POLL_MS,
    }
    message = _message(row)
    return body if message is None else {**body, "statusMessage": message}


def _message(row: Row) -> str | None:
    state = CallState(row["state"])
    if state is CallState.AWAITING_APPROVAL:
        return "The call waits for an approval."
    if state is CallState.QUEUED:
        return "The call waits for a worker."
    if state is CallState.RUNNING and row.get("stop_requested_at") is not None:
        return "The call is being stopped."
    if state is CallState.STOPPED:
        return "The call was stopped."
    return None


def _iso(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# -- the methods


async def get_task(asked: Asked) -> dict[str, Any]:
    """Answer ``tasks/get``."""
    row = await row_of(asked, _task_id(asked))
    return {**await as_task(asked, row), **_ACKNOWLEDGED}


async def update_task(asked: Asked) -> dict[str, Any]:
    """Answer ``tasks/update``: hand the answers to the call; what is not asked is passed over."""
    task_id = _task_id(asked)
    given = responses(asked)
    await row_of(asked, task_id)
    if given:
        answers = {key: {"result": value} for key, value in given.items()}
        await asked.operations.answer(asked.actor, task_id, answers)
    return dict(_ACKNOWLEDGED)


async def cancel_task(asked: Asked) -> dict[str, Any]:
    """Answer ``tasks/cancel``: ask the call to stop; one that has ended stays as it is."""
    task_id = _task_id(asked)
    await row_of(asked, task_id)
    await asked.operations.stop_call(asked.actor, task_id)
    return dict(_ACKNOWLEDGED)


def _task_id(asked: Asked) -> str:
    if not declared(asked):
        raise missing_capability()
    task_id = asked.params.get("taskId")
    if not isinstance(task_id, str):
        raise RpcError(INVALID_PARAMS, "taskId: has to be a string")
    return task_id


async def row_of(asked: Asked, task_id: str) -> Row:
    """Return the call that is a task; raise `unknown_call`, also for what is no tool's call."""
    row = await asked.operations.get_call(asked.actor, task_id)
    if row["method"] != "tools/call":
        raise FleetError(Code.UNKNOWN_CALL, f"there is no task {task_id}")
    return row


async def as_task(asked: Asked, row: Row) -> dict[str, Any]:
    """Return a call as a ``DetailedTask``, as it is now."""
    questions = []
    if row["open_questions"] and not ended(row):
        questions = await asked.operations.questions(asked.actor, row["id"])
    task = detailed(row, questions, asked.revision)
    if "result" in task:
        task["result"] = shown_result(asked, str(row["server_name"]), task["result"])
    return task
