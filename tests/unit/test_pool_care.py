"""How the pool looks after its sessions: proof of life, of death, rotation, leaks, bursts."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import FrozenInstanceError

import pytest

from registry.definitions import PoolDefinition
from registry.errors import Code, FleetError
from tests.requirements import requirement
from tests.unit.test_pool import (
    KEY,
    LIMIT_S,
    Borrower,
    FakeClock,
    FakeSession,
    Server,
    a_pool,
    until,
)
from workers.pool import SessionKey, SessionPool

pytestmark = pytest.mark.anyio

GONE = FleetError(Code.SESSION_LOST, "gone")


@requirement("pool:max-waiting")
async def test_one_waiter_too_many_is_refused_at_once() -> None:
    async with a_pool(Server(), max_size=1, max_waiting=1) as pool:
        first = Borrower(pool)
        await first.held()
        second = Borrower(pool)
        await until(pool, waiting=1)
        with pytest.raises(FleetError) as refused:
            async with pool.borrow(KEY, LIMIT_S, borrower="call 3"):
                pass
        assert refused.value.code is Code.POOL_FULL
        assert refused.value.retry_after_s == 1.0
        assert "call 3" in refused.value.message
        assert pool.stats().refused_total == 1
        await first.done()
        await second.held()
        await second.done()


@requirement("pool:validates")
@pytest.mark.parametrize(("idle_s", "probes"), [(0.5, 0), (0.51, 1)])
async def test_only_a_session_idle_for_long_is_probed(idle_s: float, probes: int) -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock) as pool:
        await Borrower(pool).done()
        clock.now_s += idle_s
        await Borrower(pool).done()
        assert (server.sessions[0].probes, pool.stats().probed_total) == (probes, probes)


@requirement("pool:validates")
async def test_a_session_that_fails_its_probe_is_replaced_for_the_same_borrower() -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock) as pool:
        await Borrower(pool).done()
        clock.now_s += 1
        server.sessions[0].answer = GONE
        borrower = Borrower(pool)
        assert await borrower.held() is server.sessions[1]
        await borrower.done()
        assert pool.stats().closed_total == {"invalid": 1}
        assert pool.stats().probes_failed_total == 1


@requirement("pool:validates", "pool:bounded-wait")
async def test_a_probe_that_is_never_answered_is_given_up() -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock) as pool:
        await Borrower(pool).done()
        clock.now_s += 1
        server.sessions[0].may_answer.clear()
        server.may_open.clear()
        borrower = Borrower(pool, timeout_s=0.05)
        with pytest.raises(FleetError) as late:
            await borrower.done()
        assert late.value.code is Code.POOL_TIMEOUT


@requirement("pool:validates", "pool:fifo")
async def test_a_borrower_whose_session_failed_its_probe_keeps_its_turn() -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock, max_size=1) as pool:
        await Borrower(pool).done()
        clock.now_s += 1
        session = server.sessions[0]
        session.may_answer.clear()
        session.answer = GONE
        first = Borrower(pool)
        await until(pool, validating=1)
        second = Borrower(pool)
        await until(pool, waiting=1)
        session.may_answer.set()
        await first.held()
        assert not second.holds.is_set()
        await first.done()
        await second.done()


@requirement("pool:one-proof-of-death")
async def test_the_death_of_a_remote_session_retires_all_that_were_opened_before_it() -> None:
    server = Server()
    async with a_pool(server, max_size=4, min_idle=0) as pool:
        borrowers = [Borrower(pool) for _ in range(4)]
        old = [await borrower.held() for borrower in borrowers]
        for session in old:
            session.shares_fate = True
        for borrower in borrowers[:3]:
            await borrower.done()
        old[0].die()
        await until(pool, idle=0, closing=0)
        assert [session.closed.is_set() for session in old] == [True, True, True, False]
        await borrowers[3].done()  # in use it is left alone
        await until(pool, closing=0)
        assert old[3].closed.is_set()
        assert pool.stats().closed_total == {"dead": 1, "outlived": 3}


@requirement("pool:one-proof-of-death")
async def test_a_lost_call_is_proof_of_death_as_well() -> None:
    server = Server()
    async with a_pool(server, max_size=2) as pool:
        first, second = Borrower(pool), Borrower(pool)
        for borrower in (first, second):
            (await borrower.held()).shares_fate = True
        await first.done()
        await second.done()
        async with pool.borrow(KEY, LIMIT_S) as lease:
            lease.discard("session_lost", dead=True)
        await until(pool, idle=0, closing=0)
        assert all(session.closed.is_set() for session in server.sessions)


@requirement("pool:one-proof-of-death")
async def test_the_death_of_a_child_process_puts_the_others_to_the_proof() -> None:
    server = Server()
    async with a_pool(server, max_size=2) as pool:
        first, second = Borrower(pool), Borrower(pool)
        dies, lives = await first.held(), await second.held()
        await first.done()
        await second.done()
        dies.die()
        await until(pool, idle=1, closing=0)
        await Borrower(pool).done()
        await Borrower(pool).done()
        assert lives.probes == 1, "once is enough"
        assert not lives.closed.is_set()


@requirement("pool:rebuild-is-paced")
async def test_after_a_mass_death_sessions_are_opened_again_at_a_limited_rate() -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock, max_size=10, rebuild_per_s=2) as pool:
        borrowers = [Borrower(pool) for _ in range(10)]
        for borrower in borrowers:
            await borrower.held()
        for borrower in borrowers:
            await borrower.done()
        pool.resize(min_idle=10)
        await pool.start(KEY)  # from now on it is to have ten
        for session in list(server.sessions):
            session.die()
        await until(pool, idle=4, closing=0)
        for opened in (6, 8, 10):
            clock.now_s += 1
            pool.sweep()
            await until(pool, idle=opened, closing=0, opening=0)
            assert server.attempts == 10 + opened


@requirement("pool:rebuild-is-paced")
async def test_a_waiter_that_cannot_be_served_in_time_is_told_when_to_come_back() -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock, max_size=8, rebuild_per_s=0.1) as pool:
        borrowers = [Borrower(pool) for _ in range(8)]
        for borrower in borrowers:
            (await borrower.held()).die()
        for borrower in borrowers:
            await borrower.done()
        await until(pool, closing=0)
        for _ in range(4):  # the burst
            async with pool.borrow(KEY, LIMIT_S) as lease:
                lease.session.poisoned = True
        await until(pool, closing=0)
        with pytest.raises(FleetError) as refused:
            async with pool.borrow(KEY, LIMIT_S):
                pass
        assert refused.value.code is Code.SERVER_UNAVAILABLE
        assert refused.value.retry_after_s == pytest.approx(10)


@requirement("pool:rebuild-is-paced")
async def test_sessions_that_the_pool_closed_itself_are_replaced_without_a_limit() -> None:
    server = Server()
    async with a_pool(server, max_size=1, rebuild_per_s=0.001) as pool:
        for _ in range(50):
            async with pool.borrow(KEY, LIMIT_S) as lease:
                lease.session.poisoned = True  # a cancelled call
        assert server.attempts == 50


@requirement("pool:reports-leaks")
async def test_a_borrower_that_keeps_a_session_is_named_and_loses_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock, max_size=1) as pool:
        forgotten = asyncio.Event()

        async def keep() -> None:
            async with pool.borrow(KEY, LIMIT_S, borrower="call 7 of crm_find", hold_limit_s=35):
                await forgotten.wait()

        keeper = asyncio.create_task(keep())
        await until(pool, in_use=1)
        clock.now_s += 35
        pool.sweep()
        assert pool.stats().leaked_total == 0
        clock.now_s += 1
        with caplog.at_level(logging.ERROR, "toolfleet.pool"):
            pool.sweep()
        await until(pool, in_use=0, closing=0)
        assert "36.0 s by call 7 of crm_find" in caplog.text
        assert "test_pool_care.py:" in caplog.text, "where the borrower stands"
        assert server.sessions[0].closed.is_set()
        assert pool.stats().leaked_total == 1
        await Borrower(pool).done()  # the slot can be had again
        forgotten.set()
        await keeper


@requirement("pool:resizes")
async def test_a_smaller_pool_closes_idle_sessions_now_and_others_when_given_back() -> None:
    server = Server()
    async with a_pool(server, max_size=4) as pool:
        borrowers = [Borrower(pool) for _ in range(4)]
        for borrower in borrowers:
            await borrower.held()
        await borrowers[0].done()
        pool.resize(max_size=2)
        await until(pool, idle=0, closing=0, in_use=3)
        await borrowers[1].done()
        await until(pool, idle=0, closing=0, in_use=2)
        await borrowers[2].done()
        assert pool.stats().idle == 1
        await borrowers[3].done()


@requirement("pool:resizes")
async def test_a_larger_pool_serves_who_waits() -> None:
    async with a_pool(Server(), max_size=1) as pool:
        first = Borrower(pool)
        await first.held()
        second = Borrower(pool)
        await until(pool, waiting=1)
        pool.resize(max_size=2)
        await second.held()
        await first.done()
        await second.done()


@requirement("pool:resizes")
async def test_limits_that_do_not_fit_together_are_refused() -> None:
    async with a_pool(Server(), max_size=2) as pool:
        with pytest.raises(ValueError, match="min_idle 3 is larger than max_size 2"):
            pool.resize(min_idle=3)
        assert pool.stats().max_size == 2


@requirement("pool:resets")
async def test_a_session_is_reset_before_the_next_borrower_gets_it() -> None:
    server = Server()
    async with a_pool(server, max_size=1, reset_tool="clear") as pool:
        first = Borrower(pool)
        session = await first.held()
        session.may_answer.clear()
        await first.done()
        second = Borrower(pool)
        await until(pool, resetting=1, waiting=1)
        assert session.resets == ["clear"]
        session.may_answer.set()
        assert await second.held() is session
        await second.done()


@requirement("pool:resets")
async def test_a_session_that_cannot_be_reset_is_closed() -> None:
    server = Server()
    async with a_pool(server, max_size=1, reset_tool="clear") as pool:
        borrower = Borrower(pool)
        (await borrower.held()).answer = FleetError(Code.TOOL_REFUSED, "no such tool")
        await borrower.done()
        await until(pool, resetting=0, closing=0)
        assert pool.stats().closed_total == {"reset": 1}
        await Borrower(pool).done()
        assert server.attempts == 2


@requirement("pool:multiplexes")
async def test_a_session_takes_as_many_calls_at_once_as_it_may() -> None:
    server = Server()
    async with a_pool(server, max_size=2, calls_per_session=3) as pool:
        borrowers = [Borrower(pool) for _ in range(6)]
        sessions = [await borrower.held() for borrower in borrowers]
        assert sorted(session.number for session in sessions) == [0, 0, 0, 1, 1, 1]
        seventh = Borrower(pool)
        await until(pool, waiting=1)
        assert pool.stats().calls_under_way == 6
        await borrowers[0].done()
        await seventh.held()
        for borrower in (*borrowers[1:], seventh):
            await borrower.done()


@requirement("pool:multiplexes", "pool:never-lends-the-unfit")
async def test_a_spoiled_session_is_lent_no_more_but_its_other_calls_may_finish() -> None:
    server = Server()
    async with a_pool(server, max_size=2, calls_per_session=2) as pool:
        first, second = Borrower(pool), Borrower(pool)
        session = await first.held()
        assert await second.held() is session
        session.poisoned = True
        await first.done()
        third = Borrower(pool)
        assert await third.held() is not session
        assert not session.closed.is_set(), "the second call is under way"
        await second.done()
        await until(pool, closing=0)
        assert session.closed.is_set()
        await third.done()


@requirement("pool:rotates")
async def test_a_rotation_retires_exactly_the_sessions_of_that_identity() -> None:
    server = Server()
    ada, bob = SessionKey(1, "ada", 1), SessionKey(1, "bob", 1)
    async with a_pool(server, max_size=4) as pool:
        for key in (ada, bob):
            await Borrower(pool, key).done()
        in_use = Borrower(pool, ada)
        session = await in_use.held()
        other = Borrower(pool, ada)
        idle = await other.held()
        await other.done()
        pool.rotate(ada._replace(generation=2))
        await until(pool, closing=0)
        assert idle.closed.is_set()
        assert not session.closed.is_set(), "in use it is left alone"
        await in_use.done()
        await until(pool, closing=0)
        assert session.closed.is_set()
        assert pool.stats().closed_total == {"rotated": 2}
        borrower = Borrower(pool, bob)
        assert (await borrower.held()).key == bob
        await borrower.done()
        assert server.attempts == 3


@requirement("pool:rotates")
async def test_a_borrower_with_an_old_credential_is_told_so() -> None:
    async with a_pool(Server(), max_size=1) as pool:
        await Borrower(pool, SessionKey(1, "ada", 2)).done()
        with pytest.raises(FleetError) as refused:
            async with pool.borrow(SessionKey(1, "ada", 1), LIMIT_S):
                pass
        assert refused.value.code is Code.CREDENTIAL_ROTATED


@requirement("pool:rotates")
async def test_a_waiter_with_an_old_credential_does_not_wait_on() -> None:
    async with a_pool(Server(), max_size=1) as pool:
        holder = Borrower(pool)
        await holder.held()
        waiter = Borrower(pool, SessionKey(1, "ada", 1))
        await until(pool, waiting=1)
        pool.rotate(SessionKey(1, "ada", 2))
        with pytest.raises(FleetError) as refused:
            await waiter.done()
        assert refused.value.code is Code.CREDENTIAL_ROTATED
        await holder.done()


@requirement("pool:retires-the-grown")
async def test_sessions_that_have_grown_are_retired_and_no_others() -> None:
    server = Server()
    async with a_pool(server, max_size=3) as pool:
        borrowers = [Borrower(pool) for _ in range(3)]
        for borrower in borrowers:
            await borrower.held()
        await borrowers[0].done()
        await borrowers[1].done()
        pool.retire(lambda session: "grown" if session.number != 1 else "")
        await until(pool, closing=0)
        await borrowers[2].done()  # in use it is left alone
        await until(pool, closing=0)
        assert [s.closed.is_set() for s in server.sessions] == [True, False, True]
        assert pool.stats().closed_total == {"grown": 2}


@requirement("pool:printable")
async def test_the_figures_of_a_pool_cannot_be_changed() -> None:
    async with a_pool(Server()) as pool:
        with pytest.raises(FrozenInstanceError):
            pool.stats().idle = 3  # type: ignore[misc]


@requirement("pool:spike")
async def test_a_spike_of_50_is_served_while_the_pool_grows_to_10_at_most() -> None:
    """HikariCP's test: opening takes 150 ms, a call 2 ms, five sessions are warm."""
    opened: list[FakeSession] = []
    served: list[int] = []

    async def open_session(key: SessionKey) -> FakeSession:
        if len(opened) >= 5:
            await asyncio.sleep(0.15)
        opened.append(FakeSession(key, len(opened)))
        return opened[-1]

    config = PoolDefinition(min_idle=5, max_size=50)
    pool = SessionPool("crm", config, open_session)
    await pool.start(KEY)
    largest = 0

    async def call(number: int) -> None:
        nonlocal largest
        async with pool.borrow(KEY, LIMIT_S):
            served.append(number)
            largest = max(largest, pool.stats().size)
            await asyncio.sleep(0.002)

    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*(call(number) for number in range(50)))
        largest = max(largest, pool.stats().size)
        await pool.close()
    assert len(served) == 50
    assert largest <= 10
    overtaken = [place - number for place, number in enumerate(served)]
    assert max(overtaken) <= 10


