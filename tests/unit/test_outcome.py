"""The one table from how an attempt ended to what follows."""

from __future__ import annotations

import pytest

from registry.calls import TRANSITIONS, CallState
from registry.definitions import Delivery
from registry.errors import Code, FleetError
from tests.requirements import requirement
from workers.breaker import Verdict
from workers.outcome import TABLE, Effect, Rerun, consequence, next_state

UNCLEAR = [code for code, follows in TABLE.items() if follows.effect is Effect.UNKNOWN]
REFUSED_UNSEEN = [  # an HTTP server refused the request before it did anything
    Code.CREDENTIAL_REJECTED,
    Code.UPSTREAM_FORBIDDEN,
    Code.UPSTREAM_NOT_FOUND,
    Code.UPSTREAM_CONFLICT,
]
CLASSES_THAT_RERUN = [Delivery.READ, Delivery.IDEMPOTENT, Delivery.KEYED]


def after(
    code: Code,
    delivery: Delivery = Delivery.READ,
    *,
    dispatched: bool = True,
    attempts_left: bool = True,
) -> CallState:
    return next_state(
        FleetError(code, "it failed"),
        delivery=delivery,
        dispatched=dispatched,
        attempts_left=attempts_left,
    )


@requirement("outcome:write-once")
@pytest.mark.parametrize("code", list(Code))
@pytest.mark.parametrize("attempts_left", [True, False])
def test_nothing_dispatches_a_write_again(code: Code, attempts_left: bool) -> None:
    assert after(code, Delivery.WRITE, attempts_left=attempts_left) is not CallState.QUEUED


@requirement("outcome:write-once")
@pytest.mark.parametrize("code", UNCLEAR)
def test_a_write_whose_effect_is_unclear_ends_outcome_unknown(code: Code) -> None:
    assert after(code, Delivery.WRITE) is CallState.OUTCOME_UNKNOWN


@requirement("outcome:write-once")
def test_a_write_is_given_back_while_it_provably_never_left() -> None:
    for code in (Code.POOL_TIMEOUT, Code.POOL_CLOSED, Code.SESSION_LOST):
        assert after(code, Delivery.WRITE, dispatched=False) is CallState.QUEUED


@requirement("outcome:rerun")
@pytest.mark.parametrize("delivery", CLASSES_THAT_RERUN)
def test_a_lost_session_runs_a_repeatable_call_again_while_attempts_are_left(
    delivery: Delivery,
) -> None:
    assert after(Code.SESSION_LOST, delivery) is CallState.QUEUED
    assert after(Code.SESSION_LOST, delivery, attempts_left=False) is CallState.FAILED


@requirement("outcome:rerun")
@pytest.mark.parametrize("delivery", list(Delivery))
def test_a_call_whose_session_was_forgotten_runs_again_whatever_its_delivery(
    delivery: Delivery,
) -> None:
    assert after(Code.SESSION_LOST, delivery, dispatched=False) is CallState.QUEUED
    lost_for_good = after(Code.SESSION_LOST, delivery, dispatched=False, attempts_left=False)
    assert lost_for_good is CallState.FAILED


@requirement("outcome:rerun", "outcome:write-once")
@pytest.mark.parametrize("code", REFUSED_UNSEEN)
@pytest.mark.parametrize("delivery", list(Delivery))
def test_a_call_that_was_refused_at_the_door_failed_and_is_not_made_again(
    code: Code, delivery: Delivery
) -> None:
    assert after(code, delivery, dispatched=False) is CallState.FAILED


@requirement("outcome:rerun", "quota:pause")
@pytest.mark.parametrize("delivery", list(Delivery))
@pytest.mark.parametrize("attempts_left", [True, False])
def test_a_call_that_its_server_had_no_time_for_is_made_again_whatever_its_delivery(
    delivery: Delivery, attempts_left: bool
) -> None:
    state = after(Code.RATE_LIMITED, delivery, dispatched=False, attempts_left=attempts_left)
    assert state is CallState.QUEUED


