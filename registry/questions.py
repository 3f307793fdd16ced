"""What the server of a running call asks its caller: rows, answered once, then forgotten.

Invariants:
 1. A question is asked under a claim, and put to the caller for as long as that claim holds. If the
    call runs again and asks the same, it is the same question: an answer that there is holds.
 2. It changes state only along `TRANSITIONS`; that it was asked, answered or withdrawn is audited
    in the same transaction, by what it is and a digest, never by what it says.
 3. `calls.open_questions` counts what is put to the caller of a call.
 4. What was asked and what was answered is erased when the call has ended.

Whoever asks, answers or withdraws holds the call's row, so that no two do it at once. None holds
two of them: claims take many, in whatever order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry.answers import (
    Answer,
    Answers,
    NewQuestion,
    Problem,
    problems_with,
    refusal,
    refuse_misshapen,
    unaskable,
)
from registry.audit import CALL_FACTS
from registry.calls import FINAL_STATES, Claim
from registry.database import Database, to_json
from registry.errors import Code, FleetError
from registry.forgetting import FORGOTTEN_FACTS, forget
from registry.question_keys import Earlier, Place, places

MOST_QUESTIONS: Final = 100
"""Of one call, whatever its attempts."""


class QuestionState(StrEnum):
    """Where a question is; the last two are final."""

    OPEN = "open"
    ANSWERED = "answered"
    WITHDRAWN = "withdrawn"


TRANSITIONS: Final[dict[QuestionState, frozenset[QuestionState]]] = {
    QuestionState.OPEN: frozenset({QuestionState.ANSWERED, QuestionState.WITHDRAWN}),
    QuestionState.ANSWERED: frozenset(),
    QuestionState.WITHDRAWN: frozenset(),
}


@dataclass(frozen=True)
class Question:
    """A question that is open; ``key`` names it within its call, for ever, and ``number`` too."""

    key: str
    number: int
    method: str
    params: dict[str, Any]


_MINE: Final = """
    id = :call AND state = 'running' AND fence = :fence AND worker_id = :worker
"""
_LIVE: Final = "stop_requested_at IS NULL AND deadline_at > clock_timestamp()"
_LOCK_MINE: Final = text(
    f"SELECT id FROM calls WHERE {_MINE} AND {_LIVE} FOR NO KEY UPDATE"  # noqa: S608 - constants
)
_EARLIER: Final = text(
    """
    SELECT number, key, method, CASE WHEN state IN ('open', 'answered')
        AND (fence, dispatch) <> (:fence, :dispatch) THEN params END AS params
    FROM questions WHERE call_id = :call
    """
)
_ASK: Final = text(
    "INSERT INTO questions (call_id, number, key, fence, dispatch, method, params)"
    " VALUES (:call, :number, :key, :fence, :dispatch, :method, CAST(:params AS json))"
)
_ASK_AGAIN: Final = text(
    "UPDATE questions SET fence = :fence, dispatch = :dispatch"
    " WHERE call_id = :call AND number = :number"
)
_RECOUNT: Final = text(
    "UPDATE calls SET open_questions = (SELECT count(*) FROM questions q WHERE q.call_id = :call"
    " AND calls.state = 'running' AND q.fence = calls.fence AND q.state = 'open') WHERE id = :call"
)
_LOG: Final = text(
    f"""
    INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)
    SELECT tenant_id, :actor, :event, run_id, id,
        jsonb_build_object({CALL_FACTS}) || CAST(:details AS jsonb)
    FROM calls WHERE id = :call
    """  # noqa: S608 - a constant
)
_OPEN: Final = f"""
    SELECT q.key, q.number, q.method, q.params FROM calls c JOIN questions q ON q.call_id = c.id
    WHERE c.id = %(call)s AND (%(tenant)s::text IS NULL OR c.tenant_id = %(tenant)s)
        AND c.state = 'running' AND {_LIVE} AND q.fence = c.fence AND q.state = 'open'
    ORDER BY q.number
