"""The story of one call, from its message to its record.

    claim -> policy -> breaker -> quota -> session -> approval, where there is one -> tools/call
        -> judge -> output gate -> record

What is asked of a server beside its tools (`registry.requests`) goes the same way.

Whatever happens on the way, a claimed call ends here in exactly one state: answered, failed,
given back to the queue, or stopped. A cancellation (revoke, drain) ends the waiting, never the
bookkeeping: what has to be written is written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeVar

from registry.answers import Answer as Given
from registry.answers import NewQuestion
from registry.artifacts import NewArtifact, link
from registry.calls import TOOLS_CALL, CallState, Claim, Ending, is_id
from registry.definitions import Delivery
from registry.ended import UNKNOWN_TIER
from registry.errors import Code, FleetError
from registry.output_rules import DEFAULT_RULES, OutputRules
from registry.requests import CLASS
from registry.results import FINDINGS
from registry.server_time import believed
from registry.shapes import shape_of
from registry.telemetry import SERVER_VERSION, Kind, Step, Trace, work_on
from registry.tools import delivery_class
from workers import tracing
from workers.aio_pool import DRAIN, TIME_LIMIT, USER, Job
from workers.asking import LAST_WORD_S, Interview
from workers.caller import NOBODY, Caller
from workers.large import LargeResult
from workers.limits_redis import Lease as QuotaLease
from workers.outcome import ANSWERED, STOPPED, Rerun, consequence, next_state
from workers.output_gate import Gate, error_out
from workers.pool import Lease, SessionKey
from workers.quota import MustWait, asks_for_a_pause
from workers.runtime import LEASE_LOST, ServedVersion, WorkerRuntime
from workers.session import Session, ToolResult

logger = logging.getLogger("toolfleet.invoke")

T = TypeVar("T")

RERUN_PAUSE_S: Final = 0.1
HERE: Final = frozenset({Rerun.IF_DELIVERY_ALLOWS, Rerun.AFTER_A_PAUSE})
HOLD_SLACK_S: Final = 5.0  # on top of a call's own limit, before its session is taken away


class StopReason(StrEnum):
    """Why a running call was cancelled; only a drain may let it run again."""

    USER = USER
    DRAIN = DRAIN
    TIME_LIMIT = TIME_LIMIT
    LEASE_LOST = LEASE_LOST


@dataclass
class Attempt:
    """What is known so far of one claimed call."""

    claim: Claim
    deadline: float
    """When the call must have ended, on this process's monotonic clock."""
    trace: Trace
    dispatched: bool = False
    """Whether the server may have seen the call since its latest try began."""
    dispatches: int = 0
    waited: bool = False
    """Whether it has waited for its turn in its server's quota."""
    session: Session | None = None
    key: SessionKey | None = None
    """Whose sessions the latest try asked for."""
    shared: bool = False
    """Whether other calls were under way in the session when this one was stopped."""
    timings: dict[str, Any] = field(default_factory=dict)
    tier: str = UNKNOWN_TIER
    """Its tenant's, once its policy is known."""
    rules: OutputRules = DEFAULT_RULES
    """What holds for whatever the server says; the tenant's, once its policy is known."""

    @property
    def remaining_s(self) -> float:
        """Return the seconds left until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def begun(self) -> float:
        """Return when the call was submitted, or approved, on this process's monotonic clock."""
        return self.deadline - self.claim.remaining_s - self.claim.age_s


@dataclass(frozen=True)
class Wanted:
    """What a call asks of its server."""

    name: str
    """A tool as its server calls it, else the method: what policies, checks and holds know."""
    delivery: Delivery
    """As the definition has it: what the row says of its class decides about reruns alone, so
    that a forged one opens no gate."""
    params: dict[str, Any]
    schema: dict[str, Any] | None = None
    """What its result has to fit."""
    mirrored: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    """Which arguments travel as headers too."""


