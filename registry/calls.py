"""The ledger of calls: every state change of a call, guarded and audited in one statement.

Invariants:
 1. A call is a row before it is a message, and changes state only along `TRANSITIONS`.
 2. Each change carries its audit line in the same statement: neither exists without the other.
 3. Only the claim that holds the fence may end a running call; a late worker changes nothing.
 4. A call with a stop request, past its deadline or of a cancelled run is never claimed.

Statements take JSON arrays, so that callers who arrive together share a round trip and a commit.
Arguments and results travel in them as text: `json_to_recordset` would refuse a NUL within.
Postgres' clock decides every instant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeGuard

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from registry import concurrency
from registry.artifacts import NewArtifact
from registry.audit import CALL_FACTS
from registry.concurrency import Cap
from registry.database import Database, to_json
from registry.definitions import Delivery
from registry.errors import Code, FleetError
from registry.forgetting import forget
from registry.rates import Bucket
from registry.tiers import DEFAULT_PRIORITY

TOOLS_CALL: Final = "tools/call"
"""The method of a call that says no other; what else servers are asked: `registry.requests`."""


class CallState(StrEnum):
    """Where a call is; the last seven are final."""

    AWAITING_APPROVAL = "awaiting_approval"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    EXPIRED = "expired"
    OUTCOME_UNKNOWN = "outcome_unknown"
    DENIED = "denied"

    @property
    def final(self) -> bool:
        """Say whether the call has ended."""
        return not TRANSITIONS[self]


TRANSITIONS: Final[dict[CallState, frozenset[CallState]]] = {
    CallState.AWAITING_APPROVAL: frozenset(
        {CallState.QUEUED, CallState.DENIED, CallState.STOPPED, CallState.EXPIRED}
    ),
    CallState.QUEUED: frozenset(
        {CallState.RUNNING, CallState.STOPPED, CallState.EXPIRED, CallState.FAILED}
    ),
    CallState.RUNNING: frozenset(
        {
            CallState.QUEUED,
            CallState.SUCCEEDED,
            CallState.FAILED,
            CallState.STOPPED,
            CallState.EXPIRED,
            CallState.OUTCOME_UNKNOWN,
        }
    ),
    CallState.SUCCEEDED: frozenset(),
    CallState.FAILED: frozenset(),
    CallState.STOPPED: frozenset(),
    CallState.EXPIRED: frozenset(),
    CallState.OUTCOME_UNKNOWN: frozenset(),
    CallState.DENIED: frozenset(),
}

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_id(text: object) -> TypeGuard[str]:
    """Say whether something has the form of a call's or a run's id."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


FINAL_STATES: Final = tuple(state.value for state in CallState if state.final)


class StopAnswer(StrEnum):
    """What a stop request can honestly promise."""

    STOPPED_BEFORE_DISPATCH = "stopped_before_dispatch"
    STOP_REQUESTED = "stop_requested"
    TOO_LATE = "too_late"


@dataclass(frozen=True)
class NewCall:
    """A call that passed every check and is about to become a row."""

    id: str
    run_id: str
    tenant_id: str
    actor: str
    tool: str
    server_name: str
    server_version_id: int
    tool_version_id: int
    delivery: Delivery
    call_timeout_s: float
    arguments: dict[str, Any]
    arguments_digest: str
    deadline_s: float
    idempotency_key: str | None = None
    traceparent: str | None = None
    reply_to: str | None = None
    priority: int = DEFAULT_PRIORITY
    """Its tenant's weight in the server's queue; recorded as 0 to 9, whatever it is."""
    state: CallState = CallState.QUEUED
    """Or `awaiting_approval`; `succeeded` with a ``result`` for what needs no server."""
    approval_s: float | None = None
    """How long it may wait for its approval."""
    result: dict[str, Any] | None = None
    method: str = TOOLS_CALL
    """What its server is asked, as MCP calls it."""
    upstream_name: str = ""
    """The tool as its server calls it."""
    buckets: tuple[Bucket, ...] = ()
    """What it takes from before it is submitted (see `registry.submission.submit_within`)."""
    caps: tuple[Cap, ...] = ()
    """What its tenant may have at once."""
    answers: tuple[str, ...] = ()
    """What its server may ask its caller (`registry.questions`)."""
    log_level: str | None = None
    """From which level on its caller is told of its server's log messages; None: of none."""
    trace: dict[str, str] | None = None
    """What goes along with ``traceparent`` (`registry.trace`); never in a message (D1)."""
    arguments_bytes: int = 0
    """How much JSON the arguments are."""


