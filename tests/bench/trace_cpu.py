"""What traces and figures cost a worker and the API in CPU, by turns within one process.

``make trace-bench`` prints it. Everything is real but Celery; batches of calls are made with traces
and figures and without by turns, and the quickest tenths of both are compared, so that what else
the machine does counts as little as it can.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import httpx2
from prometheus_client import Counter, Gauge, Histogram
from pydantic import SecretStr

from api.app import create_app
from compose.bench.rig import ECHO
from compose.embedded import EmbeddedPostgres, EmbeddedRedis
from compose.migrate import upgrade_database
from registry import calls, catalog, tenants
from registry.calls import CallState, Submitted
from registry.database import Database
from registry.definitions import parse_definition
from registry.settings import Settings
from registry.telemetry import Tracer
from registry.tenants import Role
from tests.jobs import make_job
from tests.ledger import Ledger, start
from tests.waiting import until
from workers.invoke import invoke
from workers.process import GC_THRESHOLDS
from workers.runtime import WorkerRuntime

BATCH, PAIRS = 64, 40
WARM_UP = 6
FIGURES = ((Counter, "inc"), (Histogram, "observe"), (Gauge, "inc"), (Gauge, "dec"), (Gauge, "set"))
Batch = Callable[[], Awaitable[None]]


@contextmanager
def unwatched(tracer: Tracer) -> Iterator[None]:
    """Record no trace, and count nothing."""
    tracer.recording = False
    patches = [patch.object(kind, method, lambda *_: None) for kind, method in FIGURES]
    for it in patches:
        it.start()
    try:
        yield
    finally:
        tracer.recording = True
        for it in patches:
            it.stop()


async def compare(what: str, tracer: Tracer, prepare: Callable[[], Awaitable[Batch]]) -> None:
    """Print what a call costs with and without, of batches that are made ready beforehand."""

    async def one() -> float:
        batch = await prepare()
        begun = time.process_time()
        await batch()
        return (time.process_time() - begun) / BATCH * 1e6

    watched, bare = [], []
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)  # as its own process has it
    for number in range(PAIRS + WARM_UP):
        if number % 2:
            first = await one()
        with unwatched(tracer):
            second = await one()
        if not number % 2:
            first = await one()
        if number >= WARM_UP:
            watched.append(first)
            bare.append(second)
    without = undisturbed(bare)
    costs = undisturbed(watched) - without
    print(
        f"{what:34} {without:7.0f} us a call, and {costs:5.1f} more ({costs / without:5.1%})",
        flush=True,
    )


def undisturbed(costs: list[float]) -> float:
    """Return what the quickest tenth took: whatever else goes on only ever adds."""
    return statistics.quantiles(costs, n=10)[0]


async def worker_side(ledger: Ledger, worker: WorkerRuntime) -> Callable[[], Awaitable[Batch]]:
    """Return what makes a batch of queued calls ready for a worker."""

    async def prepare() -> Batch:
        new = [ledger.new("echo", arguments={"text": "hi"}) for _ in range(BATCH)]
        rows = await calls.submit(ledger.database, new)
        ids = [row.id for row in rows if isinstance(row, Submitted)]

        async def run() -> None:
            states = await asyncio.gather(*(invoke(worker, it, make_job()) for it in ids))
            if set(states) != {CallState.SUCCEEDED}:
                raise RuntimeError(f"calls ended as {set(states)}")

        return run

    return prepare


async def api_side(http: httpx2.AsyncClient, run_id: str) -> Callable[[], Awaitable[Batch]]:
    """Return what makes a batch of submissions; their cost is the caller's too."""
    body = {"tool": "demo_echo", "arguments": {"text": "hi"}}

    async def submit() -> None:
        answer = await http.post(f"/v1/runs/{run_id}/calls", json=body)
        if answer.status_code != httpx2.codes.ACCEPTED:
            raise RuntimeError(answer.text)

    async def prepare() -> Batch:
        async def run() -> None:
            await asyncio.gather(*(submit() for _ in range(BATCH)))

        return run

    return prepare


async def is_listed(database: Database) -> bool:
    """Say whether the server's tools are known."""
    return not (await catalog.get_server(database, "demo")).stale


async def measure(settings: Settings) -> None:
    """Measure both sides at the default, and with every trace recorded."""
    database = Database(settings.database_url)
    server = {
        "name": "demo",
        "transport": "stdio",
        "command": ECHO[0],
        "args": list(ECHO[1:]),
        "annotations": "trusted",
        "pool": {"min_idle": 4, "max_size": 4, "max_calls": 1_000_000},
    }
    await catalog.add_server(database, parse_definition(server), actor="bench")
    _, key = await tenants.create_key(database, name="bench", role=Role.OPERATOR)
    for manner, per_s in (("the default", settings.traces_per_s), ("every call recorded", 1e9)):
        its = settings.model_copy(update={"traces_per_s": per_s})
        worker = WorkerRuntime("demo", its)
        await worker.open()
        await until(partial(is_listed, database), within_s=60)
        ledger = Ledger(database, await start(database), settings)
        tracer = worker.client.tracer
        await compare(f"worker, {manner}", tracer, await worker_side(ledger, worker))
        await worker.close()
        app = create_app(its)
        async with app.router.lifespan_context(app):
            http = httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app),
                base_url="http://127.0.0.1:8080",
                headers={"authorization": f"Bearer {key}"},
            )
            tracer = app.state.operations.client.tracer
            await compare(f"API and caller, {manner}", tracer, await api_side(http, ledger.run.id))
            await http.aclose()
    await database.close()


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="toolfleet-bench-") as folder:
        postgres, redis = EmbeddedPostgres(Path(folder)), EmbeddedRedis(Path(folder))
        url = await postgres.start()
        await redis.start()
        try:
            await asyncio.to_thread(upgrade_database, url)
            await measure(
                Settings(
                    database_url=url,
                    redis_url=redis.url,
                    secret_key=SecretStr("a secret of at least thirty-two bytes"),
                )
            )
        finally:
            await redis.stop()
            await postgres.stop()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
