"""What a raw Celery client gets that asks for a call which somebody asked for before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from redis.exceptions import ConnectionError as RedisAway

from registry import calls
from registry.database import Database
from registry.runs import sign_run_token
from registry.settings import Settings
from tests.ledger import Ledger
from tests.requirements import requirement
from tests.waiting import until
from workers import steward as stewards
from workers.steward import StewardRuntime

pytestmark = pytest.mark.anyio

KEY = "a key of at least thirty-two characters"


class Results:
    """Where Celery keeps results; the first ``refusals`` find it away."""

    def __init__(self) -> None:
        self.stored: dict[str, dict[str, Any]] = {}
        self.refusals = 0

    def store(self, row: dict[str, Any]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise RedisAway("refused")
        self.stored[row["reply_to"]] = row


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Results:
    results = Results()
    monkeypatch.setattr(stewards, "_store_result", results.store)
    return results


@pytest.fixture
async def ledger(database: Database) -> Ledger:
    return await Ledger.open(database)


@pytest.fixture
async def steward(
    ledger: Ledger, database_url: str, redis_url: str, results: Results
) -> AsyncIterator[StewardRuntime]:
    settings = Settings(database_url=database_url, redis_url=redis_url, secret_key=SecretStr(KEY))
    steward = StewardRuntime(settings)
    yield steward
    await steward.close()


async def submit(steward: StewardRuntime, ledger: Ledger, *tasks: str) -> str:
    """Submit one call, by its idempotency key, for several tasks; return its id."""
    token = sign_run_token(ledger.run, KEY)
    for task in tasks:
        await steward.submit(task, token, "demo_look", {}, "one-key", None)
    ((call_id,),) = await ledger.sql("SELECT id FROM calls")
    return str(call_id)


@requirement("submit:replied-to-all")
async def test_every_task_that_asked_gets_the_end_of_the_one_call(
    steward: StewardRuntime, ledger: Ledger, results: Results
) -> None:
    call_id = await submit(steward, ledger, "first", "second", "third")
    await steward.open()
    await calls.stop(ledger.database, [call_id], actor="test")
    await until(lambda: len(results.stored) == 3)
    assert {row["state"] for row in results.stored.values()} == {"stopped"}


@requirement("submit:replied-to-all")
async def test_a_reply_that_redis_refused_is_stored_when_it_is_back(
    steward: StewardRuntime, ledger: Ledger, results: Results
) -> None:
    call_id = await submit(steward, ledger, "first", "second")
    await calls.stop(ledger.database, [call_id], actor="test")
    results.refusals = 5
    await steward.open()
    await until(lambda: results.stored.keys() == {"first", "second"})


@requirement("submit:replied-to-all")
async def test_a_task_that_asked_for_a_call_no_longer_on_record_is_told_so(
    steward: StewardRuntime, ledger: Ledger, results: Results
) -> None:
    call_id = await submit(steward, ledger, "first", "second")
    await ledger.sql("DELETE FROM calls WHERE id = :id", id=call_id)
    await steward.reply_again()
    assert results.stored["second"]["error"]["code"] == "unknown_call"


@requirement("submit:replied-to-all")
async def test_however_many_tasks_ask_the_record_is_asked_once(
    steward: StewardRuntime, ledger: Ledger, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(steward, ledger, *(f"task-{number}" for number in range(20)))
    asked: list[list[str]] = []

    async def read(database: Database, ids: list[str]) -> dict[str, Any]:
        asked.append(ids)
        return await real(database, ids)

    real = calls.read
    monkeypatch.setattr(calls, "read", read)
    await steward.reply_again()
    assert [len(ids) for ids in asked] == [1]
    assert results.stored == {}


@requirement("submit:replied-to-all")
async def test_long_after_the_deadline_nobody_waits_for_a_call_any_more(
    steward: StewardRuntime,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(stewards, "REPLY_PATIENCE", timedelta(hours=-1))
    call_id = await submit(steward, ledger, "first", "second")
    await steward.reply_again()
    assert f"no reply about call {call_id} to ['second']" in caplog.text
    assert steward._askers == {}