@dataclass(frozen=True)
class Submitted:
    """The row a submission became; ``created`` is False when the idempotency key was known."""

    id: str
    created: bool
    deadline_at: datetime


@dataclass(frozen=True)
class Claim:
    """The right of one worker to run one call once: the fence names this very attempt."""

    id: str
    fence: int
    run_id: str
    tenant_id: str
    actor: str
    tool: str
    method: str
    server_name: str
    server_version_id: int
    tool_version_id: int
    delivery: Delivery
    call_timeout_s: float
    arguments: dict[str, Any]
    attempts: int
    remaining_s: float
    queue_wait_s: float
    traceparent: str | None
    priority: int
    approved: bool
    """Whether it says that it was approved: `registry.approval_gate` finds out."""
    worker: str
    """Who claimed it: nobody else may dispatch or end it."""
    answers: tuple[str, ...] = ()
    log_level: str | None = None
    trace: dict[str, str] | None = None
    age_s: float = 0.0
    """Since it was submitted, or approved, however often it was tried since."""


@dataclass(frozen=True)
class Ending:
    """How an attempt ended: a final state, or `queued` to give the call back.

    ``result`` is a value, or its JSON; what it links to, ``artifact``, has to be stored before.
    """

    id: str
    fence: int
    state: CallState
    result: dict[str, Any] | str | None = None
    is_error: bool | None = None
    error: dict[str, Any] | None = None
    timings: dict[str, Any] = field(default_factory=dict)
    attempts: int | None = None
    artifact: NewArtifact | None = None
    shape: str | None = None
    """What the result looks like (`registry.shapes`), without what it says."""
    not_before_s: float | None = None
    """Given back: for how long no worker is to try it. Its message is then the steward's to send.
    """


_SUBMIT: Final = f"""
    WITH wanted AS (
        SELECT * FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(
            id text, run_id text, tenant_id text, actor text, tool text, method text,
            server_name text, server_version_id bigint, tool_version_id bigint, delivery text,
            call_timeout_s double precision, arguments text, arguments_digest text,
            deadline_s double precision, idempotency_key text, traceparent text, reply_to text,
            priority numeric, state text, approval_s double precision, result text,
            answers text[], log_level text, trace json)
    ), inserted AS (
        INSERT INTO calls (
            id, run_id, tenant_id, actor, tool, method, server_name, server_version_id,
            tool_version_id, delivery, call_timeout_s, arguments, arguments_digest,
            idempotency_key, traceparent, reply_to, priority, deadline_s, state, result, is_error,
            ended_at, deadline_at, answers, log_level, trace)
        SELECT w.id, w.run_id, w.tenant_id, w.actor, w.tool, w.method, w.server_name,
            w.server_version_id, w.tool_version_id, w.delivery, w.call_timeout_s,
            CAST(w.arguments AS json), w.arguments_digest, w.idempotency_key, w.traceparent,
            w.reply_to,
            LEAST(GREATEST(w.priority, 0), 9), w.deadline_s, w.state, CAST(w.result AS json),
            CASE WHEN w.result IS NOT NULL THEN false END,
            CASE WHEN w.result IS NOT NULL THEN clock_timestamp() END,
            clock_timestamp() + make_interval(secs => COALESCE(w.approval_s, w.deadline_s)),
            w.answers, w.log_level, w.trace
        FROM wanted w
        JOIN runs r ON r.id = w.run_id AND r.state = 'open' AND r.expires_at > now()
        ON CONFLICT DO NOTHING
        RETURNING id, tenant_id, actor, run_id, tool, server_name, server_version_id,
            tool_version_id, arguments_digest, delivery, deadline_at, state
    ), logged AS (
        INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)
        SELECT tenant_id, actor, 'call.' || state, run_id, id,
            jsonb_build_object({CALL_FACTS}, 'delivery', delivery)
        FROM inserted
    )
    SELECT id, deadline_at FROM inserted
    """  # noqa: S608 - a constant

