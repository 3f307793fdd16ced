"""Tenants and priorities share one server's worker: who is served, told from the record."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from registry import calls, runs, submission
from registry.policy import TenantPolicy
from registry.runs import Run
from registry.settings import Settings
from registry.submission import Wish
from registry.tiers import TenantDefinition, TierDefinition
from tests.fleet.driver import Fleet
from tests.requirements import requirement
from tests.waiting import until
from workers.client import FleetClient, Message

pytestmark = pytest.mark.anyio

TOOL = "shared_sleep"
TWENTY_MS = {"seconds": 0.02}
IN_HAND = 4
"""Calls that a worker with one session holds, or that are on their way to or from it."""


@pytest.fixture(scope="module")
async def fleet(empty_fleet: Fleet) -> Fleet:
    await empty_fleet.serve(empty_fleet.sleeper("shared", pool={"min_idle": 1, "max_size": 1}))
    return empty_fleet


@dataclass
class Tenants:
    """Submits calls of several tenants as the API does, in one go; reads how they ended."""

    fleet: Fleet
    client: FleetClient
    runs: dict[str, Run]

    async def submit(self, *wanted: tuple[str, int]) -> None:
        """Submit a call for each (tenant, priority), in this order."""
        batch = [replace(await self._prepare(name), priority=it) for name, it in wanted]
        await calls.submit(self.fleet.database, batch)
        messages = [Message(**submission.message_of(call, call.id)) for call in batch]
        assert all(await asyncio.gather(*map(self.client.send, messages)))

    async def _prepare(self, tenant: str) -> calls.NewCall:
        if tenant not in self.runs:
            self.runs[tenant] = await runs.start_run(
                self.fleet.database, tenant=tenant, actor="test", lifetime=timedelta(hours=1)
            )
        wish = Wish(tool=TOOL, arguments={**TWENTY_MS, "token": tenant}, actor="test")
        # What is asked for each call would slow the flood down to what the worker serves.
        policy = TenantPolicy(TenantDefinition(name=tenant), TierDefinition(name="default"), 1)
        return submission.prepare(self.runs[tenant], wish, Settings(), policy)

    async def served(self) -> list[str]:
        """Return whose call succeeded, in the order in which they ended."""
        return [row.tenant_id for row in await self.rows("state = 'succeeded'")]

    async def rows(self, condition: str) -> Sequence[Any]:
        statement = (
            "SELECT tenant_id, created_at, ended_at FROM calls"
            f" WHERE run_id = ANY(:runs) AND {condition} ORDER BY ended_at"
        )
        async with self.fleet.database.transaction() as connection:
            ids = [run.id for run in self.runs.values()]
            return (await connection.execute(text(statement), {"runs": ids})).all()

    async def ended(self, tenant: str) -> None:
        """Return when no call of a tenant is left."""

        async def none_left() -> bool:
            return not await self.rows(f"ended_at IS NULL AND tenant_id = '{tenant}'")

        await until(none_left, within_s=40)


@pytest.fixture
async def tenants(fleet: Fleet) -> AsyncIterator[Tenants]:
    client = FleetClient(fleet.local.redis_url)
    tenants = Tenants(fleet, client, {})
    yield tenants
    for run in tenants.runs.values():
        await fleet.http.post(f"/v1/runs/{run.id}/cancel")
        await tenants.ended(run.tenant)
    await client.close()


@requirement("fair:shares")
async def test_a_tenant_that_submits_a_twentieth_of_a_flood_has_its_half(tenants: Tenants) -> None:
    async with tenants.fleet.without("worker:shared"):  # so that both have calls waiting throughout
        for _ in range(40):
            await tenants.submit(*[("loud", 5)] * 20, ("steady", 5))
    await tenants.ended("steady")
    assert await tenants.rows("ended_at IS NULL AND tenant_id = 'loud'")
    served = await tenants.served()
    first, last = served.index("steady"), len(served) - served[::-1].index("steady")
    window = Counter(served[first:last])
    assert window["steady"] == 40
    assert window["steady"] >= 0.45 * window.total()


@requirement("fair:shares")
async def test_a_call_beside_a_flood_waits_for_little_more_than_what_runs(tenants: Tenants) -> None:
    await tenants.submit(*[("loud", 5)] * 400)
    for _ in range(10):
        await tenants.submit(("steady", 5))
        await tenants.ended("steady")
    ended = await tenants.rows("ended_at IS NOT NULL")
    for call in (row for row in ended if row.tenant_id == "steady"):
        before = [row for row in ended if call.created_at < row.ended_at < call.ended_at]
        assert len(before) <= IN_HAND + 1
    assert await tenants.rows("ended_at IS NULL AND tenant_id = 'loud'")


@requirement("fair:weights")
async def test_a_higher_priority_has_the_larger_share_and_the_lower_one_is_served(
    tenants: Tenants,
) -> None:
    async with tenants.fleet.without("worker:shared"):
        await tenants.submit(*[("basic", 5)] * 60, *[("gold", 8)] * 80)
    await tenants.ended("gold")
    served = await tenants.served()
    window = Counter(served[: len(served) - served[::-1].index("gold")])
    assert window["gold"] == 80
    assert 8 <= window["basic"] <= 10 + IN_HAND


@requirement("fair:weights", "calls:priority")
async def test_a_priority_that_there_is_not_counts_as_the_nearest_one(tenants: Tenants) -> None:
    async with tenants.fleet.without("worker:shared"):
        await tenants.submit(("least", -7), *[("least", -7)] * 9, *[("most", 700)] * 20)
    await tenants.ended("least")
    served = await tenants.served()
    assert served[:20].count("most") >= 20 - IN_HAND
    assert served.count("least") == 10
