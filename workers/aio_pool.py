"""An asyncio execution pool for Celery: tasks are coroutines, concurrency is sessions.

Celery's consumer keeps its thread and its hub; coroutines run on one event loop in one thread
beside it. A `CoroutineTask` is awaited there; when it has ended, Celery's own tracer runs in the
consumer's thread with the outcome known, so that signals, events, results and acks stay Celery's
code.

Invariants:
 1. Celery's callbacks run in the consumer's thread only.
 2. A request is accepted once, and ends once: by result, by time limit or by terminate.
 3. ``terminate`` of one apply-result cancels exactly its coroutine; neighbours live on.
 4. ``stop`` returns when every coroutine has ended: first the running ones may finish, then they
    are cancelled; what a coroutine does on cancellation is always awaited.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from enum import StrEnum
from functools import partial
from typing import Any, Final, Protocol

import uvloop
from billiard.einfo import ExceptionInfo
from celery.app.task import Task
from celery.app.trace import trace_task
from celery.concurrency.base import BasePool
from celery.exceptions import Terminated
from celery.utils.log import get_logger
from celery.worker.request import Request

logger = get_logger(__name__)

START_TIMEOUT_S: Final = 120.0
CANCEL_TIMEOUT_S: Final = 30.0
JOB: Final = "toolfleet_job"
"""Where a task's request keeps its job."""

USER: Final = "user"
DRAIN: Final = "drain"
TIME_LIMIT: Final = "time_limit"


class Residents(Protocol):
    """What lives on the loop beside the calls: opened before the first, closed after the last."""

    async def open(self) -> None:
        """Start; the pool takes no task before this returns."""

    async def drain(self) -> None:
        """Return when running tasks had their chance to finish; the rest is then cancelled."""

    async def close(self) -> None:
        """Give everything back; called once, when no coroutine is left."""

    def info(self) -> dict[str, Any]:
        """Return figures for `inspect stats` (JSON-ready)."""


class JobState(StrEnum):
    """Where one accepted request is."""

    RUNNING = "running"
    CANCELLING = "cancelling"
    ENDED = "ended"


class Job:
    """One coroutine under way: Celery's apply-result."""

    def __init__(self, pool: AsyncioPool) -> None:
        self._pool = pool
        self.state = JobState.RUNNING
        self.announced = False
        """Celery has announced the end itself (revoked, hard time limit): nothing is to follow."""
        self.terminated_by = USER
        """Who `terminate` acts for: whoever revoked the request, or a cold shutdown."""
        self.reason: str | None = None
        """Why the coroutine is being cancelled, once it is; the first reason stands."""
        self.task: asyncio.Task[Any] | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.began = time.monotonic()
        self.ran_s = 0.0
        """How long it took, once it has ended."""

    def terminate(self, signal: int | None = None) -> None:
        """Cancel this coroutine and no other (called by Celery's revoke, in its thread)."""
        if self.state is not JobState.ENDED:
            self.announced = True
            self._pool.loop.call_soon_threadsafe(self.cancel, self.terminated_by)

    def cancel(self, reason: str) -> None:
        """Cancel the coroutine and say why (in the loop's thread); later reasons are dropped."""
        if self.state is not JobState.RUNNING:
            return
        self.state = JobState.CANCELLING
        self.reason = reason
        if self.task is not None:
            self.task.cancel()

    def repeat(self) -> Any:
        """Return or raise what the coroutine did."""
        assert self.task is not None
        return self.task.result()


