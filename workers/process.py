"""A worker process from its start to its end: which queue, how many calls, which residents."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from typing import Final

from registry import catalog
from registry.database import Database
from registry.definitions import queue_name
from registry.settings import get_settings
from workers.aio_pool import AsyncioPool, Residents
from workers.celery_app import STEWARD_QUEUE, app, fleet_queue
from workers.runtime import WorkerRuntime
from workers.scrub import set_up_logging
from workers.steward import StewardRuntime

STEWARD_CONCURRENCY: Final = 200
GC_THRESHOLDS: Final = (10_000, 20, 20)


def run_worker(server: str) -> int:
    """Serve one server's queue until a signal; return the exit status.

    Raises `unknown_server`, or `store_unavailable` when Postgres is away.
    """
    settings = get_settings()
    database = Database(settings.database_url, pool_size=1)

    async def find() -> int:
        try:
            version = await catalog.get_server(database, server)
            pool = version.definition.pool
            return pool.max_size * pool.calls_per_session
        finally:
            await database.close()

    # Claims and records of some calls overlap with the sessions of others; so a worker takes a
    # few calls more than it has sessions, and a session never waits for a commit.
    concurrency = asyncio.run(find())
    concurrency += max(1, min(concurrency, 4))
    return _run(server, queue_name(server), concurrency, WorkerRuntime(server, settings))


def run_steward() -> int:
    """Run the steward until a signal; return the exit status."""
    settings = get_settings()
    return _run("steward", STEWARD_QUEUE, STEWARD_CONCURRENCY, StewardRuntime(settings))


def _run(role: str, queue: str, concurrency: int, residents: Residents) -> int:
    set_up_logging()
    app.conf.task_queues = [fleet_queue(queue)]
    AsyncioPool.residents = residents
    worker = app.Worker(
        hostname=f"{role}-{os.getpid()}@{socket.gethostname()}",
        pool_cls=AsyncioPool,
        concurrency=concurrency,
        queues=[queue],
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    # What importing left behind lives as long as the process: collecting it again and again, with
    # every call waiting, finds nothing.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    worker.start()
    return int(worker.exitcode or 0)
