"""What a worker process holds: its lease, the server's pools and breakers, its figures.

Invariants:
 1. A worker whose lease has lapsed dispatches nothing: the steward may have given its calls away.
 2. The current version's pool is warm before the first message is taken.
 3. Draining: no new borrow, what waits goes back to the queue, what runs may finish.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from registry import calls, catalog, leases
from registry.calls import CallState, Claim, Ending
from registry.database import Database, GroupCommit
from registry.definitions import Delivery, ServerDefinition
from registry.errors import Code, FleetError
from registry.ingest import ToolRow, get_tool, mark_stale
from registry.settings import Settings
from workers import breaker_redis
from workers.aio_pool import USER, Job
from workers.breaker import Breaker, MemoryStore
from workers.breaker_redis import FallbackStore, RedisStore
from workers.client import FleetClient, Message
from workers.figures import Figures
from workers.pool import SessionKey, SessionPool
from workers.refresh import refresh
from workers.session import Session

logger = logging.getLogger("toolfleet.worker")

FINISH_PATIENCE_S: Final = 60.0
FINISH_PAUSE_S: Final = 0.5
WATCH_EVERY_S: Final = 1.0
LEASE_LOST: Final = "lease_lost"


@dataclass(frozen=True)
class ServedVersion:
    """One server version in this process: its definition, warm sessions and breaker."""

    id: int
    definition: ServerDefinition
    pool: SessionPool[Session]
    breaker: Breaker

    @property
    def key(self) -> SessionKey:
        """Return the pool key of sessions without a tenant's credential."""
        return SessionKey(self.id)

    def arguments(self, claim: Claim, tool: str) -> dict[str, Any]:
        """Return the arguments to send; a `keyed` tool gets the call id as its idempotency key."""
        rule = self.definition.tools.get(tool)
        if claim.delivery is Delivery.KEYED and rule is not None and rule.idempotency_argument:
            return {**claim.arguments, rule.idempotency_argument: claim.id}
        return claim.arguments