class AsyncioPool(BasePool):  # type: ignore[misc]
    """Run coroutine tasks on one event loop; see the module's invariants."""

    body_can_be_buffer = True
    signal_safe = False
    task_join_will_block = False

    residents: Residents | None = None
    """The process's residents; set before the worker starts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="calls", daemon=True)
        self._jobs: set[Job] = set()
        self._ended: deque[Callable[[], None]] = deque()
        self._ended_signal = threading.Event()
        self._settling = False
        self._hub: Any = None

    # -- life of the pool -------------------------------------------------------------------

    def on_start(self) -> None:
        """Start the loop and open the residents; raise what keeps them from opening."""
        self._thread.start()
        if self.residents is not None:
            self._await(self.residents.open(), START_TIMEOUT_S)

    def register_with_event_loop(self, loop: Any) -> None:
        """Remember the consumer's hub: ended jobs are settled in its thread."""
        self._hub = loop

    def on_stop(self) -> None:
        """Drain: let running coroutines finish, cancel the rest, close the residents."""
        if self.residents is not None:
            self._settle_while(asyncio.run_coroutine_threadsafe(self.residents.drain(), self.loop))
        self._stop_jobs()

    def on_terminate(self) -> None:
        """Stop at once: cancel every coroutine, still awaiting what it does on cancellation."""
        self._stop_jobs()

    def _stop_jobs(self) -> None:
        if not self._thread.is_alive():
            return
        self._settle_while(asyncio.run_coroutine_threadsafe(self._cancel_all(), self.loop))
        if self.residents is not None:
            try:
                self._await(self.residents.close(), CANCEL_TIMEOUT_S)
            except Exception:
                logger.exception("closing the worker's residents failed")
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CANCEL_TIMEOUT_S)

    async def _cancel_all(self) -> None:
        jobs = list(self._jobs)  # the consumer's thread goes on settling, and discarding, them
        for job in jobs:
            job.cancel(DRAIN)
        tasks = [job.task for job in jobs if job.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_S)

    def _settle_while(self, future: Any) -> None:
        """Settle ended jobs here until ``future`` is done: the hub does not turn while stopping."""
        future.add_done_callback(lambda _: self._ended_signal.set())
        while not future.done() or self._ended:
            self._ended_signal.wait(1.0)
            self._ended_signal.clear()
            self._settle()
        if future.exception() is not None:
            logger.error("stopping the pool: %r", future.exception())

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _await(self, coroutine: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)

    # -- life of a job ----------------------------------------------------------------------

    def on_apply(
        self,
        target: Any,
        args: Any = None,
        kwargs: Any = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        timeout_callback: Callable[..., Any] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> Job:
        """Accept a request and start its coroutine; return the job that can cancel it."""
        name, task_id, request, *_ = args
        task = self.app.tasks[name]
        job = request[JOB] = Job(self)
        request["is_eager"] = False
        self._jobs.add(job)
        if accept_callback is not None:
            accept_callback(os.getpid(), time.monotonic())
        limits = [
            (limit_s, soft) for limit_s, soft in ((soft_timeout, True), (timeout, False)) if limit_s
        ]
        settle = partial(self._end, job, task, task_id, request, callback)
        self.loop.call_soon_threadsafe(
            self._start, job, task, request, settle, limits, timeout_callback
        )
        return job

    def _start(
        self,
        job: Job,
        task: Any,
        request: dict[str, Any],
        settle: Callable[[asyncio.Task[Any]], None],
        limits: list[tuple[float, bool]],
        timeout_callback: Callable[..., Any] | None,
    ) -> None:
        """Start a job's coroutine, its time limits and its settling (in the loop's thread)."""
        job.task = self.loop.create_task(_body(task, request))
        if job.state is JobState.CANCELLING:
            job.task.cancel()
        for limit_s, soft in limits:
            job.timers.append(
                self.loop.call_later(
                    limit_s, self._on_time_limit, job, timeout_callback, limit_s, soft
                )
            )

        def over(done: asyncio.Task[Any]) -> None:
            job.ran_s = time.monotonic() - job.began
            self._hand_over(partial(settle, done))

        job.task.add_done_callback(over)

    def _on_time_limit(self, job: Job, callback: Any, limit_s: float, soft: bool) -> None:
        """Cancel a job past its limit; only a hard limit ends the request itself."""
        if job.state is not JobState.RUNNING:
            return
        job.announced = not soft
        job.cancel(TIME_LIMIT)
        if callback is not None:
            self._hand_over(partial(callback, soft, limit_s))

    def _hand_over(self, settle: Callable[[], None]) -> None:
        self._ended.append(settle)
        self._ended_signal.set()
        if self._hub is not None and not self._settling:
            self._settling = True
            self._hub.call_soon(self._settle)

    def _settle(self) -> None:
        self._settling = False  # before the loop below: what is handed over later wakes us again
        while self._ended:
            try:
                self._ended.popleft()()
            except Exception:
                logger.exception("settling a task failed")

    def _end(
        self,
        job: Job,
        task: Any,
        task_id: str,
        request: dict[str, Any],
        callback: Any,
        done: asyncio.Task[Any],
    ) -> None:
        """Tell Celery how a job ended (in the consumer's thread)."""
        job.state = JobState.ENDED
        self._jobs.discard(job)
        for timer in job.timers:
            timer.cancel()
        if job.announced or callback is None:
            return
        if done.cancelled():
            callback((1, _einfo(Terminated(job.reason)), 0.0))
            return
        try:
            # It times itself alone: the coroutine has run before.
            result, failed, _, shown = trace_task(
                task, task_id, request["args"], request["kwargs"], request, app=self.app
            )
        except Exception as error:  # noqa: BLE001 - what Celery cannot trace has to end as well
            logger.warning("a message of task %s makes no sense", task.name)
            callback((1, _einfo(error), 0.0))
            return
        callback((1, result, job.ran_s) if failed else (0, shown, job.ran_s))

    # -- figures ----------------------------------------------------------------------------

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Do nothing: every job shares this process; the apply-result cancels its own."""

    def _get_info(self) -> dict[str, Any]:
        info = dict(super()._get_info())
        info["running"] = len(self._jobs)
        info["threads"] = 1
        info["processes"] = [os.getpid()]
        if self.residents is not None:
            info.update(self.residents.info())
        return info


class CoroutineRequest(Request):  # type: ignore[misc]
    """A request that tells a cold shutdown, which nobody asked for, from a revoke."""

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Cancel the request because the worker stops at once."""
        job = self._apply_result() if self._apply_result is not None else None
        if job is not None:
            job.terminated_by = DRAIN
        super().cancel(pool, signal, emit_retry)


class CoroutineTask(Task):  # type: ignore[misc]
    """A Celery task whose body is the coroutine method ``coroutine(request, *args, **kwargs)``."""

    abstract = True
    Request = CoroutineRequest

    async def coroutine(self, request: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Do the work, on the pool's loop."""
        raise NotImplementedError

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Repeat for Celery's tracer what the coroutine did."""
        return getattr(self.request, JOB).repeat()


async def _body(task: Any, request: dict[str, Any]) -> Any:
    # In here, so that arguments which do not fit end the job instead of keeping its place for good.
    return await task.coroutine(request, *request["args"], **request["kwargs"])


def _einfo(error: Exception) -> Any:
    try:
        raise error
    except type(error):
        return ExceptionInfo()
