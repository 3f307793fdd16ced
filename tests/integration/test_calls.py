"""The ledger of calls on a real Postgres: every state change guarded, fenced and audited."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final, LiteralString

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import text

from registry import calls, leases, runs
from registry.calls import TRANSITIONS, CallState, Claim, Ending, StopAnswer, Submitted
from registry.database import STATEMENT_OPTIONS, Database
from registry.definitions import Delivery
from registry.errors import Code, FleetError
from tests.ledger import WORKER, Ledger, start
from tests.requirements import requirement
from tests.waiting import until

pytestmark = pytest.mark.anyio

ENDINGS = sorted(TRANSITIONS[CallState.RUNNING])
PLANS_TRIED: Final = 8
"""How often a statement is run before Postgres keeps its plan."""
NOT_ENDINGS = sorted(set(CallState) - TRANSITIONS[CallState.RUNNING])


@pytest.fixture
async def ledger(database: Database) -> Ledger:
    return await Ledger.open(database)


@pytest.fixture
async def crowd(database_url: str) -> AsyncIterator[Database]:
    """A door to the same registry that lets twenty callers through at once."""
    database = Database(database_url, pool_size=10)
    yield database
    await database.close()


# -- submit


@requirement("calls:row-first")
async def test_a_submitted_call_is_a_queued_row_with_its_audit_line(ledger: Ledger) -> None:
    call_id = await ledger.submit(arguments={"a": [1, None, "ü"]})
    (claim,) = await calls.claim(ledger.database, WORKER, [call_id])
    assert claim is not None
    assert claim.arguments == {"a": [1, None, "ü"]}
    assert await ledger.trail(call_id) == ["queued", "running"]


@requirement("calls:idempotent-submit")
async def test_fifty_simultaneous_submissions_of_one_key_are_one_call(
    ledger: Ledger, crowd: Database
) -> None:
    async def one() -> Submitted | FleetError:
        (answer,) = await calls.submit(crowd, [ledger.new(idempotency_key="once")])
        return answer

    answers = await asyncio.gather(*(one() for _ in range(50)))
    submitted = [answer for answer in answers if isinstance(answer, Submitted)]
    ids = {answer.id for answer in submitted}
    assert len(submitted) == 50
    assert len(ids) == 1
    assert sum(answer.created for answer in submitted) == 1
    assert await ledger.trail(ids.pop()) == ["queued"]


@requirement("calls:idempotent-submit")
async def test_one_key_twice_in_one_batch_is_one_call(ledger: Ledger) -> None:
    first, second = await calls.submit(
        ledger.database, [ledger.new(idempotency_key="k"), ledger.new(idempotency_key="k")]
    )
    assert isinstance(first, Submitted)
    assert isinstance(second, Submitted)
    assert (first.id == second.id, first.created, second.created) == (True, True, False)


@requirement("calls:idempotent-submit")
@pytest.mark.parametrize(
    "other",
    [{"arguments": {"a": 2}}, {"tool": "write", "arguments": {"a": 1}}],
    ids=["other arguments", "other tool"],
)
async def test_a_known_key_with_another_payload_is_refused(
    ledger: Ledger, other: dict[str, Any]
) -> None:
    await ledger.submit(arguments={"a": 1}, idempotency_key="k")
    (answer,) = await calls.submit(ledger.database, [ledger.new(idempotency_key="k", **other)])
    assert isinstance(answer, FleetError)
    assert answer.code is Code.IDEMPOTENCY_MISMATCH


@requirement("calls:idempotent-submit")
async def test_the_same_key_of_two_tenants_is_two_calls(ledger: Ledger) -> None:
    other = await start(ledger.database, tenant="other")
    first = await ledger.submit(idempotency_key="k")
    assert await ledger.submit(run=other, idempotency_key="k") != first


@requirement("calls:idempotent-submit")
async def test_a_known_key_gives_its_call_even_when_the_run_has_ended(ledger: Ledger) -> None:
    call_id = await ledger.submit(idempotency_key="k")
    again = ledger.new(idempotency_key="k")
    await runs.end_run(ledger.database, ledger.run.id, cancel=False, actor="test")
    (answer,) = await calls.submit(ledger.database, [again])
    assert isinstance(answer, Submitted)
    assert answer.id == call_id


@requirement("calls:open-runs-only")
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("state = 'closed'", Code.RUN_CLOSED),
        ("state = 'cancelled'", Code.RUN_CANCELLED),
        ("expires_at = now()", Code.RUN_EXPIRED),
    ],
)
async def test_a_run_that_is_not_open_takes_no_call(
    ledger: Ledger, change: str, code: Code
) -> None:
    call = ledger.new()
    await ledger.sql(f"UPDATE runs SET {change}")
    (answer,) = await calls.submit(ledger.database, [call])
    assert isinstance(answer, FleetError)
    assert answer.code is code
    assert await calls.read(ledger.database, [call.id]) == {}


@requirement("calls:open-runs-only")
async def test_an_unknown_run_takes_no_call_and_harms_no_neighbour(ledger: Ledger) -> None:
    stray = replace(ledger.new(), run_id=str(uuid.uuid4()))
    refused, taken = await calls.submit(ledger.database, [stray, ledger.new()])
    assert isinstance(refused, FleetError)
    assert refused.code is Code.UNKNOWN_RUN
    assert isinstance(taken, Submitted)


# -- claim


@requirement("calls:no-deadlock")
async def test_a_claim_that_postgres_takes_back_for_a_deadlock_is_tried_again(
    ledger: Ledger,
) -> None:
    ids = [await ledger.submit(call_id=it) for it in sorted(str(uuid.uuid4()) for _ in range(3))]
    wanted = text("SELECT FROM calls WHERE id = ANY(:ids) FOR UPDATE")
    async with ledger.database.transaction() as other:
        await other.execute(text("SET LOCAL deadlock_timeout = '20s'"))  # the claim has to give in
        await other.execute(wanted, {"ids": ids[1:2]})
        claim = asyncio.create_task(calls.claim(ledger.database, WORKER, ids))
        await until(lambda: _waits_for_a_row(ledger))
        # In whatever order it takes them, it has one of these by now.
        await other.execute(wanted, {"ids": [ids[0], ids[2]]})
    assert [it.id for it in await claim if it] == ids


async def _waits_for_a_row(ledger: Ledger) -> bool:
    found = await ledger.sql(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
    )
    return bool(found[0][0])


@requirement("calls:claimed-once")
async def test_of_twenty_simultaneous_claimers_one_gets_the_call(
    ledger: Ledger, crowd: Database
) -> None:
    call_id = await ledger.submit()
    answers = await asyncio.gather(
        *(calls.claim(crowd, f"worker-{n}", [call_id]) for n in range(20))
    )
    claims = [claim for (claim,) in answers if claim is not None]
    assert len(claims) == 1
    assert (await ledger.row(call_id))["attempts"] == 1
    assert await ledger.trail(call_id) == ["queued", "running"]


@requirement("calls:claimed-once")
async def test_one_id_twice_in_a_batch_is_claimed_once(ledger: Ledger) -> None:
    call_id = await ledger.submit()
    first, second = await calls.claim(ledger.database, WORKER, [call_id, call_id])
    assert first is not None
    assert second is None


@requirement("calls:never-claimed")
async def test_a_stopped_call_is_never_claimed(ledger: Ledger) -> None:
    call_id = await ledger.submit()
    await calls.stop(ledger.database, [call_id], actor="test")
    assert await calls.claim(ledger.database, WORKER, [call_id]) == [None]


@requirement("calls:never-claimed")
async def test_a_call_past_its_deadline_is_never_claimed(ledger: Ledger) -> None:
    call_id = await ledger.submit()
    await ledger.age("deadline_at", [call_id])
    assert await calls.claim(ledger.database, WORKER, [call_id]) == [None]


@requirement("calls:never-claimed")
async def test_a_call_of_a_cancelled_run_is_never_claimed(ledger: Ledger) -> None:
    call_id = await ledger.submit()
    await runs.end_run(ledger.database, ledger.run.id, cancel=True, actor="test")
    assert await calls.claim(ledger.database, WORKER, [call_id]) == [None]


@requirement("calls:never-claimed")
async def test_a_call_of_a_closed_run_still_runs(ledger: Ledger) -> None:
    call_id = await ledger.submit()
    await runs.end_run(ledger.database, ledger.run.id, cancel=False, actor="test")
    assert (await ledger.claim(call_id)).id == call_id


@requirement("calls:claimed-once")
async def test_an_id_that_nobody_submitted_cannot_be_claimed(ledger: Ledger) -> None:
    assert await calls.claim(ledger.database, WORKER, ["forged", str(uuid.uuid4())]) == [None, None]


@requirement("calls:claimed-once")
async def test_a_claim_says_what_the_attempt_needs(ledger: Ledger) -> None:
    claim = await ledger.running("pay", timeout_s=60, traceparent="00-trace")
    assert (claim.tool, claim.server_name, claim.delivery) == ("demo_pay", "demo", Delivery.KEYED)
    assert (claim.fence, claim.attempts, claim.traceparent) == (1, 1, "00-trace")
    assert 0 < claim.remaining_s <= 60
    assert claim.queue_wait_s >= 0


class Counting:
    """A door to the registry, as `Database.statement` is one, that counts the calls it reads."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self.read = 0

    async def statement(self, sql: LiteralString, **values: Any) -> list[dict[str, Any]]:
        async with self._connection.transaction():
            cursor = await self._connection.execute(sql, values)
            rows = await cursor.fetchall()
            counted = await self._connection.execute(
                "SELECT seq_tup_read + idx_tup_fetch AS calls FROM pg_stat_xact_user_tables"
                " WHERE relname = 'calls'"
            )
            (self.read,) = [int(row["calls"]) for row in await counted.fetchall()]
        return rows