@requirement("pool:resets")
async def test_a_session_near_its_end_is_reset_as_well() -> None:
    server = Server()
    async with a_pool(server, max_size=1, max_calls=10, reset_tool="clear") as pool:
        for _ in range(10):
            await Borrower(pool).done()
            await until(pool, resetting=0)
        assert len(server.sessions[0].resets) >= 9, "before each borrower but the first"


@requirement("pool:resets")
async def test_a_reset_tool_for_a_session_that_calls_share_is_refused() -> None:
    with pytest.raises(ValueError, match="reset_tool needs calls_per_session 1"):
        PoolDefinition(reset_tool="clear", calls_per_session=2)


@requirement("pool:one-proof-of-death")
@pytest.mark.parametrize("code", [Code.CALL_TIMEOUT, Code.CREDENTIAL_REJECTED, Code.RATE_LIMITED])
async def test_a_late_or_refused_probe_proves_nothing_about_other_sessions(code: Code) -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock, max_size=2) as pool:
        ada, bob = (Borrower(pool, SessionKey(1, name)) for name in ("ada", "bob"))
        for borrower in (ada, bob):
            (await borrower.held()).shares_fate = True
            await borrower.done()
        clock.now_s += 1
        server.sessions[0].answer = FleetError(code, "not now")
        await Borrower(pool, SessionKey(1, "ada")).done()
        await until(pool, closing=0)
        assert not server.sessions[1].closed.is_set()


