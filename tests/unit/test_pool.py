"""What borrowers see of the session pool; sessions are in memory, time is the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from registry.definitions import PoolDefinition
from registry.errors import Code, FleetError
from tests.requirements import requirement
from workers.pool import SessionKey, SessionPool

pytestmark = pytest.mark.anyio

KEY = SessionKey(1)
LIMIT_S = 5.0


class FakeClock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class FakeSession:
    """A session in memory that remembers who closed it."""

    def __init__(self, key: SessionKey, number: int) -> None:
        self.key = key
        self.number = number
        self.alive = True
        self.poisoned = False
        self.dead = asyncio.Event()
        self.closed = asyncio.Event()
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.shares_fate = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.probes = 0
        self.resets: list[str] = []
        self.answer: FleetError | None = None

    async def probe(self, timeout_s: float) -> None:
        self.probes += 1
        await self.may_answer.wait()
        if self.answer is not None:
            raise self.answer

    async def reset(self, tool: str, timeout_s: float) -> None:
        self.resets.append(tool)
        await self.may_answer.wait()
        if self.answer is not None:
            raise self.answer

    def die(self) -> None:
        self.alive = False
        self.dead.set()

    async def close(self) -> None:
        await self.may_close.wait()
        self.die()
        self.closed.set()


class Server:
    """What the pool opens sessions with; it can be made slow or broken."""

    def __init__(self) -> None:
        self.sessions: list[FakeSession] = []
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.attempts = 0
        self.error: FleetError | None = None
        self.pool: SessionPool[FakeSession]
        self.largest = 0

    async def open(self, key: SessionKey) -> FakeSession:
        self.attempts += 1
        self.largest = max(self.largest, self.pool.stats().size)
        await self.may_open.wait()
        if self.error is not None:
            raise self.error
        session = FakeSession(key, len(self.sessions))
        self.sessions.append(session)
        return session


@asynccontextmanager
async def a_pool(
    server: Server, clock: FakeClock | None = None, **limits: float | str
) -> AsyncIterator[SessionPool[FakeSession]]:
    config = PoolDefinition.model_validate({"min_idle": 0, **limits})
    pool = SessionPool("crm", config, server.open, clock=clock or FakeClock(), jitter=lambda: 0.0)
    server.pool = pool
    try:
        yield pool
    finally:
        for session in server.sessions:
            session.may_close.set()
        server.may_open.set()
        async with asyncio.timeout(LIMIT_S):
            await pool.close()
        assert pool.stats().size == 0


async def until(pool: SessionPool[FakeSession], **figures: int) -> None:
    """Wait until the pool's figures are these."""
    async with asyncio.timeout(LIMIT_S):
        while any(getattr(pool.stats(), name) != value for name, value in figures.items()):
            await asyncio.sleep(0)


class Borrower:
    """A task that borrows, holds until told, and gives back."""

    def __init__(
        self, pool: SessionPool[FakeSession], key: SessionKey = KEY, timeout_s: float = LIMIT_S
    ) -> None:
        self.holds = asyncio.Event()
        self.release = asyncio.Event()
        self.session: FakeSession | None = None
        self.spawned = False
        self.task = asyncio.create_task(self._run(pool, key, timeout_s))

    async def _run(self, pool: SessionPool[FakeSession], key: SessionKey, timeout_s: float) -> None:
        async with pool.borrow(key, timeout_s) as lease:
            self.session, self.spawned = lease.session, lease.spawned
            self.holds.set()
            await self.release.wait()

    async def held(self) -> FakeSession:
        async with asyncio.timeout(LIMIT_S):
            await self.holds.wait()
        assert self.session is not None
        return self.session

    async def done(self) -> None:
        self.release.set()
        async with asyncio.timeout(LIMIT_S):
            await self.task


@requirement("pool:prewarmed")
async def test_a_started_pool_lends_without_opening() -> None:
    server = Server()
    async with a_pool(server, min_idle=2) as pool:
        await pool.start(KEY)
        async with pool.borrow(KEY, LIMIT_S) as lease:
            assert (server.attempts, lease.spawned) == (2, False)