_SUBMIT_TEXT: Final = text(_SUBMIT.replace("%(rows)s", ":rows"))
_KNOWN_KEYS: Final = (
    "SELECT idempotency_key FROM calls"
    " WHERE tenant_id = %(tenant)s AND idempotency_key = ANY(%(keys)s)"
)
_KNOWN_KEYS_TEXT: Final = text(
    _KNOWN_KEYS.replace("%(tenant)s", ":tenant").replace("%(keys)s", ":keys")
)
_NO_COLUMNS: Final = frozenset({"upstream_name", "buckets", "caps", "arguments_bytes"})

_EXISTING = text(
    """
    SELECT id, idempotency_key, tenant_id, arguments_digest, tool, deadline_at
    FROM calls WHERE id = ANY(:ids) OR (tenant_id, idempotency_key) IN (
        SELECT tenant_id, idempotency_key FROM json_to_recordset(CAST(:keys AS json))
            AS k(tenant_id text, idempotency_key text))
    """
)

_RUN_STATES = text(
    "SELECT id, state, expires_at <= now() AS expired FROM runs WHERE id = ANY(:ids)"
)

# COALESCE: so that only the primary key serves. A plan that is made while nothing is queued prefers
# the index of what is queued, all of which a claim then read: of 20,000 calls in 9 ms, now in 0.7.
_CLAIM: Final = f"""
    WITH claimed AS (
        UPDATE calls c SET state = 'running', worker_id = %(worker)s, fence = c.fence + 1,
            attempts = c.attempts + 1, started_at = clock_timestamp()
        FROM runs r
        WHERE c.id = ANY(%(ids)s) AND COALESCE(c.state, '') = 'queued'
            AND c.stop_requested_at IS NULL
            AND (%(server)s::text IS NULL OR c.server_name = %(server)s)
            AND c.deadline_at > clock_timestamp() AND r.id = c.run_id AND r.state <> 'cancelled'
        RETURNING c.*
    ), logged AS (
        INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)
        SELECT tenant_id, %(worker)s, 'call.running', run_id, id,
            jsonb_build_object({CALL_FACTS}, 'fence', fence, 'attempt', attempts, 'queue_wait_s',
                CAST(EXTRACT(EPOCH FROM started_at - queued_at) AS double precision))
        FROM claimed
    )
    SELECT id, fence, run_id, tenant_id, actor, tool, method, server_name, server_version_id,
        tool_version_id, delivery, call_timeout_s, arguments, attempts, traceparent, priority,
        decided_by IS NOT NULL AS approved, worker_id AS worker,
        COALESCE(answers, '{{}}') AS answers, log_level, trace,
        EXTRACT(EPOCH FROM deadline_at - clock_timestamp())::double precision AS remaining_s,
        EXTRACT(EPOCH FROM started_at - queued_at)::double precision AS queue_wait_s,
        EXTRACT(EPOCH FROM started_at - COALESCE(decided_at, created_at))::double precision AS age_s
    FROM claimed
    """  # noqa: S608 - a constant

