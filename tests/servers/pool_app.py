"""A Celery worker on the asyncio pool with one task, for tests of the pool alone.

python pool_app.py REDIS_URL JOURNAL CONCURRENCY
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from registry.settings import Settings
from workers.aio_pool import JOB, AsyncioPool, CoroutineTask
from workers.celery_app import fleet_queue, make_app

REDIS_URL, JOURNAL, CONCURRENCY = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])


def note(event: str, name: str, **more: Any) -> None:
    with JOURNAL.open("a") as file:
        file.write(json.dumps({"event": event, "name": name, **more}) + "\n")


class Sleep(CoroutineTask):
    name = "pool.sleep"
    ignore_result = False

    async def coroutine(self, request: dict[str, Any], name: str, seconds: float) -> str:
        note("started", name)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            note("cancelled", name, reason=request[JOB].reason)
            raise
        note("finished", name)
        return name


class Fail(CoroutineTask):
    name = "pool.fail"
    ignore_result = False

    async def coroutine(self, request: dict[str, Any], text: str) -> None:
        raise ValueError(text)


app = make_app(Settings(redis_url=REDIS_URL))
app.conf.imports = ()
app.conf.task_queues = [fleet_queue("pool")]
app.register_task(Sleep())
app.register_task(Fail())

if __name__ == "__main__":
    worker = app.Worker(
        pool_cls=AsyncioPool,
        concurrency=CONCURRENCY,
        queues=["pool"],
        hostname="pool@test",
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    sys.exit(worker.exitcode or 0)
