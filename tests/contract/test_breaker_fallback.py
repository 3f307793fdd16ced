"""What callers observe of a breaker while its Redis hangs, is gone, and comes back."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from compose.embedded import EmbeddedRedis
from registry.definitions import BreakerDefinition
from registry.errors import Code, FleetError
from tests.requirements import requirement
from workers.breaker import Breaker, BreakerState, MemoryStore, Verdict
from workers.breaker_redis import FallbackStore, RedisStore, connect

pytestmark = pytest.mark.anyio

DEFINITION = BreakerDefinition()


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Process:
    """What one worker process holds, on a Redis that the test can stop."""

    def __init__(self, redis: EmbeddedRedis) -> None:
        self.clock = Clock()
        self.redis = redis
        self.client = connect(redis.url)
        shared = RedisStore(self.client, now=self.clock)
        self.store = FallbackStore(shared, MemoryStore(self.clock), clock=self.clock)
        self.breaker = Breaker("crm", "7", DEFINITION, self.store, clock=self.clock)

    def signal(self, number: signal.Signals) -> None:
        assert self.redis.pid is not None
        os.kill(self.redis.pid, number)

    async def open_up(self) -> None:
        for _ in range(10):
            await (await self.breaker.allow()).report(Verdict.TIMED_OUT)

    async def refused(self) -> bool:
        try:
            await self.breaker.allow()
        except FleetError as error:
            return error.code is Code.BREAKER_OPEN
        return False

    async def come_back(self) -> None:
        """Let the retry time pass until Redis has answered."""
        with anyio.fail_after(10):
            while self.store.away:
                self.clock.now_s += 1
                await self.store.read(self.breaker.name, DEFINITION)
                await anyio.lowlevel.checkpoint()


@pytest.fixture
async def process(anyio_backend: str) -> AsyncIterator[Process]:
    with tempfile.TemporaryDirectory(prefix="toolfleet-") as folder:
        redis = EmbeddedRedis(Path(folder), durable=False)
        await redis.start()
        process = Process(redis)
        try:
            yield process
        finally:
            process.signal(signal.SIGCONT)
            await process.breaker.close()
            await process.store.close()
            await process.client.aclose()
            await redis.stop()


@requirement("breaker:redis-away")
async def test_calls_pass_while_redis_hangs(process: Process) -> None:
    process.signal(signal.SIGSTOP)
    assert not await process.refused()
    assert (process.store.away, process.store.local_answers) == (True, 1)


@requirement("breaker:redis-away")
async def test_a_process_without_redis_opens_by_what_it_sees_itself(process: Process) -> None:
    process.signal(signal.SIGSTOP)
    await process.open_up()
    assert await process.refused()


@requirement("breaker:redis-away")
async def test_timeouts_counted_before_redis_hung_still_count(process: Process) -> None:
    for _ in range(9):
        await (await process.breaker.allow()).report(Verdict.TIMED_OUT)
    permit = await process.breaker.allow()
    process.signal(signal.SIGSTOP)
    await permit.report(Verdict.TIMED_OUT)
    assert await process.refused()


@requirement("breaker:redis-away")
async def test_an_open_breaker_stays_open_for_the_time_it_had_left(process: Process) -> None:
    await process.open_up()
    process.signal(signal.SIGSTOP)
    process.clock.now_s += 20
    process.breaker.expire()
    before = await process.refused()
    process.clock.now_s += 10
    permit = await process.breaker.allow()
    assert (before, permit.probe is not None) == (True, True)


@requirement("breaker:redis-away")
async def test_when_redis_is_back_its_state_counts(process: Process) -> None:
    process.signal(signal.SIGSTOP)
    await process.open_up()
    process.signal(signal.SIGCONT)
    await process.come_back()
    assert (await process.breaker.snapshot()).state is BreakerState.CLOSED


@requirement("breaker:redis-away")
async def test_a_restarted_redis_is_used_again(process: Process) -> None:
    await process.breaker.allow()
    await process.redis.stop()
    await process.breaker.snapshot()
    await process.redis.start()
    await process.come_back()
    await process.open_up()
    answers = process.store.local_answers
    await process.breaker.snapshot()
    assert process.store.local_answers == answers


@requirement("breaker:redis-away")
async def test_an_outage_is_counted_and_logged_once(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "toolfleet.breaker"):
        process.signal(signal.SIGSTOP)
        for _ in range(5):
            await process.breaker.snapshot()
        process.signal(signal.SIGCONT)
        await process.come_back()
    levels = [record.levelname for record in caplog.records]
    assert (process.store.outages, levels) == (1, ["ERROR", "WARNING"])