@dataclass(frozen=True)
class Answer:
    """What a call got: its checked and redacted result, as it is to be recorded."""

    result: dict[str, Any] | str
    is_error: bool
    artifact: NewArtifact | None = None
    shape: str | None = "large"


async def invoke(worker: WorkerRuntime, call_id: object, job: Job) -> CallState | None:
    """Run a call to its end; return its state, or None when it is somebody else's, or no call's.

    ``job`` says why this coroutine is being cancelled, once it is; then `asyncio.CancelledError`
    is raised after the record is written.
    """
    if not is_id(call_id):  # anybody who reaches Redis can write a message
        logger.warning("a message that names no call was dropped")
        return None
    early = worker.quotas.shut and await _turned_away(worker.quotas.opened())
    received = time.monotonic()
    claim, cancelled = await to_the_end(worker.claim(call_id))
    cancelled = cancelled or early
    if claim is None:
        return await worker.ended_before(call_id)
    trace = worker.client.tracer.begin("call", Kind.CONSUMER, claim.traceparent)
    work_on(trace)
    tracing.begin(trace, claim, received)
    attempt = Attempt(claim, time.monotonic() + claim.remaining_s, trace)
    attempt.timings["queue_wait_s"] = round(claim.queue_wait_s, 6)
    try:
        if cancelled:
            raise asyncio.CancelledError
        with worker.running(claim.id, job):
            ending = await _run(worker, attempt)
    except asyncio.CancelledError:
        cancelled = True
        reason = StopReason(job.reason or DRAIN)
        ending, _ = await to_the_end(_stopped(worker, attempt, reason))
    except Exception as error:
        logger.exception("call %s of %s failed inside the worker", claim.id, claim.tool)
        ending = _ending(worker, attempt, _internal(claim, error))
    trace.interrupt(ending.state.value)
    try:
        with trace.step("commit"):
            await to_the_end(worker.finish(claim, ending, tier=attempt.tier, begun=attempt.begun))
    finally:
        tracing.end(trace, claim, ending)
        worker.client.tracer.end(trace)
    if cancelled:
        raise asyncio.CancelledError
    return ending.state


async def _run(worker: WorkerRuntime, attempt: Attempt) -> Ending:
    """Dispatch until there is an answer, an error that ends the call, or no attempt left."""
    while True:
        try:
            answer = await _dispatch(worker, attempt)
        except MustWait as wait:
            if (ending := _waits_in_queue(worker, attempt, wait)) is not None:
                return ending
            with attempt.trace.step("quota wait"):
                await worker.quotas.wait(wait)
            attempt.waited = True
        except FleetError as error:
            ending = _ending(worker, attempt, error)
            rerun = consequence(error).rerun
            if ending.state is not CallState.QUEUED or rerun not in HERE:
                return ending
            if rerun is Rerun.IF_DELIVERY_ALLOWS:
                await asyncio.sleep(RERUN_PAUSE_S)
        else:
            return Ending(
                attempt.claim.id,
                attempt.claim.fence,
                CallState.SUCCEEDED,
                result=answer.result,
                is_error=answer.is_error,
                artifact=answer.artifact,
                shape=answer.shape,
                timings=attempt.timings,
                attempts=_attempts(attempt),
            )