@requirement("pool:rebuild-is-paced", "pool:fails-fast")
async def test_tenants_whose_credential_is_rejected_do_not_slow_down_the_others() -> None:
    rejected = FleetError(Code.CREDENTIAL_REJECTED, "who are you?")

    class Strict(Server):
        async def open(self, key: SessionKey) -> FakeSession:
            if key.identity.startswith("bad"):
                raise rejected
            return await super().open(key)

    server = Strict()
    async with a_pool(server, max_size=4, rebuild_per_s=0.001) as pool:
        bad = [Borrower(pool, SessionKey(1, f"bad {number}")) for number in range(40)]
        for borrower in bad:
            with pytest.raises(FleetError, match="who are you"):
                await borrower.done()
        for number in range(10):
            await Borrower(pool, SessionKey(1, f"good {number}")).done()


@requirement("pool:multiplexes", "pool:fifo")
async def test_a_busy_shared_session_makes_room_for_a_waiter_of_another_key() -> None:
    server = Server()
    async with a_pool(server, max_size=1, calls_per_session=2) as pool:
        first = Borrower(pool, SessionKey(1, "bob"))
        await first.held()
        other = Borrower(pool, SessionKey(1, "ada"))
        await until(pool, waiting=1)
        late = Borrower(pool, SessionKey(1, "bob"))
        await until(pool, waiting=2)
        await first.done()
        await other.held()
        assert not late.holds.is_set()
        await other.done()
        await late.done()