@requirement("pool:prewarmed")
async def test_a_borrow_says_when_it_had_to_wait_for_a_session_to_open() -> None:
    server = Server()
    async with a_pool(server) as pool, pool.borrow(KEY, LIMIT_S) as lease:
        assert lease.spawned


@requirement("pool:fifo")
async def test_waiters_are_served_first_come_first_served() -> None:
    server = Server()
    async with a_pool(server, max_size=1) as pool:
        first = Borrower(pool)
        await first.held()
        waiting = [Borrower(pool) for _ in range(5)]
        await until(pool, waiting=5)
        await first.done()
        for place, borrower in enumerate(waiting):
            await borrower.held()
            assert not any(later.holds.is_set() for later in waiting[place + 1 :])
            await borrower.done()
        assert server.attempts == 1


@requirement("pool:fifo")
async def test_a_newcomer_does_not_overtake_a_waiter() -> None:
    server = Server()
    async with a_pool(server, max_size=1) as pool:
        first = Borrower(pool)
        await first.held()
        early = Borrower(pool)
        await until(pool, waiting=1)
        first.release.set()
        async with asyncio.timeout(LIMIT_S):
            await asyncio.wait({first.task})
        late = Borrower(pool)
        await early.held()
        assert not late.holds.is_set()
        await early.done()
        await late.held()
        await late.done()


@requirement("pool:bounded")
async def test_there_are_never_more_sessions_than_max_size() -> None:
    server = Server()
    async with a_pool(server, min_idle=2, max_size=3, max_calls=2) as pool:
        keys = [KEY, SessionKey(1, "alice"), SessionKey(1, "bob")]
        borrowers = [Borrower(pool, keys[n % 3]) for n in range(60)]
        for borrower in borrowers:
            borrower.release.set()
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*(borrower.task for borrower in borrowers))
        assert server.largest == 3


@requirement("pool:bounded")
async def test_a_session_that_is_closing_still_counts() -> None:
    server = Server()
    async with a_pool(server, max_size=1) as pool:
        async with pool.borrow(KEY, LIMIT_S) as lease:
            old = lease.session
            old.may_close.clear()
            lease.discard("done with it")
        successor = Borrower(pool)
        await until(pool, closing=1, waiting=1)
        assert server.attempts == 1
        old.may_close.set()
        assert (await successor.held()).number == 1
        await successor.done()


@requirement("pool:bounded")
async def test_a_burst_is_served_mostly_by_sessions_that_come_back() -> None:
    server = Server()
    async with a_pool(server, min_idle=5, max_size=50) as pool:
        await pool.start(KEY)
        server.may_open.clear()
        burst = [Borrower(pool) for _ in range(50)]
        for borrower in burst:
            borrower.release.set()
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*(borrower.task for borrower in burst))
        assert pool.stats().size <= 10


@requirement("pool:refused-handover")
async def test_a_session_given_to_a_waiter_cancelled_in_that_instant_goes_to_the_next() -> None:
    server = Server()
    async with a_pool(server, max_size=1) as pool:
        async with pool.borrow(KEY, LIMIT_S) as lease:
            session = lease.session
            cancelled, patient = Borrower(pool), Borrower(pool)
            await until(pool, waiting=2)
        # The race at its worst instant: handed over, and cancelled before the waiter could wake.
        assert pool.stats().reserved == 1
        cancelled.task.cancel()
        assert await patient.held() is session
        assert not cancelled.holds.is_set()
        await patient.done()
        assert pool.stats().idle == 1


@requirement("pool:refused-handover")
async def test_a_waiter_cancelled_in_the_queue_is_passed_over() -> None:
    server = Server()
    async with a_pool(server, max_size=1) as pool:
        holder = Borrower(pool)
        await holder.held()
        cancelled, patient = Borrower(pool), Borrower(pool)
        await until(pool, waiting=2)
        cancelled.task.cancel()
        await until(pool, waiting=1)
        await holder.done()
        await patient.held()
        await patient.done()


