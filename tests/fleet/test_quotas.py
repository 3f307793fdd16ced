"""A vendor's limit and a whole fleet: two worker processes keep to it, and hold nobody else up."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.fleet.driver import Fleet
from tests.requirements import requirement
from tests.vendor import running_vendor

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(180)]

SESSIONS = 4


@pytest.fixture(scope="module")
async def fleet(empty_fleet: Fleet) -> Fleet:
    await empty_fleet.serve(empty_fleet.echo("echo"))
    return empty_fleet


async def submitted(fleet: Fleet, run: dict[str, Any], tool: str, count: int) -> list[str]:
    return await asyncio.gather(*(fleet.submit(run, tool) for _ in range(count)))


async def states(fleet: Fleet, ids: list[str]) -> list[str]:
    ended = await asyncio.gather(*(fleet.ended(call_id) for call_id in ids))
    return [call["error"]["code"] if call["error"] else call["state"] for call in ended]


async def slowest_s(fleet: Fleet, run: dict[str, Any], during: asyncio.Task[Any]) -> float:
    """Return the longest of another server's calls that were made while something went on."""
    longest = 0.0
    while not during.done():
        begun = time.monotonic()
        call = await fleet.call(run, "echo_echo", text="hi")
        assert call["state"] == "succeeded"
        longest = max(longest, time.monotonic() - begun)
        await asyncio.sleep(0.05)
    return longest


@requirement("quota:kept", "quota:holds-nothing")
async def test_two_workers_under_load_never_send_a_vendor_more_than_it_allows(
    fleet: Fleet,
) -> None:
    quota = {"calls_per_second": 20, "burst": 2, "concurrent_calls": 3}
    flags = ("--most", "23", "--delay", "0.05")
    async with running_vendor(fleet.folder / "paced.journal", *flags) as vendor:
        definition = vendor.definition(name="paced", tool_prefix="paced_", quota=quota)
        await fleet.serve(definition)
        run, other = await fleet.run(), await fleet.run("other")
        ids = await submitted(fleet, run, "paced_look", 120)
        waiting = asyncio.create_task(states(fleet, ids))
        late = (await submitted(fleet, other, "paced_look", 1))[0]
        begun = time.monotonic()
        assert (await fleet.ended(late))["state"] == "succeeded"
        waited_s = time.monotonic() - begun
        longest_s = await slowest_s(fleet, other, waiting)
        assert await waiting == ["succeeded"] * 120
        at = [it["at"] for it in vendor.arrivals()]
        print(f"121 calls in {at[-1] - at[0]:.2f} s; a late tenant's in {waited_s:.2f} s; ")
        print(f"the slowest of another server took {longest_s * 1000:.0f} ms")
        assert vendor.statuses() == [200] * 121
        assert max(it["under_way"] for it in vendor.arrivals()) <= 3
        assert at[-1] - at[0] >= 5.7
        # Turns are fair: it came behind few of the other tenant's calls, not behind all of them.
        assert waited_s < 3.0
        assert longest_s < 5.0


@requirement("quota:pause", "quota:holds-nothing")
async def test_after_the_first_429_only_what_was_under_way_arrives_until_the_pause_is_over(
    fleet: Fleet,
) -> None:
    flags = ("--trip", "20", "--retry-after", "8", "--delay", "0.1")
    async with running_vendor(fleet.folder / "tripping.journal", *flags) as vendor:
        definition = vendor.definition(name="tripping", tool_prefix="tripping_")
        await fleet.serve(definition)
        run, other = await fleet.run(), await fleet.run("other")
        ids = await submitted(fleet, run, "tripping_write", 60)
        waiting = asyncio.create_task(states(fleet, ids))
        longest_s = await slowest_s(fleet, other, waiting)
        assert await waiting == ["succeeded"] * 60
        refused = vendor.arrivals(429)
        first = refused[0]["at"]
        # The other worker is told within moments, on a busy machine within a second.
        during = [it["at"] - first for it in vendor.arrivals() if 2.0 < it["at"] - first < 8.0]
        print(f"{len(refused)} of 60 were turned away, {len(during)} came in the pause; the")
        print(f"slowest call of another server took {longest_s * 1000:.0f} ms")
        assert len(refused) <= 2 * SESSIONS
        assert during == []
        assert len(vendor.arrivals(200)) == 60
        assert longest_s < 5.0