@requirement("pool:multiplexes")
async def test_a_session_that_expired_in_use_does_not_hide_the_room_in_others() -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock, max_size=2, calls_per_session=2, max_lifetime_s=100) as pool:
        old = Borrower(pool)
        await old.held()
        clock.now_s += 60
        same = Borrower(pool)
        await same.held()
        young = Borrower(pool)
        await young.held()
        clock.now_s += 60  # the first session has expired, the second has not
        fits = Borrower(pool, timeout_s=0.5)
        assert await fits.held() is young.session
        for borrower in (old, same, young, fits):
            await borrower.done()


@requirement("pool:prewarmed")
async def test_starting_a_pool_under_load_returns_once_it_is_warm() -> None:
    server = Server()
    async with a_pool(server, max_size=8, min_idle=1) as pool:
        stop = asyncio.Event()

        async def churn() -> None:
            while not stop.is_set():
                async with pool.borrow(KEY, LIMIT_S) as lease:
                    await asyncio.sleep(0)
                    lease.session.poisoned = True

        load = [asyncio.create_task(churn()) for _ in range(4)]
        async with asyncio.timeout(LIMIT_S):
            await pool.start(KEY)
        stop.set()
        await asyncio.gather(*load)


@requirement("pool:drains")
async def test_a_borrower_that_probes_when_the_drain_begins_gets_no_session() -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock) as pool:
        await Borrower(pool).done()
        clock.now_s += 1
        server.sessions[0].may_answer.clear()
        borrower = Borrower(pool)
        await until(pool, validating=1)
        draining = asyncio.create_task(pool.drain())
        await asyncio.sleep(0)
        server.sessions[0].may_answer.set()
        with pytest.raises(FleetError) as refused:
            await borrower.done()
        assert refused.value.code is Code.POOL_CLOSED
        async with asyncio.timeout(LIMIT_S):
            await draining


