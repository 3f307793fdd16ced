"""Draining a deep queue: one worker process of the fleet, and the stock worker with its no-ops.

Both find their whole queue waiting when they start on it, and nobody waits for an answer: what is
measured is what one worker process can do.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from compose.bench.cpu import Spent, between
from compose.bench.rig import STDIO, Rig
from registry.database import Database

DRAINED_WITHIN_S: Final = 120.0
LOOK_EVERY_S: Final = 0.1

_PROGRESS: Final = """
    SELECT count(*)::int AS submitted, count(ended_at)::int AS ended,
        count(*) FILTER (WHERE state = 'succeeded')::int AS succeeded,
        extract(epoch FROM max(ended_at) - min(started_at))::double precision AS seconds
    FROM calls WHERE run_id = %(run)s
"""


@dataclass(frozen=True)
class Drained:
    """How fast a queue was drained, and what it cost."""

    calls: int
    seconds: float
    spent_s: Spent
    metered: int
    """How many calls were made while the CPU was measured."""

    @property
    def rate(self) -> float:
        """Return calls per second."""
        return self.calls / self.seconds


async def drain_fleet(rig: Rig, count: int) -> Drained:
    """Submit calls over HTTP while the server's worker is down, then start it."""
    worker = rig.fleet.children[f"worker:{STDIO}"]
    await worker.stop()
    run_id = await rig.start_run()
    await submit(rig, run_id, count)
    database = Database(rig.fleet.database_url, pool_size=1, application="toolfleet bench")
    try:
        await worker.start()
        first = await until_ended(database, run_id, 1)
        before = rig.meter.read()
        last = await until_ended(database, run_id, count)
        spent = between(before, rig.meter.read())
    finally:
        await database.close()
    if last["succeeded"] != count:
        raise RuntimeError(f"{count - last['succeeded']} of {count} queued calls did not succeed")
    return Drained(count, last["seconds"], spent, max(1, count - first["ended"]))


async def submit(rig: Rig, run_id: str, count: int) -> None:
    """Submit calls over HTTP, and wait for none."""
    options = {
        "url": rig.fleet.api_url,
        "key": rig.fleet.operator_key,
        "run_id": run_id,
        "tool": f"{STDIO}_echo",
        "wait_s": 0,
    }
    await rig.caller.do("open", run_id, kind="fleet", options=options)
    answer = await rig.caller.do("call", run_id, mode="count", options={"count": count})
    await rig.caller.do("close", run_id)
    if answer["errors"]:
        raise RuntimeError(f"calls could not be submitted: {answer['errors'][0]}")


async def until_ended(database: Database, run_id: str, count: int) -> dict[str, Any]:
    """Return how far a run's calls are, once so many have ended."""
    async with asyncio.timeout(DRAINED_WITHIN_S):
        while True:
            (row,) = await database.statement(_PROGRESS, run=run_id)
            if row["ended"] >= count:
                return row
            await asyncio.sleep(LOOK_EVERY_S)


async def drain_celery(rig: Rig, count: int) -> Drained:
    """Send no-ops while the stock worker is paused, then let it go on."""
    await rig.caller.do("ask what ran")
    rig.pause_celery(paused=True)
    try:
        await rig.caller.do("queue no-ops", count=count)
        before = rig.meter.read()
    finally:
        rig.pause_celery(paused=False)
    # The question waits in the queue behind the no-ops; threads may still overtake each other.
    told = await rig.caller.do("ask what ran")
    spent = between(before, rig.meter.read())
    return Drained(int(told["count"]), told["last"] - told["first"], spent, count)
