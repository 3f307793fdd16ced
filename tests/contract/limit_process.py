"""A process that asks for calls as fast as it can; run by the limiter's tests.

Prints one line when it is ready, begins when it reads one, asks for so many seconds, and prints
the instants of what it was granted as JSON. They are Redis' own, told in the transaction of the
script: how long a process waits for its turn on a busy machine is no part of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from registry.rates import Bucket
from workers.limits_redis import Ask, Limiter, RedisLimits, connect


class Dated(RedisLimits):
    """The shared limits; ``at`` is when they answered last, by Redis' clock."""

    at = 0.0

    async def _run(
        self, script: Callable[..., Awaitable[Any]], keys: list[str], *arguments: str | float
    ) -> Any:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.time()
            await script(keys=keys, args=[*arguments, ""], client=pipe)
            (seconds, microseconds), reply = await pipe.execute()
        self.at = seconds + microseconds / 1e6
        return reply


async def main(url: str, seconds: float, calls: int, burst: int) -> None:
    """Ask until the time is over."""
    redis = connect(url, timeout_s=10)
    shared = Dated(redis)
    limiter = Limiter(shared)
    ask = Ask((Bucket("tenant:acme:1", calls, 1, burst),), "submissions")
    await redis.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    granted = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (await limiter.take(ask, by_share=False)).granted:
            granted.append(shared.at)
    print(json.dumps(granted), flush=True)
    await limiter.close()
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
