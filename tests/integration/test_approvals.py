"""Calls that wait for a person: as rows, decided about once, with a deadline of their own."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from registry import approval_gate, approvals, calls, leases, runs
from registry.approvals import Verdict
from registry.bindings import Sealer
from registry.calls import CallState, Ending
from registry.database import Database
from registry.errors import Code, FleetError
from tests.approving import SEALER, decide, dispatch, gated, view, waiting_call
from tests.ledger import HOUR, WORKER, Ledger
from tests.requirements import requirement

pytestmark = pytest.mark.anyio


async def refused(doing: Any) -> Code:
    with pytest.raises(FleetError) as error:
        await doing
    return error.value.code


async def approved(ledger: Ledger, tool: str = "gate_pay", **wish: Any) -> str:
    call_id = await waiting_call(ledger, tool, **wish)
    await decide(ledger, call_id)
    return call_id


# -- waiting and deciding


@requirement("approval:waits")
async def test_a_gated_call_waits_and_no_worker_can_have_it(database: Database) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger, arguments={"amount": 7})
    assert await ledger.state(call_id) is CallState.AWAITING_APPROVAL
    assert await calls.claim(database, WORKER, [call_id]) == [None]
    (shown,) = await approvals.listed(database, SEALER)
    assert (shown["id"], shown["arguments"], shown["tenant_id"]) == (call_id, {"amount": 7}, "acme")


@requirement("approval:waits")
async def test_an_approved_call_has_its_whole_deadline_from_then_on(database: Database) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger, timeout_s=60)
    decided = await decide(ledger, call_id)
    assert decided.unsent is not None
    assert (decided.unsent.id, decided.unsent.remaining_s) == (call_id, 60)
    claim = await ledger.claim(call_id)
    assert claim.approved
    assert 50 < claim.remaining_s <= 60


@requirement("approval:waits")
async def test_a_call_that_needed_no_approval_is_not_taken_for_an_approved_one(
    database: Database,
) -> None:
    assert not (await (await Ledger.open(database)).running()).approved


@requirement("approval:waits")
async def test_a_call_that_nobody_decided_about_expires(database: Database) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger)
    await ledger.sql(
        "UPDATE calls SET deadline_at = deadline_at - interval '8 days' WHERE id = :id", id=call_id
    )
    assert await leases.expire(database) == [call_id]
    assert await ledger.state(call_id) is CallState.EXPIRED
    assert await approvals.listed(database, SEALER) == []


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
        *(decide(ledger, call_id, approve=bool(turn % 2), actor=f"b{turn}") for turn in range(6)),
        return_exceptions=True,
    )
    codes = [it.code for it in answers if isinstance(it, FleetError)]
    assert codes == [Code.ALREADY_DECIDED] * 5
    assert len(await ledger.trail(call_id)) == 2


@requirement("approval:once")
@pytest.mark.parametrize("how", ["stopped", "run cancelled", "unknown", "late"])
async def test_a_call_that_waits_no_more_cannot_be_approved(database: Database, how: str) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger)
    binding, code = (await view(ledger, call_id))["binding"], Code.ALREADY_DECIDED
    if how == "stopped":
        await calls.stop(database, [call_id], actor="agent")
    elif how == "run cancelled":
        await runs.end_run(database, ledger.run.id, cancel=True, actor="agent")
    elif how == "late":
        await ledger.sql("UPDATE calls SET deadline_at = deadline_at - interval '8 days'")
    else:
        call_id, code = "00000000-0000-4000-8000-000000000000", Code.UNKNOWN_CALL
    assert await refused(decide(ledger, call_id, binding=binding)) is code


@requirement("approval:bound")
async def test_a_decision_is_about_what_was_shown(database: Database) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger, arguments={"amount": 7})
    seen = (await view(ledger, call_id))["binding"]
    await ledger.sql("UPDATE calls SET arguments = '{\"amount\": 7000}'")
    assert await refused(decide(ledger, call_id, binding=seen)) is Code.APPROVAL_MISMATCH
    assert await ledger.state(call_id) is CallState.AWAITING_APPROVAL
    assert await ledger.trail(call_id) == ["awaiting_approval", "decision_refused"]


# -- four eyes


@requirement("approval:four-eyes")
@pytest.mark.parametrize("requester", ["call", "run"])
async def test_who_asked_for_a_call_may_deny_and_never_approve_it(
    database: Database, requester: str
) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger, actor="key:7")
    actor = "key:7" if requester == "call" else ledger.run.actor
    assert await refused(decide(ledger, call_id, actor=actor)) is Code.FORBIDDEN
    assert await ledger.state(call_id) is CallState.AWAITING_APPROVAL
    await decide(ledger, call_id, approve=False, actor=actor)
    assert await ledger.state(call_id) is CallState.DENIED


@requirement("approval:four-eyes")
async def test_a_tool_that_needs_two_approvers_needs_two_different_ones(database: Database) -> None:
    ledger = await gated(database, approvers=2)
    call_id = await waiting_call(ledger)
    first = await decide(ledger, call_id, actor="ana")
    assert (first.state, first.unsent) == (CallState.AWAITING_APPROVAL, None)
    assert await refused(decide(ledger, call_id, actor="ana")) is Code.ALREADY_DECIDED
    assert await calls.claim(database, WORKER, [call_id]) == [None]
    assert (await decide(ledger, call_id, actor="ben")).state is CallState.QUEUED
    await dispatch(ledger, await ledger.claim(call_id))
    assert await ledger.trail(call_id) == [
        "awaiting_approval", "approved_in_part", "approved", "running",
    ]  # fmt: skip


@requirement("approval:four-eyes")
async def test_one_who_denies_is_enough_whoever_approved_before(database: Database) -> None:
    ledger = await gated(database, approvers=2)
    call_id = await waiting_call(ledger)
    await decide(ledger, call_id, actor="ana")
    await decide(ledger, call_id, actor="ana", approve=False)
    assert await ledger.state(call_id) is CallState.DENIED


# -- what an approval is good for


@requirement("approval:single-use")
async def test_an_approval_lets_a_write_be_dispatched_under_one_claim_alone(
    database: Database,
) -> None:
    ledger = await gated(database)
    claim = await ledger.claim(await approved(ledger))
    await dispatch(ledger, claim)
    await ledger.sql("UPDATE calls SET state = 'queued', worker_id = NULL")
    again = await ledger.claim(claim.id)
    assert await refused(dispatch(ledger, again)) is Code.APPROVAL_SPENT


@requirement("approval:single-use")
async def test_an_approval_covers_the_attempts_of_a_read_whose_worker_died(
    database: Database,
) -> None:
    ledger = await gated(database)
    call_id = await approved(ledger, "gate_look")
    for turn in range(3):
        worker = f"worker-{turn}"
        await ledger.lease(worker, "gate")
        await dispatch(ledger, await ledger.claim(call_id, worker), tool="look")
        await ledger.lapse(worker)
        await leases.close_dead(database, max_attempts=9)
    await ledger.lease(WORKER, "gate")
    claim = await ledger.claim(call_id)
    assert await refused(dispatch(ledger, claim, tool="look")) is Code.APPROVAL_SPENT


@requirement("approval:single-use")
@pytest.mark.parametrize("tool", ["look", "pay"])
async def test_the_approval_of_a_call_that_has_ended_is_spent(
    database: Database, tool: str
) -> None:
    ledger = await gated(database)
    claim = await ledger.claim(await approved(ledger, f"gate_{tool}"))
    await calls.finish(database, WORKER, [Ending(claim.id, claim.fence, CallState.FAILED)])
    await ledger.sql("UPDATE calls SET state = 'queued', ended_at = NULL")
    again = await ledger.claim(claim.id)
    assert await refused(dispatch(ledger, again, tool=tool)) is Code.APPROVAL_SPENT


@requirement("approval:expires")
async def test_a_call_whose_approval_was_not_used_in_time_is_not_dispatched(
    database: Database,
) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger)
    await decide(ledger, call_id, holds=timedelta(0))
    claim = await ledger.claim(call_id)
    assert await refused(dispatch(ledger, claim)) is Code.APPROVAL_EXPIRED


@requirement("approval:expires")
async def test_the_steward_ends_queued_calls_whose_approval_has_expired(
    database: Database,
) -> None:
    ledger = await gated(database)
    late, held = await waiting_call(ledger), await approved(ledger)
    await decide(ledger, late, holds=timedelta(0))
    assert await approval_gate.expire(database) == [late]
    row = await ledger.row(late)
    assert (row["state"], row["error"]["code"]) == ("expired", "approval_expired")
    assert (await ledger.trail(late))[-1] == "expired"
    assert await ledger.state(held) is CallState.QUEUED


@requirement("approval:sealed")
async def test_who_can_only_write_to_the_database_cannot_approve(database: Database) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger)
    forger = Sealer("another secret of thirty-two bytes")
    binding = (await approvals.shown(database, forger, call_id))["binding"]
    verdict = Verdict(call_id, binding, approve=True)
    await approvals.decide(database, forger, verdict, actor="mallory", holds=HOUR)
    claim = await ledger.claim(call_id)
    assert await refused(dispatch(ledger, claim)) is Code.APPROVAL_MISMATCH


@requirement("approval:sealed")
@pytest.mark.parametrize(
    "change", ["UPDATE approvals SET approve = true", "DELETE FROM approvals", "TRUNCATE approvals"]
)
async def test_decisions_and_uses_are_written_once(database: Database, change: str) -> None:
    ledger = await gated(database)
    await dispatch(ledger, await ledger.claim(await approved(ledger)))
    for statement in (change, "DELETE FROM approval_uses"):
        with pytest.raises(DBAPIError, match="never changed") as error:
            await ledger.sql(statement)
        assert isinstance(error.value.orig, psycopg.errors.RaiseException)


@requirement("approval:sealed")
async def test_without_the_fleets_secret_nothing_that_needs_an_approval_is_dispatched() -> None:
    with pytest.raises(FleetError, match="TOOLFLEET_SECRET_KEY"):
        Sealer("")
