"""What the listeners of a call are told of its progress."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from redis.asyncio import Redis

from tests.requirements import requirement
from workers.signals import PROGRESS_CHANNEL, PROGRESS_PER_S, Signals, connect

pytestmark = pytest.mark.anyio

CALL = "a-call"
FLOOD = 500


async def told(redis: Redis, reports: int) -> list[float]:
    """Make so many reports as fast as can be; return those that a listener hears."""
    signals = Signals(redis)
    async with redis.pubsub(ignore_subscribe_messages=True) as listener:
        await listener.subscribe(PROGRESS_CHANNEL + CALL)
        for done in range(reports):
            await signals.progress(CALL, done, reports, None)
        await redis.publish(PROGRESS_CHANNEL + CALL, "null")
        heard: list[float] = []
        async with asyncio.timeout(20):
            async for message in listener.listen():
                if (body := json.loads(message["data"])) is None:
                    return heard
                heard.append(body["progress"])
    return heard


@requirement("progress:paced")
async def test_all_reports_of_a_short_call_are_told_in_order(redis_url: str) -> None:
    async with connect(redis_url) as redis:
        assert await told(redis, 5) == [0, 1, 2, 3, 4]


@requirement("progress:paced")
async def test_a_flood_of_reports_is_told_at_the_pace_of_people(redis_url: str) -> None:
    async with connect(redis_url) as redis:
        started = time.monotonic()
        heard = await told(redis, FLOOD)
        allowed = PROGRESS_PER_S * (1 + time.monotonic() - started)
    assert PROGRESS_PER_S <= len(heard) <= allowed
    assert heard == sorted(heard)
