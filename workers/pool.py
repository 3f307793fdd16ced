"""A pool of warm sessions with one version of one server: borrow, give back, recycle, drain.

The pool's ``max_size`` is the server's bulkhead in this process; there is no second semaphore.
It knows nothing of MCP: sessions come from ``open_session`` and are asked three questions only.

1. idle + reserved + in use + opening + closing <= max_size at every instant, all keys together.
2. Waiters are served first come, first served; a session is never handed across keys.
3. A handover can be refused: a waiter that gave up holds nothing, the session goes to the next one.
4. A session that is dead, poisoned, discarded or expired is never handed out; one in use is never
   taken away because of its age.
5. Its successor is opened in the background before it retires, so that no borrower waits for it.
6. While sessions cannot be opened, waiters fail at once with the reason; attempts back off.
7. Every wait is bounded; the pool owns and awaits each task it starts.

Decisions are made in `_assign`, which does no I/O and returns what to open and what to close.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, Final, Generic, NamedTuple, Protocol, Self, TypeVar

from registry.definitions import PoolDefinition
from registry.errors import Code, FleetError

_MAX_OPENING: Final = 4  # at once: a burst of waiters is served mostly by sessions coming back
_LIFETIME_JITTER: Final = 0.1  # so that sessions opened together do not retire together
_RETIRING_SHARE: Final = 0.1  # the last part of a life, in which the successor is opened
_BACKOFF_S: Final = 0.5
_BACKOFF_LIMIT_S: Final = 30.0
_SWEEP_S: Final = 1.0
_STILLBORN_S: Final = 5.0  # a session that dies unused within this counts as a failed attempt
_CLOSE_LIMIT_S: Final = 15.0
_WAITS_KEPT: Final = 1024


class SessionKey(NamedTuple):
    """Who may use a session: server version, credential identity and credential generation."""

    server_version_id: int
    identity: str = ""
    generation: int = 0


class PooledSession(Protocol):
    """What the pool asks of a session."""

    poisoned: bool
    """It must not be used again."""
    dead: asyncio.Event
    """Set once, when the session can no longer be used; at the latest when it is closed."""

    @property
    def alive(self) -> bool:
        """Say whether the session can be used."""

    async def close(self) -> object:
        """End the session."""


S = TypeVar("S", bound=PooledSession)


class SessionState(Enum):
    """Where a session is in its life."""

    OPENING = "opening"
    IDLE = "idle"
    RESERVED = "reserved"
    """Promised to a waiter that has not woken up yet."""
    IN_USE = "in_use"
    CLOSING = "closing"
    CLOSED = "closed"


_LEGAL: Final = {
    SessionState.OPENING: {SessionState.IDLE, SessionState.CLOSED},
    SessionState.IDLE: {SessionState.RESERVED, SessionState.IN_USE, SessionState.CLOSING},
    SessionState.RESERVED: {SessionState.IDLE, SessionState.IN_USE, SessionState.CLOSING},
    SessionState.IN_USE: {SessionState.IDLE, SessionState.CLOSING},
    SessionState.CLOSING: {SessionState.CLOSED},
    SessionState.CLOSED: set[SessionState](),
}


class PoolState(Enum):
    """Whether the pool lends."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


# Why idle sessions are closed in each state of the pool.
_ENDING: Final = {PoolState.OPEN: "", PoolState.DRAINING: "drain", PoolState.CLOSED: "close"}


@dataclass(frozen=True)
class PoolStats:
    """A pool at one instant; sizes are sessions, waits are seconds."""

    state: str
    opening: int
    idle: int
    reserved: int
    in_use: int
    closing: int
    waiting: int
    max_size: int
    borrowed_total: int
    spawned_total: int
    """Borrows that had to wait for a session to be opened."""
    opened_total: int
    open_failures_total: int
    closed_total: dict[str, int]
    timeouts_total: int
    borrow_wait_sum_s: float
    recent_waits_s: tuple[float, ...]

    @property
    def size(self) -> int:
        """Return how many sessions exist in any state."""
        return self.opening + self.idle + self.reserved + self.in_use + self.closing