@requirement("pool:drains", "pool:reports-leaks")
async def test_a_drain_does_not_wait_for_a_borrower_that_keeps_its_session() -> None:
    server, clock = Server(), FakeClock()
    async with a_pool(server, clock) as pool:
        borrower = asyncio.create_task(_keep(pool))
        await until(pool, in_use=1)
        draining = asyncio.create_task(pool.drain())
        await until(pool, in_use=1)
        clock.now_s += 11
        async with asyncio.timeout(LIMIT_S):
            await draining  # the pool looks by itself
        borrower.cancel()


async def _keep(pool: SessionPool[FakeSession]) -> None:
    async with pool.borrow(KEY, LIMIT_S, borrower="call 1", hold_limit_s=10):
        await asyncio.Event().wait()


@requirement("pool:fails-fast")
async def test_a_session_that_is_dead_when_it_is_opened_counts_as_a_failure() -> None:
    class Stillborn(Server):
        async def open(self, key: SessionKey) -> FakeSession:
            session = await super().open(key)
            session.die()
            return session

    server = Stillborn()
    async with a_pool(server) as pool:
        with pytest.raises(FleetError, match="ended right after the MCP handshake"):
            await Borrower(pool).done()
        assert server.sessions[0].closed.is_set()
        assert server.attempts == 1


