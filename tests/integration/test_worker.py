"""What a worker process does with its lease, its jobs and its server's versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from registry import calls, catalog
from registry.calls import CallState, Ending
from registry.database import Database
from registry.definitions import parse_definition
from registry.settings import Settings
from tests.jobs import make_job
from tests.ledger import Ledger, listed, register, start, together
from tests.process_trees import light
from tests.requirements import requirement
from tests.waiting import until
from workers import runtime, versions
from workers.aio_pool import USER, Job
from workers.invoke import invoke
from workers.pool import SessionKey
from workers.runtime import LEASE_LOST, WorkerRuntime

pytestmark = pytest.mark.anyio

POOL = {"min_idle": 1, "max_size": 1}
TOOLS = ("say", "wait")


@pytest.fixture
async def ledger(database: Database, database_url: str, redis_url: str) -> Ledger:
    server = parse_definition(light(name="demo", pool=POOL))
    await register(database, server, *(listed(tool) for tool in TOOLS))
    settings = Settings(
        database_url=database_url,
        redis_url=redis_url,
        worker_lease=timedelta(seconds=1),
        drain_grace=timedelta(0),
    )
    return Ledger(database, await start(database), settings)


@asynccontextmanager
async def opened(ledger: Ledger) -> AsyncIterator[WorkerRuntime]:
    worker = WorkerRuntime("demo", ledger.settings)
    await worker.open()
    try:
        yield worker
    finally:
        await worker.close()


@pytest.fixture
async def worker(ledger: Ledger) -> AsyncIterator[WorkerRuntime]:
    async with opened(ledger) as worker:
        yield worker


def deliver(worker: WorkerRuntime, call_id: str) -> Job:
    """Let a worker have a call's message; return the job, whose task ends with the call."""
    job = make_job()
    job.task = asyncio.create_task(invoke(worker, call_id, job))
    return job


def endless() -> Job:
    """Return a job that lasts until it is cancelled."""
    job = make_job()
    job.task = asyncio.create_task(asyncio.Event().wait())
    return job


async def ended(job: Job) -> Any:
    assert job.task is not None
    async with asyncio.timeout(20):
        return (await asyncio.gather(job.task, return_exceptions=True))[0]


def sessions(worker: WorkerRuntime, version: str = "demo@1") -> dict[str, Any]:
    found: dict[str, Any] = worker.info()["sessions"].get(version, {})
    return found


@asynccontextmanager
async def locked(ledger: Ledger, table: str, row_id: str) -> AsyncIterator[None]:
    """Keep a row from being changed by anybody else."""
    async with ledger.database.transaction() as connection:
        statement = f"SELECT 1 FROM {table} WHERE id = :id FOR UPDATE"
        await connection.execute(text(statement), {"id": row_id})
        yield


