"""The asyncio pool under a real Celery worker process and a real Redis, without the fleet."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from redis import Redis

from tests.requirements import requirement
from tests.waiting import until_true

APP = Path(__file__).parents[1] / "servers" / "pool_app.py"
CONCURRENCY = 3


class PoolWorker:
    """A worker process, a plain client of it, and the journal of its coroutines."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.redis_url = redis_url
        self.journal = folder / "journal"
        self.journal.touch()
        self.client = Celery(broker=redis_url, backend=redis_url)
        self.client.conf.update(task_serializer="json", broker_transport_options={})
        arguments = [redis_url, str(self.journal), str(CONCURRENCY)]
        self.process = subprocess.Popen([sys.executable, str(APP), *arguments])
        until_true(lambda: bool(self.inspect("ping")), "the worker answers a ping", within_s=30)

    def send(self, name: str, seconds: float = 60, **options: Any) -> Any:
        return self.client.send_task("pool.sleep", (name, seconds), queue="pool", **options)

    def inspect(self, what: str) -> Any:
        inspector = self.client.control.inspect(timeout=1, limit=1)
        return (getattr(inspector, what)() or {}).get("pool@test")

    def events(self, name: str) -> list[str]:
        lines = map(json.loads, self.journal.read_text().splitlines())
        return [line["event"] for line in lines if line["name"] == name]

    def reason(self, name: str) -> str | None:
        lines = map(json.loads, self.journal.read_text().splitlines())
        return next(
            (
                line.get("reason")
                for line in lines
                if line["name"] == name and line["event"] == "cancelled"
            ),
            None,
        )

    def await_event(self, name: str, event: str) -> None:
        until_true(lambda: event in self.events(name), f"{name} has {event}")

    def clear(self) -> None:
        """Take everything from it that runs or waits, and forget what it did."""
        self.client.control.purge()

        def nothing_is_left() -> bool:
            held = [*(self.inspect("active") or ()), *(self.inspect("reserved") or ())]
            for task in held:
                self.client.control.revoke(task["id"], terminate=True)
            return not held

        until_true(nothing_is_left, "nothing runs or waits")
        self.journal.write_text("")

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.client.close()


@pytest.fixture(scope="module")
def living(_redis_url: str) -> Iterator[list[PoolWorker]]:
    """The worker of the tests that left it alive, if there is one: a start takes seconds."""
    with Redis.from_url(_redis_url) as client:
        client.flushall()
    workers: list[PoolWorker] = []
    yield workers
    for worker in workers:
        worker.end()


@pytest.fixture
def worker(
    living: list[PoolWorker], _redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PoolWorker]:
    """A worker that has nothing to do."""
    if not living:
        living.append(PoolWorker(_redis_url, tmp_path_factory.mktemp("pool")))
    (worker,) = living
    yield worker
    if worker.process.poll() is None:
        worker.clear()
    else:
        worker.end()
        living.clear()
        with Redis.from_url(_redis_url) as client:
            client.flushall()


@requirement("pool:revoke-one")
def test_a_revoke_cancels_exactly_its_coroutine(worker: PoolWorker) -> None:
    doomed, neighbour = worker.send("doomed"), worker.send("neighbour", 3)
    worker.await_event("doomed", "started")
    worker.await_event("neighbour", "started")
    worker.client.control.revoke(doomed.id, terminate=True)
    worker.await_event("doomed", "cancelled")
    with pytest.raises(TaskRevokedError):
        doomed.get(timeout=10)
    assert neighbour.get(timeout=15) == "neighbour"
    assert worker.reason("doomed") == "user"


@requirement("pool:time-limit")
def test_a_hard_time_limit_cancels_the_coroutine_and_fails_the_task(worker: PoolWorker) -> None:
    late = worker.send("late", time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        late.get(timeout=15)
    worker.await_event("late", "cancelled")
    assert worker.send("next", 0).get(timeout=10) == "next"


@requirement("pool:time-limit")
def test_a_soft_time_limit_cancels_the_coroutine(worker: PoolWorker) -> None:
    worker.send("late", soft_time_limit=1)
    worker.await_event("late", "cancelled")
    assert worker.reason("late") == "time_limit"


@requirement("pool:failure")
def test_an_exception_of_a_coroutine_is_the_tasks_failure(worker: PoolWorker) -> None:
    failed = worker.client.send_task("pool.fail", ("no such thing",), queue="pool")
    with pytest.raises(ValueError, match="no such thing"):
        failed.get(timeout=10)


@requirement("pool:failure")
def test_arguments_that_do_not_fit_are_a_failure_and_keep_no_slot(worker: PoolWorker) -> None:
    for args in ((), ("one",), ("one", 1, 2)):
        for _ in range(CONCURRENCY):
            result = worker.client.send_task("pool.sleep", args, queue="pool")
            with pytest.raises(TypeError, match="argument"):
                result.get(timeout=20)
    assert worker.inspect("active") == []


@requirement("pool:concurrency")
def test_no_more_coroutines_run_than_the_pool_has_slots(worker: PoolWorker) -> None:
    names = [f"call-{number}" for number in range(CONCURRENCY + 2)]
    for name in names:
        worker.send(name)

    def started() -> list[str]:
        return [name for name in names if worker.events(name)]

    until_true(lambda: len(started()) == CONCURRENCY, "every slot is taken")
    active = {task["args"][0] for task in worker.inspect("active")}
    assert active == set(started())
    stats = worker.inspect("stats")["pool"]
    assert (stats["max-concurrency"], stats["running"]) == (CONCURRENCY, CONCURRENCY)


@requirement("pool:drain")
def test_a_warm_shutdown_lets_running_coroutines_be_cancelled_and_ends_well(
    worker: PoolWorker,
) -> None:
    worker.send("running")
    worker.await_event("running", "started")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(30) == 0
    assert worker.reason("running") == "drain"


@requirement("pool:cold-shutdown")
def test_a_cold_shutdown_cancels_and_leaves_the_message_for_the_next_worker(
    worker: PoolWorker, tmp_path: Path
) -> None:
    worker.send("twice", 2)
    worker.await_event("twice", "started")
    worker.process.send_signal(signal.SIGQUIT)
    worker.process.wait(30)
    assert worker.events("twice") == ["started", "cancelled"]
    again = PoolWorker(worker.redis_url, tmp_path)
    try:
        again.await_event("twice", "finished")
    finally:
        again.end()


@requirement("pool:queued-revoke")
def test_a_revoked_task_that_waits_in_the_queue_never_starts(worker: PoolWorker) -> None:
    running = [worker.send(f"running-{number}") for number in range(CONCURRENCY)]
    for number in range(CONCURRENCY):
        worker.await_event(f"running-{number}", "started")
    waiting = worker.send("waiting", 0)
    worker.client.control.revoke(waiting.id)
    for task in running:
        worker.client.control.revoke(task.id, terminate=True)
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=15)
    assert worker.send("last", 0).get(timeout=10) == "last"
    assert worker.events("waiting") == []
