"""A worker process from its start to its end: which queue, how many calls, which residents."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from functools import partial
from typing import Any, Final

from registry import catalog
from registry.database import Database
from registry.definitions import queue_name
from registry.settings import get_settings
from workers.aio_pool import AsyncioPool, Residents
from workers.celery_app import STEWARD_QUEUE, app, fleet_queue
from workers.runtime import WorkerRuntime
from workers.scrub import set_up_logging
from workers.steward import StewardRuntime
from workers.versions import places_of

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
            return places_of([await catalog.get_server(database, server)])
        finally:
            await database.close()

    places = asyncio.run(find())
    runtime = WorkerRuntime(server, settings)
    worker = _make(server, queue_name(server), places, runtime)
    runtime.following.resize = partial(_resize, worker)
    return _run(worker)


def run_steward() -> int:
    """Run the steward until a signal; return the exit status."""
    residents = StewardRuntime(get_settings())
    return _run(_make("steward", STEWARD_QUEUE, STEWARD_CONCURRENCY, residents))


def _resize(worker: Any, places: int) -> None:
    """Have a worker take so many calls at once from the next turn of its hub on.

    As Celery's own `pool_grow` does; one whose consumer does not run yet is left as it is.
    """
    more = places - worker.pool.limit
    if more and worker.consumer.qos is not None:
        worker.pool.limit = places
        worker.consumer._update_prefetch_count(more)


def _make(role: str, queue: str, concurrency: int, residents: Residents) -> Any:
    set_up_logging()
    app.conf.task_queues = [fleet_queue(queue)]
    AsyncioPool.residents = residents
    return app.Worker(
        hostname=f"{role}-{os.getpid()}@{socket.gethostname()}",
        pool_cls=AsyncioPool,
        concurrency=concurrency,
        queues=[queue],
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )


def _run(worker: Any) -> int:
    # What importing left behind lives as long as the process: collecting it again and again, with
    # every call waiting, finds nothing.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    worker.start()
    return int(worker.exitcode or 0)