@requirement("outcome:write-once")
def test_what_a_gateway_says_in_its_servers_place_leaves_a_write_in_doubt() -> None:
    assert after(Code.UPSTREAM_FAILED, Delivery.WRITE) is CallState.OUTCOME_UNKNOWN
    assert after(Code.UPSTREAM_FAILED, Delivery.READ) is CallState.FAILED


@requirement("outcome:rerun")
def test_waiting_for_a_session_is_no_attempt() -> None:
    state = after(Code.POOL_TIMEOUT, dispatched=False, attempts_left=False)
    assert state is CallState.QUEUED


@requirement("outcome:rerun")
@pytest.mark.parametrize(
    "code", [Code.CALL_TIMEOUT, Code.TOOL_REFUSED, Code.RESULT_TOO_LARGE, Code.BREAKER_OPEN]
)
def test_an_answer_or_a_timeout_is_not_repeated_behind_the_callers_back(code: Code) -> None:
    assert after(code) is CallState.FAILED


@requirement("outcome:rerun")
def test_a_deadline_that_passed_is_told_as_expired() -> None:
    assert after(Code.DEADLINE_EXCEEDED, dispatched=False) is CallState.EXPIRED


@requirement("outcome:total")
@pytest.mark.parametrize("delivery", list(Delivery))
@pytest.mark.parametrize("dispatched", [True, False])
@pytest.mark.parametrize("attempts_left", [True, False])
def test_every_error_leads_along_the_ledgers_table(
    delivery: Delivery, dispatched: bool, attempts_left: bool
) -> None:
    states = {
        after(code, delivery, dispatched=dispatched, attempts_left=attempts_left) for code in Code
    }
    assert states <= TRANSITIONS[CallState.RUNNING]


@requirement("outcome:breaker")
@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (Code.TOOL_REFUSED, Verdict.SUCCEEDED),
        (Code.RESULT_INVALID, Verdict.SUCCEEDED),
        (Code.RESULT_TOO_LARGE, Verdict.SUCCEEDED),
        (Code.CALL_TIMEOUT, Verdict.TIMED_OUT),
        (Code.SESSION_LOST, Verdict.FAILED),
        (Code.UPSTREAM_FAILED, Verdict.FAILED),
        (Code.UPSTREAM_UNREACHABLE, Verdict.FAILED),
        (Code.ADDRESS_REFUSED, Verdict.FAILED),
        (Code.UPSTREAM_FORBIDDEN, Verdict.SUCCEEDED),
        (Code.RATE_LIMITED, Verdict.ABSTAINED),
        (Code.CREDENTIAL_REJECTED, Verdict.ABSTAINED),
        (Code.SERVER_UNAVAILABLE, Verdict.FAILED),
        (Code.POOL_TIMEOUT, Verdict.ABSTAINED),
        (Code.BREAKER_OPEN, Verdict.ABSTAINED),
        (Code.POLICY_DENIED, Verdict.ABSTAINED),
        (Code.INTERNAL, Verdict.ABSTAINED),
    ],
)
def test_the_breaker_hears_only_what_the_server_did(code: Code, verdict: Verdict) -> None:
    assert consequence(FleetError(code, "it failed")).verdict is verdict


@requirement("outcome:sessions")
@pytest.mark.parametrize("code", UNCLEAR)
def test_a_session_that_may_be_spoiled_is_not_used_again(code: Code) -> None:
    assert not TABLE[code].keep_session


@requirement("outcome:total")
def test_what_goes_back_to_the_queue_left_no_trace_on_the_server() -> None:
    back = [follows for follows in TABLE.values() if follows.rerun is Rerun.BACK_TO_QUEUE]
    assert {(follows.effect, follows.verdict) for follows in back} == {
        (Effect.NONE, Verdict.ABSTAINED)
    }
