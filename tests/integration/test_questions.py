"""Questions of a running call as rows: asked under its claim, answered once, then forgotten."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from registry import calls, leases, questions
from registry.answers import NewQuestion
from registry.calls import CallState, Claim
from registry.database import Database
from registry.errors import Code, FleetError
from registry.questions import MOST_QUESTIONS, TRANSITIONS, Question, QuestionState
from tests.ledger import WORKER, Ledger
from tests.requirements import requirement

pytestmark = pytest.mark.anyio

EVERYTHING = frozenset({"elicitation", "elicitation.url", "sampling", "roots"})
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FORM = NewQuestion("elicitation/create", {"message": "Where?", "requestedSchema": SCHEMA})
ROOTS = NewQuestion("roots/list", {})
OSLO = {"result": {"action": "accept", "content": {"city": "Oslo"}}}


@pytest.fixture
async def ledger(database: Database) -> Ledger:
    return await Ledger.open(database)


async def asked(ledger: Ledger, *new: NewQuestion, **wish: Any) -> tuple[Claim, list[Question]]:
    """Return a running call whose server asked something."""
    claim = await ledger.running(**{"answers": EVERYTHING, **wish})
    return claim, await questions.ask(ledger.database, claim, new or (FORM,))


async def answered(ledger: Ledger, call_id: str, answers: Any, **rest: Any) -> set[str]:
    return await questions.answer(ledger.database, call_id, answers, actor="agent", **rest)


async def rows(ledger: Ledger, call_id: str) -> list[Any]:
    return list(
        await ledger.sql(
            "SELECT number, key, state, params::text, answer::text FROM questions"
            " WHERE call_id = :id ORDER BY number",
            id=call_id,
        )
    )


async def open_count(ledger: Ledger, call_id: str) -> int:
    return int((await ledger.row(call_id))["open_questions"])


@requirement("questions:durable")
async def test_a_question_is_open_until_it_is_answered_and_its_answer_is_the_workers(
    ledger: Ledger,
) -> None:
    claim, put = await asked(ledger)
    assert put == await questions.open_questions(ledger.database, claim.id)
    assert (put[0].key, put[0].params, await open_count(ledger, claim.id)) == ("q1", FORM.params, 1)
    assert await answered(ledger, claim.id, {"q1": OSLO}) == {"q1"}
    assert (await questions.open_questions(ledger.database, claim.id), 0) == (
        [],
        await open_count(ledger, claim.id),
    )
    for _ in range(2):  # the first may have been lost on its way
        assert await questions.answered(ledger.database, claim, ["q1"]) == {"q1": OSLO}


@requirement("questions:forgotten")
@pytest.mark.parametrize("how", ["ended", "given away and stopped"])
async def test_what_was_asked_and_answered_is_gone_when_the_call_has_ended(
    ledger: Ledger, how: str
) -> None:
    claim, _ = await asked(ledger, FORM, ROOTS)
    await answered(ledger, claim.id, {"q1": OSLO})
    if how == "ended":
        assert await ledger.finish(claim)
    else:
        await lose(ledger, claim, "given away")
        assert await questions.forget_left(ledger.database) == 0
        await calls.stop(ledger.database, [claim.id], actor="agent")
        assert await questions.forget_left(ledger.database) == 1
    assert await rows(ledger, claim.id) == [
        (1, None, "answered", None, None),
        (2, None, "withdrawn", None, None),
    ]
    audit = await ledger.sql("SELECT details::text FROM audit WHERE call_id = :id", id=claim.id)
    assert not any("Oslo" in row[0] or "Where" in row[0] for row in audit)
    assert Counter(it for it in await ledger.trail(claim.id) if it.startswith("question")) == {
        "question_asked": 2, "question_answered": 1, "question_withdrawn": 1
    }  # fmt: skip


@requirement("questions:answered-once")
async def test_of_many_answers_at_once_one_is_taken(ledger: Ledger) -> None:
    claim, _ = await asked(ledger)
    taken = await asyncio.gather(*(answered(ledger, claim.id, {"q1": OSLO}) for _ in range(8)))
    assert Counter(map(frozenset, taken)) == {frozenset({"q1"}): 1, frozenset(): 7}


@requirement("questions:answered-once")
async def test_questions_that_are_asked_at_once_have_keys_of_their_own(ledger: Ledger) -> None:
    claim, _ = await asked(ledger)
    put = await asyncio.gather(
        *(questions.ask(ledger.database, claim, [FORM, ROOTS]) for _ in range(4))
    )
    assert sorted(it.key for pair in put for it in pair) == [f"q{n}" for n in range(2, 10)]
    assert await open_count(ledger, claim.id) == 9


@requirement("questions:only-what-is-answered")
@pytest.mark.parametrize(
    ("answers", "new"),
    [
        ((), FORM),
        (("elicitation",), NewQuestion("elicitation/create", {"mode": "url", "url": "https://a"})),
        (("elicitation.url",), FORM),
        (("sampling",), ROOTS),
        (("roots",), NewQuestion("tools/list", {})),
        (("elicitation",), NewQuestion("elicitation/create", {"message": "x" * 1_000_001})),
    ],
    ids=["nobody", "no url", "no form", "no roots", "no question", "too large"],
)
async def test_what_nobody_answers_is_not_asked(
    ledger: Ledger, answers: tuple[str, ...], new: NewQuestion
) -> None:
    claim = await ledger.running(answers=frozenset(answers))
    with pytest.raises(FleetError) as refused:
        await questions.ask(ledger.database, claim, [new])
    assert refused.value.code is Code.INPUT_REQUIRED
    assert await rows(ledger, claim.id) == []


@requirement("questions:bounded")
async def test_a_call_asks_a_hundred_times_at_most(ledger: Ledger) -> None:
    claim, _ = await asked(ledger, *[ROOTS] * MOST_QUESTIONS)
    with pytest.raises(FleetError) as refused:
        await questions.ask(ledger.database, claim, [ROOTS])
    assert refused.value.code is Code.INPUT_REQUIRED


@requirement("questions:under-the-claim")
@pytest.mark.parametrize("how", ["ended", "stopped", "given away"])
async def test_a_claim_that_does_not_hold_asks_nothing(ledger: Ledger, how: str) -> None:
    claim = await ledger.running(answers=EVERYTHING)
    await lose(ledger, claim, how)
    with pytest.raises(FleetError) as refused:
        await questions.ask(ledger.database, claim, [FORM])
    assert refused.value.code is Code.STOPPED


@requirement("questions:under-the-claim")
@pytest.mark.parametrize("how", ["ended", "stopped"])
async def test_what_a_call_asked_that_is_not_to_go_on_is_answered_no_more(
    ledger: Ledger, how: str
) -> None:
    claim, _ = await asked(ledger)
    await lose(ledger, claim, how)
    assert await questions.open_questions(ledger.database, claim.id) == []
    assert await answered(ledger, claim.id, {"q1": OSLO}) == set()


NAMED = replace(FORM, key="city")
OTHER = replace(ROOTS, key="city")


async def again(ledger: Ledger, claim: Claim) -> Claim:
    """Have the worker of a claim die; return the claim of the next."""
    await lose(ledger, claim, "given away")
    return await ledger.claim(claim.id)


@requirement("questions:asked-once")
@pytest.mark.parametrize("new", [FORM, NAMED], ids=["by its place", "by its key"])
@pytest.mark.parametrize("when", ["before", "while nobody runs it", "after"])
async def test_a_call_that_runs_again_is_answered_what_it_asked_before(
    ledger: Ledger, new: NewQuestion, when: str
) -> None:
    claim, put = await asked(ledger, new)
    key = put[0].key
    if when == "before":
        assert await answered(ledger, claim.id, {key: OSLO}) == {key}
    await lose(ledger, claim, "given away")
    assert await questions.open_questions(ledger.database, claim.id) == []
    if when == "while nobody runs it":
        assert await answered(ledger, claim.id, {key: OSLO}) == {key}
    elsewhere = await ledger.claim(claim.id)
    marked = replace(new, params={**new.params, "_meta": {"progressToken": 2}})
    (asks,) = await questions.ask(ledger.database, elsewhere, [marked])
    assert (asks.key, asks.number) == (key, 1)
    assert await open_count(ledger, claim.id) == (when == "after")
    if when == "after":
        assert await answered(ledger, claim.id, {key: OSLO}) == {key}
    assert await questions.answered(ledger.database, elsewhere, [key]) == {key: OSLO}
    assert await questions.answered(ledger.database, claim, [key]) == {}


@requirement("questions:asked-once")
async def test_an_answer_is_to_one_question_of_each_attempt(ledger: Ledger) -> None:
    claim, _ = await asked(ledger, FORM, FORM)
    await answered(ledger, claim.id, {"q1": OSLO})
    for dispatch, expected in ((1, ["q3"]), (2, ["q1", "q2", "q3", "q4"])):
        for key in expected:
            (put,) = await questions.ask(ledger.database, claim, [FORM], dispatch=dispatch)
            assert put.key == key
    assert set(await questions.answered(ledger.database, claim, ["q1", "q2"])) == {"q1"}


@requirement("questions:answered-once")
async def test_a_key_that_was_used_for_another_question_gets_a_number(ledger: Ledger) -> None:
    claim, put = await asked(ledger, NAMED, replace(ROOTS, key="x" * 300), ROOTS)
    assert [it.key for it in put] == ["city", "q1", "q2"]
    await answered(ledger, claim.id, {"city": OSLO})
    (more,) = await questions.ask(ledger.database, claim, [NAMED])
    assert more.key == "city-2"
    elsewhere = await again(ledger, claim)
    asks = await questions.ask(ledger.database, elsewhere, [OTHER, NAMED])
    assert [it.key for it in asks] == ["city-3", "city"]


@requirement("questions:asked-once")
async def test_what_was_taken_back_is_asked_anew_under_another_key(ledger: Ledger) -> None:
    claim, _ = await asked(ledger, NAMED)
    await questions.withdraw(ledger.database, claim, ["city"])
    (put,) = await questions.ask(ledger.database, await again(ledger, claim), [NAMED])
    assert put.key == "city-2"
    assert await answered(ledger, claim.id, {"city": OSLO}) == set()


@requirement("questions:under-the-claim")
async def test_a_worker_that_was_declared_dead_takes_nothing_back(ledger: Ledger) -> None:
    claim, _ = await asked(ledger)
    await questions.ask(ledger.database, await again(ledger, claim), [FORM])
    await questions.withdraw(ledger.database, claim, ["q1"])
    assert await open_count(ledger, claim.id) == 1


@requirement("questions:answered-once")
async def test_a_question_is_answered_by_its_number_too(ledger: Ledger) -> None:
    claim, _ = await asked(ledger, ROOTS, NAMED)
    assert await answered(ledger, claim.id, {2: OSLO, 3: OSLO}) == {"city"}


@requirement("calls:no-deadlock")
async def test_to_forget_questions_no_call_is_waited_for(ledger: Ledger) -> None:
    claim, _ = await asked(ledger)
    await lose(ledger, claim, "given away")
    await calls.stop(ledger.database, [claim.id], actor="agent")
    async with ledger.database.transaction() as connection:
        await connection.exec_driver_sql("SELECT FROM calls FOR UPDATE")
        assert await questions.forget_left(ledger.database) == 1


async def lose(ledger: Ledger, claim: Claim, how: str) -> None:
    """Have a claim hold its running call no more."""
    if how == "ended":
        await ledger.finish(claim)
    elif how == "stopped":
        await calls.stop(ledger.database, [claim.id], actor="agent")
    else:
        await ledger.lease()
        await ledger.lapse(WORKER)
        await leases.close_dead(ledger.database, 3)
        assert await ledger.state(claim.id) is CallState.QUEUED


@requirement("questions:of-its-tenant")
async def test_questions_of_another_tenants_call_are_neither_seen_nor_answered(
    ledger: Ledger,
) -> None:
    claim, _ = await asked(ledger)
    for work in (
        questions.open_questions(ledger.database, claim.id, tenant="other"),
        answered(ledger, claim.id, {"q1": OSLO}, tenant="other"),
    ):
        with pytest.raises(FleetError) as refused:
            await work
        assert refused.value.code is Code.UNKNOWN_CALL
    assert await open_count(ledger, claim.id) == 1


@requirement("questions:checked")
async def test_answers_are_taken_all_together_or_not_at_all(ledger: Ledger) -> None:
    claim, _ = await asked(ledger, FORM, ROOTS)
    with pytest.raises(FleetError) as refused:
        await answered(ledger, claim.id, {"q1": OSLO, "q2": {"result": {"roots": [{}]}}})
    assert refused.value.details["problems"] == [
        {"path": "/q2/result/roots/0/uri", "problem": "is not a file:// address"}
    ]
    assert await open_count(ledger, claim.id) == 2


@requirement("questions:durable")
def test_no_question_leaves_a_final_state() -> None:
    assert set(TRANSITIONS) == set(QuestionState)
    assert not TRANSITIONS[QuestionState.ANSWERED] | TRANSITIONS[QuestionState.WITHDRAWN]
