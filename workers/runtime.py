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

from registry import approval_gate, artifacts, calls, catalog, interests, leases
from registry.approval_gate import note_forged
from registry.bindings import Sealer
from registry.calls import CallState, Claim, Ending
from registry.catalog import ServerVersion
from registry.database import Database, GroupCommit
from registry.ended import UNKNOWN_TIER, Ended
from registry.errors import Code, FleetError
from registry.holds import blocked_tools
from registry.ingest import ToolRow, get_tool, mark_stale
from registry.output_rules import OutputRules
from registry.policies import Policies
from registry.requests import RESOURCES_READ, may_ask
from registry.settings import Settings
from registry.submission import tool_held
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
from workers.guardrails import Guardrails
from workers.heartbeat import beat
from workers.keyring import Keyring
from workers.large import LargeReader
from workers.limits_redis import hear_pauses
from workers.listening import Listening
from workers.output_gate import log_out, progress_out
from workers.pool import SessionKey, SessionPool
from workers.progress import OnLog
from workers.quota import Quotas
from workers.reaper import reap
from workers.refresh import refresh, refresh_offerings
from workers.resource_watch import ResourceWatch
from workers.session import Session
from workers.versions import ServedVersion, Versions
from workers.watching import SHORTEST_S, ListingWatch

__all__ = ["LEASE_LOST", "ServedVersion", "WorkerRuntime"]

logger = logging.getLogger("toolfleet.worker")