class Lingering(FakeSession):
    """A session that ends before it is closed, as a child does that has yet to be buried."""

    async def close(self) -> None:
        self.die()
        await super().close()


@requirement("pool:fails-fast")
async def test_a_session_that_the_pool_closes_unused_says_nothing_against_its_server() -> None:
    class Buried(Server):
        async def open(self, key: SessionKey) -> FakeSession:
            await super().open(key)
            session = self.sessions[-1] = Lingering(key, self.attempts)
            session.may_close.clear()
            return session

    server = Buried()
    async with a_pool(server, min_idle=1, max_size=1) as pool:
        await pool.start(KEY)
        pool.retire(lambda _: "outgrown")
        await until(pool, closing=1)
        await server.sessions[0].dead.wait()
        borrower = Borrower(pool)
        server.sessions[0].may_close.set()
        await borrower.done()
        server.sessions[1].may_close.set()


@requirement("pool:fails-fast", "pool:bounded")
async def test_whatever_an_opening_raises_costs_no_slot() -> None:
    class Strange(Server):
        async def open(self, key: SessionKey) -> FakeSession:
            raise BaseExceptionGroup("of a task group", [asyncio.CancelledError()])

    server = Strange()
    async with a_pool(server, max_size=1) as pool:
        with pytest.raises(FleetError, match="BaseExceptionGroup"):
            await Borrower(pool).done()
        assert pool.stats().size == 0