_FINISH: Final = f"""
    WITH wanted AS (
        SELECT * FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(
            id text, fence bigint, state text, result text, is_error boolean, error jsonb,
            timings jsonb, attempts integer, shape text, not_before_s double precision)
    ), ended AS (
        UPDATE calls c SET state = w.state, result = CAST(w.result AS json), is_error = w.is_error,
            error = w.error, timings = w.timings, result_shape = w.shape,
            attempts = COALESCE(w.attempts, c.attempts), open_questions = 0,
            worker_id = CASE WHEN w.state = 'queued' THEN NULL ELSE c.worker_id END,
            queued_at = CASE WHEN w.state = 'queued' THEN clock_timestamp() ELSE c.queued_at END,
            sent_at = CASE WHEN w.state = 'queued' THEN clock_timestamp() ELSE c.sent_at END,
            not_before = clock_timestamp() + make_interval(secs => w.not_before_s),
            ended_at = CASE WHEN w.state = 'queued' THEN NULL ELSE clock_timestamp() END
        FROM wanted w
        WHERE c.id = w.id AND c.fence = w.fence AND c.state = 'running' AND c.worker_id = %(worker)s
        RETURNING c.id, c.tenant_id, c.run_id, c.tool, c.server_name, c.server_version_id,
            c.tool_version_id, c.arguments_digest, c.state, c.fence, c.attempts, c.is_error,
            c.error, c.timings
    ), logged AS (
        INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)
        SELECT tenant_id, %(worker)s, 'call.' || state, run_id, id,
            jsonb_strip_nulls(jsonb_build_object({CALL_FACTS}, 'fence', fence, 'attempt', attempts,
                'is_error', is_error, 'code', error ->> 'code', 'timings', timings))
        FROM ended
    ), {forget("%(worker)s")}
    SELECT id FROM ended
    """  # noqa: S608 - a constant

_STOP = text(
    f"""
    WITH asked AS (
        SELECT id, state FROM calls
        WHERE id = ANY(:ids) AND (CAST(:tenant AS text) IS NULL OR tenant_id = :tenant)
        ORDER BY id FOR UPDATE
    ), stopped AS (
        UPDATE calls c SET
            stop_requested_at = COALESCE(c.stop_requested_at, clock_timestamp()),
            stop_reason = COALESCE(c.stop_reason, :reason),
            state = CASE WHEN a.state = 'running' THEN a.state ELSE 'stopped' END,
            ended_at = CASE WHEN a.state = 'running' THEN NULL ELSE clock_timestamp() END,
            error = CASE WHEN a.state = 'running' THEN NULL ELSE CAST(:error AS jsonb) END
        FROM asked a
        WHERE c.id = a.id AND a.state IN ('queued', 'running', 'awaiting_approval')
        RETURNING c.*
    ), logged AS (
        INSERT INTO audit (tenant_id, actor, event, run_id, call_id, details)
        SELECT tenant_id, :actor,
            CASE WHEN state = 'running' THEN 'call.stop_requested' ELSE 'call.stopped' END,
            run_id, id, jsonb_build_object({CALL_FACTS}, 'reason', CAST(:reason AS text))
        FROM stopped
    )
    SELECT a.id, a.state AS was FROM asked a
    """  # noqa: S608 - a constant
)

_COLUMNS: Final = """
    id, run_id, tenant_id, actor, tool, server_name, state, delivery, attempts, is_error, result,
    error, timings, idempotency_key, created_at, started_at, ended_at, deadline_at,
    stop_requested_at, stop_reason, server_version_id, tool_version_id, worker_id, decided_by,
    decided_at, method, answers, open_questions
"""
_READ: Final = f"SELECT {_COLUMNS} FROM calls WHERE id = ANY(%(ids)s)"  # noqa: S608 - a constant


async def submit(database: Database, batch: Sequence[NewCall]) -> list[Submitted | FleetError]:
    """Insert calls in the state they ask for; return one row or one error for each, in order.

    A known (tenant, idempotency key) gives the earlier call when tool and arguments agree, else
    `idempotency_mismatch`; a run that is not open gives `run_closed`, `run_cancelled` or
    `run_expired`; a tenant's limit on calls at once gives `tenant_limited`.
    """
    free = [call for call in batch if not call.caps]
    answers: dict[str, Submitted | FleetError] = {}
    if free:
        inserted = await database.statement(_SUBMIT, rows=_rows(free))
        answers = {row["id"]: Submitted(row["id"], True, row["deadline_at"]) for row in inserted}
    bound = [call for call in batch if call.caps]
    for tenant in {call.tenant_id for call in bound}:
        mine = [call for call in bound if call.tenant_id == tenant]
        answers |= await _submit_within_limits(database, mine)
    refused = [call for call in batch if call.id not in answers]
    if refused:
        async with database.transaction() as connection:
            answers |= await _why_not_inserted(connection, refused)
    return [answers[call.id] for call in batch]