@dataclass(eq=False, slots=True)
class _Entry(Generic[S]):
    """One session and what the pool knows about it."""

    key: SessionKey
    state: SessionState = SessionState.OPENING
    session: S | None = None
    opened_at: float = 0.0
    lifetime_s: float = 0.0
    idle_since: float = 0.0
    calls: int = 0
    discarded: str = ""
    task: asyncio.Task[None] | None = None

    def move(self, state: SessionState) -> None:
        """Change the state; the only place where it changes."""
        if state not in _LEGAL[self.state]:
            raise AssertionError(f"a session cannot go from {self.state} to {state}")
        self.state = state


@dataclass(eq=False, slots=True)
class _Waiter(Generic[S]):
    key: SessionKey
    future: asyncio.Future[_Entry[S]]


@dataclass(slots=True)
class _Failure:
    """Why the latest attempt to open a session failed, and when the next one may start."""

    error: FleetError
    attempts: int
    retry_at: float


@dataclass(slots=True)
class _Plan(Generic[S]):
    to_open: list[_Entry[S]] = field(default_factory=list)
    to_close: list[tuple[_Entry[S], str]] = field(default_factory=list)


class Lease(Generic[S]):
    """A borrowed session, as ``async with pool.borrow(key, timeout_s) as lease``."""

    def __init__(self, pool: SessionPool[S], key: SessionKey, timeout_s: float) -> None:
        self._pool = pool
        self._key = key
        self._timeout_s = timeout_s
        self._entry: _Entry[S] | None = None
        self.waited_s = 0.0
        self.spawned = False

    @property
    def session(self) -> S:
        """Return the session; only while it is borrowed."""
        session = self._entry.session if self._entry else None
        assert session is not None, "not borrowed"
        return session

    def discard(self, reason: str) -> None:
        """Have the session closed, not kept, when it is given back."""
        assert self._entry is not None, "not borrowed"
        self._entry.discarded = reason or "discarded"

    async def __aenter__(self) -> Self:
        """Borrow; raise `pool_timeout`, `pool_closed`, or why no session can be opened."""
        self._entry = self._pool._take_idle(self._key)
        if self._entry is None:
            await self._pool._wait(self, self._key, self._timeout_s)
        self._pool._lent(self.waited_s, self.spawned)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        entry, self._entry = self._entry, None
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
        self._config = config
        self._open_session = open_session
        self._clock = clock
        self._jitter = jitter
        self._state = PoolState.OPEN
        self._entries: set[_Entry[S]] = set()
        self._idle: dict[SessionKey, list[_Entry[S]]] = {}  # the latest used last
        self._waiters: deque[_Waiter[S]] = deque()
        self._warm: set[SessionKey] = set()  # keys that are kept at min_idle
        self._failures: dict[SessionKey, _Failure] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._sweeper: asyncio.TimerHandle | None = None
        self._waits: deque[float] = deque(maxlen=_WAITS_KEPT)
        self._wait_sum_s = 0.0
        self._totals: Counter[str] = Counter()
        self._closed_by: Counter[str] = Counter()
        self._retiring_calls = config.max_calls - int(config.max_calls * _RETIRING_SHARE)

    # -- life of the pool

    async def start(self, key: SessionKey) -> None:
        """Open ``min_idle`` sessions; return when they are warm, raise why the first one failed.

        Either way the key is kept warm from now on: further attempts are made in the background.
        """
        self._warm.add(key)
        self._failures.pop(key, None)
        self._decide()
        while self._state is PoolState.OPEN:
            states = Counter(entry.state for entry in self._entries if entry.key == key)
            if failure := self._failing(key, self._clock()):
                raise failure.error
            if not states[SessionState.OPENING]:
                return
            await self._wait_for_change()

    def borrow(self, key: SessionKey, timeout_s: float) -> Lease[S]:
        """Return a lease to enter; it is served within ``timeout_s`` or not at all."""
        return Lease(self, key, timeout_s)

    async def drain(self) -> None:
        """Lend no more, close what is idle; return when all is given back and closed.

        Waits as long as the borrowers work: the caller sets the limit, then calls `close`.
        """
        if self._state is PoolState.OPEN:
            self._state = PoolState.DRAINING
        self._decide()
        while self._entries:
            await self._wait_for_change()

    async def close(self) -> None:
        """End every session, also those in use; return when none is left, or after 15 seconds."""
        self._state = PoolState.CLOSED
        if self._sweeper is not None:
            self._sweeper.cancel()
        for entry in list(self._entries):
            if entry.state is SessionState.OPENING and entry.task is not None:
                entry.task.cancel()
        self._decide()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_CLOSE_LIMIT_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1.0)
        for entry in list(self._entries):  # cancelled before it began, or stuck in its close
            entry.move(SessionState.CLOSED)
            self._entries.discard(entry)

    # -- borrowing

    def _take_idle(self, key: SessionKey) -> _Entry[S] | None:
        """Lend an idle session at once; nobody may be waiting, or this would be overtaking."""
        if self._waiters or self._state is not PoolState.OPEN:
            return None
        idle = self._idle.get(key)
        if not idle:
            return None
        entry = idle[-1]
        if self._unfit(entry, self._clock()):
            return None
        idle.pop()
        entry.move(SessionState.IN_USE)
        return entry

    async def _wait(self, lease: Lease[S], key: SessionKey, timeout_s: float) -> None:
        started = self._clock()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        waiter = _Waiter[S](key, loop.create_future())
        self._waiters.append(waiter)
        while True:
            alarm = loop.call_at(deadline, self._give_up, waiter, timeout_s)
            try:
                self._decide()
                entry = await waiter.future
            except asyncio.CancelledError:
                self._withdraw(waiter)
                raise
            finally:
                alarm.cancel()
            if entry.state is not SessionState.RESERVED:
                raise self._closed()  # the pool was closed between handover and waking
            if not self._unfit(entry, self._clock()):
                break
            self._shelve(entry)  # it died in that instant; the next decision closes it
            waiter = _Waiter[S](key, loop.create_future())
            self._waiters.appendleft(waiter)
        entry.move(SessionState.IN_USE)
        lease._entry = entry
        lease.waited_s = self._clock() - started
        lease.spawned = entry.calls == 0 and entry.opened_at >= started

    def _withdraw(self, waiter: _Waiter[S]) -> None:
        """Forget a waiter that was cancelled; what it was given in the same instant goes on."""
        if waiter.future.cancelled() or not waiter.future.done():
            waiter.future.cancel()
            with suppress(ValueError):
                self._waiters.remove(waiter)
        elif waiter.future.exception() is None:
            entry = waiter.future.result()
            if entry.state is SessionState.RESERVED:
                self._shelve(entry)
        self._decide()

    def _give_up(self, waiter: _Waiter[S], timeout_s: float) -> None:
        if waiter.future.done():
            return
        self._waiters.remove(waiter)
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

    def _lent(self, waited_s: float, spawned: bool) -> None:
        self._totals["borrowed"] += 1
        self._totals["spawned"] += spawned
        self._wait_sum_s += waited_s
        self._waits.append(waited_s)

    def _give_back(self, entry: _Entry[S]) -> None:
        if entry.state is not SessionState.IN_USE:
            return  # the pool was closed meanwhile, and the session with it
        entry.calls += 1
        fit = not self._unfit(entry, self._clock())
        if fit:
            self._failures.pop(entry.key, None)
        if fit and entry.calls < self._retiring_calls and self._hand_over(entry):
            return
        self._shelve(entry)
        at_rest = fit and not self._waiters and entry.calls < self._retiring_calls
        if not at_rest or self._state is not PoolState.OPEN:
            self._decide()

    def _hand_over(self, entry: _Entry[S]) -> bool:
        """Pass a session straight on to the first waiter if it wants one of this key.

        The same choice as in `_assign`, without looking at everything else.
        """
        waiters = self._waiters
        while waiters and waiters[0].future.done():
            waiters.popleft()
        if not waiters or waiters[0].key != entry.key:
            return False
        entry.move(SessionState.IDLE)
        entry.move(SessionState.RESERVED)
        waiters.popleft().future.set_result(entry)
        return True

    def _shelve(self, entry: _Entry[S]) -> None:
        entry.move(SessionState.IDLE)
        entry.idle_since = self._clock()
        self._idle.setdefault(entry.key, []).append(entry)

    def _unfit(self, entry: _Entry[S], now: float) -> str:
        """Say why a session must not be lent again; an empty string if it may."""
        session = entry.session
        assert session is not None
        if entry.discarded:
            return entry.discarded
        if session.poisoned:
            return "poisoned"
        if not session.alive:
            return "dead"
        if entry.calls >= self._config.max_calls:
            return "max_calls"
        if now - entry.opened_at >= entry.lifetime_s:
            return "max_lifetime"
        return ""

    # -- the decision

    def _assign(self, now: float) -> _Plan[S]:
        """Match waiters, idle sessions and free room; return what to open and what to close.

        Moves sessions between states and settles waiters, nothing else: no I/O, no await.
        """
        plan = _Plan[S]()
        ending = _ENDING[self._state]
        for entry in [entry for shelf in self._idle.values() for entry in shelf]:
            if reason := ending or self._unfit(entry, now):
                self._retire(plan, entry, reason)
        if self._state is PoolState.CLOSED:
            lent = (SessionState.IN_USE, SessionState.RESERVED)
            for entry in [e for e in self._entries if e.state in lent]:
                entry.move(SessionState.CLOSING)
                plan.to_close.append((entry, ending))
        if self._state is not PoolState.OPEN:
            for waiter in self._pop_waiters():
                waiter.future.set_exception(self._closed())
            return plan
        self._serve_waiters(plan, now)
        self._restock(plan, now)
        self._shed_idle(plan, now)
        return plan

    def _serve_waiters(self, plan: _Plan[S], now: float) -> None:
        coming = Counter(e.key for e in self._entries if e.state is SessionState.OPENING)
        # Room that is about to come free has been promised to the waiters it was made for.
        coming_room = sum(e.state is SessionState.CLOSING for e in self._entries)
        for waiter in self._pop_waiters():
            shelf = self._idle.get(waiter.key)
            if shelf:
                entry = shelf.pop()
                entry.move(SessionState.RESERVED)
                waiter.future.set_result(entry)
                continue
            if (failure := self._failing(waiter.key, now)) and not self._busy(waiter.key):
                waiter.future.set_exception(self._cannot_open(failure, now))
                continue
            self._waiters.append(waiter)
            if coming[waiter.key] > 0:
                coming[waiter.key] -= 1
            elif self._may_open(waiter.key, now):
                self._open(plan, waiter.key)
            elif coming_room > 0:
                coming_room -= 1
            elif len(self._entries) >= self._config.max_size:
                self._evict(plan, waiter.key)

    def _pop_waiters(self) -> list[_Waiter[S]]:
        waiters = [waiter for waiter in self._waiters if not waiter.future.done()]
        self._waiters.clear()
        return waiters

    def _restock(self, plan: _Plan[S], now: float) -> None:
        """Open what is missing to ``min_idle``, not counting those that will retire soon."""
        for key in self._warm:
            fresh = sum(
                e.state is SessionState.OPENING
                or (e.state is SessionState.IDLE and not self._retiring(e, now))
                for e in self._entries
                if e.key == key
            )
            while fresh < self._config.min_idle and self._may_open(key, now):
                self._open(plan, key)
                fresh += 1

    def _shed_idle(self, plan: _Plan[S], now: float) -> None:
        for key, shelf in self._idle.items():
            keep = self._config.min_idle if key in self._warm else 0
            while len(shelf) > keep and now - shelf[0].idle_since >= self._config.max_idle_s:
                self._retire(plan, shelf[0], "max_idle")

    def _may_open(self, key: SessionKey, now: float) -> bool:
        return (
            len(self._entries) < self._config.max_size
            and sum(e.state is SessionState.OPENING for e in self._entries) < _MAX_OPENING
            and self._failing(key, now) is None
        )

    def _open(self, plan: _Plan[S], key: SessionKey) -> None:
        entry = _Entry[S](key)
        self._entries.add(entry)
        plan.to_open.append(entry)
        if (failure := self._failures.get(key)) is not None:
            # One attempt at a time until the server is known to be back.
            failure.retry_at = float("inf")

    def _evict(self, plan: _Plan[S], key: SessionKey) -> None:
        """Make room by closing the session of another key that has been idle the longest."""
        others = [shelf[0] for other, shelf in self._idle.items() if other != key and shelf]
        if others:
            self._retire(plan, min(others, key=lambda entry: entry.idle_since), "evicted")

    def _retire(self, plan: _Plan[S], entry: _Entry[S], reason: str) -> None:
        self._idle[entry.key].remove(entry)
        entry.move(SessionState.CLOSING)
        plan.to_close.append((entry, reason))

    def _retiring(self, entry: _Entry[S], now: float) -> bool:
        age_s = now - entry.opened_at
        return entry.calls >= self._retiring_calls or age_s >= entry.lifetime_s * (
            1 - _RETIRING_SHARE
        )

    def _busy(self, key: SessionKey) -> bool:
        """Say whether a session of this key exists that a waiter can hope for."""
        hope = (SessionState.OPENING, SessionState.RESERVED, SessionState.IN_USE)
        return any(e.key == key and e.state in hope for e in self._entries)

    def _failing(self, key: SessionKey, now: float) -> _Failure | None:
        failure = self._failures.get(key)
        return failure if failure is not None and failure.retry_at > now else None

    def _cannot_open(self, failure: _Failure, now: float) -> FleetError:
        error = failure.error
        return FleetError(
            error.code,
            error.message,
            hint=error.hint,
            retry_after_s=max(0.0, failure.retry_at - now),
            details=error.details,
        )

    def _closed(self) -> FleetError:
        return FleetError(
            Code.POOL_CLOSED,
            f"the worker lends no more sessions with server {self.server}: it is stopping",
            hint="submit the call again; another worker takes it",
        )

    # -- carrying decisions out

    def _decide(self) -> None:
        plan = self._assign(self._clock())
        for entry, reason in plan.to_close:
            self._closed_by[reason] += 1
            self._start(self._close_entry(entry))
        for entry in plan.to_open:
            entry.task = self._start(self._live(entry))
        self._changed.set()
        if self._sweeper is None and self._state is PoolState.OPEN:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self.sweep)

    def sweep(self) -> None:
        """Close what is old, reopen what is missing; runs by itself every second."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._decide()

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work, name=f"pool of {self.server}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _live(self, entry: _Entry[S]) -> None:
        """Open a session and stay with it until it dies or is closed."""
        try:
            session = await self._open_session(entry.key)
        except asyncio.CancelledError:
            self._forget(entry)
            raise
        except FleetError as error:
            self._open_failed(entry, error)
            return
        except Exception as error:  # noqa: BLE001 a pool must survive whatever a session does
            self._open_failed(entry, self._unexpected(error))
            return
        entry.session = session
        self._opened(entry)
        with suppress(TimeoutError):
            async with asyncio.timeout(_STILLBORN_S):
                await session.dead.wait()
            if entry.state is SessionState.IDLE and not entry.calls:
                self._note_failure(entry.key, self._stillborn())
        if not session.dead.is_set():
            self._failures.pop(entry.key, None)
            await session.dead.wait()
        if entry.state is SessionState.IDLE:
            self._decide()

    def _opened(self, entry: _Entry[S]) -> None:
        now = self._clock()
        self._totals["opened"] += 1
        if (failure := self._failures.get(entry.key)) is not None:
            failure.retry_at = now  # forgotten when a session has lived for a while
        entry.opened_at = now
        entry.lifetime_s = self._config.max_lifetime_s * (1 - _LIFETIME_JITTER * self._jitter())
        self._shelve(entry)
        self._decide()

    def _open_failed(self, entry: _Entry[S], error: FleetError) -> None:
        self._totals["open_failures"] += 1
        self._note_failure(entry.key, error)
        self._forget(entry)

    def _note_failure(self, key: SessionKey, error: FleetError) -> None:
        previous = self._failures.get(key)
        attempts = previous.attempts + 1 if previous else 1
        ceiling = min(_BACKOFF_LIMIT_S, _BACKOFF_S * 2 ** min(attempts - 1, 10))
        delay_s = ceiling * (0.5 + 0.5 * self._jitter())
        if error.retry_after_s is not None:
            delay_s = max(delay_s, min(error.retry_after_s, _BACKOFF_LIMIT_S))
        self._failures[key] = _Failure(error, attempts, self._clock() + delay_s)
        # The retry must not wait for somebody to come by.
        asyncio.get_running_loop().call_later(delay_s, self.sweep)

    def _stillborn(self) -> FleetError:
        return FleetError(
            Code.SERVER_UNAVAILABLE,
            f"server {self.server} ended right after the MCP handshake",
            hint="see what it says on stderr",
        )

    def _unexpected(self, error: Exception) -> FleetError:
        return FleetError(
            Code.SERVER_UNAVAILABLE,
            f"no session with server {self.server} can be opened: {type(error).__name__}: {error}",
        )

    async def _close_entry(self, entry: _Entry[S]) -> None:
        assert entry.session is not None
        try:
            async with asyncio.timeout(_CLOSE_LIMIT_S):
                await entry.session.close()
        except Exception:  # noqa: BLE001 a session that cannot be closed is gone all the same
            self._totals["close_failures"] += 1
        finally:
            if entry.task is not None:
                entry.task.cancel()  # it was waiting for the session's death
            self._forget(entry)

    def _forget(self, entry: _Entry[S]) -> None:
        entry.move(SessionState.CLOSED)
        self._entries.discard(entry)
        self._decide()

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # -- looking at it

    def stats(self) -> PoolStats:
        """Return the pool's figures."""
        states = Counter(entry.state for entry in self._entries)
        return PoolStats(
            state=self._state.value,
            opening=states[SessionState.OPENING],
            idle=states[SessionState.IDLE],
            reserved=states[SessionState.RESERVED],
            in_use=states[SessionState.IN_USE],
            closing=states[SessionState.CLOSING],
            waiting=len(self._waiters),
            max_size=self._config.max_size,
            borrowed_total=self._totals["borrowed"],
            spawned_total=self._totals["spawned"],
            opened_total=self._totals["opened"],
            open_failures_total=self._totals["open_failures"],
            closed_total=dict(self._closed_by),
            timeouts_total=self._totals["timeouts"],
            borrow_wait_sum_s=self._wait_sum_s,
            recent_waits_s=tuple(self._waits),
        )

    def __repr__(self) -> str:
        now = self.stats()
        return (
            f"<SessionPool {self.server}: {now.state}, {now.idle} idle, {now.in_use} in use, "
            f"{now.opening} opening, {now.closing} closing of {now.max_size}, "
            f"{now.waiting} waiting>"
        )