"""  # noqa: S608 - a constant
_KNOWN: Final = (
    "SELECT id FROM calls WHERE id = %(call)s"
    " AND (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s)"
)
_LOCK: Final = text(
    "SELECT id FROM calls WHERE id = :call"
    " AND (CAST(:tenant AS text) IS NULL OR tenant_id = :tenant) FOR NO KEY UPDATE"
)
_UNANSWERED: Final = text(
    f"""
    SELECT q.key, q.number, q.method, q.params FROM calls c JOIN questions q ON q.call_id = c.id
    WHERE c.id = :call AND c.state IN ('queued', 'running') AND {_LIVE} AND q.state = 'open'
    ORDER BY q.number
    """  # noqa: S608 - a constant
)
_ANSWER: Final = text(
    "UPDATE questions SET state = 'answered', answer = CAST(:answer AS json),"
    " answered_at = clock_timestamp(), answered_by = :actor"
    " WHERE call_id = :call AND number = :number AND state = 'open'"
)
_ANSWERED: Final = """
    SELECT key, answer FROM questions
    WHERE call_id = %(call)s AND fence = %(fence)s AND key = ANY(%(keys)s) AND state = 'answered'
"""
_WITHDRAW: Final = text(
    "UPDATE questions SET state = 'withdrawn', params = NULL"
    " WHERE call_id = :call AND fence = :fence AND key = ANY(:keys) AND state = 'open'"
    " RETURNING number, method"
)
_FORGET_LEFT: Final = f"""
    WITH ended AS (
        SELECT {FORGOTTEN_FACTS} FROM calls
        WHERE id IN (SELECT call_id FROM questions WHERE key IS NOT NULL)
            AND state = ANY(%(final)s)
        LIMIT 500
    ), {forget("'steward'")}
    SELECT DISTINCT call_id FROM forgotten
