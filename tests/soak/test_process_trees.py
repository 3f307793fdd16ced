"""Ten thousand sessions with servers that end badly, one after the other: nothing is left of them.

``make soak``; ``TOOLFLEET_SOAK_CYCLES`` says how many (10000). It prints what it found.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass

import psutil
import pytest

from registry.definitions import PoolDefinition, parse_definition
from registry.errors import FleetError
from tests.process_trees import BEHAVIOURS, FAMILY, GONE_WITHIN_S, PROTECTIONS, holding, light
from tests.requirements import requirement
from workers.mark import marked
from workers.pool import SessionKey, SessionPool
from workers.reaper import reap
from workers.session import Session

pytestmark = [pytest.mark.anyio, pytest.mark.soak]

CYCLES = int(os.environ.get("TOOLFLEET_SOAK_CYCLES", "10000"))
WORKER_DIES_EVERY = 500
WARM_UP = 200
BORROWERS = 8
GRACE_S = 0.03
RSS_GROWTH_MB = 20.0
KEY = SessionKey(1)
LIMITS = PoolDefinition(
    min_idle=0, max_size=BORROWERS, max_calls=3, rebuild_per_s=100_000, borrow_timeout_s=60
)
FLAGS = ("--ignore-eof", "--ignore-term", *FAMILY)


@dataclass(frozen=True)
class Held:
    """What this process holds at one moment."""

    fds: int
    threads: int
    tasks: int
    rss_mb: float

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        process = psutil.Process()
        return cls(
            process.num_fds(),
            threading.active_count(),
            len(asyncio.all_tasks()),
            round(process.memory_info().rss / 2**20, 1),
        )


class Soak:
    """Borrowers that call, cancel and kill until all cycles are done."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self._dice = random.Random(14)

    async def open_session(self, _: SessionKey) -> Session:
        flags = [flag for flag in FLAGS if self._dice.random() < 0.4]
        return await Session.open(
            parse_definition(light(*flags)),
            connect_timeout_s=60,
            stop_grace_s=GRACE_S,
            max_result_bytes=100_000,
        )

    async def run(self, cycles: int) -> None:
        """Run so many cycles in a pool of their own."""
        pool = SessionPool("light", LIMITS, self.open_session)
        left = iter(range(cycles))
        try:
            await asyncio.gather(*(self._borrow(pool, left) for _ in range(BORROWERS)))
        finally:
            await pool.close()
        assert pool.stats().size == 0
        self.done["session opened"] += pool.stats().opened_total

    async def _borrow(self, pool: SessionPool[Session], left: Iterator[int]) -> None:
        for _ in left:
            how = self._dice.choice(("call", "cancel", "cancel", "kill", "leave"))
            with suppress(FleetError):
                async with pool.borrow(KEY, 60) as lease:
                    await self._use(lease.session, how)
            self.done[how] += 1

    async def _use(self, session: Session, how: str) -> None:
        if how in ("call", "leave"):
            await session.call_tool("pid" if how == "call" else "leave", {}, timeout_s=60)
            return
        call = asyncio.create_task(session.call_tool("wait", {}, timeout_s=60))
        await asyncio.sleep(self._dice.random() * 0.003)
        if how == "cancel":
            call.cancel()
        elif session.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(session.pid, signal.SIGKILL)
        with suppress(asyncio.CancelledError):
            await call


async def kill_a_worker(protection: str) -> int:
    """Have a worker process open a session of each kind and kill it; return how many survive."""
    async with holding(protection) as holder:
        for flags, _ in BEHAVIOURS.values():
            await holder.order(open=flags)
        await holder.kill()
        reap()
        return len(await survivors(holder.process.pid))


async def survivors(worker_pid: int) -> list[int]:
    """Return what of a worker's children still lives when it ought not to any more."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while found := [pid for pid, _ in marked(lambda mark: mark.worker_pid == worker_pid)]:
        if time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.05)
    return []


@requirement("soak:leaves-nothing")
@pytest.mark.timeout(3 * 3600)
async def test_nothing_is_left_of_servers_that_were_called_cancelled_and_killed() -> None:
    soak = Soak()
    await soak.run(WARM_UP)
    soak.done.clear()
    protections = [name for name, (_, possible) in PROTECTIONS.items() if possible]
    escaped = sum([await kill_a_worker(name) for name in protections])
    # The loop's executor starts its threads one by one, as they are needed; have them all now.
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.05) for _ in range(64)))
    before, started = Held.now(), time.monotonic()
    for first in range(0, CYCLES, WORKER_DIES_EVERY):
        await soak.run(min(WORKER_DIES_EVERY, CYCLES - first))
        escaped += await kill_a_worker(protections[first // WORKER_DIES_EVERY % len(protections)])
        soak.done["worker killed"] += 1
        print(f"{min(first + WORKER_DIES_EVERY, CYCLES):6} cycles, {Held.now()}", flush=True)
    alive = await survivors(os.getpid())
    after = Held.now()
    elapsed_s = time.monotonic() - started
    print(f"\n{CYCLES} cycles in {elapsed_s:.0f} s: {dict(soak.done)}")
    print(f"before {asdict(before)}\nafter  {asdict(after)}")
    print(f"surviving processes: {len(alive)} of this worker, {escaped} of killed workers")
    assert (len(alive), escaped) == (0, 0)
    assert (after.fds, after.threads, after.tasks) == (before.fds, before.threads, before.tasks)
    assert after.rss_mb - before.rss_mb < RSS_GROWTH_MB