async def _dispatch(worker: WorkerRuntime, attempt: Attempt) -> Answer:
    """Make the call once; return its checked and redacted result."""
    claim = attempt.claim
    attempt.dispatched = False
    served = await worker.served(claim.server_version_id)
    attempt.trace.attributes[SERVER_VERSION] = served.definition.version
    wanted = await _wanted(worker, served, claim)
    with attempt.trace.step("policy"):
        policy = await worker.policies.of(claim.tenant_id)
        attempt.rules, attempt.tier = policy.output, policy.tier.name
        policy.refuse_call(served.definition, wanted.name, wanted.delivery, approved=claim.approved)
        gate = Gate(claim.tenant_id, worker.server, wanted.name, policy.output, worker.guardrails)
        await gate.arguments(claim.arguments)
        if claim.method == TOOLS_CALL:
            await worker.settled(served, attempt.remaining_s)
            worker.refuse_held(served, wanted.name)
    with attempt.trace.step("breaker"):
        permit = await served.breaker.allow()
    verdict = STOPPED.verdict
    lease = None
    try:
        lease = await _within_quota(worker, served, attempt)
        try:
            result = await _call(worker, served, attempt, wanted, gate)
        except FleetError as error:
            attempt.trace.interrupt(error.code.code)
            if not await _credential_is_newer(served, attempt, error):
                raise
            # Nothing has run yet.
            result = await _call(worker, served, attempt, wanted, gate)
        verdict = ANSWERED.verdict
        worker.figures.result_bytes.observe(result.size_bytes)
        _refuse_too_large(claim, result, policy.limits.result_bytes)
        if result.large is not None:
            return await _read_large(worker, attempt, gate, result.large, wanted.schema)
        with attempt.trace.step("redact"):
            clean = await gate.result(claim.tool, wanted.schema, result.body, result.size_bytes)
        _note(worker, attempt, clean.findings)
        is_error = bool(clean.body.get("isError"))
        shape = shape_of(result.body) if claim.method == TOOLS_CALL else None
        return Answer(clean.body, is_error, shape=shape)
    except FleetError as error:
        attempt.trace.interrupt(error.code.code)
        verdict = consequence(error).verdict
        if attempt.key is not None and asks_for_a_pause(error):
            identity = attempt.key.identity
            await worker.quotas.pause(served.definition, identity, error.retry_after_s)
        raise
    finally:
        worker.quotas.end(lease)
        worker.figures.attempted(verdict)
        await permit.report(verdict)


async def _wanted(worker: WorkerRuntime, served: ServedVersion, claim: Claim) -> Wanted:
    if claim.method != TOOLS_CALL:
        return Wanted(claim.method, CLASS, claim.arguments)
    tool = await worker.tool(claim.tool_version_id)
    return Wanted(
        tool.name,
        delivery_class(served.definition, tool.name, tool.annotations),
        {"name": tool.name, "arguments": served.arguments(claim, tool.name)},
        tool.output_schema,
        tool.mirrored,
    )


async def _within_quota(
    worker: WorkerRuntime, served: ServedVersion, attempt: Attempt
) -> QuotaLease | None:
    """Take the call from what its server allows; raise `MustWait` while it allows nothing."""
    if not worker.quotas.concerns(served.definition):
        return None
    claim = attempt.claim
    step = attempt.trace.step("quota")
    key = await _key(served, claim, attempt.remaining_s)
    try:
        return await worker.quotas.take(
            served.definition,
            key.identity,
            claim.delivery,
            holds_s=served.definition.pool.borrow_timeout_s + claim.call_timeout_s,
            again=attempt.waited,
        )
    finally:
        step.end()


def _waits_in_queue(worker: WorkerRuntime, attempt: Attempt, wait: MustWait) -> Ending | None:
    """Return the ending of a call that cannot wait here: back in the queue, or refused."""
    claim = attempt.claim
    if wait.in_place and wait.wait_s < attempt.remaining_s:
        return None
    if wait.wait_s < attempt.remaining_s:
        return Ending(
            claim.id,
            claim.fence,
            CallState.QUEUED,
            timings=attempt.timings,
            attempts=_attempts(attempt),
            not_before_s=wait.wait_s,
        )
    worker.quotas.counts["refused"] += 1
    return Ending(
        claim.id,
        claim.fence,
        CallState.FAILED,
        error=wait.refusal.as_dict(),
        timings=attempt.timings,
        attempts=_attempts(attempt),
    )