@requirement("pool:refused-handover")
async def test_a_session_opened_for_a_waiter_that_gave_up_stays_for_the_next() -> None:
    server = Server()
    server.may_open.clear()
    async with a_pool(server) as pool:
        gone = Borrower(pool)
        await until(pool, opening=1)
        gone.task.cancel()
        server.may_open.set()
        await until(pool, idle=1)
        async with pool.borrow(KEY, LIMIT_S):
            assert server.attempts == 1


@requirement("pool:recycles")
async def test_a_session_is_retired_after_max_calls() -> None:
    server = Server()
    async with a_pool(server, max_calls=3) as pool:
        used = []
        for _ in range(4):
            async with pool.borrow(KEY, LIMIT_S) as lease:
                used.append(lease.session.number)
        assert used == [0, 0, 0, 1]
        assert pool.stats().closed_total == {"max_calls": 1}


@requirement("pool:recycles")
async def test_the_successor_is_there_before_the_session_retires() -> None:
    server = Server()
    async with a_pool(server, min_idle=1, max_size=2, max_calls=20) as pool:
        await pool.start(KEY)
        waited = []
        for _ in range(60):
            async with pool.borrow(KEY, LIMIT_S) as lease:
                waited.append(lease.spawned)
            await until(pool, opening=0, closing=0)
        assert not any(waited)
        assert pool.stats().closed_total["max_calls"] == 2


@requirement("pool:recycles")
async def test_a_session_past_its_lifetime_is_replaced_without_being_lent_again() -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock, min_idle=1, max_lifetime_s=900) as pool:
        await pool.start(KEY)
        clock.now_s += 901
        async with pool.borrow(KEY, LIMIT_S) as lease:
            assert lease.session.number == 1
        await server.sessions[0].closed.wait()
        assert pool.stats().closed_total == {"max_lifetime": 1}


@requirement("pool:recycles")
async def test_a_session_in_use_is_not_taken_away_because_of_its_age() -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock, max_lifetime_s=900) as pool:
        async with pool.borrow(KEY, LIMIT_S) as lease:
            clock.now_s += 5000
            pool.sweep()
            assert lease.session.alive
        await until(pool, idle=0, closing=0)


@requirement("pool:recycles")
async def test_idle_sessions_beyond_min_idle_are_closed_after_max_idle() -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock, min_idle=1, max_idle_s=300) as pool:
        await pool.start(KEY)
        borrowers = [Borrower(pool) for _ in range(3)]
        for borrower in borrowers:
            await borrower.held()
        for borrower in borrowers:
            await borrower.done()
        clock.now_s += 301
        pool.sweep()
        await until(pool, idle=1, closing=0)
        assert set(pool.stats().closed_total) == {"max_idle"}


@requirement("pool:never-lends-the-unfit")
@pytest.mark.parametrize("fault", ["poisoned", "discarded", "dead"])
async def test_an_unfit_session_is_closed_when_it_is_given_back(fault: str) -> None:
    server = Server()
    async with a_pool(server) as pool:
        async with pool.borrow(KEY, LIMIT_S) as lease:
            first = lease.session
            if fault == "poisoned":
                first.poisoned = True
            elif fault == "discarded":
                lease.discard(fault)
            else:
                first.die()
        async with pool.borrow(KEY, LIMIT_S) as lease:
            assert lease.session is not first
        await first.closed.wait()
        assert pool.stats().closed_total == {fault: 1}


@requirement("pool:never-lends-the-unfit")
async def test_an_idle_session_that_dies_is_replaced_before_anyone_asks() -> None:
    server = Server()
    async with a_pool(server, min_idle=1) as pool:
        await pool.start(KEY)
        async with pool.borrow(KEY, LIMIT_S):
            pass  # it has proved itself: its death is no sign of a server that cannot start
        server.sessions[0].die()
        await until(pool, idle=1, closing=0, opened_total=2)
        async with pool.borrow(KEY, LIMIT_S) as lease:
            assert lease.session.number == 1