async def somebody_waits(ledger: Ledger) -> bool:
    """Say whether a statement waits for a row."""
    found = await ledger.sql(
        "SELECT 1 FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return bool(found)


# -- the lease


@requirement("worker:claims-under-its-lease")
async def test_a_worker_without_a_lease_leaves_calls_in_the_queue(
    ledger: Ledger, worker: WorkerRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "LAPSED_PAUSE_S", 0.1)
    call_id, lapsed = await ledger.submit("say", arguments={"text": "hello"}), worker.id
    async with locked(ledger, "workers", lapsed):
        await until(lambda: worker._lapsed)
        for _ in range(3):
            assert await ended(deliver(worker, call_id)) is None
    await until(lambda: worker.id != lapsed)
    assert await ended(deliver(worker, call_id)) is CallState.SUCCEEDED
    assert await ledger.trail(call_id) == ["queued", "running", "succeeded"]


@requirement("worker:claims-under-its-lease")
async def test_a_message_that_comes_while_the_lease_is_renewed_late_is_not_lost(
    ledger: Ledger, worker: WorkerRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "LAPSED_PAUSE_S", 5.0)
    call_id = await ledger.submit("say", arguments={"text": "hello"})
    async with locked(ledger, "workers", worker.id):
        await until(lambda: worker._lapsed)
        job = deliver(worker, call_id)
    assert await ended(job) is CallState.SUCCEEDED


@requirement("worker:claims-under-its-lease")
async def test_a_call_claimed_while_the_lease_was_lost_is_not_dispatched_under_the_next_one(
    ledger: Ledger, worker: WorkerRuntime
) -> None:
    call_id, lost = await ledger.submit("wait"), worker.id
    version = (await catalog.get_server(ledger.database, "demo")).id
    served = await worker.served(version)
    async with served.pool.borrow(SessionKey(version), 5):
        async with locked(ledger, "calls", call_id):
            job = deliver(worker, call_id)
            await until(lambda: somebody_waits(ledger))
            await ledger.lapse(lost)
            await until(lambda: worker._lapsed)
            assert worker.id == lost, "a new lease was taken with a claim under way"
        await until(lambda: worker.id != lost)
    assert await ended(job) is CallState.QUEUED
    rows = await ledger.sql("SELECT actor FROM audit WHERE call_id = :id ORDER BY id", id=call_id)
    assert [row[0] for row in rows] == ["agent", lost, lost]
    assert (await ledger.row(call_id))["attempts"] == 0


@requirement("worker:claims-under-its-lease")
async def test_calls_are_ended_under_the_leases_that_claimed_them(
    ledger: Ledger, worker: WorkerRuntime
) -> None:
    lost = worker.id
    earlier = await worker.claim(await ledger.submit("say", arguments={"text": "1"}))
    await ledger.lapse(lost)
    await until(lambda: worker.id != lost and not worker._lapsed)
    later = await worker.claim(await ledger.submit("say", arguments={"text": "2"}))
    assert earlier is not None
    assert later is not None
    await together(
        *(
            worker.finish(claim, Ending(claim.id, claim.fence, CallState.SUCCEEDED, result={}))
            for claim in (earlier, later)
        )
    )
    assert [await ledger.state(claim.id) for claim in (earlier, later)] == [CallState.SUCCEEDED] * 2


# -- jobs


@requirement("worker:reaches-every-job")
@pytest.mark.parametrize("what", [USER, LEASE_LOST])
async def test_a_stop_and_a_lost_lease_reach_every_job_of_a_call(
    ledger: Ledger, worker: WorkerRuntime, what: str
) -> None:
    claim = await ledger.running("say", worker=worker.id)
    first, second = endless(), endless()
    with worker.running(claim.id, first), worker.running(claim.id, second):
        if what == USER:
            await calls.stop(ledger.database, [claim.id], actor="test")
        else:
            await ledger.lapse(worker.id)
        await until(lambda: first.reason == second.reason == what)


@requirement("worker:reaches-every-job")
async def test_a_second_delivery_that_ends_leaves_the_first_within_reach(
    ledger: Ledger, worker: WorkerRuntime
) -> None:
    claim = await ledger.running("say", worker=worker.id)
    first, second = endless(), endless()
    with worker.running(claim.id, first):
        with worker.running(claim.id, second):
            pass
        await calls.stop(ledger.database, [claim.id], actor="test")
        await until(lambda: first.reason == USER)
    assert second.reason is None


# -- versions


@requirement("worker:stops-in-time")
async def test_a_stop_does_not_wait_for_a_version_that_does_not_start(
    ledger: Ledger, worker: WorkerRuntime
) -> None:
    call_id = await ledger.submit("wait")
    job = deliver(worker, call_id)
    await until(lambda: sessions(worker).get("in_use"))
    mute = {"command": "sleep", "args": ["1000"], "version": "2", "timeouts": {"connect_s": 60}}
    server = parse_definition(light(name="demo", pool=POOL) | mute)
    await catalog.add_version(ledger.database, server, actor="test")
    await until(lambda: sessions(worker, "demo@2").get("opening"))
    await calls.stop(ledger.database, [call_id], actor="test")
    await until(lambda: job.reason == USER, within_s=5)
    await ended(job)
    assert await ledger.state(call_id) is CallState.STOPPED


@requirement("metrics:server-time", "metrics:stops")
async def test_figures_tell_what_a_server_took_and_how_long_a_call_took_to_stop(
    ledger: Ledger,
) -> None:
    ledger.settings = ledger.settings.model_copy(update={"stop_grace": timedelta(seconds=0.1)})
    async with opened(ledger) as worker:
        quick = await ledger.submit("say", arguments={"text": "x", "took_s": 0.0001})
        await ended(deliver(worker, quick))
        job = deliver(worker, stopped := await ledger.submit("wait"))
        await until(lambda: sessions(worker).get("in_use"))
        await calls.stop(ledger.database, [stopped], actor="test")
        await ended(job)
        told = worker.figures.exposition().splitlines()
    assert (await ledger.row(quick))["timings"]["server_s"] == 0.0001
    assert 'toolfleet_server_seconds_count{server="demo"} 1.0' in told
    assert 'toolfleet_stop_seconds_count{rung="sigterm",server="demo"} 1.0' in told
    for outcome in ("answered", "stopped"):
        labels = f'outcome="{outcome}",server="demo",tier="default"'
        assert f"toolfleet_call_outcomes_total{{{labels}}} 1.0" in told


@requirement("worker:lets-old-versions-go")
async def test_an_old_version_is_not_kept_warm_beside_one_that_has_no_shared_sessions(
    ledger: Ledger,
) -> None:
    pool = {**POOL, "max_idle_s": 0.1}
    own = {"credentials": {"inject": "env", "name": "TOKEN", "required": True}}
    before = parse_definition(light(name="demo", version="2", pool=pool))
    after = parse_definition(light(name="demo", version="3", pool=pool, **own))
    await catalog.add_version(ledger.database, before, actor="test")
    async with opened(ledger) as worker:
        assert sessions(worker, "demo@2")["idle"] == 1
        await catalog.add_version(ledger.database, after, actor="test")
        await until(lambda: not sessions(worker, "demo@2")["idle"])


@requirement("worker:lets-old-versions-go")
async def test_of_tools_only_those_used_last_are_kept(
    ledger: Ledger, worker: WorkerRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "TOOLS_KEPT", 1)
    rows = await ledger.sql("SELECT id, name FROM tool_versions ORDER BY id")
    for tool_id, name in [*rows, *rows]:
        assert (await worker.tool(tool_id)).name == name
        assert list(worker._tools) == [tool_id]


# -- its end


@requirement("worker:closes-in-time")
async def test_a_version_that_cannot_be_closed_does_not_keep_the_lease(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "CLOSE_LIMIT_S", 0.1)
    worker = WorkerRuntime("demo", ledger.settings)
    await worker.open()
    version = (await catalog.get_server(ledger.database, "demo")).id
    pool = (await worker.served(version)).pool
    close = pool.close
    monkeypatch.setattr(pool, "close", asyncio.Event().wait)
    try:
        async with asyncio.timeout(5):
            await worker.close()
    finally:
        await close()
    (given_up,) = await ledger.sql("SELECT stopped_at IS NOT NULL FROM workers")
    assert given_up[0]
