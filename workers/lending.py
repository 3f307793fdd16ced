"""Who may have which session: the pool's books and its one decision. No I/O, no await, no clock.

1. Sessions in any state but closed <= max_size at every instant, all keys together (after `resize`
   to less: from the moment the borrowers of the surplus have given back).
2. Waiters are served first come, first served; a session is never lent across keys.
3. A promise can be refused: a waiter that gave up holds nothing, the session goes to the next one.
4. A session that is dead, poisoned, discarded, superseded or expired is never lent; one in use is
   never taken away because of its age.
5. A session's state changes along `LEGAL` only, and nowhere but in `Entry.move`.

`Lending.decide` looks at everything and returns what to open and what to close; `take` and
`hand_over` make the same choice for one session without looking at everything else.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from registry.definitions import PoolDefinition
from registry.errors import Code, FleetError
from workers.rebuild import Failure, Rebuild

MAX_OPENING: Final = 4  # at once: a burst of waiters is served mostly by sessions coming back
EVICTED: Final = "evicted"
RETIRING_SHARE: Final = 0.1  # the last part of a life, in which the successor is opened


class SessionKey(NamedTuple):
    """Who may use a session: server version, credential identity and credential generation."""

    server_version_id: int
    identity: str = ""
    generation: int = 0

    @property
    def holder(self) -> tuple[int, str]:
        """Return the key without its generation: what a rotation replaces."""
        return self[:2]


class PooledSession(Protocol):
    """What the pool asks of a session."""

    poisoned: bool
    """It must not be used again."""
    dead: asyncio.Event
    """Set once, when the session can no longer be used; at the latest when it is closed."""

    @property
    def shares_fate(self) -> bool:
        """Say whether its death proves that the server's other sessions are dead too."""

    @property
    def alive(self) -> bool:
        """Say whether the session can be used."""

    async def probe(self, timeout_s: float) -> None:
        """Prove that the server answers; raise if not."""

    async def reset(self, tool: str, timeout_s: float) -> None:
        """Clear what the latest call left behind in the server; raise if that fails."""

    async def close(self) -> object:
        """End the session."""


S = TypeVar("S", bound=PooledSession)


class SessionState(Enum):
    """Where a session is in its life."""

    OPENING = "opening"
    IDLE = "idle"
    RESERVED = "reserved"
    """Promised to a waiter that has not woken up yet."""
    VALIDATING = "validating"
    """Its borrower probes it before the first use."""
    IN_USE = "in_use"
    RESETTING = "resetting"
    CLOSING = "closing"
    CLOSED = "closed"


_S = SessionState
LEGAL: Final = {
    _S.OPENING: {_S.IDLE, _S.CLOSED},
    _S.IDLE: {_S.RESERVED, _S.IN_USE, _S.CLOSING},
    _S.RESERVED: {_S.IDLE, _S.IN_USE, _S.CLOSING},
    _S.IN_USE: {_S.IDLE, _S.RESERVED, _S.VALIDATING, _S.RESETTING, _S.CLOSING},
    _S.VALIDATING: {_S.IN_USE, _S.CLOSING},
    _S.RESETTING: {_S.IDLE, _S.CLOSING},
    _S.CLOSING: {_S.CLOSED},
    _S.CLOSED: set[SessionState](),
}
_LENT: Final = (_S.RESERVED, _S.VALIDATING, _S.IN_USE, _S.RESETTING)
ENDING: Final = (_S.CLOSING, _S.CLOSED)
LENDABLE: Final = (_S.IDLE, _S.RESERVED, _S.IN_USE)
_HOPE: Final = (_S.OPENING, *_LENT)