@requirement("pool:never-lends-the-unfit")
async def test_a_session_that_dies_between_handover_and_waking_is_not_lent() -> None:
    server = Server()
    async with a_pool(server, max_size=1) as pool:
        async with pool.borrow(KEY, LIMIT_S) as lease:
            session = lease.session
            waiter = Borrower(pool)
            await until(pool, waiting=1)
        assert pool.stats().reserved == 1
        session.die()
        assert (await waiter.held()) is not session
        await waiter.done()


@requirement("pool:keys-are-apart")
async def test_a_session_is_never_lent_to_another_key() -> None:
    server = Server()
    alice, bob = SessionKey(1, "alice"), SessionKey(1, "bob")
    async with a_pool(server) as pool:
        async with pool.borrow(alice, LIMIT_S):
            pass
        async with pool.borrow(bob, LIMIT_S) as lease:
            assert lease.session.key == bob


@requirement("pool:keys-are-apart")
async def test_a_full_pool_makes_room_by_closing_the_longest_idle_of_another_key() -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock, max_size=2) as pool:
        for name in ("alice", "bob"):
            async with pool.borrow(SessionKey(1, name), LIMIT_S):
                pass
            clock.now_s += 1
        async with pool.borrow(SessionKey(1, "carol"), LIMIT_S):
            alice, bob = server.sessions[:2]
            assert (alice.alive, bob.alive) == (False, True)


@requirement("pool:bounded-wait")
async def test_a_borrow_that_is_not_served_in_time_says_so() -> None:
    server = Server()
    async with a_pool(server, max_size=1) as pool:
        holder = Borrower(pool)
        await holder.held()
        with pytest.raises(FleetError, match="no session with server crm") as caught:
            async with pool.borrow(KEY, 0.01):
                pass
        assert caught.value.code is Code.POOL_TIMEOUT
        assert pool.stats().waiting == 0
        await holder.done()


@requirement("pool:fails-fast")
async def test_all_waiters_fail_at_once_when_no_session_can_be_opened() -> None:
    server = Server()
    server.error = FleetError(Code.SERVER_UNAVAILABLE, "the server is broken")
    async with a_pool(server) as pool:
        waiting = [Borrower(pool, timeout_s=1000) for _ in range(5)]
        async with asyncio.timeout(LIMIT_S):
            outcomes = await asyncio.gather(
                *(borrower.task for borrower in waiting), return_exceptions=True
            )
        assert [str(outcome) for outcome in outcomes] == ["the server is broken"] * 5
        assert all(isinstance(o, FleetError) and o.retry_after_s is not None for o in outcomes)


@requirement("pool:fails-fast")
async def test_while_opening_fails_borrowers_are_refused_without_another_attempt() -> None:
    server = Server()
    server.error = FleetError(Code.SERVER_UNAVAILABLE, "the server is broken")
    async with a_pool(server) as pool:
        for _ in range(20):
            with pytest.raises(FleetError, match="broken"):
                async with pool.borrow(KEY, 1000):
                    pass
        assert server.attempts == 1


@requirement("pool:fails-fast")
async def test_attempts_back_off_and_the_pool_recovers() -> None:
    server, clock = Server(), FakeClock()
    server.error = FleetError(Code.SERVER_UNAVAILABLE, "the server is broken")
    async with a_pool(server, clock) as pool:
        delays = []
        for _ in range(8):
            with pytest.raises(FleetError) as caught:
                async with pool.borrow(KEY, 1000):
                    pass
            delay_s = caught.value.retry_after_s
            assert delay_s is not None
            delays.append(delay_s)
            clock.now_s += delay_s
        assert delays == [0.25, 0.5, 1, 2, 4, 8, 15, 15]
        server.error = None
        async with pool.borrow(KEY, LIMIT_S) as lease:
            assert lease.session.alive


