"""Calls that wait for a person: as rows, decided about once, with a deadline of their own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from registry import approvals, calls, leases, runs
from registry.calls import CallState
from registry.database import Database
from registry.errors import Code, FleetError
from tests.ledger import WORKER, Ledger, definition, listed, register, start
from tests.requirements import requirement

pytestmark = pytest.mark.anyio


async def gated(database: Database) -> Ledger:
    """Return an open run whose tool needs an approval."""
    ledger = await Ledger.open(database)
    server = definition(
        "gate", tool_prefix="demo_gate_", tools={"pay": {"approval": True, "delivery": "write"}}
    )
    await register(database, server, listed("pay"))
    ledger.run = await start(database)
    return ledger


async def waiting_call(ledger: Ledger, **wish: Any) -> str:
    return await ledger.submit("gate_pay", **wish)


async def decide(ledger: Ledger, call_id: str, *, approve: bool) -> approvals.Decided:
    return await approvals.decide(ledger.database, call_id, approve=approve, actor="boss")


@requirement("approval:waits")
async def test_a_gated_call_waits_and_no_worker_can_have_it(database: Database) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger, arguments={"amount": 7})
    assert await ledger.state(call_id) is CallState.AWAITING_APPROVAL
    assert await calls.claim(database, WORKER, [call_id]) == [None]
    (shown,) = await approvals.waiting(database)
    assert (shown["id"], shown["arguments"], shown["tenant_id"]) == (call_id, {"amount": 7}, "acme")


@requirement("approval:waits")
async def test_an_approved_call_has_its_whole_deadline_from_then_on(database: Database) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger, timeout_s=60)
    decided = await decide(ledger, call_id, approve=True)
    assert decided.unsent is not None
    assert (decided.unsent.id, decided.unsent.remaining_s) == (call_id, 60)
    claim = await ledger.claim(call_id)
    assert claim.approved
    assert 50 < claim.remaining_s <= 60


@requirement("approval:waits")
async def test_a_call_that_needed_no_approval_is_not_taken_for_an_approved_one(
    database: Database,
) -> None:
    ledger = await gated(database)
    assert not (await ledger.running()).approved


@requirement("approval:waits")
async def test_a_call_that_nobody_decided_about_expires(database: Database) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger)
    await ledger.sql(
        "UPDATE calls SET deadline_at = deadline_at - interval '8 days' WHERE id = :id", id=call_id
    )
    assert await leases.expire(database) == [call_id]
    assert await ledger.state(call_id) is CallState.EXPIRED
    assert await approvals.waiting(database) == []


@requirement("approval:once")
async def test_a_denied_call_ends_with_who_and_never_runs(database: Database) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger)
    await decide(ledger, call_id, approve=False)
    assert await ledger.state(call_id) is CallState.DENIED
    assert await ledger.trail(call_id) == ["awaiting_approval", "denied"]
    assert await calls.claim(database, WORKER, [call_id]) == [None]


@requirement("approval:once")
async def test_of_those_who_decide_at_the_same_time_one_does(database: Database) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger)
    answers = await asyncio.gather(
        *(decide(ledger, call_id, approve=bool(turn % 2)) for turn in range(6)),
        return_exceptions=True,
    )
    refused = [it.code for it in answers if isinstance(it, FleetError)]
    assert refused == [Code.ALREADY_DECIDED] * 5
    assert len(await ledger.trail(call_id)) == 2


@requirement("approval:once")
@pytest.mark.parametrize("how", ["stopped", "run cancelled", "unknown"])
async def test_a_call_that_waits_no_more_cannot_be_approved(database: Database, how: str) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger)
    code = Code.ALREADY_DECIDED
    if how == "stopped":
        await calls.stop(database, [call_id], actor="agent")
    elif how == "run cancelled":
        await runs.end_run(database, ledger.run.id, cancel=True, actor="agent")
    else:
        call_id, code = "00000000-0000-4000-8000-000000000000", Code.UNKNOWN_CALL
    with pytest.raises(FleetError) as refused:
        await decide(ledger, call_id, approve=True)
    assert refused.value.code is code
