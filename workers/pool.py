"""A pool of warm sessions with one version of one server: borrow, give back, recycle, drain.

The pool's ``max_size`` is the server's bulkhead in this process; there is no second semaphore.
It knows nothing of MCP: sessions come from ``open_session`` and are asked five questions only
(`workers.lending.PooledSession`). Who gets which session is decided in `workers.lending`, whose
guarantees hold here; this module waits, opens, probes, resets and closes. In addition:

1. A session idle for longer than ``validate_after_s`` is probed before it is lent.
2. Its successor is opened in the background before it retires, so that no borrower waits for it.
3. While sessions cannot be opened, waiters fail at once with the reason and ``retry_after_s``.
4. Every wait is bounded; the pool owns and awaits each task it starts.
5. Cancelling a borrower at any await loses no session and no slot; giving back never awaits.
6. A borrower that keeps a session beyond its limit is reported, and the session is closed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from registry.definitions import PoolDefinition
from registry.errors import Code, FleetError
from workers.lending import (
    ENDING,
    Entry,
    Lending,
    PooledSession,
    PoolState,
    SessionKey,
    SessionState,
    Waiter,
)

__all__ = ["Lease", "PoolState", "PoolStats", "PooledSession", "SessionKey", "SessionPool"]

logger = logging.getLogger("toolfleet.pool")

_LIFETIME_JITTER: Final = 0.1  # so that sessions opened together do not retire together
_SWEEP_S: Final = 1.0
_SOONEST_S: Final = 0.005
_PROBE_LIMIT_S: Final = 1.0
_RESET_LIMIT_S: Final = 5.0
_STILLBORN_S: Final = 5.0  # a session that dies unused within this counts as a failed attempt
_CLOSE_LIMIT_S: Final = 15.0

S = TypeVar("S", bound=PooledSession)


@dataclass(frozen=True)
class PoolStats:
    """A pool at one instant; sizes are sessions."""

    state: str
    opening: int
    idle: int
    reserved: int
    validating: int
    in_use: int
    resetting: int
    closing: int
    waiting: int
    max_size: int
    calls_per_session: int
    calls_under_way: int
    borrowed_total: int
    spawned_total: int
    """Borrows that had to wait for a session to be opened."""
    opened_total: int
    open_failures_total: int
    closed_total: dict[str, int]
    timeouts_total: int
    refused_total: int
    """Borrowers turned away because ``max_waiting`` were waiting."""
    probed_total: int
    probes_failed_total: int
    leaked_total: int

    @property
    def size(self) -> int:
        """Return how many sessions exist in any state."""
        return (
            self.opening + self.idle + self.reserved + self.validating
            + self.in_use + self.resetting + self.closing
        )  # fmt: skip

    def __str__(self) -> str:
        states = ("idle", "in_use", "opening", "reserved", "validating", "resetting", "closing")
        counts = ", ".join(
            f"{getattr(self, name)} {name.replace('_', ' ')}"
            for name in states
            if getattr(self, name) or name in states[:2]
        )
        return f"{self.state}, {counts} of {self.max_size}, {self.waiting} waiting"


class Lease(Generic[S]):
    """A borrowed session, as ``async with pool.borrow(key, timeout_s) as lease``."""

    def __init__(
        self,
        pool: SessionPool[S],
        key: SessionKey,
        timeout_s: float,
        borrower: str,
        hold_limit_s: float,
    ) -> None:
        self._pool = pool
        self._entry: Entry[S] | None = None
        self._holder: asyncio.Task[Any] | None = None
        self.key = key
        self.timeout_s = timeout_s
        self.borrower = borrower
        self.hold_limit_s = hold_limit_s
        self.held_since = 0.0
        self.waited_s = 0.0
        self.spawned = False

    @property
    def session(self) -> S:
        """Return the session; only while it is borrowed."""
        session = self._entry.session if self._entry else None
        assert session is not None, "not borrowed"
        return session

    @property
    def shared(self) -> bool:
        """Say whether other calls are under way in the same session."""
        return self._entry is not None and self._entry.users > 1

    def discard(self, reason: str, *, dead: bool = False) -> None:
        """Have the session closed, not kept, when it is given back.

        ``dead``: the server does not know it any more, which may concern other sessions as well.
        """
        if self._entry is None:
            return  # it was held for too long and has been taken away
        self._entry.discarded = reason or "discarded"
        if dead:
            self._pool._died(self._entry)

    def allow(self, further_s: float) -> None:
        """Let the session be held for so long from now, if that is longer than it may be."""
        held_s = time.monotonic() - self.held_since
        self.hold_limit_s = max(self.hold_limit_s, held_s + further_s)

    def where(self) -> str:
        """Return the line at which the borrower stands now."""
        frames = self._holder.get_stack(limit=1) if self._holder else []
        return f"{frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else "nowhere"

    async def __aenter__(self) -> Self:
        """Borrow; raise `pool_timeout`, `pool_full`, `pool_closed`, or why nothing can be opened.

        Also raises `credential_rotated` when the key is older than one that was used already.
        """
        self._entry = await self._pool._obtain(self)
        self._holder = asyncio.current_task()
        self._pool._lent(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        entry, self._entry = self._entry, None
        self._pool._leases.pop(self, None)
        if entry is not None:
            self._pool._give_back(entry)


class SessionPool(Generic[S]):
    """Lend warm sessions with one server; see the module's docstring for what is guaranteed."""

    def __init__(
        self,
        server: str,
        config: PoolDefinition,
        open_session: Callable[[SessionKey], Awaitable[S]],
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.server = server
        self._open_session = open_session
        self._clock = clock
        self._jitter = jitter
        self._lending: Lending[S] = Lending(server, config, jitter)
        self._leases: dict[Lease[S], None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweep_at = 0.0
        self._totals: Counter[str] = Counter()
        self._closed_by: Counter[str] = Counter()
        self._pid = os.getpid()

    # -- life of the pool

    async def start(self, key: SessionKey) -> None:
        """Open ``min_idle`` sessions; return when they are warm, raise why the first one failed.

        Either way the key is kept warm from now on: further attempts are made in the background.
        """
        lending = self._lending
        lending.rotate(key)
        lending.warm.add(key)
        lending.rebuild.forget(key)
        self._decide()
        while lending.state is PoolState.OPEN:
            if failure := lending.rebuild.failing(key, self._clock()):
                raise failure.error
            of_key = Counter(e.state for e in lending.entries if e.key == key)
            opening = of_key.pop(SessionState.OPENING, 0)
            if not opening or of_key.total() >= lending.config.min_idle:
                return
            await self._wait_for_change()

    def cool(self, key: SessionKey) -> None:
        """Keep a key warm no longer: its sessions go when they have been idle for long."""
        self._lending.warm.discard(key)

    def rotate(self, key: SessionKey) -> None:
        """Retire the sessions of the same holder with an older generation, and no others.

        Idle ones are closed now, those in use when given back. Raises `credential_rotated` when
        a newer generation is known already.
        """
        if self._lending.rotate(key):
            self._decide()

    def retire(self, why: Callable[[S], str]) -> None:
        """Close sessions that ``why`` gives a reason for: idle ones now, others when given back."""
        for entry in self._lending.entries:
            if entry.session is not None and not entry.discarded:
                entry.discarded = why(entry.session)
        self._decide()

    def resize(self, *, max_size: int | None = None, min_idle: int | None = None) -> None:
        """Change the limits; a smaller pool closes idle sessions now, others when given back.

        Raises ``ValueError`` for limits that do not fit together.
        """
        limits = self._lending.config.model_dump()
        limits.update({"max_size": max_size} if max_size is not None else {})
        limits.update({"min_idle": min_idle} if min_idle is not None else {})
        self._lending.config = PoolDefinition.model_validate(limits)
        self._decide()

    def borrow(
        self,
        key: SessionKey,
        timeout_s: float,
        *,
        borrower: str = "unknown",
        hold_limit_s: float = float("inf"),
    ) -> Lease[S]:
        """Return a lease to enter; it is served within ``timeout_s`` or not at all.

        ``borrower`` names the call in the report about one that holds for over ``hold_limit_s``.
        """
        return Lease(self, key, timeout_s, borrower, hold_limit_s)

    async def drain(self) -> None:
        """Lend no more, close what is idle; return when all is given back and closed.

        Waits as long as the borrowers work: the caller sets the limit, then calls `close`.
        """
        if self._lending.state is PoolState.OPEN:
            self._lending.state = PoolState.DRAINING
        self._decide()
        while self._lending.entries:
            await self._wait_for_change()

    async def close(self) -> None:
        """End every session, also those in use; return when none is left, or after 15 seconds."""
        self._lending.state = PoolState.CLOSED
        if self._sweeper is not None:
            self._sweeper.cancel()
        for entry in list(self._lending.entries):
            if entry.state is SessionState.OPENING and entry.task is not None:
                entry.task.cancel()
        self._decide()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_CLOSE_LIMIT_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1.0)
        # What is left was cancelled before it began, or is stuck in its close.
        for entry in list(self._lending.entries):
            self._lending.closed(entry)
        self._changed.set()

    # -- borrowing

    async def _obtain(self, lease: Lease[S]) -> Entry[S]:
        """Return a session lent to this lease, proved to be alive where that is in doubt."""
        if os.getpid() != self._pid:
            raise RuntimeError("a pool cannot be used in a forked process")
        if self._lending.rotate(lease.key):
            self._decide()
        started = self._clock()
        deadline = asyncio.get_running_loop().time() + lease.timeout_s
        entry = self._lending.take(lease.key, started)
        if entry is not None and await self._fit_for_use(entry, deadline):
            return entry
        keeps_turn = entry is not None
        while True:
            entry = await self._wait(lease, deadline, keeps_turn=keeps_turn)
            if await self._fit_for_use(entry, deadline):
                break
            keeps_turn = True
        lease.waited_s = self._clock() - started
        lease.spawned = entry.calls == 0 and entry.opened_at >= started
        return entry

    async def _wait(self, lease: Lease[S], deadline: float, *, keeps_turn: bool) -> Entry[S]:
        """Queue until a session is lent; a borrower whose session was unfit keeps its turn."""
        lending = self._lending
        loop = asyncio.get_running_loop()
        if not keeps_turn and lending.waiting >= lending.config.max_waiting:
            raise self._full(lease)
        while True:
            left_s = max(0.0, deadline - loop.time())
            waiter = Waiter[S](lease.key, self._clock() + left_s, loop.create_future())
            (lending.waiters.appendleft if keeps_turn else lending.waiters.append)(waiter)
            alarm = loop.call_at(deadline, self._give_up, waiter, lease.timeout_s)
            try:
                self._decide()
                entry = await waiter.future
            except asyncio.CancelledError:
                self._withdraw(waiter)
                raise
            finally:
                alarm.cancel()
            if lending.state is not PoolState.OPEN:  # since the promise was made
                lending.refuse(entry, self._clock())
                self._decide()
                raise lending.not_lending()
            if not lending.unfit(entry, self._clock()):
                lending.accept(entry)
                return entry
            lending.refuse(entry, self._clock())  # it died in that instant
            keeps_turn = True

    async def _fit_for_use(self, entry: Entry[S], deadline: float) -> bool:
        """Probe a session just lent, if in doubt; give it back to be closed if it is not fit."""
        lending = self._lending
        if not lending.needs_proof(entry, self._clock()):
            return True
        assert entry.session is not None
        left_s = deadline - asyncio.get_running_loop().time()
        limit_s = min(_PROBE_LIMIT_S, max(0.01, left_s))
        lending.validating(entry)
        self._totals["probed"] += 1
        try:
            async with asyncio.timeout(limit_s):
                await entry.session.probe(limit_s)
        except Exception as error:  # noqa: BLE001 whatever is wrong, the borrower gets another one
            self._totals["probes_failed"] += 1
            entry.discarded = entry.discarded or "invalid"
            if isinstance(error, FleetError) and error.code is Code.SESSION_LOST:
                self._died(entry)  # a late or refused answer proves nothing about the others
        except asyncio.CancelledError:
            entry.discarded = entry.discarded or "cancelled"
            self._give_back(entry)
            raise
        if lending.unfit(entry, self._clock()) and entry.state not in ENDING:
            self._give_back(entry)
            return False
        if lending.state is not PoolState.OPEN:
            entry.discarded = entry.discarded or "drain"
            self._give_back(entry)
            raise lending.not_lending()
        lending.validated(entry, self._clock())
        if lending.waiters:
            self._decide()  # it may have room for others
        return True

    def _withdraw(self, waiter: Waiter[S]) -> None:
        """Forget a waiter that was cancelled; what it was promised in that instant goes on."""
        if waiter.future.cancelled() or not waiter.future.done():
            waiter.future.cancel()
            with suppress(ValueError):
                self._lending.waiters.remove(waiter)
        elif waiter.future.exception() is None:
            self._lending.refuse(waiter.future.result(), self._clock())
        self._decide()

    def _give_up(self, waiter: Waiter[S], timeout_s: float) -> None:
        if waiter.future.done():
            return
        self._lending.waiters.remove(waiter)
        self._totals["timeouts"] += 1
        waiter.future.set_exception(
            FleetError(
                Code.POOL_TIMEOUT,
                f"no session with server {self.server} came free within {timeout_s:g} s: {self!r}",
                hint="raise pool.max_size, run more workers, or call less",
                retry_after_s=timeout_s,
            )
        )
        self._decide()

    def _full(self, lease: Lease[S]) -> FleetError:
        self._totals["refused"] += 1
        return FleetError(
            Code.POOL_FULL,
            f"{self._lending.config.max_waiting} calls wait for a session with server "
            f"{self.server} already; {lease.borrower} is refused",
            hint="try again later, raise pool.max_size or pool.max_waiting, or run more workers",
            retry_after_s=1.0,
        )

    def _lent(self, lease: Lease[S]) -> None:
        lease.held_since = self._clock()
        self._leases[lease] = None
        self._totals["borrowed"] += 1
        self._totals["spawned"] += lease.spawned

    def _give_back(self, entry: Entry[S]) -> None:
        if self._lending.give_back(entry, self._clock()):
            if entry.state is SessionState.RESETTING:
                self._start(self._reset(entry))
            self._decide()

    async def _reset(self, entry: Entry[S]) -> None:
        tool = self._lending.config.reset_tool
        assert entry.session is not None
        assert tool is not None
        try:
            async with asyncio.timeout(_RESET_LIMIT_S):
                await entry.session.reset(tool, _RESET_LIMIT_S)
        except BaseException as error:
            entry.discarded = entry.discarded or "reset"
            if not isinstance(error, Exception):
                raise
            logger.warning("a session of %s could not be reset by %s: %s", self.server, tool, error)
        finally:
            self._lending.reset_done(entry, self._clock())
            self._decide()

    # -- carrying decisions out

    def _decide(self) -> None:
        plan = self._lending.decide(self._clock())
        for entry, reason in plan.to_close:
            self._closed_by[reason] += 1
            self._start(self._close_entry(entry))
        for entry in plan.to_open:
            entry.task = self._start(self._live(entry))
        self._changed.set()
        if self._lending.state is not PoolState.CLOSED:
            self._sweep_within(min(_SWEEP_S, max(_SOONEST_S, plan.look_again_in_s or _SWEEP_S)))

    def _sweep_within(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + delay_s
        if self._sweeper is not None and self._sweep_at <= at:
            return
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweep_at = at
        self._sweeper = loop.call_at(at, self.sweep, context=Context())

    def sweep(self) -> None:
        """Close what is old, reopen what is missing, report what is held for too long.

        Runs by itself every second, and when something may be opened again.
        """
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        now = self._clock()
        for lease in [le for le in self._leases if now - le.held_since > le.hold_limit_s]:
            self._reclaim(lease, now)
        self._decide()

    def _reclaim(self, lease: Lease[S], now: float) -> None:
        """Report a borrower that keeps its session, and take it away."""
        self._leases.pop(lease, None)
        self._totals["leaked"] += 1
        logger.error(
            "a session of %s has been held for %.1f s by %s, which stands at %s: it is taken away",
            self.server,
            now - lease.held_since,
            lease.borrower,
            lease.where(),
        )
        entry, lease._entry = lease._entry, None
        assert entry is not None
        entry.discarded = entry.discarded or "leaked"
        self._give_back(entry)

    def _start(self, work: Any) -> asyncio.Task[None]:
        # A session outlives the call that it was opened for, whose ids its logs would have.
        task: asyncio.Task[None] = asyncio.create_task(
            work, name=f"pool of {self.server}", context=Context()
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _live(self, entry: Entry[S]) -> None:
        """Open a session and stay with it until it dies or is closed."""
        try:
            session = await self._open_session(entry.key)
        except BaseException as error:
            self._open_failed(entry, error)
            if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
                raise
            return
        if session.dead.is_set():
            await session.close()
            self._open_failed(entry, self._stillborn())
            return
        self._opened(entry, session)
        with suppress(TimeoutError):
            async with asyncio.timeout(_STILLBORN_S):
                await session.dead.wait()
            if not entry.calls and not entry.users and entry.state not in ENDING:
                self._lending.rebuild.failed(entry.key, self._stillborn(), self._clock())
        if not session.dead.is_set():
            self._lending.rebuild.forget(entry.key)
            await session.dead.wait()
        if entry.state not in ENDING:
            self._died(entry)
            self._decide()

    def _opened(self, entry: Entry[S], session: S) -> None:
        config = self._lending.config
        self._totals["opened"] += 1
        entry.lifetime_s = config.max_lifetime_s * (1 - _LIFETIME_JITTER * self._jitter())
        entry.max_idle_s = config.max_idle_s * (1 - _LIFETIME_JITTER * self._jitter())
        self._lending.opened(entry, session, self._clock())
        self._decide()

    def _open_failed(self, entry: Entry[S], error: BaseException) -> None:
        if not isinstance(error, FleetError):
            error = FleetError(
                Code.SERVER_UNAVAILABLE,
                f"no session with server {self.server} can be opened: "
                f"{type(error).__name__}: {error}",
            )
        self._totals["open_failures"] += 1
        self._lending.rebuild.failed(entry.key, error, self._clock())
        self._lending.closed(entry)
        self._decide()

    def _died(self, entry: Entry[S]) -> None:
        self._lending.mourn(entry, self._clock())

    def _stillborn(self) -> FleetError:
        return FleetError(
            Code.SERVER_UNAVAILABLE,
            f"server {self.server} ended right after the MCP handshake",
            hint="see what it says on stderr",
        )

    async def _close_entry(self, entry: Entry[S]) -> None:
        assert entry.session is not None
        try:
            async with asyncio.timeout(_CLOSE_LIMIT_S):
                await entry.session.close()
        except Exception:  # a session that cannot be closed is gone all the same
            logger.warning("a session of %s did not close well", self.server, exc_info=True)
        finally:
            if entry.task is not None:
                entry.task.cancel()  # it was waiting for the session's death
            self._lending.closed(entry)
            self._decide()

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # -- looking at it

    def stats(self) -> PoolStats:
        """Return the pool's figures."""
        lending = self._lending
        states = Counter(entry.state.value for entry in lending.entries)
        return PoolStats(
            state=lending.state.value,
            **{s.value: states[s.value] for s in SessionState if s is not SessionState.CLOSED},
            waiting=lending.waiting,
            max_size=lending.config.max_size,
            calls_per_session=lending.config.calls_per_session,
            calls_under_way=sum(entry.borrowed for entry in lending.entries),
            borrowed_total=self._totals["borrowed"],
            spawned_total=self._totals["spawned"],
            opened_total=self._totals["opened"],
            open_failures_total=self._totals["open_failures"],
            closed_total=dict(self._closed_by),
            timeouts_total=self._totals["timeouts"],
            refused_total=self._totals["refused"],
            probed_total=self._totals["probed"],
            probes_failed_total=self._totals["probes_failed"],
            leaked_total=self._totals["leaked"],
        )

    def __repr__(self) -> str:
        return f"<SessionPool {self.server}: {self.stats()}>"
