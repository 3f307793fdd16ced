"""A process that holds a breaker and does what its standard input says; run by the breaker's tests.

Each line is answered with one line of JSON: ``now S`` sets the clock, ``timeouts N`` reports that
many at once, ``allow`` answers admitted, probe or refused, ``succeeded`` reports the last permit.
"""

from __future__ import annotations

import asyncio
import json
import sys

from registry.definitions import BreakerDefinition
from registry.errors import FleetError
from workers.breaker import Breaker, Permit, Verdict
from workers.breaker_redis import RedisStore, connect


async def main(url: str) -> None:
    """Serve commands until standard input ends."""
    clock = {"now_s": 1_000_000.0}
    redis = connect(url, timeout_s=10)
    store = RedisStore(redis, now=lambda: clock["now_s"])
    breaker = Breaker("crm", "7", BreakerDefinition(), store, clock=lambda: clock["now_s"])
    permits: list[Permit] = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, *arguments = line.split()
        answer: object = "done"
        if command == "now":
            clock["now_s"] = float(arguments[0])
        elif command == "timeouts":
            taken = [await breaker.allow() for _ in range(int(arguments[0]))]
            await asyncio.gather(*(permit.report(Verdict.TIMED_OUT) for permit in taken))
        elif command == "succeeded":
            await permits.pop().report(Verdict.SUCCEEDED)
        else:
            try:
                permits.append(await breaker.allow())
                answer = "probe" if permits[-1].probe else "admitted"
            except FleetError as error:
                answer = f"refused: {error.code.code}"
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    await breaker.close()
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
