"""Cancellation at every await of a real session's opening, calling, probing and closing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from registry.definitions import PoolDefinition, ServerDefinition, parse_definition
from tests.cancelling import CancelledAt
from tests.process_trees import LIMIT_S, light
from tests.requirements import requirement
from tests.waiting import until
from workers.mark import marked
from workers.pool import SessionKey, SessionPool
from workers.session import Session

pytestmark = pytest.mark.anyio

KEY = SessionKey(1)


def server() -> ServerDefinition:
    return parse_definition(light("--setsid"))


async def opened() -> Session:
    return await Session.open(
        server(), connect_timeout_s=LIMIT_S, stop_grace_s=0.05, max_result_bytes=100_000
    )


def files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def children() -> list[object]:
    return list(marked(lambda mark: mark.worker_pid == os.getpid()))


async def opening(session: Session | None) -> None:
    await (await opened()).close()


async def calling(session: Session | None) -> None:
    assert session is not None
    await session.call_tool("pid", {}, timeout_s=LIMIT_S)


async def probing(session: Session | None) -> None:
    assert session is not None
    await session.probe(LIMIT_S)


async def closing(session: Session | None) -> None:
    assert session is not None
    await session.close()


@requirement("pool:cancelled-anywhere", "stop:whole-tree")
@pytest.mark.parametrize("work", [opening, calling, probing, closing])
async def test_whatever_is_cancelled_at_whatever_await_leaves_nothing_behind(
    work: Callable[[Session | None], Awaitable[None]],
) -> None:
    await (await opened()).close()  # what is made once per process exists from now on
    before = (asyncio.all_tasks(), files())
    reached, at = True, 0
    while reached:
        at += 1
        session = None if work is opening else await opened()
        cancelled = CancelledAt(work(session), at)  # type: ignore[arg-type]
        with suppress(asyncio.CancelledError):
            await cancelled
        reached = cancelled.reached
        if session is not None:
            if reached and work is not closing:
                assert session.poisoned, "it was cancelled, and would be lent again"
            await session.close()
        await until(lambda: (asyncio.all_tasks(), files()) == before)
        assert children() == []
    assert at > 1, "nothing was ever awaited"


@requirement("pool:cancelled-anywhere")
async def test_a_pool_of_real_sessions_survives_cancellation_at_any_await() -> None:
    async def open_session(key: SessionKey) -> Session:
        return await opened()

    async def use(pool: SessionPool[Session]) -> None:
        async with pool.borrow(KEY, LIMIT_S) as lease:
            await lease.session.call_tool("pid", {}, timeout_s=LIMIT_S)

    reached, at = True, 0
    pool = SessionPool("light", PoolDefinition(min_idle=0, max_size=1), open_session)
    while reached:
        at += 1
        cancelled = CancelledAt(use(pool), at)
        with suppress(asyncio.CancelledError):
            await cancelled
        reached = cancelled.reached
        async with asyncio.timeout(LIMIT_S):
            await use(pool)  # the one slot can be had
    await pool.close()
    assert children() == []
