"""One breaker for two worker processes; 30 seconds pass by moving what Redis has written down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from registry import catalog
from tests.fleet.driver import Fleet
from tests.requirements import requirement
from tests.waiting import until
from workers.breaker_redis import redis_key

pytestmark = pytest.mark.anyio

OPEN_FOR_MS = 30_000


@pytest.fixture(scope="module")
async def fleet(empty_fleet: Fleet) -> AsyncIterator[Fleet]:
    async with empty_fleet.echo_http(
        "twin",
        pool={"min_idle": 2, "max_size": 4},
        tools={"sleep": {"delivery": "read", "timeout_s": 0.3}, "write": {"delivery": "read"}},
    ) as twin:
        await empty_fleet.serve(twin)
        yield empty_fleet


async def key_of(fleet: Fleet) -> str:
    version = await catalog.get_server(fleet.database, "twin")
    return redis_key(f"twin:{version.id}")


async def at_once(
    fleet: Fleet, run: dict[str, Any], tool: str, count: int, token: str, seconds: float
) -> list[dict[str, Any]]:
    """Return calls that were submitted together, at their ends."""
    return await asyncio.gather(
        *(
            fleet.call(run, f"twin_{tool}", seconds=seconds, token=f"{token}-{n}")
            for n in range(count)
        )
    )


def codes(ended: list[dict[str, Any]]) -> list[str]:
    return [call["error"]["code"] if call["error"] else call["state"] for call in ended]


async def workers_of(fleet: Fleet, ended: list[dict[str, Any]]) -> set[str]:
    return set(await fleet.workers_of(*(call["id"] for call in ended)))


@requirement("breaker:opens-on-timeouts", "breaker:shared", "breaker:probes-after-30s")
async def test_ten_timeouts_of_two_workers_open_the_breaker_for_both_until_a_probe_succeeds(
    fleet: Fleet,
) -> None:
    run, journal = await fleet.run(), fleet.journal("twin")
    key = await key_of(fleet)
    async with Redis.from_url(fleet.local.redis_url, decode_responses=True) as redis:
        # Nine timeouts leave it closed, the tenth opens it; both workers had some of them.
        late = await at_once(fleet, run, "sleep", 9, "late", seconds=60)
        assert set(codes(late)) == {"call_timeout"}
        assert await redis.hget(key, "open_until") is None
        late += await at_once(fleet, run, "sleep", 1, "tenth", seconds=60)
        assert codes(late).count("call_timeout") == 10
        assert len(await workers_of(fleet, late)) == 2
        assert await redis.hget(key, "open_until") is not None

        # Both refuse, and nothing reaches the server.
        refused: list[dict[str, Any]] = []
        while len(await workers_of(fleet, refused)) < 2:
            refused += await at_once(fleet, run, "write", 8, f"refused{len(refused)}", seconds=0)
        assert set(codes(refused)) == {"breaker_open"}
        assert all(call["error"]["retryable"] for call in refused)
        assert all(0 < call["error"]["retry_after_s"] <= 30 for call in refused)
        assert not any("refused" in entry["token"] for entry in journal.entries())

        # 30 seconds pass.
        for field in ("opened_at", "open_until"):
            await redis.hincrby(key, field, -OPEN_FOR_MS)

        # Of calls that come together one goes through: the probe. Its success closes the breaker.
        for turn in range(50):
            probing = await at_once(fleet, run, "write", 6, f"probe{turn}", seconds=1)
            if "succeeded" in codes(probing):
                break
        assert sorted(codes(probing)) == ["breaker_open"] * 5 + ["succeeded"]
        assert sum(entry["event"] == "effect" for entry in journal.entries()) == 1
        assert await redis.hget(key, "open_until") is None

    async def all_pass() -> bool:
        return set(codes(await at_once(fleet, run, "write", 8, "closed", seconds=0))) == {
            "succeeded"
        }

    await until(all_pass)
