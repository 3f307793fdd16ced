"""One server hangs with a thousand queued calls: what its neighbours notice (`make soak`).

Rounds with and without the hanging server take turns, so that both see the same machine.
``TOOLFLEET_SOAK_ROUNDS`` says how many of each (10).
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

import pytest

from registry import overview
from tests.fleet.driver import Fleet, running
from tests.process_trees import light
from tests.requirements import requirement
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.soak, pytest.mark.timeout(3600)]

ROUNDS = int(os.environ.get("TOOLFLEET_SOAK_ROUNDS", "10"))
QUEUED = 1000
CALLS_A_ROUND = 500
SETTLE_S = 2.0
NEVER_S = 3600
TOLERANCE = 1.10


async def latencies(fleet: Fleet, count: int) -> list[float]:
    """Return how long each of ``count`` calls of the neighbour took, one after the other."""
    run = await fleet.run()
    taken = []
    for number in range(count):
        begun = time.perf_counter()
        call = await fleet.call(run, "neighbour_say", text=str(number))
        taken.append(time.perf_counter() - begun)
        assert call["state"] == "succeeded", call
    return taken


async def unfinished(fleet: Fleet) -> int:
    return sum((await overview.unfinished_calls(fleet.database)).values())


async def hang(fleet: Fleet) -> str:
    """Queue a thousand calls that never end; return their run."""
    run = await fleet.run()
    places = asyncio.Semaphore(16)

    async def one() -> None:
        async with places:
            answer = await fleet.http.post(
                f"/v1/runs/{run['id']}/calls",
                json={"tool": "wedged_wait", "arguments": {}, "timeout_s": NEVER_S},
            )
            assert answer.status_code == 202, answer.text

    await asyncio.gather(*(one() for _ in range(QUEUED)))
    assert await unfinished(fleet) == QUEUED
    return str(run["id"])


async def release(fleet: Fleet, run_id: str) -> None:
    """Stop the run; return when nothing of it is left."""
    await fleet.http.post(f"/v1/runs/{run_id}/cancel")

    async def nothing_left() -> bool:
        return await unfinished(fleet) == 0

    await until(nothing_left, within_s=60)


def percentile(taken: list[float], share: float) -> float:
    return sorted(taken)[int(len(taken) * share)] * 1000


@requirement("bulkhead:neighbours")
async def test_a_hanging_server_with_a_thousand_calls_costs_its_neighbours_nothing() -> None:
    slow = {"wait": {"timeout_s": NEVER_S, "delivery": "read"}}
    quiet: list[float] = []
    beside: list[float] = []
    with tempfile.TemporaryDirectory(prefix="toolfleet-soak-") as folder:
        async with running(Path(folder)) as fleet:
            await fleet.serve(light(name="neighbour"), light(name="wedged", tools=slow))
            await latencies(fleet, CALLS_A_ROUND)  # to warm up
            for _ in range(ROUNDS):
                await asyncio.sleep(SETTLE_S)
                quiet += await latencies(fleet, CALLS_A_ROUND)
                run_id = await hang(fleet)
                await asyncio.sleep(SETTLE_S)
                beside += await latencies(fleet, CALLS_A_ROUND)
                await release(fleet, run_id)
    ratio = percentile(beside, 0.99) / percentile(quiet, 0.99)
    for name, taken in (("alone", quiet), ("beside it", beside)):
        print(
            f"\nneighbour {name}: {len(taken)} calls, p50 {percentile(taken, 0.5):.2f} ms, "
            f"p99 {percentile(taken, 0.99):.2f} ms",
            end="",
        )
    print(f"\np99 beside a hanging server / alone: {ratio:.3f} (target <= {TOLERANCE})")
    assert ratio <= TOLERANCE