@pytest.fixture
async def counting(database_url: str) -> AsyncIterator[Counting]:
    async with await psycopg.AsyncConnection.connect(
        database_url,
        autocommit=True,
        row_factory=dict_row,
        prepare_threshold=0,
        options=STATEMENT_OPTIONS,
    ) as connection:
        yield Counting(connection)


@requirement("calls:depth-costs-nothing")
async def test_a_claim_reads_no_more_calls_however_many_are_queued(
    ledger: Ledger, counting: Counting
) -> None:
    for _ in range(PLANS_TRIED):
        (claim,) = await calls.claim(counting, WORKER, [await ledger.submit()])  # type: ignore[arg-type] - a door as good
        assert claim is not None
    alone = counting.read
    queued = await asyncio.gather(*(ledger.submit() for _ in range(200)))
    (claim,) = await calls.claim(counting, WORKER, queued[:1])  # type: ignore[arg-type] - as above
    assert claim is not None
    assert counting.read <= alone + 10  # rows of before that nobody has removed yet


# -- finish


@requirement("calls:fenced")
@pytest.mark.parametrize("state", ENDINGS)
async def test_an_ending_is_recorded_with_its_audit_line(ledger: Ledger, state: CallState) -> None:
    claim = await ledger.running()
    assert await ledger.finish(claim, state)
    row = await ledger.row(claim.id)
    assert row["state"] == state.value
    assert (row["ended_at"] is not None) is state.final
    assert await ledger.trail(claim.id) == ["queued", "running", state.value]