FINISH_PATIENCE_S: Final = 60.0
FINISH_PAUSE_S: Final = 0.5
LAPSED_PAUSE_S: Final = 1.0  # in which a worker with a lease may take the next message
WATCH_EVERY_S: Final = 1.0
CENSUS_EVERY_S: Final = 5.0
TELL_EVERY_S: Final = 0.1  # of resources that changed, however often they do
SETTLE_S: Final = 3.0
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
        self._warm: dict[int, tuple[ServedVersion, SessionKey]] = {}
        self._followed: frozenset[int] = frozenset()
        self._current = 0
        self._blocked: dict[int, frozenset[str]] = {}
        self._hearing: dict[int, asyncio.Event] = {}
        self._refreshing = asyncio.Lock()
        self._listing_offerings: set[int] = set()
        self._interested: dict[tuple[int, SessionKey, str], set[str]] = {}
        self._updated: set[str] = set()
        self._tools: dict[int, ToolRow] = {}  # the latest used last
        self._running: dict[Job, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lease_until = 0.0
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._background = Background()
        self._following: asyncio.Task[None] | None = None
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
            await self._follow()
        except FleetError as error:
            logger.warning("server %s is not ready: %s", self.server, error.message)
        self._following = self._background.start(self._every(WATCH_EVERY_S, self._follow))
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
        if self._following is not None:
            self._following.cancel()
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

    async def settled(self, served: ServedVersion, within_s: float) -> None:
        """Return once a version that has just said that its tools changed was listed again.

        A call of a tool that is about to be held must not slip through before. It waits for
        `SETTLE_S` at most, and not at all for a server that says so again and again.
        """
        if (hearing := self._hearing.get(served.id)) is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(hearing.wait(), min(within_s, SETTLE_S))

    def refuse_held(self, served: ServedVersion, tool: str) -> None:
        """Raise `tool_held` for a tool that the server changed and nobody accepted yet."""
        if tool in self._blocked.get(served.id, ()):
            raise tool_held(served.definition.name, tool)

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

        # A run may be pinned to a version that is followed no more: what is held of it counts too.
        self._blocked |= await blocked_tools(self.database, [version_id])
        watch = ListingWatch(partial(self._on_listing_changed, version_id))
        listening = Listening(watch, keyring, open_session)
        breaker = Breaker(definition.name, str(version_id), definition.breaker, self._breakers)
        pool = SessionPool(definition.name, definition.pool, listening.open)
        resources = ResourceWatch(open_session, partial(self._resource_updated, version_id))
        return ServedVersion(version_id, definition, pool, breaker, keyring, listening, resources)

    def _on_listing_changed(self, version_id: int) -> None:
        """Have a version's tools listed again: at once, or when the watch next comes round."""
        if version_id not in self._hearing:
            self._hearing[version_id] = asyncio.Event()
            self._background.start(self._heard(version_id))

    async def _heard(self, version_id: int) -> None:
        try:
            with suppress(FleetError):  # Postgres away: this worker lists them all the same
                await mark_stale(self.database, self.server, version_id=version_id)
            if version_id in self._followed:
                served = await self.served(version_id)
                if served.watch.pause_s <= SHORTEST_S:
                    await asyncio.sleep(served.watch.due_in_s)
                    await self._refresh_if_due(served, stale=True, failed=False)
        finally:
            self._hearing.pop(version_id).set()

    async def _follow(self) -> None:
        """Warm the versions that new runs see, let old ones go, list what may have changed."""
        followed = await catalog.followed(self.database, self.server)
        self._followed = frozenset(version.id for version in followed)
        self._current = followed[0].id
        await self._versions.let_go(but=self._followed)
        made = [(version, await self._served_or_noted(version)) for version in followed]
        current = [(version, served) for version, served in made if served is not None]
        self._versions.listen(only=self._followed)
        await self._keep_warm([served for _, served in current])
        for version, served in current:
            failed = version.refresh_error is not None
            await self._refresh_if_due(served, stale=version.stale, failed=failed)
            self._list_offerings_if_due(served)
        await self._read_blocked()

    async def _served_or_noted(self, version: ServerVersion) -> ServedVersion | None:
        """Return a version; None, with the error on record, while its secrets do not open."""
        try:
            return await self.served(version.id)
        except FleetError as error:
            if error.code is not Code.CREDENTIAL_UNAVAILABLE:
                raise
            logger.warning("server %s: %s", self.server, error.message)
            if version.refresh_error != error.as_dict():
                await mark_stale(self.database, self.server, error, version_id=version.id)
            return None

    async def _refresh_if_due(self, served: ServedVersion, *, stale: bool, failed: bool) -> None:
        if self.quotas.paused_for():
            return  # it asked to be left alone: its tools can wait
        async with self._refreshing:
            if served.watch.due(stale=stale, failed=failed):
                self.figures.changed(await refresh(self.database, served))
                served.offerings.heard()
                await self._read_blocked()

    def _list_offerings_if_due(self, served: ServedVersion) -> None:
        """List what a version has beside tools, in the background: its tools wait for nothing."""
        if served.id in self._listing_offerings or self.quotas.paused_for():
            return
        if served.offerings.due(stale=False, failed=False):
            self._listing_offerings.add(served.id)
            self._background.start(self._list_offerings(served))

    async def _list_offerings(self, served: ServedVersion) -> None:
        try:
            await refresh_offerings(self.database, served)
        except Exception:  # nobody awaits this task
            logger.exception("what %s has could not be listed", served.name)
        finally:
            self._listing_offerings.discard(served.id)

    async def _read_blocked(self) -> None:
        """Learn which tools may not be called, of every version that calls may still come for."""
        ids = [served.id for served in self._versions.ready()]
        self._blocked = await blocked_tools(self.database, ids)

    async def _keep_warm(self, wanted: Sequence[ServedVersion]) -> None:
        """Keep these versions' sessions warm, where there are any to share, and no others."""
        keys = {served.id: await served.keyring.warm_key() for served in wanted}
        for id_, (served, warm_key) in list(self._warm.items()):
            # A provider that cannot be asked just now has taken nothing away.
            unknown = id_ in keys and keys[id_] is None
            if keys.get(id_) != warm_key and not unknown:
                del self._warm[id_]
                served.pool.cool(warm_key)
        for served in wanted:
            key = keys[served.id]
            if key is not None and served.id not in self._warm:
                self._warm[served.id] = (served, key)
                await served.pool.start(key)

    # -- resources --------------------------------------------------------------------------

    async def _watch_resources(self) -> None:
        """Listen to the resources that tenants want to hear of, and may."""
        interested: dict[tuple[int, SessionKey, str], set[str]] = {}
        wanted = await interests.wanted(self.database, self.server, self.id)
        for it in wanted if self._followed else ():
            gone = it.version_id not in self._followed
            served = await self.served(self._current if gone else it.version_id)
            policy = await self.policies.of(it.tenant)
            if not may_ask(policy, served.definition, RESOURCES_READ):
                continue
            with suppress(FleetError):  # without a credential there is nothing to hear
                key = await served.keyring.key_of(it.tenant)
                interested.setdefault((served.id, key, it.uri), set()).add(it.key)
        self._interested = interested
        for served in self._versions.ready():
            mine: dict[SessionKey, set[str]] = {}
            for version_id, key, uri in interested:
                if version_id == served.id:
                    mine.setdefault(key, set()).add(uri)
            served.resources.want({key: frozenset(uris) for key, uris in mine.items()})

    def _resource_updated(self, version_id: int, key: SessionKey, uri: str) -> None:
        if not self._updated:
            self._background.start(self._tell_of_resources())
        self._updated |= self._interested.get((version_id, key, uri), set())

    async def _tell_of_resources(self) -> None:
        await asyncio.sleep(TELL_EVERY_S)
        keys, self._updated = self._updated, set()
        if keys:
            await self.client.signals.resources_updated(sorted(keys))

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
