"""What a process hears through Redis, whatever else it listens for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis

from api.hearing import Hearing
from tests.requirements import requirement
from tests.waiting import until

pytestmark = pytest.mark.anyio

MANY = 200


@pytest.fixture
async def redis(anyio_backend: str, redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as redis:
        yield redis


@pytest.fixture
async def hearing(redis: Redis) -> AsyncIterator[Hearing]:
    hearing = Hearing(redis)
    listening = asyncio.create_task(hearing.listen())
    yield hearing
    listening.cancel()
    await asyncio.wait([listening])


async def listeners(redis: Redis) -> int:
    return len(await redis.client_list(_type="pubsub"))


@requirement("hearing:one-connection")
async def test_however_many_channels_are_heard_they_take_one_connection(
    hearing: Hearing, redis: Redis
) -> None:
    heard: list[int] = []
    before = await listeners(redis)
    async with AsyncExitStack() as stack:
        contexts = [hearing.hears(f"c{n}", heard.append) for n in range(MANY)]
        await asyncio.gather(*map(stack.enter_async_context, contexts))
        # What is published from now on is heard: nothing has to be waited for before.
        for n in range(MANY):
            assert await redis.publish(f"c{n}", str(n)) == 1
        await until(lambda: len(heard) == MANY)
        assert await listeners(redis) <= before + 1
    assert sorted(heard) == list(range(MANY))


@requirement("hearing:one-connection")
async def test_a_channel_is_heard_by_each_of_its_listeners_until_it_leaves(
    hearing: Hearing, redis: Redis
) -> None:
    one: list[str] = []
    two: list[str] = []
    async with hearing.hears("c", one.append):
        async with hearing.hears("c", two.append):
            await redis.publish("c", "not JSON")
            await redis.publish("c", '"both"')
            await until(lambda: one and two)
        await redis.publish("c", '"one"')
        await until(lambda: len(one) == 2)
    async with hearing.hears("c", two.append):
        await redis.publish("c", '"again"')
        await until(lambda: len(two) == 2)
    assert (one, two) == (["both", "one"], ["both", "again"])


@requirement("hearing:one-connection")
async def test_a_listener_that_cannot_take_a_message_keeps_it_from_no_other(
    hearing: Hearing, redis: Redis
) -> None:
    def choosy(body: dict[str, str]) -> None:
        raise KeyError(body["nothing"])

    heard: list[object] = []
    async with hearing.hears("c", choosy), hearing.hears("c", heard.append):
        await redis.publish("c", "{}")
        await redis.publish("c", '["other"]')
        await until(lambda: len(heard) == 2)
    assert heard == [{}, ["other"]]


@requirement("hearing:one-connection")
async def test_what_is_wanted_is_heard_again_after_the_connection_was_lost(
    hearing: Hearing, redis: Redis
) -> None:
    heard: list[str] = []
    async with hearing.hears("c", heard.append):
        for client in await redis.client_list(_type="pubsub"):
            await redis.client_kill_filter(_id=client["id"])

        async def hears_again() -> bool:
            return bool(await redis.publish("c", '"back"'))

        await until(hears_again)
        await until(lambda: "back" in heard)
