"""How exactly a bucket is kept to by real processes that ask as fast as they can."""

from __future__ import annotations

import asyncio
import json
import sys
from bisect import bisect_left
from pathlib import Path

import pytest

from tests.requirements import requirement

pytestmark = pytest.mark.anyio

SCRIPT = Path(__file__).parent / "limit_process.py"


async def granted(
    redis_url: str, processes: int, seconds: float, calls: int, burst: int
) -> list[float]:
    """Return when calls were granted to any of the processes, in order."""
    arguments = (redis_url, str(seconds), str(calls), str(burst))
    asking = [
        await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPT), *arguments, env={"PYTHONPATH": "."},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**24,
        )
        for _ in range(processes)
    ]  # fmt: skip
    try:
        for process in asking:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        said = await asyncio.gather(*(process.communicate(b"go\n") for process in asking))
    finally:
        for process in asking:
            if process.returncode is None:
                process.kill()
                await process.wait()
    return sorted(instant for out, _ in said for instant in json.loads(out))


def windows(
    instants: list[float], span_s: float, since_s: float = 0.0, until_s: float = 0.0
) -> list[int]:
    """Return how many there are in the time after each, but for the beginning and the end."""
    end = instants[-1] - until_s - span_s
    return [
        bisect_left(instants, instant + span_s) - number
        for number, instant in enumerate(instants)
        if instants[0] + since_s <= instant <= end
    ]


@requirement("limits:rate")
async def test_two_processes_are_granted_the_burst_and_then_the_rate(redis_url: str) -> None:
    at = await granted(redis_url, processes=2, seconds=1.5, calls=100, burst=20)
    elapsed_s = at[-1] - at[0]
    assert 20 + 100 * elapsed_s * 0.95 <= len(at) <= 20 + 100 * elapsed_s + 2


@pytest.mark.long
@pytest.mark.timeout(180)
@requirement("limits:rate")
async def test_eight_processes_are_granted_the_rate_within_a_hundredth_over_any_ten_seconds(
    redis_url: str,
) -> None:
    rate, burst = 100, 10  # of a burst, which may come again after a lull, 1 % of 10 s as well
    at = await granted(redis_url, processes=8, seconds=30, calls=rate, burst=burst)
    # At first there is the burst; at the end not everybody asks any more.
    settled = windows(at, 10.0, since_s=2.0, until_s=2.0)
    print(f"{len(at)} granted; in any 10 s {min(settled)} to {max(settled)} of {rate * 10}")
    assert len(settled) > 1_000
    assert rate * 10 * 0.99 <= min(settled)
    assert max(settled) <= rate * 10 * 1.01
    # From the first instant on: no window sees more than the bucket held and what filled in.
    assert max(windows(at, 10.0)) <= rate * 10 * 1.01 + burst
    assert len(at) <= burst + rate * (at[-1] - at[0]) + 2
