"""One claimed call on its way: what is known of it so far, and every way in which it may end.

Pure: who runs the call (`workers.invoke`) does what has to be done, here is what it comes to.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from registry.artifacts import NewArtifact
from registry.calls import CallState, Claim, Ending
from registry.definitions import Delivery
from registry.ended import UNKNOWN_TIER
from registry.errors import Code, FleetError
from registry.output_rules import DEFAULT_RULES, OutputRules
from registry.telemetry import Trace
from workers.aio_pool import DRAIN, TIME_LIMIT, USER
from workers.outcome import next_state
from workers.output_gate import error_out
from workers.pool import SessionKey
from workers.quota import MustWait
from workers.runtime import LEASE_LOST
from workers.session import Session


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

    @property
    def count(self) -> int:
        """Return how often the call was dispatched in all: the claim counted its first time."""
        return self.claim.attempts - 1 + self.dispatches


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


# -- how it ends


def answered(attempt: Attempt, answer: Answer) -> Ending:
    """Return the ending of a call that has its answer."""
    return _ending(
        attempt,
        CallState.SUCCEEDED,
        attempts=attempt.count,
        result=answer.result,
        is_error=answer.is_error,
        artifact=answer.artifact,
        shape=answer.shape,
    )


def failed(attempt: Attempt, error: FleetError, *, most_attempts: int) -> Ending:
    """Return the ending that an error leads to: back in the queue, failed, or nobody knows."""
    state = next_state(
        error,
        delivery=attempt.claim.delivery,
        dispatched=attempt.dispatched,
        attempts_left=attempt.count < most_attempts and attempt.remaining_s > 0,
    )
    body = error_out(error.as_dict(), attempt.rules)
    if state is CallState.OUTCOME_UNKNOWN:
        body = _unknown(attempt.claim, body)
    told = None if state is CallState.QUEUED else body
    return _ending(attempt, state, attempts=attempt.count, error=told)


def turned_away(attempt: Attempt, wait: MustWait) -> Ending | None:
    """Return the ending of a call that its quota lets wait no longer here: later, or refused.

    None where it may wait in its place.
    """
    in_time = wait.wait_s < attempt.remaining_s
    if wait.in_place and in_time:
        return None
    if in_time:
        return _ending(attempt, CallState.QUEUED, attempts=attempt.count, not_before_s=wait.wait_s)
    refusal = wait.refusal.as_dict()
    return _ending(attempt, CallState.FAILED, attempts=attempt.count, error=refusal)


def stopped(attempt: Attempt, reason: StopReason) -> Ending:
    """Return the ending of a call whose work has been stopped."""
    claim = attempt.claim
    if reason in (StopReason.DRAIN, StopReason.LEASE_LOST):
        if claim.delivery.may_rerun or not attempt.dispatched:
            return _ending(attempt, CallState.QUEUED, attempts=attempt.count)
        error = FleetError(
            Code.WORKER_LOST,
            f"the worker of server {claim.server_name} was stopped while {claim.tool} ran",
        )
        body = _unknown(claim, error.as_dict())
        return _ending(attempt, CallState.OUTCOME_UNKNOWN, error=body)
    error = FleetError(
        Code.STOPPED,
        f"{claim.tool} was stopped"
        + (" while it ran on the server" if attempt.dispatched else " before it was dispatched"),
        hint="what it had done until then is done; look in the target system" * attempt.dispatched,
        details={"reason": reason.value, "dispatched": attempt.dispatched},
    )
    return _ending(attempt, CallState.STOPPED, error=error.as_dict())


def _ending(attempt: Attempt, state: CallState, **rest: Any) -> Ending:
    claim = attempt.claim
    return Ending(claim.id, claim.fence, state, timings=attempt.timings, **rest)


def _unknown(claim: Claim, cause: dict[str, Any]) -> dict[str, Any]:
    return FleetError(
        Code.OUTCOME_UNKNOWN,
        f"{claim.tool} was dispatched to server {claim.server_name} and its outcome is not known: "
        + cause["message"],
        hint="check in the target system whether the effect happened before you send it again",
        details={"cause": cause["code"], **cause.get("details", {})},
    ).as_dict()


# -- what is wrong with it


def late(claim: Claim) -> FleetError:
    """Return the error of a call whose deadline passed while it waited for a session."""
    return FleetError(
        Code.DEADLINE_EXCEEDED,
        f"the deadline of {claim.tool} passed while it waited for a session of {claim.server_name}",
        hint="give a longer timeout_s, or a larger pool max_size",
    )


def internal(claim: Claim, error: Exception) -> FleetError:
    """Return the error of a call that failed for a reason inside the worker."""
    return FleetError(
        Code.INTERNAL,
        f"{claim.tool} on server {claim.server_name} failed inside the worker "
        f"({type(error).__name__})",
        hint="look at the worker's log; this is a defect of Toolfleet",
    )


def refuse_too_large(claim: Claim, size_bytes: int, limit: int | None) -> None:
    """Raise `result_too_large` for a result that is larger than its tenant may have."""
    if limit is not None and size_bytes > limit:
        raise FleetError(
            Code.RESULT_TOO_LARGE,
            f"the result of {claim.tool} is {size_bytes} bytes; tenant {claim.tenant_id!r} "
            f"may have {limit}",
            hint="ask for less, or ask an operator for another tier; the call itself did run",
        )
