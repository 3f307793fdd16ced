"""A pool driven by chance in virtual time, with everything it promises checked after each step.

Openings, probes, resets and closings end only when a rule says so, and each rule lets the event
loop turn just a few times: so every interleaving of them can come up.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from registry.definitions import PoolDefinition
from registry.errors import Code, FleetError
from workers.lending import LENDABLE, SessionState
from workers.pool import SessionKey, SessionPool

KEYS = [SessionKey(1, identity) for identity in ("", "ada", "bob")]
REFUSED = FleetError(Code.SERVER_UNAVAILABLE, "not today")
TIMEOUT_S = 30.0
GATED = ["", "", "open", "probe", "reset", "close", "open close", "open probe reset close"]
TURNS = st.integers(0, 10)


class Session:
    """A session in memory whose every answer is up to the machine."""

    def __init__(self, machine: PoolMachine, key: SessionKey) -> None:
        self.machine = machine
        self.key = key
        self.alive = True
        self.poisoned = False
        self.dead = asyncio.Event()
        self.shares_fate = machine.shares_fate
        self.users = 0
        self.used_at = machine.now_s
        self.closed = False
        self.dirty = False

    def die(self) -> None:
        self.alive = False
        self.dead.set()

    async def probe(self, timeout_s: float) -> None:
        try:
            await self.machine.asked("probe")
        except asyncio.CancelledError:
            self.poisoned = True
            raise
        self.used_at = self.machine.now_s

    async def reset(self, tool: str, timeout_s: float) -> None:
        assert self.users == 0, "reset while somebody uses the session"
        await self.machine.asked("reset")
        self.dirty = False
        self.used_at = self.machine.now_s

    async def close(self) -> None:
        if self.users:
            self.machine.closed_in_use += 1
        try:
            await self.machine.asked("close")
        finally:
            self.closed = True  # a close that fails leaves nothing that could be used
            self.die()


class Borrower:
    """A task that borrows, holds until told, and gives back."""

    def __init__(self, machine: PoolMachine, number: int, key: SessionKey) -> None:
        self.machine = machine
        self.number = number
        self.key = key
        self.state = "waiting"
        self.session: Session | None = None
        self.error: BaseException | None = None
        self.release = asyncio.Event()
        self.discard = False
        self.overtaken = 0
        self.cancelled = False
        self.task = machine.loop.create_task(self._run())

    async def _run(self) -> None:
        machine = self.machine
        limit_s = machine.hold_limit_s
        try:
            async with machine.pool.borrow(
                self.key, TIMEOUT_S, borrower=f"call {self.number}", hold_limit_s=limit_s
            ) as lease:
                self.session = lease.session
                machine.served(self, lease.session)
                try:
                    await self.release.wait()
                    if self.discard:
                        lease.discard("unwanted")
                finally:
                    self.state = "done"
                    self.session.users -= 1
                    self.session.used_at = machine.now_s
        except FleetError as error:
            self.error = error
        except AssertionError as error:  # a broken promise, seen in the instant of the loan
            machine.broken.append(error)
        finally:
            self.state = "done"


class PoolMachine(RuleBasedStateMachine):
    """Borrow, give back, cancel, kill, expire, resize, rotate, drain, jump; check after each."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.loop = asyncio.new_event_loop()
        self.loop.time = lambda: self.now_s  # type: ignore[method-assign]
        self.pending: dict[str, list[asyncio.Future[None]]] = {}
        self.sessions: list[Session] = []
        self.borrowers: list[Borrower] = []
        self.closed_in_use = 0
        self.draining = False
        self.drained: asyncio.Task[None] | None = None
        self.loans = 0
        self.generations = Counter[str]()
        self.broken: list[AssertionError] = []
        self.errors: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))

    # -- what the pool sees

    async def asked(self, what: str) -> None:
        if what not in self.gated:
            return
        future: asyncio.Future[None] = self.loop.create_future()
        self.pending.setdefault(what, []).append(future)
        await future

    async def open_session(self, key: SessionKey) -> Session:
        await self.asked("open")
        session = Session(self, key)
        self.sessions.append(session)
        return session

    def served(self, borrower: Borrower, session: Session) -> None:
        """Check a loan in the instant in which it is made."""
        assert not self.draining, "a draining pool lent"
        assert not borrower.cancelled, "a cancelled waiter was served"
        assert session.key == borrower.key, "a session crossed keys"
        assert session.alive, "a dead session was lent"
        assert not session.poisoned, "a poisoned session was lent"
        assert not session.closed
        assert not (self.resets and session.dirty), "a session was lent that had not been reset"
        session.users += 1
        session.dirty = True
        self.loans += 1
        assert session.users <= self.width, "a session was lent too often at once"
        assert self.now_s - session.used_at <= 0.5 or session.users > 1, "idle, and not probed"
        borrower.state = "holding"
        for other in self.borrowers:
            if other.state == "waiting" and not other.cancelled and self.lends_to_all():
                other.overtaken += other.number < borrower.number
                allowed = 3 * self.largest_max * self.width
                assert other.overtaken <= allowed, "a waiter was overtaken too often"

    def lends_to_all(self) -> bool:
        """Say whether sessions of every key can be opened now."""
        rebuild = self.pool._lending.rebuild
        return rebuild.next_in_s(self.now_s) is None and "open" not in self.gated

    # -- driving

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(work)

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    def settle(self, turns: int) -> None:
        self.run(self.turns(turns))

    @initialize(
        max_size=st.integers(1, 4),
        min_idle=st.integers(0, 2),
        width=st.sampled_from([1, 1, 3]),
        max_waiting=st.sampled_from([3, 64]),
        shares_fate=st.booleans(),
        max_calls=st.sampled_from([5, 20]),
        resets=st.booleans(),
        leaky=st.booleans(),
        gated=st.sampled_from(GATED),
    )
    def make(
        self,
        max_size: int,
        min_idle: int,
        width: int,
        max_waiting: int,
        shares_fate: bool,
        max_calls: int,
        resets: bool,
        leaky: bool,
        gated: str,
    ) -> None:
        self.gated = gated
        self.resets = resets
        self.width = width = 1 if resets else width
        self.shares_fate = shares_fate
        self.max_size = self.largest_max = max_size
        self.max_waiting = max_waiting
        self.hold_limit_s = 40.0 if leaky else float("inf")
        config = PoolDefinition(
            max_size=max_size,
            min_idle=min(min_idle, max_size),
            max_calls=max_calls,
            max_lifetime_s=100,
            max_idle_s=20,
            calls_per_session=width,
            max_waiting=max_waiting,
            reset_tool="clear" if resets else None,
            rebuild_per_s=100,
        )

        async def create() -> None:
            self.pool = SessionPool(
                "crm", config, self.open_session, clock=lambda: self.now_s, jitter=lambda: 0.5
            )
            self.pool._lending.warm.add(KEYS[0])
            self.pool.sweep()

        self.run(create())

    @precondition(lambda self: self.unserved() < 8)
    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=6), turns=TURNS)
    def borrow(self, keys: list[SessionKey], turns: int) -> None:
        async def start() -> None:
            for key in keys:
                self.borrowers.append(Borrower(self, len(self.borrowers), self.newest(key)))

        self.run(start())
        self.settle(turns)

    def unserved(self) -> int:
        return sum(borrower.state == "waiting" for borrower in self.borrowers)

    def newest(self, key: SessionKey) -> SessionKey:
        return key._replace(generation=self.generations[key.identity])

    def some(self, state: str, data: int) -> Borrower | None:
        found = [
            b
            for b in self.borrowers
            if b.state == state and not b.cancelled and not b.release.is_set()
        ]
        return found[data % len(found)] if found else None

    @rule(
        how=st.lists(
            st.sampled_from(["well", "well", "well", "discard", "poison"]), min_size=1, max_size=6
        ),
        data=st.integers(0, 99),
        turns=TURNS,
        then_cancel=st.booleans(),
    )
    def give_back(self, how: list[str], data: int, turns: int, then_cancel: bool) -> None:
        for manner in how:
            if borrower := self.some("holding", data):
                borrower.discard = manner == "discard"
                if manner == "poison" and borrower.session:
                    borrower.session.poisoned = True
                borrower.release.set()
        self.settle(turns)
        if then_cancel:  # perhaps one to whom a session was promised in this instant
            self.mishap("waiter", 0, turns)

    @rule(
        whats=st.lists(
            st.sampled_from(["open", "probe", "reset", "close"]), min_size=1, max_size=4
        ),
        fails=st.sampled_from([False] * 7 + [True]),
        turns=TURNS,
    )
    def answer(self, whats: list[str], fails: bool, turns: int) -> None:
        for what in whats:
            waiting = [future for future in self.pending.get(what, []) if not future.done()]
            if waiting and fails:
                waiting[0].set_exception(REFUSED)
            elif waiting:
                waiting[0].set_result(None)
        self.settle(turns)

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.1, 0.6, 0.6, 1.1, 5.0]), turns=st.integers(5, 20))
    def work_goes_on(self, seconds: float, turns: int) -> None:
        self.now_s += seconds
        self.settle(turns)

    @rule(
        what=st.sampled_from([*["waiter", "call", "kill"] * 4, "all", "expire", "jump"]),
        data=st.integers(0, 99),
        turns=TURNS,
    )
    def something_happens(self, what: str, data: int, turns: int) -> None:
        self.mishap(what, data, turns)

    def mishap(self, what: str, data: int, turns: int) -> None:
        living = [session for session in self.sessions if session.alive]
        if what == "waiter" and (borrower := self.some("waiting", data)):
            borrower.cancelled = True
            borrower.task.cancel()
        elif what == "call" and (borrower := self.some("holding", data)):
            assert borrower.session
            borrower.session.poisoned = True  # as `Session.call_tool` does
            borrower.task.cancel()
        elif what == "kill" and living:
            living[data % len(living)].die()
        elif what == "all":
            for session in living:
                session.die()
        elif what == "expire":
            self.now_s += 101.0
        elif what == "jump":
            self.now_s += 100_000.0
        self.settle(turns)

    @rule(
        what=st.sampled_from(["resize", "rotate"]),
        number=st.integers(1, 5),
        key=st.sampled_from(KEYS),
        turns=TURNS,
    )
    def operate(self, what: str, number: int, key: SessionKey, turns: int) -> None:
        async def work() -> None:
            if what == "resize":
                self.max_size = number
                self.largest_max = max(self.largest_max, number)
                self.pool.resize(max_size=number, min_idle=min(1, number))
            else:
                self.generations[key.identity] += 1
                self.pool.rotate(self.newest(key))

        self.run(work())
        self.settle(turns)

    @precondition(lambda self: self.loans > 4 and self.drained is None)
    @rule(sure=st.sampled_from([False, False, False, True]), turns=TURNS)
    def drain(self, sure: bool, turns: int) -> None:
        async def begin() -> None:
            self.draining = True  # in the very step in which the pool hears of it
            await self.pool.drain()

        if sure:
            self.drained = self.loop.create_task(begin())
        self.settle(turns)

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert not self.errors, self.errors
        for error in self.broken:
            raise error
        stats = self.pool.stats()
        entries = self.pool._lending.entries
        assert stats.size == len(entries)
        limit = max(self.max_size, getattr(self, "last_size", 0))
        assert stats.size <= limit, f"{stats.size} sessions of {self.max_size}"
        self.last_size = stats.size
        assert stats.waiting <= self.max_waiting + self.largest_max * self.width
        assert stats.opening <= 4
        holding = Counter(id(b.session) for b in self.borrowers if b.state == "holding")
        for entry in entries:
            assert entry.promised >= 0
            assert entry.borrowed >= 0
            assert entry.users <= self.width
            if entry.state is SessionState.IDLE:
                assert entry.users == 0
            if entry.state in (SessionState.IN_USE, SessionState.RESERVED):
                # Between waking and its first step a borrower holds without our knowing.
                assert holding[id(entry.session)] <= entry.users
        for shelf in self.pool._lending._shelves.values():
            for entry in shelf:
                assert entry in entries
                assert entry.state in LENDABLE

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.finish()
        self.loop.close()

    def finish(self) -> None:
        """Let everything succeed from now on: all borrowers end, nothing is left."""
        for _ in range(400):
            self.let_go("open", "probe", "reset", "close")
            for borrower in self.borrowers:
                if borrower.state == "holding":
                    borrower.release.set()
            self.now_s += 0.1
            self.settle(5)
            if all(borrower.task.done() for borrower in self.borrowers):
                break
        assert all(borrower.task.done() for borrower in self.borrowers), "a borrower was forgotten"
        self.settle(10)
        stats = self.pool.stats()
        assert (stats.in_use, stats.reserved, stats.validating, stats.waiting) == (0, 0, 0, 0)
        self.close_pool()
        assert self.pool.stats().size == 0
        assert all(session.closed or not session.alive for session in self.sessions)
        assert self.closed_in_use == 0 or self.hold_limit_s < TIMEOUT_S + 100
        left = [task for task in asyncio.all_tasks(self.loop) if not task.done()]
        assert not left, left
        for error in self.broken:
            raise error
        assert not self.errors, self.errors

    def let_go(self, *whats: str) -> None:
        for future in [future for what in whats for future in self.pending.get(what, [])]:
            if not future.done():
                future.set_result(None)

    def close_pool(self) -> None:
        closing = self.loop.create_task(self.pool.close())
        while not closing.done():
            self.let_go("close")
            self.now_s += 0.5
            self.settle(3)
        closing.result()
        if self.drained is not None:
            self.drained.cancel()
        self.settle(5)
