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
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeVar

from registry.answers import Answer as Given
from registry.answers import NewQuestion
from registry.artifacts import NewArtifact, link
from registry.calls import TOOLS_CALL, CallState, Claim, Ending, is_id
from registry.errors import Code, FleetError
from registry.requests import CLASS
from registry.results import FINDINGS
from registry.server_time import believed
from registry.shapes import shape_of
from registry.telemetry import SERVER_VERSION, Kind, Step, work_on
from registry.tools import delivery_class
from workers import tracing
from workers.aio_pool import DRAIN, Job
from workers.asking import LAST_WORD_S, Interview
from workers.attempt import (
    Answer,
    Attempt,
    StopReason,
    Wanted,
    answered,
    failed,
    internal,
    late,
    refuse_too_large,
    stopped,
    turned_away,
)
from workers.caller import NOBODY, Caller
from workers.large import LargeResult
from workers.limits_redis import Lease as QuotaLease
from workers.outcome import ANSWERED, STOPPED, Rerun, consequence
from workers.output_gate import Gate
from workers.pool import Lease, SessionKey
from workers.quota import MustWait, asks_for_a_pause
from workers.runtime import ServedVersion, WorkerRuntime
from workers.session import Session, ToolResult

logger = logging.getLogger("toolfleet.invoke")

T = TypeVar("T")

RERUN_PAUSE_S: Final = 0.1
HERE: Final = frozenset({Rerun.IF_DELIVERY_ALLOWS, Rerun.AFTER_A_PAUSE})
HOLD_SLACK_S: Final = 5.0  # on top of a call's own limit, before its session is taken away


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
        ending = _failed(worker, attempt, internal(claim, error))
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
            if (ending := turned_away(attempt, wait)) is not None:
                worker.quotas.counts["refused"] += ending.state is CallState.FAILED
                return ending
            with attempt.trace.step("quota wait"):
                await worker.quotas.wait(wait)
            attempt.waited = True
        except FleetError as error:
            ending = _failed(worker, attempt, error)
            rerun = consequence(error).rerun
            if ending.state is not CallState.QUEUED or rerun not in HERE:
                return ending
            if rerun is Rerun.IF_DELIVERY_ALLOWS:
                await asyncio.sleep(RERUN_PAUSE_S)
        else:
            return answered(attempt, answer)


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
            await worker.following.settled(served, attempt.remaining_s)
            worker.following.refuse_held(served, wanted.name)
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
        refuse_too_large(claim, result.size_bytes, policy.limits.result_bytes)
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


async def _call(
    worker: WorkerRuntime, served: ServedVersion, attempt: Attempt, wanted: Wanted, gate: Gate
) -> ToolResult:
    """Borrow a session and make the call through it; discard the session if it may be spoiled."""
    claim = attempt.claim
    waited_from = time.monotonic()
    patience = min(served.definition.pool.borrow_timeout_s, attempt.remaining_s)
    if patience <= 0:
        raise late(claim)
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
            raise late(claim)
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
            worker.following.refuse_held(served, interview.tool)
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


def _failed(worker: WorkerRuntime, attempt: Attempt, error: FleetError) -> Ending:
    if error.code is Code.RESULT_BLOCKED:
        _note(worker, attempt, error.details["findings"])
    if error.code is Code.POOL_TIMEOUT:  # the longest waits are those that were in vain
        worker.figures.borrow_wait.observe(error.retry_after_s or 0.0)
    return failed(attempt, error, most_attempts=worker.settings.max_attempts)


async def _stopped(worker: WorkerRuntime, attempt: Attempt, reason: StopReason) -> Ending:
    """Make sure that a cancelled call's work has stopped, and say how that was shown.

    The SDK has told the server already (``notifications/cancelled``, or a closed stream); closing
    the session then climbs the ladder to SIGKILL for a stdio child that does not go quiet.
    """
    if attempt.session is not None and attempt.shared:
        # Closing it would take the neighbours' calls along: it ends when the last of them has.
        attempt.timings["stop"] = {"rung": "notified", "elapsed_s": 0.0}
    elif attempt.session is not None:
        report = await attempt.session.close()
        attempt.timings["stop"] = {"rung": report.rung, "elapsed_s": round(report.elapsed_s, 3)}
    if (stop := attempt.timings.get("stop")) is not None:
        worker.figures.stopped(stop["rung"], stop["elapsed_s"])
    return stopped(attempt, reason)


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