async def _submit_within_limits(
    database: Database, batch: Sequence[NewCall]
) -> dict[str, Submitted | FleetError]:
    """Insert as many of a tenant's calls as its caps have room for; refuse the others.

    A call that is known already takes no room, and is not refused.
    """
    tenant = batch[0].tenant_id
    async with database.transaction() as connection:
        counts = await concurrency.unfinished(connection, tenant)
        keys = [call.idempotency_key for call in batch if call.idempotency_key]
        known = await connection.execute(_KNOWN_KEYS_TEXT, {"tenant": tenant, "keys": keys})
        old = {row.idempotency_key for row in known}
        answers: dict[str, Submitted | FleetError] = {}
        granted: list[NewCall] = []
        for call in batch:
            if call.idempotency_key in old:
                continue
            if (cap := concurrency.full(call.caps, counts)) is not None:
                answers[call.id] = concurrency.refusal(tenant, cap)
            else:
                counts[f"{call.server_name}/{call.upstream_name}"] += 1
                granted.append(call)
        if granted:
            inserted = await connection.execute(_SUBMIT_TEXT, {"rows": _rows(granted)})
            for row in inserted:
                answers[row.id] = Submitted(row.id, True, row.deadline_at)
    return answers


async def is_known(database: Database, tenant: str, idempotency_key: str) -> bool:
    """Say whether a tenant has submitted something with this key."""
    rows = await database.statement(_KNOWN_KEYS, tenant=tenant, keys=[idempotency_key])
    return bool(rows)


def _rows(batch: Sequence[NewCall]) -> str:
    return to_json(
        [
            {
                **{name: it for name, it in vars(call).items() if name not in _NO_COLUMNS},
                "delivery": call.delivery.value,
                "state": call.state.value,
                "arguments": to_json(call.arguments),
                "result": None if call.result is None else to_json(call.result),
            }
            for call in batch
        ]
    )


async def _why_not_inserted(
    connection: AsyncConnection, refused: Sequence[NewCall]
) -> dict[str, Submitted | FleetError]:
    """Return the earlier call, or the error, for calls that were not inserted."""
    keys = [
        {"tenant_id": call.tenant_id, "idempotency_key": call.idempotency_key}
        for call in refused
        if call.idempotency_key
    ]
    ids = [call.id for call in refused]
    existing = await connection.execute(_EXISTING, {"keys": to_json(keys), "ids": ids})
    rows = [dict(row) for row in existing.mappings()]
    known = {(row["tenant_id"], row["idempotency_key"]): row for row in rows}
    taken = {row["id"] for row in rows}
    states = await connection.execute(_RUN_STATES, {"ids": [call.run_id for call in refused]})
    run_states = {row["id"]: dict(row) for row in states.mappings()}
    return {call.id: _earlier_or_error(call, known, taken, run_states) for call in refused}


def _earlier_or_error(
    call: NewCall,
    known: Mapping[tuple[str, str], Mapping[str, Any]],
    taken: set[str],
    run_states: Mapping[str, Mapping[str, Any]],
) -> Submitted | FleetError:
    earlier = known.get((call.tenant_id, call.idempotency_key or ""))
    if earlier is not None:
        same = (earlier["tool"], earlier["arguments_digest"]) == (call.tool, call.arguments_digest)
        if same:
            return Submitted(earlier["id"], False, earlier["deadline_at"])
        return FleetError(
            Code.IDEMPOTENCY_MISMATCH,
            f"idempotency key {call.idempotency_key!r} was used for another call of "
            f"{earlier['tool']}",
            hint="use a new key for a call with another tool or other arguments",
        )
    if call.id in taken:
        return FleetError(
            Code.IDEMPOTENCY_MISMATCH,
            f"there is another call with the id {call.id}",
            hint="send it with a new random id",
            details={"call_id": call.id},
        )
    return run_not_open(call.run_id, run_states.get(call.run_id))