@requirement("pool:fails-fast")
async def test_start_raises_why_the_first_session_did_not_open() -> None:
    server = Server()
    server.error = FleetError(Code.SERVER_UNAVAILABLE, "the server is broken")
    async with a_pool(server, min_idle=1) as pool:
        with pytest.raises(FleetError, match="broken"):
            await pool.start(KEY)


@requirement("pool:fails-fast")
async def test_a_server_that_ends_right_after_each_handshake_is_not_started_over_and_over() -> None:
    server = Server()
    async with a_pool(server, min_idle=1) as pool:
        await pool.start(KEY)
        server.sessions[0].die()
        await until(pool, idle=0, closing=0)
        with pytest.raises(FleetError, match="ended right after"):
            async with pool.borrow(KEY, 1000):
                pass
        assert server.attempts == 1


@requirement("pool:drains")
async def test_a_draining_pool_lends_no_more() -> None:
    server = Server()
    async with a_pool(server) as pool:
        async with asyncio.timeout(LIMIT_S):
            await pool.drain()
        with pytest.raises(FleetError) as caught:
            async with pool.borrow(KEY, LIMIT_S):
                pass
        assert caught.value.code is Code.POOL_CLOSED


@requirement("pool:drains")
async def test_draining_waits_for_what_is_in_use_and_refuses_who_waits() -> None:
    server = Server()
    async with a_pool(server, max_size=1) as pool:
        holder = Borrower(pool)
        session = await holder.held()
        waiter = Borrower(pool)
        await until(pool, waiting=1)
        draining = asyncio.create_task(pool.drain())
        with pytest.raises(FleetError, match="it is stopping"):
            await waiter.task
        assert session.alive
        assert not draining.done()
        await holder.done()
        async with asyncio.timeout(LIMIT_S):
            await draining
        assert not session.alive


@requirement("pool:drains")
async def test_closing_ends_sessions_that_are_in_use() -> None:
    server = Server()
    async with a_pool(server) as pool:
        holder = Borrower(pool)
        session = await holder.held()
        async with asyncio.timeout(LIMIT_S):
            await pool.close()
        assert session.closed.is_set()
        await holder.done()
        assert pool.stats().size == 0


@requirement("pool:drains")
async def test_closing_ends_an_opening_that_hangs() -> None:
    server = Server()
    server.may_open.clear()
    async with a_pool(server) as pool:
        waiter = Borrower(pool)
        await until(pool, opening=1)
        async with asyncio.timeout(LIMIT_S):
            await pool.close()
        with pytest.raises(FleetError, match="it is stopping"):
            await waiter.task
        assert pool.stats().size == 0


@requirement("pool:printable")
async def test_the_printed_pool_tells_its_state() -> None:
    server = Server()
    async with a_pool(server, max_size=3) as pool, pool.borrow(KEY, LIMIT_S):
        assert repr(pool) == ("<SessionPool crm: open, 0 idle, 1 in use of 3, 0 waiting>")


@requirement("pool:refused-handover")
async def test_cancelling_borrowers_at_every_turn_loses_no_slot() -> None:
    server = Server()
    async with a_pool(server, min_idle=1, max_size=2, max_calls=3) as pool:
        for turns in range(40):
            borrowers = [Borrower(pool) for _ in range(4)]
            for borrower in borrowers[1:]:
                borrower.release.set()
            for _ in range(turns % 10):
                await asyncio.sleep(0)
            borrowers[0].task.cancel()
            borrowers[2].task.cancel()
            async with asyncio.timeout(LIMIT_S):
                await asyncio.gather(*(b.task for b in borrowers), return_exceptions=True)
            stats = pool.stats()
            assert (stats.in_use, stats.reserved, stats.waiting) == (0, 0, 0)
            assert stats.size <= 2
        assert server.largest <= 2
