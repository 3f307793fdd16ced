"""A server's time for a call: it stands still while an answer is awaited."""

from __future__ import annotations

import asyncio

import pytest

from tests.requirements import requirement
from workers.patience import Patience

pytestmark = pytest.mark.anyio


@requirement("questions:time-stands-still")
async def test_time_that_is_used_up_ends_the_wait() -> None:
    with pytest.raises(TimeoutError):
        async with Patience(0.01).held():
            await asyncio.Event().wait()


@requirement("questions:time-stands-still")
async def test_the_end_moves_by_as_much_as_the_clock_stood_still() -> None:
    patience = Patience(10.0)
    async with patience.held():
        assert patience._timeout is not None
        before = patience._timeout.when() or 0.0
        with patience.stopped(), patience.stopped():
            await asyncio.sleep(0.02)
        assert (patience._timeout.when() or 0.0) >= before + 0.019


@requirement("questions:time-stands-still")
async def test_several_requests_share_one_limit() -> None:
    patience = Patience(10.0)
    async with patience.held():
        await asyncio.sleep(0.01)
    assert patience._left_s < 10.0
    with patience.stopped():
        await asyncio.sleep(0.01)
    left_s = patience._left_s
    async with patience.held():
        pass
    assert patience._left_s <= left_s


@requirement("questions:time-stands-still")
async def test_a_calls_deadline_holds_while_the_clock_stands_still() -> None:
    deadline = asyncio.get_running_loop().time() + 0.02
    patience = Patience(10.0, deadline)
    with pytest.raises(TimeoutError):
        async with patience.held():
            await _for_ever(patience)


async def _for_ever(patience: Patience) -> None:
    with patience.stopped():
        await asyncio.Event().wait()
