"""The one table from how an attempt ended to what follows.

Nothing else in the code asks "what kind of error was it": each code says here what the breaker
hears, whether the session may be used again, and whether the call may run again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from registry.calls import CallState
from registry.definitions import Delivery
from registry.errors import Code, FleetError
from workers.breaker import Verdict


class Rerun(StrEnum):
    """Whether the same call may be dispatched again."""

    NEVER = "never"
    IF_DELIVERY_ALLOWS = "if_delivery_allows"
    BACK_TO_QUEUE = "back_to_queue"
    AFTER_A_PAUSE = "after_a_pause"
    """The server refused it unseen and asked to be left alone (`workers.quota`)."""


class Effect(StrEnum):
    """What is known of the call's effect on the server's side."""

    NONE = "none"
    KNOWN = "known"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Consequence:
    """What follows from one kind of ending."""

    verdict: Verdict
    keep_session: bool
    rerun: Rerun
    effect: Effect


_OK: Final = Verdict.SUCCEEDED
_BAD: Final = Verdict.FAILED
_LATE: Final = Verdict.TIMED_OUT
_MUTE: Final = Verdict.ABSTAINED

ANSWERED: Final = Consequence(_OK, True, Rerun.NEVER, Effect.KNOWN)
STOPPED: Final = Consequence(_MUTE, False, Rerun.NEVER, Effect.UNKNOWN)

TABLE: Final[dict[Code, Consequence]] = {
    # The server answered: it is healthy, whatever the answer was.
    Code.TOOL_REFUSED: Consequence(_OK, True, Rerun.NEVER, Effect.KNOWN),
    Code.INVALID_ARGUMENTS: Consequence(_OK, True, Rerun.NEVER, Effect.KNOWN),
    Code.INPUT_REQUIRED: Consequence(_OK, False, Rerun.NEVER, Effect.KNOWN),
    Code.RESULT_INVALID: Consequence(_OK, True, Rerun.NEVER, Effect.KNOWN),
    Code.RESULT_TOO_LARGE: Consequence(_OK, False, Rerun.NEVER, Effect.KNOWN),
    Code.REDACTION_FAILED: Consequence(_OK, True, Rerun.NEVER, Effect.KNOWN),
    Code.RESULT_BLOCKED: Consequence(_OK, True, Rerun.NEVER, Effect.KNOWN),
    # The fleet's own checks: nothing was dispatched yet, or the server has answered.
    Code.GUARDRAIL_REFUSED: Consequence(_MUTE, True, Rerun.NEVER, Effect.KNOWN),
    Code.GUARDRAIL_FAILED: Consequence(_MUTE, True, Rerun.NEVER, Effect.KNOWN),
    # An HTTP server refused the request before it did anything.
    Code.CREDENTIAL_REJECTED: Consequence(_MUTE, False, Rerun.NEVER, Effect.NONE),
    Code.UPSTREAM_FORBIDDEN: Consequence(_OK, True, Rerun.NEVER, Effect.NONE),
    Code.UPSTREAM_NOT_FOUND: Consequence(_OK, False, Rerun.NEVER, Effect.NONE),
    Code.UPSTREAM_CONFLICT: Consequence(_OK, True, Rerun.NEVER, Effect.NONE),
    Code.RATE_LIMITED: Consequence(_MUTE, True, Rerun.AFTER_A_PAUSE, Effect.NONE),
    # The server or the way to it failed.
    Code.CALL_TIMEOUT: Consequence(_LATE, False, Rerun.NEVER, Effect.UNKNOWN),
    Code.SESSION_LOST: Consequence(_BAD, False, Rerun.IF_DELIVERY_ALLOWS, Effect.UNKNOWN),
    Code.LIMIT_EXCEEDED: Consequence(_BAD, False, Rerun.NEVER, Effect.UNKNOWN),
    Code.PROTOCOL_ERROR: Consequence(_BAD, False, Rerun.NEVER, Effect.UNKNOWN),
    # A gateway's 502 or 504 may stand in front of a server that did the work.
    Code.UPSTREAM_FAILED: Consequence(_BAD, False, Rerun.NEVER, Effect.UNKNOWN),
    # The session is with a program of ours, which found no way to the API behind it.
    Code.UPSTREAM_UNREACHABLE: Consequence(_BAD, True, Rerun.NEVER, Effect.NONE),
    Code.ADDRESS_REFUSED: Consequence(_BAD, True, Rerun.NEVER, Effect.NONE),
    Code.SERVER_UNAVAILABLE: Consequence(_BAD, False, Rerun.NEVER, Effect.NONE),
    # Ours: says nothing about the server, and nothing was dispatched.
    Code.POOL_TIMEOUT: Consequence(_MUTE, True, Rerun.BACK_TO_QUEUE, Effect.NONE),
    Code.POOL_CLOSED: Consequence(_MUTE, True, Rerun.BACK_TO_QUEUE, Effect.NONE),
    Code.POOL_FULL: Consequence(_MUTE, True, Rerun.NEVER, Effect.NONE),
    Code.CREDENTIAL_MISSING: Consequence(_MUTE, True, Rerun.NEVER, Effect.NONE),
    Code.CREDENTIAL_UNAVAILABLE: Consequence(_MUTE, True, Rerun.NEVER, Effect.NONE),
    Code.CREDENTIAL_EXPIRED: Consequence(_MUTE, True, Rerun.NEVER, Effect.NONE),
    Code.CREDENTIAL_ROTATED: Consequence(_MUTE, True, Rerun.BACK_TO_QUEUE, Effect.NONE),
    Code.BREAKER_OPEN: Consequence(_MUTE, True, Rerun.NEVER, Effect.NONE),
    Code.TOOL_HELD: Consequence(_MUTE, True, Rerun.NEVER, Effect.NONE),
    Code.POLICY_DENIED: Consequence(_MUTE, True, Rerun.NEVER, Effect.NONE),
    Code.APPROVAL_MISMATCH: Consequence(_MUTE, True, Rerun.NEVER, Effect.NONE),
    Code.APPROVAL_EXPIRED: Consequence(_MUTE, True, Rerun.NEVER, Effect.NONE),
    Code.APPROVAL_SPENT: Consequence(_MUTE, True, Rerun.NEVER, Effect.NONE),
    Code.FORBIDDEN: Consequence(_MUTE, False, Rerun.NEVER, Effect.NONE),
    Code.UNAUTHENTICATED: Consequence(_MUTE, False, Rerun.NEVER, Effect.NONE),
    Code.DEADLINE_EXCEEDED: Consequence(_MUTE, True, Rerun.NEVER, Effect.NONE),
    Code.STORE_UNAVAILABLE: Consequence(_MUTE, True, Rerun.BACK_TO_QUEUE, Effect.NONE),
    Code.LIMITER_UNAVAILABLE: Consequence(_MUTE, True, Rerun.BACK_TO_QUEUE, Effect.NONE),
}
_INTERNAL: Final = Consequence(_MUTE, False, Rerun.NEVER, Effect.UNKNOWN)


def consequence(error: FleetError) -> Consequence:
    """Return what follows from an error; a code that is not in the table is our own fault."""
    return TABLE.get(error.code, _INTERNAL)


def next_state(
    error: FleetError, *, delivery: Delivery, dispatched: bool, attempts_left: bool
) -> CallState:
    """Return where a call goes after an error: `queued` means it may run again.

    A `write` that was dispatched and whose effect is not known ends `outcome_unknown`; nothing
    dispatches it again.
    """
    follows = consequence(error)
    if not dispatched:
        may_rerun = follows.rerun is not Rerun.NEVER
    else:
        if follows.effect is Effect.UNKNOWN and not delivery.may_rerun:
            return CallState.OUTCOME_UNKNOWN
        may_rerun = follows.rerun is Rerun.IF_DELIVERY_ALLOWS and delivery.may_rerun
    # Waiting for a session is no attempt, nor is what the server turned away unseen.
    free = follows.rerun in {Rerun.BACK_TO_QUEUE, Rerun.AFTER_A_PAUSE}
    if may_rerun and (attempts_left or free):
        return CallState.QUEUED
    if error.code in (Code.DEADLINE_EXCEEDED, Code.APPROVAL_EXPIRED):
        return CallState.EXPIRED
    return CallState.FAILED
