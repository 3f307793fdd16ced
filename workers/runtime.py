"""What a worker process holds: its lease, the server's pools and breakers, its figures.

Invariants:
 1. A worker whose lease has lapsed claims nothing and dispatches nothing: the steward may have
    given its calls away. A call is dispatched and ended under the lease that claimed it, or not.
 2. The pools of the versions that new runs see are warm before the first message is taken.
 3. Draining: no new borrow, what waits goes back to the queue, what runs may finish.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

from registry import approval_gate, artifacts, calls, catalog, leases
from registry.approval_gate import note_forged
from registry.bindings import Sealer
from registry.calls import CallState, Claim, Ending
from registry.database import Database, GroupCommit
from registry.ended import UNKNOWN_TIER, Ended
from registry.errors import Code, FleetError
from registry.ingest import ToolRow, get_tool
from registry.output_rules import OutputRules
from registry.policies import Policies
from registry.settings import Settings
from workers import breaker_redis
from workers.aio_pool import USER, Job
from workers.asking import Desk
from workers.background import Background
from workers.breaker import Breaker, MemoryStore
from workers.breaker_redis import FallbackStore, RedisStore
from workers.broker import make_broker
from workers.census import take_census
from workers.client import Message, make_client
from workers.encryption_keys import open_keys, open_vault
from workers.figures import Figures
from workers.following import Following
from workers.guardrails import Guardrails
from workers.heartbeat import beat
from workers.interested import Interested
from workers.keyring import Keyring
from workers.large import LargeReader
from workers.limits_redis import hear_pauses
from workers.listening import Listening
from workers.output_gate import log_out, progress_out
from workers.pool import SessionKey, SessionPool
from workers.progress import OnLog
from workers.quota import Quotas
from workers.reaper import reap
from workers.resource_watch import ResourceWatch
from workers.session import Session
from workers.versions import ServedVersion, Versions
from workers.watching import ListingWatch

__all__ = ["LEASE_LOST", "ServedVersion", "WorkerRuntime"]

logger = logging.getLogger("toolfleet.worker")

FINISH_PATIENCE_S: Final = 60.0
FINISH_PAUSE_S: Final = 0.5
LAPSED_PAUSE_S: Final = 1.0  # in which a worker with a lease may take the next message
WATCH_EVERY_S: Final = 1.0
CENSUS_EVERY_S: Final = 5.0
TOOLS_KEPT: Final = 1_000
LEASE_LOST: Final = "lease_lost"


class WorkerRuntime:
    """The residents of one worker process (see `workers.aio_pool.Residents`).

    ``end`` has the process end as on SIGTERM; it is called when an operator asks for that.
    """

    def __init__(
        self, server: str, settings: Settings, *, end: Callable[[], None] | None = None
    ) -> None:
        self.server = server
        self.settings = settings
        self._end = end or _end_process
        self._asked_to_drain = False
        self.id = _worker_id(server)
        self.figures = Figures(server)
        self.database = Database(settings.database_url, pool_size=3, application=f"worker {server}")
        self.client = make_client("toolfleet-worker", settings)
        self.quotas = Quotas(server, self.client.limiter, lambda: len(self._running))
        self._breaker_redis = breaker_redis.connect(settings.redis_url)
        self._breakers = FallbackStore(RedisStore(self._breaker_redis), MemoryStore())
        self.large = LargeReader(
            longest_bytes=settings.max_result_bytes, read_here_bytes=settings.inline_result_bytes
        )
        self._versions = Versions(self._serve)
        vault = open_vault(settings)
        self._encryption_keys = open_keys(settings, vault)
        self._credentials = make_broker(settings, self.database, self.id, vault=vault)
        self.desk = Desk(self.database, self.client.signals)
        self.policies = Policies(self.database)
        self.guardrails = Guardrails(
            settings.guardrails, limit_s=settings.guardrail_limit.total_seconds()
        )
        self._background = Background()
        self.following = Following(
            server, self.database, self._versions, self.quotas, self.figures, self._background
        )
        self._interested = Interested(
            server,
            self.database,
            self._versions,
            self.following,
            self.policies,
            self.client.signals,
            self._background,
        )
        self._keeping_up: asyncio.Task[None] | None = None
        self._tools: dict[int, ToolRow] = {}  # the latest used last
        self._running: dict[Job, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lease_until = 0.0
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._claims: GroupCommit[str, Claim | None] = GroupCommit(self._claim_batch)
        self._endings: GroupCommit[tuple[str, Ending], bool] = GroupCommit(self._finish_batch)

    # -- life -------------------------------------------------------------------------------

    async def open(self) -> None:
        """End what dead workers left, take a lease, warm the current pool, start the watches.

        A server that does not start is no reason not to: its calls then end with a typed error.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(reap)
        await self._take_lease(self.id)
        self._background.start(self._keep_lease())
        try:
            await self.following.follow()
        except FleetError as error:
            logger.warning("server %s is not ready: %s", self.server, error.message)
        self._keeping_up = self._background.start(self._every(WATCH_EVERY_S, self.following.follow))
        for watch, every_s in (
            (self._stop_asked, WATCH_EVERY_S),
            (self._drain_asked, WATCH_EVERY_S),
            (self.quotas.read_pauses, WATCH_EVERY_S),
            (self._leave_figures, WATCH_EVERY_S),
            (self._credentials.look_after, WATCH_EVERY_S),
            (self._rotate_credentials, WATCH_EVERY_S),
            (self._count_processes, CENSUS_EVERY_S),
            (self._watch_resources, WATCH_EVERY_S),
            (self._beat, WATCH_EVERY_S),
        ):
            self._background.start(self._every(every_s, watch))
        self._background.start(hear_pauses(self.client.redis, self.server, self.quotas.read_pauses))
        logger.info("worker %s is ready", self.id)

    async def drain(self) -> None:
        """Let running calls finish within the grace; send back what waits for a session.

        An operator's drain is in no hurry: it waits for them as long as their deadlines let it.
        """
        if self._keeping_up is not None:
            self._keeping_up.cancel()
        self._background.start(self._versions.drain())
        grace_s = None if self._asked_to_drain else self.settings.drain_grace.total_seconds()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)

    async def close(self) -> None:
        """Close sessions, give the lease up, whatever became of them, and close connections."""
        await self._background.end()
        await self._leave_figures()  # the last of what was counted
        await self._versions.close()
        await self.desk.close()
        await self._credentials.close()
        await self.large.close()
        with suppress(FleetError):
            await leases.close_worker(self.database, self.id)
        await self._breakers.close()
        await self._breaker_redis.aclose()
        await self.client.close()
        await self.database.close()

    def info(self) -> dict[str, Any]:
        """Return what `inspect stats` and Flower show of this worker."""
        pools = {it.name: asdict(it.pool.stats()) for it in self._versions.ready()}
        return {"worker": self.id, "server": self.server, "sessions": pools}

    # -- what a call needs ------------------------------------------------------------------

    async def claim(self, call_id: str) -> Claim | None:
        """Claim a call, sharing a commit with others; None when it is not to be had.

        Without a lease nothing is: the row stays queued, and the steward sends its message again.
        """
        if self._lapsed:
            await asyncio.sleep(LAPSED_PAUSE_S)
            if self._lapsed:
                logger.warning("call %s not claimed: worker %s has no lease", call_id, self.id)
                return None
        try:
            with self._counted():
                claim = await self._claims.add(call_id)
        except FleetError as error:
            logger.warning("call %s not claimed: %s", call_id, error.message)
            return None  # the row is still queued: the steward sends its message again
        if claim is not None:
            self.figures.queue_wait.observe(max(claim.queue_wait_s, 0.0))
        return claim

    async def ended_before(self, call_id: str) -> CallState | None:
        """Return the state of a call that was stopped or expired before it was claimed.

        A message that the fleet never sent about a call is noted in the audit.
        """
        try:
            row = (await calls.read(self.database, [call_id])).get(call_id, {})
            if row and await note_forged(self.database, call_id, self.server, self.id):
                logger.warning("a message about call %s was not the fleet's own", call_id)
        except FleetError:
            return None
        state = row.get("state")
        return CallState(state) if state in (CallState.STOPPED, CallState.EXPIRED) else None

    async def served(self, version_id: int) -> ServedVersion:
        """Return a server version ready to be called; its pool is made at the first use."""
        return await self._versions.get(version_id)

    async def tool(self, tool_version_id: int) -> ToolRow:
        """Return an immutable tool version; those used last are kept."""
        tool = self._tools.pop(tool_version_id, None)
        if tool is None:
            tool = await get_tool(self.database, tool_version_id)
        self._tools[tool_version_id] = tool
        if len(self._tools) > TOOLS_KEPT:
            del self._tools[next(iter(self._tools))]
        return tool

    async def use_approval(self, claim: Claim, served: ServedVersion, tool: str) -> None:
        """Use a call's approval for one dispatch; raise what `approval_gate.use` raises."""
        await approval_gate.use(
            self.database,
            Sealer(self.settings.secret_key.get_secret_value()),
            claim,
            served.definition,
            tool,
            max_attempts=self.settings.max_attempts,
        )

    def refuse_without_lease(self, claim: Claim) -> None:
        """Raise `pool_closed` unless the lease that a call was claimed under holds."""
        if self._lapsed or claim.worker != self.id:
            raise FleetError(Code.POOL_CLOSED, f"the lease of worker {claim.worker} has lapsed")

    @contextmanager
    def running(self, call_id: str, job: Job) -> Iterator[None]:
        """Count a call as running in this process, so that it can be cancelled and awaited.

        One call may run in several jobs at once: those of lost leases are about to end.
        """
        with self._counted():
            self._running[job] = call_id
            try:
                yield
            finally:
                del self._running[job]

    def progress_of(
        self, call_id: str, rules: OutputRules
    ) -> Callable[[float, float | None, str | None], Awaitable[None]]:
        """Return the listener that passes a call's progress on, as it may leave."""

        async def on_progress(done: float, total: float | None, message: str | None) -> None:
            clean = progress_out(message, rules)
            await self.client.signals.progress(call_id, done, total, clean)

        return on_progress

    def logs_of(self, call_id: str, rules: OutputRules) -> OnLog:
        """Return the listener that passes on what a call's server logs, as it may leave."""

        async def on_log(body: dict[str, Any]) -> None:
            await self.client.signals.log(call_id, log_out(body, rules))

        return on_log

    def discarded(self, call_id: str) -> None:
        """Record that Celery discarded a revoked call before it ran (called in Celery's thread)."""
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(lambda: self._background.start(self._stop_queued(call_id)))

    async def finish(
        self, claim: Claim, ending: Ending, *, tier: str = UNKNOWN_TIER, begun: float | None = None
    ) -> None:
        """Record how a call ended, under the lease it was claimed under; send it again if queued.

        ``tier`` and ``begun`` (on the monotonic clock; by default, at its claim) are for figures.
        A large result is stored before; should its call not keep it, the steward removes it.
        While Postgres is away this keeps trying for a minute: the result exists only here.
        """
        with self._counted():
            kept = await self._record(claim, ending)
        self.client.signals.forget(claim.id)
        if kept is None:
            return
        if kept.state is CallState.QUEUED:
            self.figures.given_back()
            if kept.not_before_s is None:
                await self.client.send(_message(claim))
            return
        code = kept.error["code"] if kept.error is not None else None
        lasted_s = claim.age_s if begun is None else time.monotonic() - begun
        self.figures.ends.ended(Ended(self.server, tier, kept.state, code, kept.is_error, lasted_s))

    async def _record(self, claim: Claim, ending: Ending) -> Ending | None:
        """Return the ending as it was recorded; None when it was not."""
        give_up = time.monotonic() + FINISH_PATIENCE_S
        while True:
            try:
                if ending.artifact is not None:
                    await artifacts.store(self.database, ending.artifact)
                if await self._endings.add((claim.worker, ending)):
                    return ending
                logger.warning("call %s was given away; what was done is dropped", claim.id)
                return None
            except FleetError as error:
                if time.monotonic() > give_up:
                    logger.exception("the end of call %s could not be recorded", claim.id)
                    return None
                logger.warning("call %s not yet recorded: %s", claim.id, error.message)
                await asyncio.sleep(FINISH_PAUSE_S)
            except Exception as error:
                if ending.result is None:
                    raise
                logger.exception("the result of call %s cannot be stored", claim.id)
                ending = _without_result(claim, ending, error)

    @property
    def _lapsed(self) -> bool:
        return time.monotonic() >= self._lease_until

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count something about a call as under way: a drain and a new lease wait for its end."""
        self._busy += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()

    # -- statements shared by calls that arrive together ------------------------------------

    async def _claim_batch(self, ids: Sequence[str]) -> list[Claim | None]:
        return await calls.claim(self.database, self.id, ids, server=self.server)

    async def _finish_batch(self, batch: Sequence[tuple[str, Ending]]) -> list[bool]:
        """Record endings under the worker ids that claimed their calls; say which were kept."""
        kept: set[tuple[str, int]] = set()
        for worker in {worker for worker, _ in batch}:  # one, unless a lease was just lost
            endings = [ending for owner, ending in batch if owner == worker]
            mine = await calls.finish(self.database, worker, endings)
            kept |= {(it.id, it.fence) for it, ok in zip(endings, mine, strict=True) if ok}
        await self.client.signals.ended([call_id for call_id, _ in kept])
        return [(ending.id, ending.fence) in kept for _, ending in batch]

    async def _stop_queued(self, call_id: str) -> None:
        with suppress(FleetError):  # Postgres away: the call then runs or expires, and says so
            await calls.stop(self.database, [call_id], actor=self.id, reason="revoked")
            await self.client.signals.ended([call_id])

    # -- versions ---------------------------------------------------------------------------

    async def _serve(self, version_id: int) -> ServedVersion:
        definition = await catalog.get_definition(self.database, version_id, self._encryption_keys)
        keyring = Keyring(version_id, definition, self._credentials)

        async def open_session(key: SessionKey) -> Session:
            self.quotas.refuse_opening(definition, key.identity)
            session = await Session.open(
                definition,
                credential=await keyring.credential(key),
                connect_timeout_s=definition.timeouts.connect_s,
                stop_grace_s=self.settings.stop_grace.total_seconds(),
                max_result_bytes=self.settings.max_result_bytes,
                large=self.large,
            )
            keyring.opened(session, key)
            return session

        await self.following.look_at(version_id)
        watch = ListingWatch(partial(self.following.listing_changed, version_id))
        listening = Listening(watch, keyring, open_session)
        breaker = Breaker(definition.name, str(version_id), definition.breaker, self._breakers)
        pool = SessionPool(definition.name, definition.pool, listening.open)
        resources = ResourceWatch(open_session, partial(self._interested.updated, version_id))
        return ServedVersion(version_id, definition, pool, breaker, keyring, listening, resources)

    # -- watches ----------------------------------------------------------------------------

    async def _take_lease(self, worker: str) -> None:
        asked = time.monotonic()
        await leases.open_worker(
            self.database,
            worker,
            self.server,
            socket.gethostname(),
            os.getpid(),
            self.settings.worker_lease,
        )
        self.id = worker
        self._lease_until = asked + self.settings.worker_lease.total_seconds()

    async def _keep_lease(self) -> None:
        """Renew the lease; when it was lost, let go of its calls and take a new one.

        A call that does not let go in time holds nothing up: under its lost lease it is harmless.
        """
        lease_s = self.settings.worker_lease.total_seconds()
        while True:
            await asyncio.sleep(lease_s / 4)
            asked = time.monotonic()
            try:
                if await leases.renew_worker(self.database, self.id, self.settings.worker_lease):
                    self._lease_until = asked + lease_s
                    continue
                logger.warning("worker %s lost its lease; its calls are given away", self.id)
                self._lease_until = 0.0
                for job in list(self._running):
                    job.cancel(LEASE_LOST)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._idle.wait(), FINISH_PATIENCE_S)
                await self._take_lease(_worker_id(self.server))
            except FleetError as error:
                logger.warning("lease of %s not renewed: %s", self.id, error)
            except Exception:  # without a lease this worker would never dispatch again
                logger.exception("lease of %s not renewed", self.id)

    async def _beat(self) -> None:
        """Leave a sign of life for a container's health check."""
        await beat(self.settings.heartbeat_file)

    async def _stop_asked(self) -> None:
        """Stop the calls that were asked to stop: what a revoke that Redis lost rests on."""
        asked = set(await calls.stops_of(self.database, self.id))
        for job, call_id in list(self._running.items()):
            if call_id in asked:
                job.cancel(USER)

    async def _drain_asked(self) -> None:
        """Have this process end once an operator has asked for it: it takes no further call."""
        if not self._asked_to_drain and await leases.drain_asked(self.database, self.id):
            logger.warning("worker %s was asked to drain", self.id)
            self._asked_to_drain = True
            self._end()

    async def _leave_figures(self) -> None:
        """Leave this process's figures where the API finds them."""
        ready = self._versions.ready()
        for served in ready:  # without calls nothing else would ask how their breakers are
            await served.breaker.look()
        self.figures.take(ready)
        self.figures.take_quota(self.quotas, limiter_away=self.client.limiter.away)
        self.figures.take_traces(self.client.tracer)
        await self.client.signals.figures(self.id, self.figures.exposition())

    async def _watch_resources(self) -> None:
        await self._interested.watch(self.id)

    async def _rotate_credentials(self) -> None:
        """Recycle the sessions, idle ones too, whose credential has changed or was taken away."""
        for served in self._versions.ready():
            for key in await served.keyring.changed():
                with suppress(FleetError):  # a call with a newer one was quicker
                    served.rotate(key)

    async def _count_processes(self) -> None:
        """Count processes, zombies and open files; retire the sessions that have outgrown."""
        census = await asyncio.to_thread(take_census)
        self.figures.count(census)
        for served in self._versions.ready():
            served.retire_outgrown(census)

    async def _every(self, every_s: float, watch: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await watch()
            except FleetError as error:
                if error.code is not Code.UNKNOWN_SERVER:  # removed: this worker is being stopped
                    logger.warning("server %s: %s", self.server, error.message)
            except Exception:  # a watch that ended would leave its promise unkept for good
                logger.exception("%s failed for server %s", watch.__name__, self.server)
            await asyncio.sleep(every_s)


def _end_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _worker_id(server: str) -> str:
    return f"{server}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _without_result(claim: Claim, ending: Ending, error: Exception) -> Ending:
    refused = FleetError(
        Code.RESULT_INVALID,
        f"the result of {claim.tool} is not JSON that can be stored ({type(error).__name__})",
        hint="the server has to be mended (NaN is no JSON); the call itself did run",
    )
    return replace(
        ending,
        state=CallState.FAILED,
        result=None,
        artifact=None,
        is_error=None,
        error=refused.as_dict(),
    )


def _message(claim: Claim) -> Message:
    return Message(
        id=claim.id,
        run_id=claim.run_id,
        tenant_id=claim.tenant_id,
        tool=claim.tool,
        server_name=claim.server_name,
        traceparent=claim.traceparent,
        remaining_s=claim.remaining_s,
        priority=claim.priority,
    )