"""  # noqa: S608 - constants


async def ask(
    database: Database, claim: Claim, asked: Sequence[NewQuestion], *, dispatch: int = 1
) -> list[Question]:
    """Put questions to the caller of a claimed call; return them with their keys, in order.

    ``dispatch`` counts how often the call was made under this claim: what is asked alike in one
    of them is asked twice, and what was asked in an earlier one, or under an earlier claim, is not
    asked again.

    Raises `input_required`, and asks nothing, when one of them is none that this caller answers, or
    the call has asked enough; `stopped` when the claim does not hold the running call any more.
    """
    for new in asked:
        if why := unaskable(new.method, new.params, claim.answers):
            raise _not_asked(claim, why)
    async with database.transaction() as connection:
        mine = {"call": claim.id, "fence": claim.fence, "worker": claim.worker}
        if (await connection.execute(_LOCK_MINE, mine)).first() is None:
            raise FleetError(Code.STOPPED, f"call {claim.id} of {claim.tool} is not to go on")
        mine = {"call": claim.id, "fence": claim.fence, "dispatch": dispatch}
        earlier = [Earlier(**row) for row in (await connection.execute(_EARLIER, mine)).mappings()]
        found = places(asked, earlier)
        if len(earlier) + sum(not place.known for place in found) > MOST_QUESTIONS:
            raise _not_asked(
                claim, f"it has asked {len(earlier)} times, {MOST_QUESTIONS} are allowed"
            )
        for new, place in zip(asked, found, strict=True):
            await _put(connection, claim, new, place, mine)
        await connection.execute(_RECOUNT, {"call": claim.id})
    return [
        Question(place.key, place.number, new.method, new.params)
        for new, place in zip(asked, found, strict=True)
    ]


async def _put(
    connection: AsyncConnection, claim: Claim, new: NewQuestion, place: Place, mine: dict[str, Any]
) -> None:
    row = {**mine, "number": place.number}
    if place.known:
        await connection.execute(_ASK_AGAIN, row)
    else:
        row |= {"key": place.key, "method": new.method, "params": to_json(new.params)}
        await connection.execute(_ASK, row)
    said = {"question": place.number, "method": new.method, "digest": _digest(new.params)}
    await _log(connection, claim.id, claim.worker, "asked", said | {"again": place.known})


async def open_questions(
    database: Database, call_id: str, *, tenant: str | None = None
) -> list[Question]:
    """Return what a call asks now, in the order in which it was asked; raise `unknown_call`."""
    rows = await database.statement(_OPEN, call=call_id, tenant=tenant)
    if not rows and not await database.statement(_KNOWN, call=call_id, tenant=tenant):
        raise _unknown(call_id)
    return [Question(**row) for row in rows]


async def answer(
    database: Database,
    call_id: str,
    answers: Answers,
    *,
    actor: str,
    tenant: str | None = None,
) -> set[str]:
    """Answer questions of a call by their keys, or numbers; return the keys that were taken.

    What is not open, or unknown, is passed over: the first answer counts. It counts too while the
    call waits to run again, whose worker died. Raises `unknown_call`, and `invalid_request` when
    one is no answer to its question: then none is taken.
    """
    refuse_misshapen(answers)
    given: dict[str | int, Answer] = dict(answers.items())
    async with database.transaction() as connection:
        named = {"call": call_id, "tenant": tenant}
        if (await connection.execute(_LOCK, named)).first() is None:
            raise _unknown(call_id)
        found = (await connection.execute(_UNANSWERED, {"call": call_id})).mappings().all()
        by_name = {name: row for row in found for name in (row["key"], row["number"])}
        asked = {name: by_name[name] for name in given if name in by_name}
        problems = [
            Problem(f"/{name}{at}", what)
            for name, row in asked.items()
            for at, what in problems_with(row["method"], row["params"], given[name])
        ]
        if problems:
            raise refusal(problems)
        for name, row in asked.items():
            await _write_answer(connection, call_id, row, given[name], actor)
        if asked:
            await connection.execute(_RECOUNT, {"call": call_id})
    return {row["key"] for row in asked.values()}


async def _write_answer(
    connection: AsyncConnection, call_id: str, row: RowMapping, given: Answer, actor: str
) -> None:
    await connection.execute(
        _ANSWER,
        {"call": call_id, "number": row["number"], "actor": actor, "answer": to_json(given)},
    )
    result = given.get("result")
    said = {
        "question": row["number"],
        "method": row["method"],
        "outcome": "error" if result is None else result.get("action", "result"),
        "digest": _digest(given),
    }
    await _log(connection, call_id, actor, "answered", said)


async def answered(database: Database, claim: Claim, keys: Sequence[str]) -> dict[str, Answer]:
    """Return the answers that are there to questions of a claim."""
    rows = await database.statement(_ANSWERED, call=claim.id, fence=claim.fence, keys=list(keys))
    return {row["key"]: row["answer"] for row in rows}


async def withdraw(database: Database, claim: Claim, keys: Sequence[str]) -> None:
    """Take back questions of a claim that nobody has to answer any more."""
    async with database.transaction() as connection:
        await connection.execute(_LOCK, {"call": claim.id, "tenant": None})
        mine = {"call": claim.id, "fence": claim.fence, "keys": list(keys)}
        for row in (await connection.execute(_WITHDRAW, mine)).all():
            said = {"question": row.number, "method": row.method}
            await _log(connection, claim.id, claim.worker, "withdrawn", said)
        await connection.execute(_RECOUNT, {"call": claim.id})


async def forget_left(database: Database) -> int:
    """Erase what calls asked that no worker has ended; return how many calls."""
    return len(await database.statement(_FORGET_LEFT, final=list(FINAL_STATES)))


async def _log(
    connection: AsyncConnection, call_id: str, actor: str, what: str, said: dict[str, Any]
) -> None:
    event, details = f"call.question_{what}", to_json(said)
    await connection.execute(
        _LOG, {"actor": actor, "event": event, "call": call_id, "details": details}
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(to_json(value).encode()).hexdigest()


def _not_asked(claim: Claim, why: str) -> FleetError:
    return FleetError(
        Code.INPUT_REQUIRED,
        f"{claim.tool} asks its user for input, and there is none: {why}",
        hint="give what it asks for in the arguments, or submit the call with `answers`",
    )


def _unknown(call_id: str) -> FleetError:
    return FleetError(
        Code.UNKNOWN_CALL,
        f"there is no call {call_id}",
        hint="use the id that the submission returned",
    )