@requirement("calls:legal-transitions")
@pytest.mark.parametrize("state", NOT_ENDINGS)
async def test_a_running_call_cannot_become_what_the_table_does_not_list(
    ledger: Ledger, state: CallState
) -> None:
    claim = await ledger.running()
    with pytest.raises(ValueError, match=state.value):
        await ledger.finish(claim, state)
    assert await ledger.state(claim.id) is CallState.RUNNING


@requirement("calls:fenced")
async def test_a_call_ends_once(ledger: Ledger) -> None:
    claim = await ledger.running()
    assert await ledger.finish(claim)
    assert not await ledger.finish(claim, CallState.FAILED)
    assert await ledger.trail(claim.id) == ["queued", "running", "succeeded"]


@requirement("calls:fenced")
async def test_an_earlier_attempt_cannot_end_a_later_one(ledger: Ledger) -> None:
    earlier = await ledger.running()
    assert await ledger.finish(earlier, CallState.QUEUED)
    later = await ledger.claim(earlier.id)
    assert (later.fence, later.attempts) == (2, 2)
    assert not await ledger.finish(earlier)
    assert await ledger.state(earlier.id) is CallState.RUNNING


@requirement("calls:fenced")
async def test_another_worker_cannot_end_a_call(ledger: Ledger) -> None:
    claim = await ledger.running(worker="somebody-else")
    assert not await ledger.finish(claim)


@requirement("calls:fenced")
async def test_endings_of_one_batch_do_not_harm_each_other(ledger: Ledger) -> None:
    mine, lost = await ledger.running(), await ledger.running(worker="somebody-else")
    endings = [Ending(it.id, it.fence, CallState.SUCCEEDED) for it in (lost, mine)]
    assert await calls.finish(ledger.database, WORKER, endings) == [False, True]


@requirement("calls:result-as-it-came")
@pytest.mark.parametrize(
    "value",
    ["\ud800", "a\x00b", "ä€😀", [1.5, None, True, {"z": 1, "a": 2}], 2**70],
    ids=["lone surrogate", "nul", "unicode", "nested", "large integer"],
)
async def test_a_result_is_read_as_it_was_written(ledger: Ledger, value: Any) -> None:
    claim = await ledger.running()
    ending = Ending(claim.id, claim.fence, CallState.SUCCEEDED, result={"value": value})
    assert await calls.finish(ledger.database, WORKER, [ending]) == [True]
    assert (await ledger.row(claim.id))["result"] == {"value": value}


# -- stop


