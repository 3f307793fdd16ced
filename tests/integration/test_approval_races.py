"""Approve, deny, stop, expire and cancel at once: a call that waits has exactly one outcome."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from registry import calls, leases, runs
from registry.calls import CallState, Ending
from registry.database import Database
from registry.errors import FleetError
from tests.approving import decide, dispatch, gated, view, waiting_call
from tests.ledger import WORKER, Ledger, start
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

PARTIES = ("approve", "deny", "stop", "expire", "cancel", "work")
SIDE_BY_SIDE = 8
LONGEST_PAUSE_S = 0.02


@dataclass
class Race:
    """One call, and those who want something of it at the same time."""

    ledger: Ledger
    call_id: str
    binding: str
    run_id: str
    chance: random.Random
    decided: list[str] = field(default_factory=list)
    dispatched: int = 0

    async def approve(self) -> None:
        await decide(self.ledger, self.call_id, actor="boss", binding=self.binding)
        self.decided.append("approved")

    async def deny(self) -> None:
        await decide(self.ledger, self.call_id, approve=False, actor="eve", binding=self.binding)
        self.decided.append("denied")

    async def stop(self) -> None:
        await calls.stop(self.ledger.database, [self.call_id], actor="agent")

    async def expire(self) -> None:
        await self.ledger.sql(
            "UPDATE calls SET deadline_at = clock_timestamp() WHERE id = :id"
            " AND state = 'awaiting_approval'",
            id=self.call_id,
        )
        await leases.expire(self.ledger.database)

    async def cancel(self) -> None:
        _, ids = await runs.end_run(self.ledger.database, self.run_id, cancel=True, actor="agent")
        await calls.stop(self.ledger.database, ids, actor="agent", reason="run_cancelled")

    async def work(self) -> None:
        """Take a worker's part for a while."""
        for _ in range(5):
            (claim,) = await calls.claim(self.ledger.database, WORKER, [self.call_id])
            if claim is None:
                await asyncio.sleep(self.chance.random() * LONGEST_PAUSE_S)
                continue
            await dispatch(self.ledger, claim)
            self.dispatched += 1
            ending = Ending(claim.id, claim.fence, CallState.SUCCEEDED)
            await calls.finish(self.ledger.database, WORKER, [ending])

    async def run(self) -> None:
        """Let some of the parties in, each at a moment of its own."""
        parties = self.chance.sample(PARTIES, self.chance.randint(2, len(PARTIES)))

        async def one(party: str) -> None:
            await asyncio.sleep(self.chance.random() * LONGEST_PAUSE_S)
            with suppress(FleetError):  # too late: somebody else was quicker
                await getattr(self, party)()

        await asyncio.gather(*(one(party) for party in parties))

    async def outcome(self) -> str:
        """Return how it went, once everybody has done what is left to do; check that it is one."""
        await leases.expire(self.ledger.database)
        trail = await self.ledger.trail(self.call_id)
        ways = [it for it in trail if it in ("approved", "denied", "stopped", "expired")]
        assert trail[0] == "awaiting_approval"
        assert len(self.decided) <= 1, "two were told that they had decided"
        assert self.decided == [it for it in ways if it in ("approved", "denied")], trail
        assert not ways or ways[0] == "approved" or len(ways) == 1, trail
        rows = await self.ledger.sql(
            "SELECT 1 FROM approvals WHERE call_id = :id AND closes", id=self.call_id
        )
        assert len(rows) == len(self.decided)
        assert self.dispatched == trail.count("running") <= (1 if "approved" in ways else 0)
        state = await self.ledger.state(self.call_id)
        last = "queued" if trail[-1] == "approved" else trail[-1]
        assert last in (state.value, "stop_requested"), trail
        return state.value


async def race(database: Database, count: int, seed: int) -> Counter[str]:
    """Race for so many calls; return how often each outcome was."""
    ledger, chance = await gated(database), random.Random(seed)
    outcomes: Counter[str] = Counter()
    for _ in range(0, count, SIDE_BY_SIDE):
        racing = []
        for _ in range(SIDE_BY_SIDE):
            ledger.run = await start(database)
            call_id = await waiting_call(ledger)
            binding = (await view(ledger, call_id))["binding"]
            racing.append(Race(ledger, call_id, binding, ledger.run.id, chance))
        await asyncio.gather(*(one.run() for one in racing))
        for one in racing:
            outcomes[await one.outcome()] += 1
    return outcomes


@requirement("approval:once")
async def test_a_call_that_many_decide_about_at_once_has_one_outcome(database: Database) -> None:
    outcomes = await race(database, 48, seed=random.randrange(10**6))
    assert {"denied", "stopped"} < set(outcomes)


@requirement("approval:once")
@pytest.mark.long
@pytest.mark.timeout(300)
async def test_thousands_of_calls_that_many_decide_about_have_one_outcome_each(
    database: Database,
) -> None:
    outcomes = await race(database, 1_000, seed=random.randrange(10**6))
    assert set(outcomes) >= {"denied", "stopped", "expired", "succeeded"}, outcomes