async def _credential_is_newer(served: ServedVersion, attempt: Attempt, error: FleetError) -> bool:
    """Say whether a call that failed for its credential, before anything ran, has a newer one."""
    if error.code is Code.CREDENTIAL_ROTATED:
        return True
    rejected = error.code is Code.CREDENTIAL_REJECTED and not attempt.dispatched
    if not rejected or attempt.key is None:
        return False
    try:
        async with asyncio.timeout(attempt.remaining_s):
            return await served.keyring.renewed(attempt.key)
    except (FleetError, TimeoutError):
        return False  # what the server said is what there is to tell


async def _read_large(
    worker: WorkerRuntime,
    attempt: Attempt,
    gate: Gate,
    large: LargeResult,
    schema: dict[str, Any] | None,
) -> Answer:
    """Have a large result pass the gate; keep it beside the ledger if it stays large."""
    claim = attempt.claim
    with attempt.trace.step("redact"):
        clean = await worker.large.finish(
            large, claim.tool, schema, gate=gate, timeout_s=attempt.remaining_s
        )
    _note(worker, attempt, clean.findings)
    if len(clean.encoded) <= worker.settings.inline_result_bytes:
        return Answer(clean.encoded.decode(), clean.is_error)
    artifact = NewArtifact(claim.tenant_id, claim.id, claim.fence, clean.sha256, clean.encoded)
    instead = link(
        artifact,
        claim.tool,
        is_error=clean.is_error,
        structured=clean.structured,
        preview=clean.preview,
    )
    if clean.findings:
        instead["_meta"][FINDINGS] = clean.findings
    return Answer(instead, clean.is_error, artifact)


def _note(worker: WorkerRuntime, attempt: Attempt, findings: list[dict[str, str]]) -> None:
    """Count what was found in a result, and have the call's audit entry say it."""
    if findings:
        worker.figures.found(findings)
        attempt.timings["findings"] = findings


def _refuse_too_large(claim: Claim, result: ToolResult, limit: int | None) -> None:
    if limit is not None and result.size_bytes > limit:
        raise FleetError(
            Code.RESULT_TOO_LARGE,
            f"the result of {claim.tool} is {result.size_bytes} bytes; tenant {claim.tenant_id!r} "
            f"may have {limit}",
            hint="ask for less, or ask an operator for another tier; the call itself did run",
        )


async def _call(
    worker: WorkerRuntime, served: ServedVersion, attempt: Attempt, wanted: Wanted, gate: Gate
) -> ToolResult:
    """Borrow a session and make the call through it; discard the session if it may be spoiled."""
    claim = attempt.claim
    waited_from = time.monotonic()
    patience = min(served.definition.pool.borrow_timeout_s, attempt.remaining_s)
    if patience <= 0:
        raise _late(claim)
    borrowing = attempt.trace.step("borrow")
    key = attempt.key = await _key(served, claim, patience)
    async with served.pool.borrow(
        key,
        patience,
        borrower=f"call {claim.id} of {claim.tool}",
        hold_limit_s=min(claim.call_timeout_s, attempt.remaining_s) + HOLD_SLACK_S,
    ) as lease:
        borrowing.end(attributes={"toolfleet.borrow.spawned": lease.spawned})
        attempt.timings["borrow_wait_s"] = round(lease.waited_s, 6)
        attempt.timings["spawned"] = lease.spawned
        worker.figures.borrow_wait.observe(time.monotonic() - waited_from)
        timeout_s = min(claim.call_timeout_s, attempt.remaining_s)
        if timeout_s <= 0:
            raise _late(claim)
        if claim.approved:
            await worker.use_approval(claim, served, wanted.name)
        worker.refuse_without_lease(claim)
        worker.quotas.refuse_paused(served.definition, key.identity)
        attempt.session = lease.session
        attempt.dispatched = True
        attempt.dispatches += 1
        until = attempt.deadline - min(LAST_WORD_S, attempt.remaining_s / 10)
        interview = Interview(worker.desk, claim, gate, until, dispatch=attempt.dispatches)
        started = time.monotonic()
        asking = tracing.asking(attempt.trace, claim.method, wanted.name, lease.session)
        try:
            result = await lease.session.ask(
                claim.method,
                wanted.params,
                timeout_s=timeout_s,
                meta={"traceparent": asking.traceparent, **(claim.trace or {})},
                on_progress=worker.progress_of(claim.id, attempt.rules),
                mirrored=wanted.mirrored,
                caller=_caller(worker, served, attempt, lease, interview),
            )
        except FleetError as error:
            attempt.dispatched = getattr(error, "dispatched", attempt.dispatched)
            if error.code is Code.RATE_LIMITED:
                attempt.dispatches -= 1  # turned away unseen: that was no attempt
            if not consequence(error).keep_session:
                lease.discard(error.code.code, dead=error.code is Code.SESSION_LOST)
            attempt.session = None
            raise
        except asyncio.CancelledError:
            attempt.shared = lease.shared
            interview.leave_open()  # the call may run again
            lease.discard("stopped")
            raise
        finally:
            await interview.close()
            attempt.timings["call_s"] = round(time.monotonic() - started, 6)
            worker.figures.call.observe(time.monotonic() - started)
        # Given back, it may be another call's in the next instant: a stop must not close it.
        attempt.session = None
        _answered(worker, attempt, asking, result)
        return result