class PoolState(Enum):
    """Whether the pool lends."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


# Why idle sessions are closed in each state of the pool.
_REASONS: Final = {PoolState.OPEN: "", PoolState.DRAINING: "drain", PoolState.CLOSED: "close"}


@dataclass(eq=False, slots=True)
class Entry(Generic[S]):
    """One session and what the pool knows about it."""

    key: SessionKey
    state: SessionState = SessionState.OPENING
    session: S | None = None
    opened_at: float = 0.0
    used_at: float = 0.0
    lifetime_s: float = 0.0
    max_idle_s: float = 0.0
    calls: int = 0
    promised: int = 0
    borrowed: int = 0
    discarded: str = ""
    """Why nobody is to use it any more."""
    leaving: str = ""
    """Why it is closed when those who have it, or are promised it, have given it back."""
    suspect: bool = False
    """A sibling died after this one was last heard of: it has to be validated."""
    mourned: bool = False
    """Its death has been taken into account."""
    task: asyncio.Task[None] | None = None

    @property
    def users(self) -> int:
        """Return how many borrowers it has or is promised to."""
        return self.promised + self.borrowed

    def move(self, state: SessionState) -> None:
        """Change the state; the only place where it changes."""
        if state not in LEGAL[self.state]:
            raise AssertionError(f"a session cannot go from {self.state} to {state}")
        self.state = state

    def settle(self) -> None:
        """Take the state that follows from who has it."""
        state = _S.IN_USE if self.borrowed else _S.RESERVED if self.promised else _S.IDLE
        if state is not self.state:
            self.move(state)


@dataclass(eq=False, slots=True)
class Waiter(Generic[S]):
    """A borrower in the queue; the future gets the entry that is promised to it, or why not."""

    key: SessionKey
    deadline: float
    future: asyncio.Future[Entry[S]]


@dataclass(slots=True)
class Plan(Generic[S]):
    """What follows from a decision: sessions to open, to close (and why), when to look again."""

    to_open: list[Entry[S]] = field(default_factory=list)
    to_close: list[tuple[Entry[S], str]] = field(default_factory=list)
    look_again_in_s: float | None = None


class Lending(Generic[S]):
    """The books of one pool; see the module's docstring for what holds after each method."""

    def __init__(self, server: str, config: PoolDefinition, jitter: Callable[[], float]) -> None:
        self.server = server
        self.config = config
        self.state = PoolState.OPEN
        self.entries: dict[Entry[S], None] = {}  # in the order in which they were opened
        self.waiters: deque[Waiter[S]] = deque()
        self.warm: set[SessionKey] = set()  # keys that are kept at min_idle
        self.rebuild = Rebuild(config.rebuild_per_s, jitter)
        self._shelves: dict[SessionKey, list[Entry[S]]] = {}  # with room; the latest used last
        self._generations: dict[tuple[int, str], int] = {}

    @property
    def config(self) -> PoolDefinition:
        """Return the limits that hold."""
        return self._config

    @config.setter
    def config(self, config: PoolDefinition) -> None:
        self._config = config
        self._retiring_calls = config.max_calls - int(config.max_calls * RETIRING_SHARE)

    @property
    def waiting(self) -> int:
        """Return how many borrowers wait."""
        return sum(not waiter.future.done() for waiter in self.waiters)

    # -- one session

    def take(self, key: SessionKey, now: float) -> Entry[S] | None:
        """Lend a session at once; nobody may be waiting, or this would be overtaking."""
        if self.waiters or self.state is not PoolState.OPEN or self._surplus():
            return None
        entry = self._pick(key, now)
        if entry is not None:
            self._lend(entry)
        return entry

    def accept(self, entry: Entry[S]) -> None:
        """Turn the promise of a session into a loan (its waiter has woken up)."""
        entry.promised -= 1
        self._lend(entry)

    def refuse(self, entry: Entry[S], now: float) -> None:
        """Take back a promise that nobody wants any more."""
        if entry.state in ENDING:
            return
        entry.promised -= 1
        self._return(entry, now)

    def needs_proof(self, entry: Entry[S], now: float) -> bool:
        """Say whether a session just lent has to be probed before its first use."""
        idle = now - entry.used_at > self.config.validate_after_s
        return entry.borrowed == 1 and not entry.promised and (entry.suspect or idle)

    def validating(self, entry: Entry[S]) -> None:
        """Keep a session to its one borrower until it has proved itself."""
        entry.move(_S.VALIDATING)
        self._shelve(entry)

    def validated(self, entry: Entry[S], now: float) -> None:
        """Share a session that has proved itself."""
        entry.suspect = False
        entry.used_at = now
        entry.settle()
        self._shelve(entry)

    def give_back(self, entry: Entry[S], now: float) -> bool:
        """Take a session back; return whether there is more to decide."""
        if entry.state in ENDING:
            return False  # the pool was closed meanwhile, and the session with it
        entry.calls += 1
        entry.borrowed -= 1
        unfit = self.unfit(entry, now)
        if not unfit:
            entry.used_at = now
            entry.suspect = False
            self.rebuild.forget(entry.key)
        if entry.state is _S.VALIDATING or unfit or entry.leaving:
            self._return(entry, now)
            return True
        if self.config.reset_tool:
            entry.move(_S.RESETTING)
            self._shelve(entry)
            return True
        if entry.calls >= self._retiring_calls:
            self._return(entry, now)
            return True
        if self._hand_over(entry):
            return False
        self._return(entry, now)
        return bool(self.waiters) or self.state is not PoolState.OPEN or self._surplus() > 0

    def reset_done(self, entry: Entry[S], now: float) -> None:
        """Put a session back whose state in the server has been cleared (or is discarded)."""
        if entry.state is _S.RESETTING:
            entry.used_at = now
            self._return(entry, now)

    def opened(self, entry: Entry[S], session: S, now: float) -> None:
        """Put a new session on its shelf."""
        entry.session = session
        entry.opened_at = entry.used_at = now
        self.rebuild.succeeded(entry.key, now)
        self._return(entry, now)

    def closed(self, entry: Entry[S]) -> None:
        """Strike a session out of the books."""
        entry.move(_S.CLOSED)
        self._unshelve(entry)
        self.entries.pop(entry, None)
        holder = entry.key.holder
        keys = (*(e.key for e in self.entries), *(waiter.key for waiter in self.waiters))
        if not any(key.holder == holder for key in keys):
            self._generations.pop(holder, None)

    def mourn(self, entry: Entry[S], now: float) -> None:
        """Draw the conclusions from a session's death, once.

        Sessions that were opened before it are dead as well where they share its fate (an HTTP
        server restarted: it knows none of them). The child processes of a stdio server die alone;
        those have to prove themselves before they are lent again.
        """
        if entry.mourned:
            return
        entry.mourned = True
        assert entry.session is not None
        self.rebuild.died(now)
        for other in self.entries:
            if other is entry or other.session is None:
                continue
            if not entry.session.shares_fate:
                other.suspect = True
            elif not (other.mourned or other.state is _S.CLOSING):
                other.mourned = True
                other.discarded = other.discarded or "outlived"
                self.rebuild.died(now)

    def rotate(self, key: SessionKey) -> bool:
        """Retire the sessions of a key's holder that have an older generation; say if it is new.

        Raises `credential_rotated` when a newer generation is known already.
        """
        if self._superseded(key):
            raise self._rotated()
        if key.generation == self._generations.get(key.holder, 0):
            return False
        self._generations[key.holder] = key.generation
        self.warm = {k for k in self.warm if k.holder != key.holder or k == key}
        return True

    def _superseded(self, key: SessionKey) -> bool:
        return key.generation < self._generations.get(key.holder, 0)

    def unfit(self, entry: Entry[S], now: float) -> str:
        """Say why a session must not be lent again; an empty string if it may."""
        session = entry.session
        assert session is not None
        if entry.discarded:
            return entry.discarded
        if session.poisoned:
            return "poisoned"
        if not session.alive:
            return "dead"
        if self._superseded(entry.key):
            return "rotated"
        if entry.calls >= self.config.max_calls:
            return "max_calls"
        if now - entry.opened_at >= entry.lifetime_s:
            return "max_lifetime"
        return ""

    def _pick(self, key: SessionKey, now: float) -> Entry[S] | None:
        """Choose among the sessions with room: the least busy, then the latest used."""
        shelf = self._shelves.get(key)
        if not shelf:
            return None
        latest = shelf[-1]
        if not latest.users and not self.unfit(latest, now):
            return latest
        fit = (entry for entry in reversed(shelf) if not self.unfit(entry, now))
        return min(fit, key=lambda entry: entry.users, default=None)

    def _lend(self, entry: Entry[S]) -> None:
        entry.borrowed += 1
        entry.settle()
        self._shelve(entry)

    def _promise(self, entry: Entry[S], waiter: Waiter[S]) -> None:
        entry.promised += 1
        entry.settle()
        self._shelve(entry)
        waiter.future.set_result(entry)

    def _hand_over(self, entry: Entry[S]) -> bool:
        """Pass a session straight on to the first waiter if it wants one of this key."""
        waiters = self.waiters
        while waiters and waiters[0].future.done():
            waiters.popleft()
        if not waiters or waiters[0].key != entry.key or self._surplus():
            return False
        if self.state is not PoolState.OPEN:
            return False
        self._promise(entry, waiters.popleft())
        return True

    def _return(self, entry: Entry[S], now: float) -> None:
        """Settle a session that has one user less; an unfit one serves out its other users."""
        if entry.state is not _S.VALIDATING:
            entry.settle()
        if self.unfit(entry, now):
            self._unshelve(entry)
        else:
            self._shelve(entry)

    def _shelve(self, entry: Entry[S]) -> None:
        """Put a session where borrowers look, if it has room for one more; else take it away."""
        self._unshelve(entry)
        has_room = entry.users < self.config.calls_per_session and not entry.leaving
        if entry.state in LENDABLE and has_room:
            self._shelves.setdefault(entry.key, []).append(entry)

    def _unshelve(self, entry: Entry[S]) -> None:
        shelf = self._shelves.get(entry.key, [])
        if entry in shelf:
            shelf.remove(entry)
            if not shelf:
                del self._shelves[entry.key]

    # -- all of them

    def decide(self, now: float) -> Plan[S]:
        """Match waiters, sessions and free room; return what to open and what to close."""
        plan = Plan[S]()
        ending = _REASONS[self.state]
        for entry in [e for e in self.entries if e.state in (_S.IDLE, _S.VALIDATING)]:
            if not entry.users and (reason := ending or self.unfit(entry, now) or entry.leaving):
                if reason == "dead":
                    self.mourn(entry, now)  # before its successor is opened
                self._retire(plan, entry, reason)
        if self.state is PoolState.CLOSED:
            for entry in [e for e in self.entries if e.state in _LENT]:
                self._retire(plan, entry, ending)
        if self.state is not PoolState.OPEN:
            for waiter in self._pop_waiters():
                waiter.future.set_exception(self.not_lending())
            return plan
        for entry in sorted(self._idle(), key=lambda e: e.used_at)[: max(0, self._surplus())]:
            self._retire(plan, entry, "resized")
        self._serve_waiters(plan, now)
        self._restock(plan, now)
        self._shed_idle(plan, now)
        plan.look_again_in_s = self.rebuild.next_in_s(now)
        return plan

    def _serve_waiters(self, plan: Plan[S], now: float) -> None:
        width = self.config.calls_per_session
        coming = Counter[SessionKey]()
        for entry in self.entries:
            if entry.state is _S.OPENING:
                coming[entry.key] += width
        # Room that is about to come free has been promised to the waiters it was made for.
        coming_room = sum(e.state is _S.CLOSING or bool(e.leaving) for e in self.entries)
        for place, waiter in enumerate(self._pop_waiters()):
            if (free := self._pick(waiter.key, now)) and not self._surplus():
                self._promise(free, waiter)
                continue
            if (hopeless := self._hopeless(waiter, place, now)) is not None:
                waiter.future.set_exception(hopeless)
                continue
            self.waiters.append(waiter)
            if coming[waiter.key] > 0:
                coming[waiter.key] -= 1
            elif self._may_open(waiter.key, now):
                self._open(plan, waiter.key, now)
                coming[waiter.key] += width - 1
            elif coming_room > 0:
                coming_room -= 1
            elif len(self.entries) >= self.config.max_size:
                self._evict(plan, waiter.key)

    def _pop_waiters(self) -> list[Waiter[S]]:
        waiters = [waiter for waiter in self.waiters if not waiter.future.done()]
        self.waiters.clear()
        return waiters

    def _hopeless(self, waiter: Waiter[S], place: int, now: float) -> FleetError | None:
        """Say why a waiter should not wait: nothing of its key exists, nor will in time."""
        if self._superseded(waiter.key):
            return self._rotated()
        if self._hopes(waiter.key):
            return None
        if (failure := self.rebuild.failing(waiter.key, now)) is not None:
            return self._cannot_open(failure, now)
        wait_s = self.rebuild.wait_s(now, ahead=place)
        if now + wait_s <= waiter.deadline:
            return None
        return FleetError(
            Code.SERVER_UNAVAILABLE,
            f"the sessions with server {self.server} died and are being opened again, "
            f"{self.config.rebuild_per_s:g} a second",
            hint="try again later, or raise pool.rebuild_per_s",
            retry_after_s=wait_s,
        )

    def _restock(self, plan: Plan[S], now: float) -> None:
        """Open what is missing to ``min_idle``, not counting those that will retire soon."""
        for key in self.warm:
            fresh = sum(
                e.state is _S.OPENING or (e.state is _S.IDLE and not self._retiring(e, now))
                for e in self.entries
                if e.key == key
            )
            while fresh < self.config.min_idle and self._may_open(key, now):
                self._open(plan, key, now)
                fresh += 1

    def _shed_idle(self, plan: Plan[S], now: float) -> None:
        for key in list(self._shelves):
            idle = [e for e in self._shelves[key] if not e.users]
            keep = self.config.min_idle if key in self.warm else 0
            for entry in idle[: max(0, len(idle) - keep)]:
                if now - entry.used_at >= entry.max_idle_s:
                    self._retire(plan, entry, "max_idle")

    def _may_open(self, key: SessionKey, now: float) -> bool:
        return (
            len(self.entries) < self.config.max_size
            and sum(e.state is _S.OPENING for e in self.entries) < MAX_OPENING
            and self.rebuild.may_open(key, now)
        )

    def _open(self, plan: Plan[S], key: SessionKey, now: float) -> None:
        entry = Entry[S](key)
        self.entries[entry] = None
        self.rebuild.opening(key, now)
        plan.to_open.append(entry)

    def _evict(self, plan: Plan[S], key: SessionKey) -> None:
        """Make room by closing the session of another key that has been idle the longest.

        Sessions that several calls share may never be idle: then the least busy one takes no more
        calls, unless the waiter can hope for a session of its own key.
        """
        others = [entry for entry in self._idle() if entry.key != key]
        if others:
            self._retire(plan, min(others, key=lambda entry: entry.used_at), EVICTED)
        elif self.config.calls_per_session > 1 and not self._hopes(key):
            shared = [e for e in self.entries if e.state in LENDABLE and not e.leaving]
            if shared:
                least = min(shared, key=lambda entry: entry.users)
                least.leaving = EVICTED
                self._unshelve(least)

    def _retire(self, plan: Plan[S], entry: Entry[S], reason: str) -> None:
        self._unshelve(entry)
        entry.move(_S.CLOSING)
        plan.to_close.append((entry, reason))

    def _retiring(self, entry: Entry[S], now: float) -> bool:
        age_s = now - entry.opened_at
        old = age_s >= entry.lifetime_s * (1 - RETIRING_SHARE)
        return old or entry.calls >= self._retiring_calls

    def _hopes(self, key: SessionKey) -> bool:
        """Say whether there is a session of this key that may come free."""
        return any(entry.key == key and entry.state in _HOPE for entry in self.entries)

    def _idle(self) -> Iterator[Entry[S]]:
        return (entry for entry in self.entries if entry.state is _S.IDLE)

    def _surplus(self) -> int:
        """Return how many sessions more there are than allowed (after a resize)."""
        if len(self.entries) <= self.config.max_size:
            return 0
        living = sum(entry.state is not _S.CLOSING for entry in self.entries)
        return max(0, living - self.config.max_size)

    # -- why not

    def _cannot_open(self, failure: Failure, now: float) -> FleetError:
        error = failure.error
        return FleetError(
            error.code,
            error.message,
            hint=error.hint,
            retry_after_s=max(0.0, failure.retry_at - now),
            details=error.details,
        )

    def _rotated(self) -> FleetError:
        return FleetError(
            Code.CREDENTIAL_ROTATED,
            f"the credential for server {self.server} was rotated while the call waited",
            hint="submit the call again; it gets the new credential",
        )

    def not_lending(self) -> FleetError:
        """Return the error for a borrower that came too late."""
        return FleetError(
            Code.POOL_CLOSED,
            f"the worker lends no more sessions with server {self.server}: it is stopping",
            hint="submit the call again; another worker takes it",
        )
