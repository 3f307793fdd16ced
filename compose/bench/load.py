"""The load generator: a process of its own that makes calls as it is told, one job after another.

A job is one line of JSON on stdin, its answer one line on stdout. Latencies are seconds. In an open
loop they are measured from the intended arrival, so that a stall counts for all who wait in it.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import uvloop

from compose.bench import noop
from compose.bench.ways import MOST_AT_ONCE, Way, make_way


@dataclass
class Tally:
    """What became of the calls of one job."""

    latencies_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    async def count(self, way: Way, since: float | None = None) -> None:
        """Make one call and note how long it took since ``since``, or since now."""
        started = time.perf_counter() if since is None else since
        try:
            await way.call()
        except Exception as error:  # noqa: BLE001 a failed call is a figure here
            self.errors.append(f"{type(error).__name__}: {error}"[:300])
        else:
            self.latencies_s.append(time.perf_counter() - started)


async def closed_loop(way: Way, tally: Tally, *, callers: int, seconds: float) -> None:
    """Let each caller make one call after the other until the time is over."""
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < end and not tally.errors:
            await tally.count(way)

    await asyncio.gather(*(caller() for _ in range(callers)))


async def open_loop(way: Way, tally: Tally, *, rate: float, seconds: float, seed: int) -> None:
    """Let callers arrive independently of each other and of the answers (a Poisson process)."""
    chance = random.Random(seed)
    started = time.perf_counter()
    arrival = started + chance.expovariate(rate)
    async with asyncio.TaskGroup() as group:
        while arrival < started + seconds and not tally.errors:
            await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
            group.create_task(tally.count(way, arrival))
            arrival += chance.expovariate(rate)


async def so_many(way: Way, tally: Tally, *, count: int) -> None:
    """Make a number of calls as fast as they are answered."""
    left = count

    async def caller() -> None:
        nonlocal left
        while left > 0 and not tally.errors:
            left -= 1
            await tally.count(way)

    await asyncio.gather(*(caller() for _ in range(min(count, MOST_AT_ONCE))))


MODES: dict[str, Callable[..., Awaitable[None]]] = {
    "closed": closed_loop,
    "open": open_loop,
    "count": so_many,
}


class Generator:
    """The ways that are open, by their names."""

    def __init__(self) -> None:
        self._ways: dict[str, Way] = {}

    async def do(self, job: dict[str, Any]) -> dict[str, Any]:
        """Open or close a way, make calls through one, or deal with no-ops in bulk."""
        name = job.get("way", "")
        if job["do"] == "open":
            self._ways[name] = make_way(job["kind"], job["options"])
            await self._ways[name].open()
            return {}
        if job["do"] == "close":
            await self._ways.pop(name).close()
            return {}
        if job["do"] == "queue no-ops":
            await asyncio.to_thread(noop.send, job["count"])
            return {}
        if job["do"] == "ask what ran":
            return await asyncio.to_thread(noop.ask_what_ran)
        tally = Tally()
        started = time.perf_counter()
        await MODES[job["mode"]](self._ways[name], tally, **job["options"])
        return {"elapsed_s": time.perf_counter() - started, **vars(tally)}

    async def close(self) -> None:
        """Close whatever is open."""
        for way in self._ways.values():
            await way.close()


async def main() -> None:
    """Do jobs until stdin ends."""
    generator = Generator()
    loop = asyncio.get_running_loop()
    try:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            sys.stdout.write(json.dumps(await generator.do(json.loads(line))) + "\n")
            sys.stdout.flush()
    finally:
        await generator.close()


if __name__ == "__main__":
    uvloop.run(main())
