"""What becomes of calls whose worker died, whose message was lost, or whose time is over."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from registry import calls, leases, runs
from registry.calls import CallState
from registry.database import Database
from registry.tiers import DEFAULT_PRIORITY
from tests.ledger import HOUR, WORKER, Ledger
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

MAX_ATTEMPTS = 3
AGE = timedelta(seconds=3)


@pytest.fixture
async def ledger(database: Database) -> Ledger:
    ledger = await Ledger.open(database)
    await ledger.lease()
    return ledger


# -- dead workers


@requirement("leases:by-delivery-class")
@pytest.mark.parametrize(
    ("tool", "state"),
    [
        ("look", CallState.QUEUED),
        ("put", CallState.QUEUED),
        ("pay", CallState.QUEUED),
        ("write", CallState.OUTCOME_UNKNOWN),
    ],
)
async def test_a_dead_workers_call_is_closed_by_its_delivery_class(
    ledger: Ledger, tool: str, state: CallState
) -> None:
    claim = await ledger.running(tool)
    await ledger.lapse()
    ended, again = await leases.close_dead(ledger.database, MAX_ATTEMPTS)
    assert await ledger.state(claim.id) is state
    assert (ended, [call.id for call in again]) == (
        ([claim.id], []) if state.final else ([], [claim.id])
    )
    assert await ledger.trail(claim.id) == ["queued", "running", state.value]


@requirement("leases:by-delivery-class")
async def test_an_unknown_outcome_says_what_to_do(ledger: Ledger) -> None:
    claim = await ledger.running("write")
    await ledger.lapse()
    await leases.close_dead(ledger.database, MAX_ATTEMPTS)
    error = (await ledger.row(claim.id))["error"]
    assert (error["code"], error["retryable"]) == ("outcome_unknown", False)
    assert "check in the target system" in error["hint"]


@requirement("leases:by-delivery-class")
async def test_a_call_that_loses_its_worker_too_often_fails(ledger: Ledger) -> None:
    call_id = await ledger.submit()
    for _ in range(MAX_ATTEMPTS):
        await ledger.claim(call_id)
        await ledger.lapse()
        await leases.close_dead(ledger.database, MAX_ATTEMPTS)
    row = await ledger.row(call_id)
    assert (row["state"], row["attempts"]) == ("failed", MAX_ATTEMPTS)
    assert (row["error"]["code"], row["error"]["retryable"]) == ("worker_lost", True)


@requirement("leases:by-delivery-class")
@pytest.mark.parametrize(
    ("tool", "state"), [("look", CallState.STOPPED), ("write", CallState.OUTCOME_UNKNOWN)]
)
async def test_a_call_that_was_asked_to_stop_does_not_run_again(
    ledger: Ledger, tool: str, state: CallState
) -> None:
    claim = await ledger.running(tool)
    await calls.stop(ledger.database, [claim.id], actor="test")
    await ledger.lapse()
    await leases.close_dead(ledger.database, MAX_ATTEMPTS)
    assert await ledger.state(claim.id) is state


@requirement("leases:by-delivery-class")
async def test_a_dead_workers_call_past_its_deadline_expires(ledger: Ledger) -> None:
    claim = await ledger.running()
    await ledger.age("deadline_at", [claim.id])
    await ledger.lapse()
    await leases.close_dead(ledger.database, MAX_ATTEMPTS)
    row = await ledger.row(claim.id)
    assert (row["state"], row["error"]["code"]) == ("expired", "deadline_exceeded")


@requirement("leases:by-delivery-class")
async def test_a_dead_workers_call_of_a_cancelled_run_is_stopped(ledger: Ledger) -> None:
    claim = await ledger.running()
    await runs.end_run(ledger.database, ledger.run.id, cancel=True, actor="test")
    await ledger.lapse()
    await leases.close_dead(ledger.database, MAX_ATTEMPTS)
    assert await ledger.state(claim.id) is CallState.STOPPED


@requirement("leases:dead-only")
async def test_a_living_workers_call_is_left_alone(ledger: Ledger) -> None:
    claim = await ledger.running("write")
    assert await leases.close_dead(ledger.database, MAX_ATTEMPTS) == ([], [])
    assert await ledger.finish(claim)


@requirement("leases:dead-only")
async def test_the_call_of_a_worker_that_gave_up_its_lease_is_closed(ledger: Ledger) -> None:
    claim = await ledger.running("write")
    await leases.close_worker(ledger.database, WORKER)
    ended, _ = await leases.close_dead(ledger.database, MAX_ATTEMPTS)
    assert ended == [claim.id]


@requirement("leases:dead-only")
async def test_the_call_of_a_worker_that_nobody_knows_is_closed(ledger: Ledger) -> None:
    claim = await ledger.running("write", worker="never-registered")
    ended, _ = await leases.close_dead(ledger.database, MAX_ATTEMPTS)
    assert ended == [claim.id]


@requirement("calls:fenced")
@pytest.mark.parametrize("tool", ["look", "write"])
async def test_a_worker_that_comes_back_from_the_dead_changes_nothing(
    ledger: Ledger, tool: str
) -> None:
    claim = await ledger.running(tool)
    await ledger.lapse()
    await leases.close_dead(ledger.database, MAX_ATTEMPTS)
    before = await ledger.row(claim.id)
    assert not await ledger.finish(claim)
    assert await ledger.row(claim.id) == before


@requirement("steward:many")
async def test_stewards_that_sweep_together_close_each_call_once(
    ledger: Ledger, database_url: str
) -> None:
    claims = [await ledger.running("look") for _ in range(30)]
    await ledger.lapse()
    others = [Database(database_url, pool_size=1) for _ in range(4)]
    sweeps = await asyncio.gather(*(leases.close_dead(it, MAX_ATTEMPTS) for it in others))
    for other in others:
        await other.close()
    again = [call.id for _, unsent in sweeps for call in unsent]
    assert sorted(again) == sorted(claim.id for claim in claims)


@requirement("leases:renewed")
async def test_a_lease_holds_for_as_long_as_it_is_renewed_in_time(ledger: Ledger) -> None:
    assert await leases.renew_worker(ledger.database, WORKER, HOUR)
    await ledger.lapse()
    assert not await leases.renew_worker(ledger.database, WORKER, HOUR)
    assert await leases.live_workers(ledger.database, "demo") == []


@requirement("leases:renewed")
async def test_a_worker_that_stopped_is_not_alive(ledger: Ledger) -> None:
    assert [it["id"] for it in await leases.live_workers(ledger.database, "demo")] == [WORKER]
    await leases.close_worker(ledger.database, WORKER)
    assert await leases.live_workers(ledger.database, "demo") == []


# -- what is kept from run to run


@requirement("calls:priority")
async def test_a_call_keeps_its_tenant_and_priority_through_every_run(ledger: Ledger) -> None:
    call = replace(ledger.new(), priority=8)
    await calls.submit(ledger.database, [call])
    await ledger.age("sent_at", [call.id])
    (resent,) = await leases.take_overdue(ledger.database, "demo", AGE, 10)
    claim = await ledger.claim(call.id)
    await ledger.lapse()
    _, (again,) = await leases.close_dead(ledger.database, MAX_ATTEMPTS)
    told = [(it.tenant_id, it.priority) for it in (resent, claim, again)]
    assert told == [("acme", 8)] * 3


@requirement("calls:priority")
@pytest.mark.parametrize(("wanted", "kept"), [(-1, 0), (10, 9), (10**12, 9), (0, 0)])
async def test_a_priority_that_there_is_not_is_recorded_as_the_nearest_one(
    ledger: Ledger, wanted: int, kept: int
) -> None:
    call = replace(ledger.new(), priority=wanted)
    await calls.submit(ledger.database, [call])
    assert (await ledger.claim(call.id)).priority == kept


@requirement("calls:priority")
async def test_a_row_that_says_nothing_of_priority_has_the_default(ledger: Ledger) -> None:
    call_id = await ledger.submit()
    await ledger.sql("UPDATE calls SET priority = DEFAULT WHERE id = :id", id=call_id)
    assert (await ledger.claim(call_id)).priority == DEFAULT_PRIORITY


# -- what is too late


@requirement("steward:expires")
async def test_a_queued_call_past_its_deadline_expires(ledger: Ledger) -> None:
    late, in_time = await ledger.submit(), await ledger.submit()
    await ledger.age("deadline_at", [late])
    assert await leases.expire(ledger.database) == [late]
    assert await ledger.trail(late) == ["queued", "expired"]
    assert (await ledger.row(late))["error"]["code"] == "deadline_exceeded"
    assert await ledger.state(in_time) is CallState.QUEUED


@requirement("steward:expires")
async def test_a_running_call_is_left_to_its_worker(ledger: Ledger) -> None:
    claim = await ledger.running()
    await ledger.age("deadline_at", [claim.id])
    assert await leases.expire(ledger.database) == []


@requirement("steward:expires")
async def test_queued_calls_of_a_cancelled_run_are_stopped(ledger: Ledger) -> None:
    call_id = await ledger.submit()
    await runs.end_run(ledger.database, ledger.run.id, cancel=True, actor="test")
    assert await leases.expire(ledger.database) == [call_id]
    assert await ledger.trail(call_id) == ["queued", "stopped"]


@requirement("steward:expires", "stop:queued-never-runs")
async def test_a_call_that_went_back_to_the_queue_after_its_stop_is_stopped(
    ledger: Ledger,
) -> None:
    claim = await ledger.running()
    await calls.stop(ledger.database, [claim.id], actor="test")
    await ledger.finish(claim, CallState.QUEUED)
    assert await leases.expire(ledger.database) == [claim.id]
    row = await ledger.row(claim.id)
    assert (row["state"], row["error"]["code"]) == ("stopped", "stopped")


# -- lost messages


@requirement("steward:resends")
async def test_only_calls_that_wait_too_long_are_overdue(ledger: Ledger) -> None:
    old = [await ledger.submit() for _ in range(2)]
    assert await leases.overdue(ledger.database, AGE) == {}
    await ledger.age("sent_at", old)
    await ledger.submit()
    assert await leases.overdue(ledger.database, AGE) == {"demo": 3}


@requirement("steward:resends")
async def test_overdue_calls_are_taken_oldest_first_and_count_as_sent(ledger: Ledger) -> None:
    ids = [await ledger.submit() for _ in range(3)]
    await ledger.age("sent_at", ids)
    await ledger.age("queued_at", [ids[2]])
    taken = await leases.take_overdue(ledger.database, "demo", AGE, 2)
    assert {call.id for call in taken} == {ids[2], ids[0]}
    again = await leases.take_overdue(ledger.database, "demo", AGE, 10)
    assert [call.id for call in again] == [ids[1]]


@requirement("steward:resends")
async def test_a_call_past_its_deadline_is_not_sent_again(ledger: Ledger) -> None:
    call_id = await ledger.submit()
    await ledger.age("sent_at", [call_id])
    await ledger.age("deadline_at", [call_id])
    assert await leases.take_overdue(ledger.database, "demo", AGE, 10) == []


@requirement("steward:resends")
async def test_a_call_that_runs_is_not_sent_again(ledger: Ledger) -> None:
    claim = await ledger.running()
    await ledger.age("sent_at", [claim.id])
    assert await leases.overdue(ledger.database, AGE) == {}


@requirement("steward:many")
async def test_stewards_that_resend_together_take_each_call_once(
    ledger: Ledger, database_url: str
) -> None:
    ids = [await ledger.submit() for _ in range(30)]
    await ledger.age("sent_at", ids)
    others = [Database(database_url, pool_size=1) for _ in range(4)]
    taken = await asyncio.gather(*(leases.take_overdue(it, "demo", AGE, 10) for it in others))
    for other in others:
        await other.close()
    found = [call.id for batch in taken for call in batch]
    assert len(found) == len(set(found))