@requirement("stop:honest-answer")
async def test_a_queued_call_is_stopped_before_dispatch(ledger: Ledger) -> None:
    call_id = await ledger.submit()
    answers = await calls.stop(ledger.database, [call_id], actor="test", reason="no need")
    row = await ledger.row(call_id)
    assert answers == {call_id: StopAnswer.STOPPED_BEFORE_DISPATCH}
    assert (row["state"], row["error"]["code"]) == ("stopped", "stopped")
    assert row["ended_at"] is not None
    assert await ledger.trail(call_id) == ["queued", "stopped"]


@requirement("stop:honest-answer")
async def test_a_running_call_is_asked_to_stop_and_its_worker_finds_out(ledger: Ledger) -> None:
    claim = await ledger.running()
    answers = await calls.stop(ledger.database, [claim.id], actor="test")
    assert answers == {claim.id: StopAnswer.STOP_REQUESTED}
    assert await ledger.state(claim.id) is CallState.RUNNING
    assert await calls.stops_of(ledger.database, WORKER) == [claim.id]
    assert await ledger.trail(claim.id) == ["queued", "running", "stop_requested"]


@requirement("stop:honest-answer")
async def test_a_call_that_has_ended_cannot_be_stopped(ledger: Ledger) -> None:
    claim = await ledger.running()
    await ledger.finish(claim)
    answers = await calls.stop(ledger.database, [claim.id], actor="test")
    assert answers == {claim.id: StopAnswer.TOO_LATE}
    assert (await ledger.row(claim.id))["stop_requested_at"] is None
    assert await ledger.trail(claim.id) == ["queued", "running", "succeeded"]


@requirement("stop:honest-answer")
async def test_a_stop_says_nothing_about_other_tenants_calls(ledger: Ledger) -> None:
    call_id = await ledger.submit()
    unknown = str(uuid.uuid4())
    answers = await calls.stop(ledger.database, [call_id, unknown], actor="test", tenant="other")
    assert answers == {}
    assert await ledger.state(call_id) is CallState.QUEUED


@requirement("stop:honest-answer", "stop:queued-never-runs")
async def test_whoever_wins_the_race_of_stop_and_claim_both_answers_agree(
    ledger: Ledger, crowd: Database
) -> None:
    ids = [await ledger.submit() for _ in range(40)]

    async def race(call_id: str) -> tuple[Claim | None, StopAnswer]:
        (claim,), stopped = await asyncio.gather(
            calls.claim(crowd, WORKER, [call_id]), calls.stop(crowd, [call_id], actor="test")
        )
        return claim, stopped[call_id]

    answers = await asyncio.gather(*(race(call_id) for call_id in ids))
    for claim, stopped in answers:
        expected = StopAnswer.STOP_REQUESTED if claim else StopAnswer.STOPPED_BEFORE_DISPATCH
        assert stopped is expected


# -- any history


async def _step(ledger: Ledger, chance: random.Random, held: list[Claim], ids: list[str]) -> None:
    """Do one thing that a worker, a caller or the steward may do at any time."""
    call_id = chance.choice(ids)
    match chance.randrange(8):
        case 0 | 1 | 2:
            (claim,) = await calls.claim(ledger.database, WORKER, [call_id])
            held.extend([claim] if claim else [])
        case 3 | 4 if held:
            await ledger.finish(chance.choice(held), CallState(chance.choice(ENDINGS)))
        case 5:
            await calls.stop(ledger.database, [call_id], actor="test")
        case 6:
            await ledger.age("deadline_at", [call_id])
            await leases.expire(ledger.database)
        case _:
            await leases.close_dead(ledger.database, 3)


@requirement("calls:legal-transitions", "calls:audited")
@pytest.mark.parametrize("seed", range(4))
async def test_every_history_follows_the_table_and_is_audited_to_its_last_state(
    ledger: Ledger, crowd: Database, seed: int
) -> None:
    chance, held = random.Random(seed), list[Claim]()
    ledger.database = crowd
    ids = [await ledger.submit(chance.choice(["look", "write"])) for _ in range(6)]
    for _ in range(25):
        await asyncio.gather(*(_step(ledger, chance, held, ids) for _ in range(6)))
    for call_id in ids:
        trail = [step for step in await ledger.trail(call_id) if step != "stop_requested"]
        illegal = [
            (was, now)
            for was, now in pairwise(map(CallState, trail))
            if now not in TRANSITIONS[was]
        ]
        assert (trail[0], illegal) == ("queued", [])
        assert trail[-1] == (await ledger.row(call_id))["state"]
        assert Counter(trail)["running"] == await _fence_of_claims(ledger, call_id)


async def _fence_of_claims(ledger: Ledger, call_id: str) -> int:
    rows = await ledger.sql(
        "SELECT count(DISTINCT details ->> 'fence') FROM audit"
        " WHERE call_id = :id AND event = 'call.running'",
        id=call_id,
    )
    return int(rows[0][0])
