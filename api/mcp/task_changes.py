"""Changes of tasks, told to whoever listens for them (``subscriptions/listen``, ``taskIds``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from itertools import compress
from typing import Any, Final

from api.mcp.asked import INVALID_PARAMS, Asked, Notify, RpcError
from api.mcp.tasks import as_task, declared, missing_capability, row_of
from api.waiting import LOOK_EVERY_S, Hint
from registry.errors import Code, FleetError

NOTIFICATION: Final = "notifications/tasks"
MOST_WATCHED: Final = 100
"""Tasks that one subscription is about at most."""
_ENDED: Final = frozenset({"completed", "failed", "cancelled"})


class TaskChanges:
    """Tells clients of their tasks: a source of subscriptions."""

    async def subscribe(self, asked: Asked, wanted: Mapping[str, Any]) -> TaskSubscription | None:
        """Return the part of a filter that is about tasks, if it has one.

        Tasks that are not its tenant's are left out, and those beyond `MOST_WATCHED`. Raises
        `RpcError` for a client that does not declare the extension, and for what is no list of ids.
        """
        if "taskIds" not in wanted:
            return None
        if not declared(asked):
            raise missing_capability()
        ids = wanted["taskIds"]
        if not isinstance(ids, list) or not all(isinstance(it, str) for it in ids):
            raise RpcError(INVALID_PARAMS, "taskIds: has to be a list of strings")
        first = list(dict.fromkeys(ids))[:MOST_WATCHED]
        known = await asyncio.gather(*(_is_known(asked, task_id) for task_id in first))
        return TaskSubscription(asked, list(compress(first, known)))


@dataclass(frozen=True)
class TaskSubscription:
    """The tasks that a client is told of."""

    asked: Asked
    task_ids: list[str]

    @property
    def honoured(self) -> dict[str, Any]:
        """Return the part of the filter that is served."""
        return {"taskIds": self.task_ids}

    async def watch(self, tell: Notify) -> None:
        """Tell of each task as it is, and again whenever it changes, until all have ended."""
        async with aclosing(tasks_changed(self.asked, self.task_ids)) as changes:
            async for task in changes:
                await tell(NOTIFICATION, task)


async def tasks_changed(
    asked: Asked, task_ids: Sequence[str]
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield a ``DetailedTask`` for each task as it is, and again whenever it changes.

    The tasks are known to be the caller's. Ends when all of them have ended.
    """
    room, told = asked.operations.room, dict[str, dict[str, Any]]()
    with ExitStack() as stack:
        hint = Hint()
        for task_id in task_ids:
            stack.enter_context(room.expect(task_id, hint))
        waiting = set(task_ids)
        while waiting and not room.dismissed:
            for task in await _look(asked, sorted(waiting)):
                if told.get(task["taskId"]) != task:
                    told[task["taskId"]] = task
                    yield task
                if task["status"] in _ENDED:
                    waiting.discard(task["taskId"])
            if waiting:
                await hint.within(LOOK_EVERY_S)


async def _look(asked: Asked, task_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return tasks as they are; none while Postgres is away."""
    try:
        rows = await asyncio.gather(*map(asked.operations.room.read, task_ids))
        return [await as_task(asked, row) for row in rows if row is not None]
    except FleetError:
        return []


async def _is_known(asked: Asked, task_id: str) -> bool:
    try:
        await row_of(asked, task_id)
    except FleetError as error:
        if error.code is Code.UNKNOWN_CALL:
            return False
        raise
    return True
