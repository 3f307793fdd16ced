"""Cancellation at every await of borrowing, giving back and closing; none costs a slot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from registry.definitions import PoolDefinition
from registry.errors import FleetError
from tests.cancelling import CancelledAt
from tests.requirements import requirement
from tests.unit.test_pool import KEY, LIMIT_S, FakeClock, FakeSession, Server
from workers.pool import SessionKey, SessionPool

pytestmark = pytest.mark.anyio

Scene = Callable[[SessionPool[FakeSession], FakeClock, Server], Awaitable[None]]


class SlowServer(Server):
    """Opens, answers and closes only after a turn of the loop: each is a place to be cancelled."""

    async def open(self, key: SessionKey) -> FakeSession:
        await asyncio.sleep(0)
        return await super().open(key)


async def a_fresh_one(pool: SessionPool[FakeSession], clock: FakeClock, server: Server) -> None:
    """Nothing is there yet: the borrower waits for an opening."""


async def a_long_idle_one(pool: SessionPool[FakeSession], clock: FakeClock, server: Server) -> None:
    """The session has to prove itself, which takes a turn."""
    await a_busy_one(pool, clock, server)
    clock.now_s += 1


async def a_busy_one(pool: SessionPool[FakeSession], clock: FakeClock, server: Server) -> None:
    async with pool.borrow(KEY, LIMIT_S):
        pass


async def a_dead_one(pool: SessionPool[FakeSession], clock: FakeClock, server: Server) -> None:
    """The probe of the idle session fails: another has to be opened."""
    await a_long_idle_one(pool, clock, server)
    server.sessions[0].answer = FleetError.from_dict({"code": "call_timeout"})


async def one_of_another(pool: SessionPool[FakeSession], clock: FakeClock, server: Server) -> None:
    """The pool is full of another key's idle sessions: one has to be evicted."""
    async with (
        pool.borrow(SessionKey(1, "ada"), LIMIT_S),
        pool.borrow(SessionKey(1, "bob"), LIMIT_S),
    ):
        pass


async def _use(pool: SessionPool[FakeSession]) -> None:
    async with pool.borrow(KEY, LIMIT_S) as lease:
        await asyncio.sleep(0)
        assert lease.session.alive
        await asyncio.sleep(0)


@requirement("pool:cancelled-anywhere")
@pytest.mark.parametrize(
    "scene", [a_fresh_one, a_busy_one, a_long_idle_one, a_dead_one, one_of_another]
)
@pytest.mark.parametrize("reset_tool", [None, "clear"])
async def test_a_borrower_cancelled_at_any_await_leaves_the_pool_as_it_was(
    scene: Scene, reset_tool: str | None
) -> None:
    at = 0
    reached = True
    while reached:
        at += 1
        server, clock = SlowServer(), FakeClock()
        config = PoolDefinition(min_idle=0, max_size=2, reset_tool=reset_tool)
        pool = SessionPool("crm", config, server.open, clock=clock)
        server.pool = pool
        await scene(pool, clock, server)
        cancelled = CancelledAt(_use(pool), at)
        with contextlib.suppress(asyncio.CancelledError):
            await cancelled
        reached = cancelled.reached
        # Both slots can be had at once, by somebody who comes later.
        async with asyncio.timeout(LIMIT_S), pool.borrow(KEY, LIMIT_S), pool.borrow(KEY, LIMIT_S):
            assert pool.stats().in_use == 2
        async with asyncio.timeout(LIMIT_S):
            await pool.close()
        assert pool.stats().size == 0
    assert at > 2, "the borrower never had to wait"


@requirement("pool:cancelled-anywhere")
async def test_a_close_cancelled_at_any_await_can_be_finished_by_another() -> None:
    at = 0
    reached = True
    while reached:
        at += 1
        server = SlowServer()
        pool = SessionPool("crm", PoolDefinition(min_idle=2, max_size=4), server.open)
        server.pool = pool
        await pool.start(KEY)
        for session in server.sessions:
            session.may_close.clear()
        asyncio.get_running_loop().call_later(
            0.01, lambda sessions=server.sessions: [s.may_close.set() for s in sessions]
        )
        cancelled = CancelledAt(pool.close(), at)
        with contextlib.suppress(asyncio.CancelledError):
            await cancelled
        reached = cancelled.reached
        async with asyncio.timeout(LIMIT_S):
            await pool.close()
        assert pool.stats().size == 0
        assert all(session.closed.is_set() for session in server.sessions)
    assert at > 1


@requirement("pool:cancelled-anywhere")
async def test_a_drain_cancelled_at_any_await_still_lends_no_more() -> None:
    at = 0
    reached = True
    while reached:
        at += 1
        server = SlowServer()
        pool = SessionPool("crm", PoolDefinition(min_idle=2, max_size=4), server.open)
        server.pool = pool
        await pool.start(KEY)
        cancelled = CancelledAt(pool.drain(), at)
        with contextlib.suppress(asyncio.CancelledError):
            await cancelled
        reached = cancelled.reached
        with pytest.raises(FleetError, match="stopping"):
            async with pool.borrow(KEY, LIMIT_S):
                pass
        async with asyncio.timeout(LIMIT_S):
            await pool.drain()
        assert pool.stats().size == 0
    assert at > 1