def run_not_open(run_id: str, run: Mapping[str, Any] | None) -> FleetError:
    """Return the error that says why a run takes no more calls."""
    if run is None:
        return FleetError(Code.UNKNOWN_RUN, f"there is no run {run_id}", hint="start a run first")
    if run["state"] == "cancelled":
        code, what = Code.RUN_CANCELLED, "was cancelled"
    elif run["state"] == "closed":
        code, what = Code.RUN_CLOSED, "is closed"
    else:
        code, what = Code.RUN_EXPIRED, "has expired"
    return FleetError(code, f"run {run_id} {what}", hint="start a new run")


async def claim(
    database: Database, worker: str, ids: Sequence[str], *, server: str | None = None
) -> list[Claim | None]:
    """Move calls `queued -> running` for ``worker``; None where the call is not to be had.

    With ``server`` only its own are: whoever reaches the broker can put any id into any queue.
    """
    rows = await database.statement(_CLAIM, worker=worker, ids=list(ids), server=server)
    claims = {row["id"]: _claim(row) for row in rows}
    return [claims.pop(id_, None) for id_ in ids]


def _claim(row: Mapping[str, Any]) -> Claim:
    exact = {"delivery": Delivery(row["delivery"]), "answers": tuple(row["answers"])}
    return Claim(**{**row, **exact})


async def finish(database: Database, worker: str, endings: Sequence[Ending]) -> list[bool]:
    """End attempts of ``worker``, fenced; False where the claim was no longer its own.

    Each result, state and audit line are one transaction, and so is that what an ended call asked
    is erased.
    """
    for ending in endings:
        if ending.state not in TRANSITIONS[CallState.RUNNING]:
            raise ValueError(f"a running call cannot become {ending.state.value}")
    rows = to_json([_row(ending) for ending in endings])
    ended = {row["id"] for row in await database.statement(_FINISH, worker=worker, rows=rows)}
    return [ending.id in ended for ending in endings]


def _row(ending: Ending) -> dict[str, Any]:
    # The result travels as text: inside a JSON array Postgres would refuse it for a NUL character.
    result = ending.result
    if isinstance(result, dict):
        result = to_json(result)
    return {**vars(ending), "state": ending.state.value, "result": result, "artifact": None}


async def stop(
    database: Database,
    ids: Sequence[str],
    *,
    actor: str,
    reason: str = "user",
    tenant: str | None = None,
) -> dict[str, StopAnswer]:
    """Ask calls to stop and say for each what that means; unknown ids are absent.

    A queued call ends `stopped` here and never runs, whatever workers or broker do. A running call
    carries the request; whoever runs it has to act on it.
    """
    error = FleetError(
        Code.STOPPED, "the call was stopped before it was dispatched", details={"reason": reason}
    )
    async with database.transaction() as connection:
        result = await connection.execute(
            _STOP,
            {
                "ids": list(ids),
                "tenant": tenant,
                "actor": actor,
                "reason": reason,
                "error": to_json(error.as_dict()),
            },
        )
        was = {row.id: CallState(row.was) for row in result}
    return {id_: _stop_answer(state) for id_, state in was.items()}


def _stop_answer(was: CallState) -> StopAnswer:
    if was.final:
        return StopAnswer.TOO_LATE
    if was is CallState.RUNNING:
        return StopAnswer.STOP_REQUESTED
    return StopAnswer.STOPPED_BEFORE_DISPATCH


async def read(database: Database, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the rows of calls by id, as the record has them; unknown ids are absent."""
    return {row["id"]: row for row in await database.statement(_READ, ids=list(ids))}


async def stops_of(database: Database, worker: str) -> list[str]:
    """Return the running calls of ``worker`` that were asked to stop: what revokes rest on."""
    async with database.transaction() as connection:
        result = await connection.execute(
            text(
                "SELECT c.id FROM calls c JOIN runs r ON r.id = c.run_id"
                " WHERE c.worker_id = :worker AND c.state = 'running'"
                " AND (c.stop_requested_at IS NOT NULL OR r.state = 'cancelled')"
            ),
            {"worker": worker},
        )
        return [row.id for row in result]