class WorkerRuntime:
    """The residents of one worker process (see `workers.aio_pool.Residents`)."""

    def __init__(self, server: str, settings: Settings) -> None:
        self.server = server
        self.settings = settings
        self.id = _worker_id(server)
        self.figures = Figures(server)
        self.database = Database(settings.database_url, pool_size=3, application=f"worker {server}")
        self.client = FleetClient(settings.redis_url)
        self._breaker_redis = breaker_redis.connect(settings.redis_url)
        self._breakers = FallbackStore(RedisStore(self._breaker_redis), MemoryStore())
        self._served: dict[int, asyncio.Future[ServedVersion]] = {}
        self._current: int | None = None
        self._tools: dict[int, ToolRow] = {}
        self._running: dict[str, Job] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lease_until = 0.0
        self._idle = asyncio.Event()
        self._idle.set()
        self._background: set[asyncio.Task[None]] = set()
        self._claims: GroupCommit[str, Claim | None] = GroupCommit(self._claim_batch)
        self._endings: GroupCommit[Ending, bool] = GroupCommit(self._finish_batch)

    # -- life -------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take a lease, warm the current version's pool, start the watches.

        A server that does not start is no reason not to: its calls then end with a typed error.
        """
        self._loop = asyncio.get_running_loop()
        await self._take_lease()
        self._spawn(self._keep_lease())
        try:
            await self._follow_current()
        except FleetError as error:
            logger.warning("server %s is not ready: %s", self.server, error.message)
        self._spawn(self._watch())
        logger.info("worker %s is ready", self.id)

    async def drain(self) -> None:
        """Let running calls finish within the grace; send back what waits for a session."""
        for served in await self._all_served():
            self._spawn(served.pool.drain())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), self.settings.drain_grace.total_seconds())

    async def close(self) -> None:
        """Close sessions, give the lease up, close connections."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for served in await self._all_served():
            await served.pool.close()
            await served.breaker.close()
        with suppress(FleetError):
            await leases.close_worker(self.database, self.id)
        await self._breakers.close()
        await self._breaker_redis.aclose()
        await self.client.close()
        await self.database.close()

    def info(self) -> dict[str, Any]:
        """Return what `inspect stats` and Flower show of this worker."""
        pools = {}
        for future in self._served.values():
            if future.done() and not future.exception():
                served = future.result()
                figures = asdict(served.pool.stats())
                del figures["recent_waits_s"]
                pools[f"{served.definition.name}@{served.definition.version}"] = figures
        return {"worker": self.id, "server": self.server, "sessions": pools}

    # -- what a call needs ------------------------------------------------------------------

    async def claim(self, call_id: str) -> Claim | None:
        """Claim a call, sharing a commit with others; None when it is not to be had."""
        try:
            claim = await self._claims.add(call_id)
        except FleetError as error:
            logger.warning("call %s not claimed: %s", call_id, error.message)
            return None  # the row is still queued: the steward sends its message again
        if claim is not None:
            self.figures.queue_wait.observe(max(claim.queue_wait_s, 0.0))
        return claim

    async def ended_before(self, call_id: str) -> CallState | None:
        """Return the state of a call that was stopped or expired before it was claimed."""
        try:
            row = (await calls.read(self.database, [call_id])).get(call_id, {})
        except FleetError:
            return None
        state = row.get("state")
        return CallState(state) if state in (CallState.STOPPED, CallState.EXPIRED) else None

    async def served(self, version_id: int) -> ServedVersion:
        """Return a server version ready to be called; its pool is made at the first use."""
        future = self._served.get(version_id)
        if future is None:
            future = asyncio.ensure_future(self._serve(version_id))
            self._served[version_id] = future
            future.add_done_callback(lambda done: self._drop_failed(version_id, done))
        return await asyncio.shield(future)

    async def tool(self, tool_version_id: int) -> ToolRow:
        """Return an immutable tool version, kept for the life of the process."""
        tool = self._tools.get(tool_version_id)
        if tool is None:
            tool = self._tools[tool_version_id] = await get_tool(self.database, tool_version_id)
        return tool

    def refuse_without_lease(self) -> None:
        """Raise `pool_closed` when this process's lease has lapsed: it must not dispatch."""
        if time.monotonic() >= self._lease_until:
            raise FleetError(Code.POOL_CLOSED, f"the lease of worker {self.id} has lapsed")

    @contextmanager
    def running(self, call_id: str, job: Job) -> Iterator[None]:
        """Count a call as running in this process, so that it can be cancelled and awaited."""
        self._running[call_id] = job
        self._idle.clear()
        try:
            yield
        finally:
            del self._running[call_id]
            if not self._running:
                self._idle.set()

    def progress_of(
        self, call_id: str
    ) -> Callable[[float, float | None, str | None], Awaitable[None]]:
        """Return the listener that passes a call's progress on."""

        async def on_progress(done: float, total: float | None, message: str | None) -> None:
            await self.client.signals.progress(call_id, done, total, message)

        return on_progress

    def discarded(self, call_id: str) -> None:
        """Record that Celery discarded a revoked call before it ran (called in Celery's thread)."""
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(lambda: self._spawn(self._stop_queued(call_id)))

    async def finish(self, claim: Claim, ending: Ending) -> None:
        """Record how a call ended, fenced; send it again if it went back to the queue.

        While Postgres is away this keeps trying for a minute: the result exists only here.
        """
        give_up = time.monotonic() + FINISH_PATIENCE_S
        while True:
            try:
                kept = await self._endings.add(ending)
                break
            except FleetError as error:
                if time.monotonic() > give_up:
                    logger.exception("the end of call %s could not be recorded", claim.id)
                    return
                logger.warning("call %s not yet recorded: %s", claim.id, error.message)
                await asyncio.sleep(FINISH_PAUSE_S)
            except Exception as error:
                if ending.result is None:
                    raise
                logger.exception("the result of call %s cannot be stored", claim.id)
                ending = _without_result(claim, ending, error)
        self.client.signals.forget(claim.id)
        if not kept:
            logger.warning("call %s was given away; what this worker did is dropped", claim.id)
            return
        self.figures.calls.labels(self.server, ending.state.value).inc()
        if ending.state is CallState.QUEUED:
            await self.client.send(_message(claim))

    # -- statements shared by calls that arrive together ------------------------------------

    async def _claim_batch(self, ids: Sequence[str]) -> list[Claim | None]:
        return await calls.claim(self.database, self.id, ids)

    async def _finish_batch(self, endings: Sequence[Ending]) -> list[bool]:
        kept = await calls.finish(self.database, self.id, endings)
        await self.client.signals.ended(
            [ending.id for ending, mine in zip(endings, kept, strict=True) if mine]
        )
        return kept

    async def _stop_queued(self, call_id: str) -> None:
        with suppress(FleetError):  # Postgres away: the call then runs or expires, and says so
            await calls.stop(self.database, [call_id], actor=self.id, reason="revoked")
            await self.client.signals.ended([call_id])

    # -- versions ---------------------------------------------------------------------------

    async def _serve(self, version_id: int) -> ServedVersion:
        definition = await catalog.get_definition(self.database, version_id)

        async def open_session(_: SessionKey) -> Session:
            session = await Session.open(
                definition,
                connect_timeout_s=definition.timeouts.connect_s,
                stop_grace_s=self.settings.stop_grace.total_seconds(),
                max_result_bytes=self.settings.max_result_bytes,
            )
            session.on_listing_changed = self._on_listing_changed
            return session

        breaker = Breaker(definition.name, str(version_id), definition.breaker, self._breakers)
        pool = SessionPool(definition.name, definition.pool, open_session)
        return ServedVersion(version_id, definition, pool, breaker)

    def _on_listing_changed(self) -> None:
        """Have the watch list the tools again (``notifications/tools/list_changed``)."""
        self._spawn(self._mark_stale())

    async def _mark_stale(self) -> None:
        with suppress(FleetError):  # Postgres away: the next scheduled refresh finds the change
            await mark_stale(self.database, self.server)

    def _drop_failed(self, version_id: int, done: asyncio.Future[ServedVersion]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._served.pop(version_id, None)

    async def _all_served(self) -> list[ServedVersion]:
        found = await asyncio.gather(*self._served.values(), return_exceptions=True)
        return [served for served in found if isinstance(served, ServedVersion)]

    async def _follow_current(self) -> None:
        """Warm the server's current version and list its tools when they may have changed."""
        current = await catalog.get_server(self.database, self.server)
        served = await self.served(current.id)
        if current.id != self._current:
            self._current = current.id
            await served.pool.start(served.key)
        if current.stale:
            await refresh(self.database, served)

    # -- watches ----------------------------------------------------------------------------

    async def _take_lease(self) -> None:
        asked = time.monotonic()
        await leases.open_worker(
            self.database,
            self.id,
            self.server,
            socket.gethostname(),
            os.getpid(),
            self.settings.worker_lease,
        )
        self._lease_until = asked + self.settings.worker_lease.total_seconds()

    async def _keep_lease(self) -> None:
        """Renew the lease; when it was lost, let go of its calls and take a new one."""
        lease_s = self.settings.worker_lease.total_seconds()
        while True:
            await asyncio.sleep(lease_s / 4)
            asked = time.monotonic()
            try:
                if await leases.renew_worker(self.database, self.id, self.settings.worker_lease):
                    self._lease_until = asked + lease_s
                    continue
                logger.warning("worker %s lost its lease; its calls are given away", self.id)
                for job in list(self._running.values()):
                    job.cancel(LEASE_LOST)
                await asyncio.wait_for(self._idle.wait(), FINISH_PATIENCE_S)
                self.id = _worker_id(self.server)
                await self._take_lease()
            except (FleetError, TimeoutError) as error:
                logger.warning("lease of %s not renewed: %s", self.id, error)
            except Exception:  # without a lease this worker would never dispatch again
                logger.exception("lease of %s not renewed", self.id)

    async def _watch(self) -> None:
        """Act on what the record says: stops, a new version, a stale listing; leave figures."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                for call_id in await calls.stops_of(self.database, self.id):
                    if call_id in self._running:
                        self._running[call_id].cancel(USER)
                await self._follow_current()
            except FleetError as error:
                if error.code is not Code.UNKNOWN_SERVER:  # removed: this worker is being stopped
                    logger.warning("server %s: %s", self.server, error.message)
            except Exception:  # without this watch no stop that Redis lost would be acted upon
                logger.exception("watching server %s failed", self.server)
            self.figures.take(await self._all_served())
            await self.client.signals.figures(self.id, self.figures.exposition())

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _worker_id(server: str) -> str:
    return f"{server}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _without_result(claim: Claim, ending: Ending, error: Exception) -> Ending:
    refused = FleetError(
        Code.RESULT_INVALID,
        f"the result of {claim.tool} is not JSON that can be stored ({type(error).__name__})",
        hint="the server has to be mended (NaN is no JSON); the call itself did run",
    )
    return replace(
        ending, state=CallState.FAILED, result=None, is_error=None, error=refused.as_dict()
    )


def _message(claim: Claim) -> Message:
    return Message(
        claim.id, claim.run_id, claim.tool, claim.server_name, claim.traceparent, claim.remaining_s
    )