def _answered(worker: WorkerRuntime, attempt: Attempt, asking: Step, result: ToolResult) -> None:
    """Note that the server has answered, and how long it says that it took."""
    tracing.answered(asking, result)
    server_s = believed(result.server_s, attempt.timings["call_s"])
    if server_s is not None:
        attempt.timings["server_s"] = round(server_s, 6)
        worker.figures.server_time.observe(server_s)


def _caller(
    worker: WorkerRuntime,
    served: ServedVersion,
    attempt: Attempt,
    lease: Lease[Session],
    interview: Interview,
) -> Caller:
    """Return whoever made a call, as its server reaches them during this attempt.

    While an answer is awaited, its session is held; between two requests of the call nothing of it
    runs, and the second is made only if the first could be.
    """
    claim = attempt.claim
    answers = tuple(it for it in claim.answers if it in served.definition.questions.kinds)
    if not answers and claim.log_level is None:
        return NOBODY

    async def ask(asked: Sequence[NewQuestion], *, between: bool = False) -> list[Given]:
        lease.allow(attempt.remaining_s + HOLD_SLACK_S)
        attempt.dispatched = attempt.dispatched and not between
        given = await interview.ask(asked, between=between)
        if between:
            worker.refuse_without_lease(claim)
            worker.refuse_held(served, interview.tool)
            worker.quotas.refuse_paused(served.definition, lease.key.identity)
            attempt.dispatched = True
        return given

    return Caller(
        answers,
        ask if answers else None,
        claim.log_level,
        worker.logs_of(claim.id, attempt.rules) if claim.log_level else None,
        attempt.deadline,
    )


async def _key(served: ServedVersion, claim: Claim, patience_s: float) -> SessionKey:
    """Return the key of the tenant's sessions, once there is a token if they need one."""
    try:
        async with asyncio.timeout(patience_s):
            return await served.keyring.key_of(claim.tenant_id)
    except TimeoutError:
        raise FleetError(
            Code.CREDENTIAL_UNAVAILABLE,
            f"the credential for server {claim.server_name} could not be had in {patience_s:g} s",
            retry_after_s=1,
        ) from None


def _ending(worker: WorkerRuntime, attempt: Attempt, error: FleetError) -> Ending:
    claim = attempt.claim
    state = next_state(
        error,
        delivery=claim.delivery,
        dispatched=attempt.dispatched,
        attempts_left=_attempts(attempt) < worker.settings.max_attempts and attempt.remaining_s > 0,
    )
    body = error_out(error.as_dict(), attempt.rules)
    if error.code is Code.RESULT_BLOCKED:
        _note(worker, attempt, error.details["findings"])
    if state is CallState.OUTCOME_UNKNOWN:
        body = _unknown(claim, body)
    return Ending(
        claim.id,
        claim.fence,
        state,
        error=None if state is CallState.QUEUED else body,
        timings=attempt.timings,
        attempts=_attempts(attempt),
    )


