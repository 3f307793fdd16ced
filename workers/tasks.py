"""The two Celery tasks of the fleet: run a call by its id, and submit one from a raw client."""

from __future__ import annotations

from typing import Any

from celery import signals
from celery.exceptions import Ignore

from registry.calls import CallState
from registry.errors import FleetError
from workers.aio_pool import JOB, AsyncioPool, CoroutineTask
from workers.celery_app import CALL_TASK, SUBMIT_TASK, app
from workers.invoke import invoke
from workers.runtime import WorkerRuntime
from workers.steward import StewardRuntime


class CallNotSucceeded(Exception):
    """A call that ended otherwise than `succeeded`; its text is the state, for Flower to show."""


class SubmissionRefused(Exception):
    """A raw client's submission that was refused; its text is the error as JSON."""


class Call(CoroutineTask):
    """Run one committed call; the message carries nothing but its id."""

    name = CALL_TASK
    throws = (CallNotSucceeded,)
    ignore_result = True
    acks_late = True

    async def coroutine(self, request: dict[str, Any], *args: Any, **_: Any) -> None:
        """Run the call; raise `CallNotSucceeded` so that Celery's events tell how it ended."""
        worker = AsyncioPool.residents
        assert isinstance(worker, WorkerRuntime)
        state = await invoke(worker, args[0] if len(args) == 1 else None, request[JOB])
        if state is None:
            raise Ignore
        if state is not CallState.SUCCEEDED:
            raise CallNotSucceeded(state.value)


class Submit(CoroutineTask):
    """Submit a call for a raw Celery client; the steward stores its end as this task's result."""

    name = SUBMIT_TASK
    throws = (SubmissionRefused,)
    ignore_result = False
    acks_late = True

    async def coroutine(
        self,
        request: dict[str, Any],
        run_token: str,
        tool: str,
        arguments: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Commit the call under this task's id; raise `SubmissionRefused` if it may not be."""
        steward = AsyncioPool.residents
        assert isinstance(steward, StewardRuntime)
        try:
            await steward.submit(
                request["id"],
                run_token,
                tool,
                arguments or {},
                idempotency_key,
                timeout_s,
                carrier=request,
            )
        except FleetError as error:
            raise SubmissionRefused(error.as_dict()) from None
        raise Ignore  # the result is stored when the call has ended


app.register_task(Call())
app.register_task(Submit())


@signals.task_revoked.connect(weak=False)  # type: ignore[untyped-decorator]
def on_revoked(
    request: Any = None, terminated: bool = False, expired: bool = False, **_: Any
) -> None:
    """Record a call that Celery discarded before it ran (revoked by id or by run)."""
    residents = AsyncioPool.residents
    if not terminated and not expired and isinstance(residents, WorkerRuntime):
        residents.discarded(str(request.id))
