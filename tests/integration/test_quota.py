"""What a worker does with a server's quota, and with a server that asks to be left alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from registry import calls, leases
from registry.calls import CallState
from registry.database import Database
from registry.definitions import parse_definition
from registry.settings import Settings
from tests.jobs import make_job
from tests.ledger import Ledger, listed, register, start
from tests.requirements import requirement
from tests.vendor import Vendor, running_vendor
from tests.waiting import until
from workers import quota
from workers.aio_pool import DRAIN, Job
from workers.invoke import invoke
from workers.runtime import WorkerRuntime

pytestmark = pytest.mark.anyio


class Scene:
    """A vendor, some workers of it, and the record of calls."""

    def __init__(self, ledger: Ledger, vendor: Vendor, workers: list[WorkerRuntime]) -> None:
        self.ledger = ledger
        self.vendor = vendor
        self.workers = workers
        self._jobs: list[Job] = []

    async def submit(self, tool: str = "look", **wish: Any) -> str:
        return await self.ledger.submit(tool, **wish)

    def deliver(self, call_id: str, worker: int = 0) -> Job:
        """Let a worker have a call's message."""
        job = make_job()
        job.task = asyncio.create_task(invoke(self.workers[worker], call_id, job))
        self._jobs.append(job)
        return job

    async def call(self, tool: str = "look", *, worker: int = 0, **wish: Any) -> Any:
        """Make a call; return its state."""
        job = self.deliver(await self.submit(tool, **wish), worker)
        assert job.task is not None
        async with asyncio.timeout(20):
            return await job.task

    async def close(self) -> None:
        for job in self._jobs:
            job.cancel(DRAIN)
        tasks = [job.task for job in self._jobs if job.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def stage(database: Database, database_url: str, redis_url: str, tmp_path: Path):
    stack = AsyncExitStack()

    async def stage(*flags: str, workers: int = 1, secrets: Any = None, **rest: Any) -> Scene:
        vendor = await stack.enter_async_context(running_vendor(tmp_path / "journal", *flags))
        server = parse_definition(vendor.definition(**rest))
        await register(database, server, listed("look"), listed("write"))
        settings = Settings(
            database_url=database_url,
            redis_url=redis_url,
            credentials_file=_credentials(tmp_path, secrets),
        )
        ledger = Ledger(database, await start(database), settings)
        running = [await stack.enter_async_context(opened(settings)) for _ in range(workers)]
        scene = Scene(ledger, vendor, running)
        stack.push_async_callback(scene.close)
        return scene

    async with stack:
        yield stage


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[WorkerRuntime]:
    worker = WorkerRuntime("vendor", settings)
    await worker.open()
    try:
        yield worker
    finally:
        await worker.close()


def _credentials(folder: Path, secrets: Any) -> Path | None:
    if secrets is None:
        return None
    path = folder / "credentials.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(secrets))
    return path


# -- a server that asks to be left alone


@requirement("quota:pause", "outcome:write-once")
async def test_a_server_that_says_429_is_sent_nothing_until_then_by_any_worker(stage) -> None:
    scene = await stage("--trip", "2", "--retry-after", "1", workers=2)
    assert await scene.call() is CallState.SUCCEEDED
    write = await scene.submit("write")
    turned_away = scene.deliver(write)
    await until(lambda: 429 in scene.vendor.statuses() and scene.workers[1].quotas.shut)
    said = await asyncio.gather(*(scene.call(worker=n % 2) for n in range(8)))
    assert said == [CallState.SUCCEEDED] * 8
    assert await turned_away.task is CallState.SUCCEEDED
    assert scene.vendor.statuses() == [200, 429, *[200] * 9]
    assert scene.vendor.gaps_s()[1] >= 1.0
    # It was turned away unseen, so what came after was its first attempt.
    assert (await scene.ledger.row(write))["attempts"] == 1


@requirement("quota:pause")
async def test_a_call_whose_deadline_is_before_the_end_of_a_pause_is_told_when_to_come_again(
    stage,
) -> None:
    scene = await stage("--trip", "1", "--retry-after", "30")
    call_id = await scene.submit(timeout_s=5)
    assert await scene.deliver(call_id).task is CallState.FAILED
    error = (await scene.ledger.row(call_id))["error"]
    assert (error["code"], error["retryable"]) == ("rate_limited", True)
    assert 25 < error["retry_after_s"] <= 30
    assert scene.vendor.statuses() == [429]


@pytest.mark.long
@requirement("quota:pause", "outcome:breaker")
async def test_a_server_that_says_429_and_not_for_how_long_is_left_alone_for_a_second(
    stage,
) -> None:
    scene = await stage("--trip", "1", "--retry-after", "-1")
    assert await scene.call() is CallState.SUCCEEDED
    assert scene.vendor.gaps_s()[0] >= 1.0
    (served,) = scene.workers[0]._versions.ready()
    assert (await served.breaker.snapshot()).failures == 0


@pytest.mark.long
@requirement("quota:pause", "outcome:write-once")
async def test_a_server_that_says_503_and_for_how_long_is_left_alone_and_its_write_is_in_doubt(
    stage,
) -> None:
    scene = await stage("--trip", "1", "--refusal", "503")
    assert await scene.call("write") is CallState.OUTCOME_UNKNOWN
    assert await scene.call() is CallState.SUCCEEDED
    assert scene.vendor.statuses() == [503, 200]
    assert scene.vendor.gaps_s()[0] >= 1.0


@pytest.mark.long
@requirement("quota:pause")
async def test_one_tenants_account_that_is_used_up_stops_no_other_tenants_calls(stage) -> None:
    inject = {"inject": "header", "name": "Authorization"}
    secrets = {name: {"vendor": f"Bearer {name}"} for name in ("acme", "other")}
    scene = await stage(
        "--trip", "1", "--retry-after", "2", credentials=inject, secrets=secrets
    )  # fmt: skip
    # Others need its place, so it waits in the queue.
    turned_away = await scene.submit()
    assert await scene.deliver(turned_away).task is CallState.QUEUED
    other = await start(scene.ledger.database, tenant="other")
    assert await scene.call(run=other) is CallState.SUCCEEDED
    await until(lambda: leases.take_due(scene.ledger.database, 9))
    assert await scene.deliver(turned_away).task is CallState.SUCCEEDED
    keys = [(it["key"], it["status"]) for it in scene.vendor.arrivals()]
    assert keys == [("bearer acme", 429), ("bearer other", 200), ("bearer acme", 200)]


# -- waiting


@requirement("quota:holds-nothing")
async def test_a_long_wait_is_waited_in_the_queue_and_ends_with_a_message(
    stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "IN_PLACE_S", 0.1)
    scene = await stage("--trip", "1", "--retry-after", "1")
    ledger, call_id = scene.ledger, await scene.submit()
    assert await scene.deliver(call_id).task is CallState.QUEUED
    row = await ledger.row(call_id)
    assert (row["state"], row["attempts"]) == ("queued", 0)
    assert scene.workers[0].info()["sessions"]["vendor@1"]["in_use"] == 0
    assert await leases.take_due(ledger.database, 9) == []
    due = await until(lambda: leases.take_due(ledger.database, 9))
    assert [it.id for it in due] == [call_id]
    assert await scene.deliver(call_id).task is CallState.SUCCEEDED
    assert await ledger.trail(call_id) == ["queued", "running", "queued", "running", "succeeded"]


@requirement("quota:holds-nothing")
async def test_while_all_have_to_wait_a_message_is_held_unclaimed_and_a_stop_is_at_once(
    stage,
) -> None:
    scene = await stage("--trip", "1", "--retry-after", "60")
    scene.deliver(await scene.submit())
    await until(lambda: scene.workers[0].quotas.shut)
    held = await scene.submit()
    job = scene.deliver(held)
    answers = await calls.stop(scene.ledger.database, [held], actor="test")
    assert [it.value for it in answers.values()] == ["stopped_before_dispatch"]
    job.cancel("user")
    assert await job.task is CallState.STOPPED
    assert await scene.ledger.trail(held) == ["queued", "stopped"]


@pytest.mark.long
@requirement("quota:holds-nothing")
async def test_a_stopping_worker_gives_back_what_it_holds_unclaimed(stage) -> None:
    scene = await stage("--trip", "1", "--retry-after", "60")
    scene.deliver(await scene.submit())
    await until(lambda: scene.workers[0].quotas.shut)
    held = await scene.submit()
    job = scene.deliver(held)
    await asyncio.sleep(0)  # its coroutine has begun to wait
    job.cancel(DRAIN)
    with pytest.raises(asyncio.CancelledError):
        await job.task
    assert await scene.ledger.state(held) is CallState.QUEUED
    sent = await scene.workers[0].client.queue_lengths(["vendor"])
    assert sent["vendor"] >= 1


@pytest.mark.long
@requirement("quota:holds-nothing")
async def test_a_call_that_waits_in_place_is_stopped_at_once_and_was_never_sent(stage) -> None:
    scene = await stage(quota={"calls_per_minute": 20, "burst": 1})
    assert await scene.call() is CallState.SUCCEEDED
    waiting = await scene.submit()
    job = scene.deliver(waiting)
    await until(lambda: scene.workers[0].quotas.counts["waited"])
    await calls.stop(scene.ledger.database, [waiting], actor="test")
    async with asyncio.timeout(2):
        job.cancel("user")
        with pytest.raises(asyncio.CancelledError):
            await job.task
    row = await scene.ledger.row(waiting)
    assert (row["state"], row["error"]["details"]["dispatched"]) == ("stopped", False)
    assert scene.vendor.statuses() == [200]


# -- a quota


@requirement("quota:kept")
async def test_a_quota_is_kept_to_by_two_workers_and_the_vendor_has_nothing_to_refuse(
    stage,
) -> None:
    quota = {"calls_per_second": 10, "burst": 2}
    scene = await stage("--most", "12", workers=2, quota=quota)
    said = await asyncio.gather(*(scene.call(worker=n % 2) for n in range(10)))
    assert said == [CallState.SUCCEEDED] * 10
    at = [it["at"] for it in scene.vendor.arrivals(200)]
    assert len(at) == len(scene.vendor.arrivals()) == 10
    # All but the burst came at a tenth of a second each; nothing was slower than it had to be.
    assert 0.75 <= at[-1] - at[0] < 3.0


@requirement("quota:kept")
async def test_no_more_calls_are_under_way_than_a_quota_allows_all_workers(stage) -> None:
    scene = await stage("--delay", "0.05", workers=2, quota={"concurrent_calls": 2})
    said = await asyncio.gather(*(scene.call(worker=n % 2) for n in range(6)))
    assert said == [CallState.SUCCEEDED] * 6
    assert max(it["under_way"] for it in scene.vendor.arrivals()) <= 2


@pytest.mark.long
@requirement("quota:holds-nothing")
@pytest.mark.parametrize("allows", [{"calls_per_second": 5, "burst": 1}, {"concurrent_calls": 1}])
async def test_the_calls_of_one_account_that_wait_take_no_place_from_anothers(
    stage, allows: dict[str, int]
) -> None:
    inject = {"inject": "header", "name": "Authorization"}
    secrets = {name: {"vendor": f"Bearer {name}"} for name in ("acme", "other")}
    scene = await stage("--delay", "0.3", credentials=inject, secrets=secrets, quota=allows)
    jobs = [scene.deliver(await scene.submit()) for _ in range(12)]
    await until(lambda: sum(job.task.done() for job in jobs) >= 5)
    back = {job.task.result() for job in jobs if job.task.done()}
    assert back <= {CallState.QUEUED, CallState.SUCCEEDED}
    other = await start(scene.ledger.database, tenant="other")
    assert await scene.call(run=other) is CallState.SUCCEEDED
    acme = [it for it in scene.vendor.arrivals() if it["key"] == "bearer acme"]
    assert len(acme) < 12


@pytest.mark.long
@requirement("limits:redis-away", "quota:kept")
async def test_without_redis_a_server_with_a_quota_gets_reads_at_a_share_and_no_writes(
    stage,
) -> None:
    scene = await stage(quota={"calls_per_second": 10, "burst": 10})
    limiter = scene.workers[0].client.limiter
    limiter.away, limiter._retry_at = True, float("inf")
    write = await scene.submit("write")
    said = [await scene.call(), await scene.deliver(write).task]
    assert said == [CallState.SUCCEEDED, CallState.QUEUED]
    begun = asyncio.get_running_loop().time()
    assert await scene.call() is CallState.SUCCEEDED  # a tenth of ten in a second
    assert asyncio.get_running_loop().time() - begun > 0.5


@pytest.mark.long
@requirement("limits:figures")
async def test_figures_tell_of_a_servers_quota_and_pauses(stage) -> None:
    scene = await stage("--trip", "2", "--retry-after", "30", quota={"calls_per_second": 50})
    await scene.call()
    await scene.call(timeout_s=5)
    worker = scene.workers[0]
    worker.figures.take_quota(worker.quotas, limiter_away=False)
    lines = worker.figures.exposition().splitlines()
    assert 'toolfleet_quota_events{event="granted",server="vendor"} 2.0' in lines
    assert 'toolfleet_quota_events{event="pauses",server="vendor"} 1.0' in lines
    assert 'toolfleet_quota_events{event="refused",server="vendor"} 1.0' in lines
    (paused,) = [it for it in lines if it.startswith("toolfleet_paused_seconds{")]
    assert 20 < float(paused.rpartition(" ")[2]) <= 30


@requirement("quota:kept")
async def test_a_server_without_a_quota_asks_redis_nothing(stage) -> None:
    scene = await stage()
    await scene.call()
    assert scene.workers[0].quotas.counts["granted"] == 0
    assert await scene.workers[0].client.redis.keys("toolfleet:{limits}*") == []