async def _stopped(worker: WorkerRuntime, attempt: Attempt, reason: StopReason) -> Ending:
    """Make sure that a cancelled call's work has stopped, and say how that was shown.

    The SDK has told the server already (``notifications/cancelled``, or a closed stream); closing
    the session then climbs the ladder to SIGKILL for a stdio child that does not go quiet.
    """
    claim = attempt.claim
    if attempt.session is not None and attempt.shared:
        # Closing it would take the neighbours' calls along: it ends when the last of them has.
        attempt.timings["stop"] = {"rung": "notified", "elapsed_s": 0.0}
    elif attempt.session is not None:
        report = await attempt.session.close()
        attempt.timings["stop"] = {"rung": report.rung, "elapsed_s": round(report.elapsed_s, 3)}
    if (stop := attempt.timings.get("stop")) is not None:
        worker.figures.stopped(stop["rung"], stop["elapsed_s"])
    if reason in (StopReason.DRAIN, StopReason.LEASE_LOST):
        again = claim.delivery.may_rerun or not attempt.dispatched
        error = FleetError(
            Code.WORKER_LOST,
            f"the worker of server {claim.server_name} was stopped while {claim.tool} ran",
        )
        if again:
            return Ending(
                claim.id,
                claim.fence,
                CallState.QUEUED,
                timings=attempt.timings,
                attempts=_attempts(attempt),
            )
        return Ending(
            claim.id,
            claim.fence,
            CallState.OUTCOME_UNKNOWN,
            error=_unknown(claim, error.as_dict()),
            timings=attempt.timings,
        )
    error = FleetError(
        Code.STOPPED,
        f"{claim.tool} was stopped"
        + (" while it ran on the server" if attempt.dispatched else " before it was dispatched"),
        hint="what it had done until then is done; look in the target system" * attempt.dispatched,
        details={"reason": reason.value, "dispatched": attempt.dispatched},
    )
    return Ending(
        claim.id, claim.fence, CallState.STOPPED, error=error.as_dict(), timings=attempt.timings
    )


def _attempts(attempt: Attempt) -> int:
    """Return how often the call was dispatched in all: the claim counted its first time."""
    return attempt.claim.attempts - 1 + attempt.dispatches


def _unknown(claim: Claim, cause: dict[str, Any]) -> dict[str, Any]:
    return FleetError(
        Code.OUTCOME_UNKNOWN,
        f"{claim.tool} was dispatched to server {claim.server_name} and its outcome is not known: "
        + cause["message"],
        hint="check in the target system whether the effect happened before you send it again",
        details={"cause": cause["code"], **cause.get("details", {})},
    ).as_dict()


def _late(claim: Claim) -> FleetError:
    return FleetError(
        Code.DEADLINE_EXCEEDED,
        f"the deadline of {claim.tool} passed while it waited for a session of {claim.server_name}",
        hint="give a longer timeout_s, or a larger pool max_size",
    )


def _internal(claim: Claim, error: Exception) -> FleetError:
    return FleetError(
        Code.INTERNAL,
        f"{claim.tool} on server {claim.server_name} failed inside the worker "
        f"({type(error).__name__})",
        hint="look at the worker's log; this is a defect of Toolfleet",
    )


async def _turned_away(waiting: Awaitable[None]) -> bool:
    """Await what may be broken off; say whether it was, so that its call is ended properly."""
    try:
        await waiting
    except asyncio.CancelledError:
        return True
    return False


async def to_the_end(awaitable: Awaitable[T]) -> tuple[T, bool]:
    """Await what must not be left half done; say whether a cancellation came meanwhile."""
    task = asyncio.ensure_future(awaitable)
    cancelled = False
    while True:
        try:
            return await asyncio.shield(task), cancelled
        except asyncio.CancelledError:
            if task.cancelled():
                raise
            cancelled = True
