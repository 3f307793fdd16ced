"""Stops aimed at calls that are about to end, in a worker's own process with everything real.

Calls go through `workers.invoke` (claim, breaker, pool, session, record) to a stdio server that
says back what it is told. Each stop comes at a random moment around the call's end: the session
may be somebody else's by then, and that somebody must not notice.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from dataclasses import dataclass, field

from registry import calls, submission
from registry.calls import Submitted
from registry.database import Database
from registry.definitions import parse_definition
from registry.policies import get_tenant
from registry.runs import Run
from registry.settings import Settings
from registry.submission import Wish
from tests.jobs import make_job
from tests.ledger import listed, register, start
from tests.process_trees import light
from workers.aio_pool import USER, Job
from workers.invoke import invoke
from workers.runtime import WorkerRuntime

BATCH = 100
SIDE_BY_SIDE = 8
DELAY_S = 0.1  # several times what a call takes: most stops come too late, as they should here
SESSIONS = 4


@dataclass
class Races:
    """What became of the calls: by whether they were to be stopped, and by how they ended."""

    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(self.ended.items()))
        return f"{counts}; {len(self.wrong)} wrong"


async def race(settings: Settings, count: int) -> Races:
    """Run ``count`` calls, half of them with a stop; say what became of each."""
    database = Database(settings.database_url, pool_size=4)
    server = parse_definition(
        light(
            name="demo",
            tools={"say": {"delivery": "write"}},
            pool={"min_idle": SESSIONS, "max_size": SESSIONS, "max_calls": 1000},
            breaker={"minimum_calls": 10**9, "consecutive_timeouts": 10**9},
        )
    )
    await register(database, server, listed("say"))
    run = await start(database)
    worker = WorkerRuntime("demo", settings)
    await worker.open()
    races = Races()
    try:
        for first in range(0, count, BATCH):
            await _batch(database, worker, run, settings, min(BATCH, count - first), races)
    finally:
        await worker.drain()
        await worker.close()
        await database.close()
    return races


async def _batch(
    database: Database,
    worker: WorkerRuntime,
    run: Run,
    settings: Settings,
    count: int,
    races: Races,
) -> None:
    tokens = [uuid.uuid4().hex for _ in range(count)]
    wishes = [Wish(tool="demo_say", arguments={"text": token}, actor="race") for token in tokens]
    policy = await get_tenant(database, run.tenant)
    new = [submission.prepare(run, wish, settings, policy) for wish in wishes]
    ids = [one.id for one in await calls.submit(database, new) if isinstance(one, Submitted)]
    places = asyncio.Semaphore(SIDE_BY_SIDE)
    stopped: set[str] = set()

    async def one(call_id: str) -> None:
        async with places:
            job = make_job()
            job.task = asyncio.create_task(invoke(worker, call_id, job))
            if random.random() < 0.5:
                loop = asyncio.get_running_loop()
                loop.call_later(random.random() * DELAY_S, _stop, job, call_id, stopped)
            await asyncio.wait({job.task})

    await asyncio.gather(*(one(call_id) for call_id in ids))
    rows = await calls.read(database, ids)
    for call_id, token in zip(ids, tokens, strict=True):
        row = rows[call_id]
        aimed = "stop came in time" if call_id in stopped else "undisturbed"
        races.ended[f"{row['state']} ({aimed})"] += 1
        said = row["result"]["content"][0]["text"] if row["result"] else None
        right = ("succeeded", token) if call_id not in stopped else None
        if right and (row["state"], said) != right:
            races.wrong.append(f"undisturbed call {call_id}: {row['state']} {row['error']}")
        if not right and not (row["state"] == "stopped" or said == token):
            races.wrong.append(f"stopped call {call_id}: {row['state']} {row['error']}")


def _stop(job: Job, call_id: str, stopped: set[str]) -> None:
    if job.task is not None and not job.task.done():
        stopped.add(call_id)
        job.cancel(USER)
