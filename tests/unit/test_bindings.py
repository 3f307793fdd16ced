"""What an approval binds, what its seal covers, and what the last look at it lets through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.bindings import (
    Decision,
    Facts,
    Sealer,
    hide,
    holds_until,
    refuse_unless_approved,
)
from registry.definitions import Delivery, content_digest, parse_definition
from registry.errors import Code, FleetError
from tests.approving import SEALER
from tests.requirements import requirement

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
FACTS = Facts(
    call="c", tenant="acme", run="r", snapshot="s", requested_by=("agent", "agent"), server="gate",
    server_version=1, server_digest="v", tool="gate_pay", tool_name="pay", tool_version=2,
    tool_digest="t", delivery=Delivery.WRITE, approvers=1, arguments={"amount": 7},
)  # fmt: skip
OTHERS: dict[str, Any] = {
    "call": "d", "tenant": "globex", "run": "q", "snapshot": "z", "requested_by": ("agent", "boss"),
    "server": "gat", "server_version": 2, "server_digest": "w", "tool": "gate_Pay",
    "tool_name": "Pay", "tool_version": 3, "tool_digest": "u", "delivery": Delivery.READ,
    "approvers": 2, "arguments": {"amount": 70},
}  # fmt: skip


def given_by(who: str, facts: Facts = FACTS, *, sealer: Sealer = SEALER, **rest: Any) -> Decision:
    said = {"approve": True, "decided_at": NOW, "holds_until": NOW + HOUR, **rest}
    decision = Decision(binding=sealer.binding(facts), decided_by=who, **said)
    return replace(decision, seal=sealer.seal(decision))


def judged(decisions: Sequence[Decision], facts: Facts = FACTS, now: datetime = NOW) -> Code | None:
    try:
        refuse_unless_approved(facts, decisions, SEALER, now=now)
    except FleetError as error:
        return error.code
    return None


@requirement("approval:bound")
@pytest.mark.parametrize("what", [field.name for field in fields(Facts)])
def test_each_fact_of_a_call_is_bound(what: str) -> None:
    other = replace(FACTS, **{what: OTHERS[what]})
    assert SEALER.binding(other) != SEALER.binding(FACTS)
    assert judged([given_by("boss", other)]) is Code.APPROVAL_MISMATCH
    assert judged([given_by("boss")]) is None


@requirement("approval:bound")
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    )
)
def test_other_arguments_have_another_binding(value: Any) -> None:
    other = replace(FACTS, arguments=[value, 1])
    assert SEALER.binding(other) == SEALER.binding(replace(FACTS, arguments=[value, 1]))
    assert SEALER.binding(other) != SEALER.binding(replace(FACTS, arguments=[value, 2]))
    assert SEALER.binding(other) != SEALER.binding(replace(FACTS, arguments=[[value], 1]))


@requirement("approval:bound")
@pytest.mark.parametrize("arguments", [{"n": 2**60}, {"n": float("nan")}])
def test_arguments_that_nobody_can_have_submitted_are_bound_by_nothing(arguments: Any) -> None:
    with pytest.raises(FleetError) as refused:
        SEALER.binding(replace(FACTS, arguments=arguments))
    assert refused.value.code is Code.APPROVAL_MISMATCH


@requirement("approval:sealed")
@pytest.mark.parametrize(
    "change",
    [
        {"decided_by": "ben"},
        {"holds_until": NOW + 2 * HOUR},
        {"binding": "0" * 64},
        {"seal": ""},
        {"seal": "0" * 64},
    ],
)
def test_a_decision_that_was_changed_is_none(change: dict[str, Any]) -> None:
    assert judged([replace(given_by("ana"), **change)]) is Code.APPROVAL_MISMATCH
    assert not SEALER.genuine(replace(given_by("ana"), **change)) or "binding" in change


@requirement("approval:sealed")
def test_a_binding_tells_nobody_without_the_secret_what_was_bound() -> None:
    other = Sealer("another secret of thirty-two bytes")
    assert other.binding(FACTS) != SEALER.binding(FACTS)
    assert judged([given_by("boss", sealer=other)]) is Code.APPROVAL_MISMATCH


@requirement("approval:four-eyes")
def test_two_approvals_are_those_of_two_people_none_of_whom_asked() -> None:
    two = replace(FACTS, approvers=2)
    assert judged([given_by("ana", two)], two) is Code.APPROVAL_MISMATCH
    assert judged([given_by("ana", two)] * 2, two) is Code.APPROVAL_MISMATCH
    assert judged([given_by("ana", two), given_by("agent", two)], two) is Code.APPROVAL_MISMATCH
    assert judged([given_by("ana", two), given_by("ben", two)], two) is None
    denied = given_by("eve", two, approve=False)
    assert judged([given_by("ana", two), given_by("ben", two), denied], two) is Code.POLICY_DENIED


@requirement("approval:expires")
def test_an_approval_holds_until_its_end_and_no_longer() -> None:
    approved = [given_by("boss")]
    assert judged(approved, now=NOW + HOUR - timedelta(microseconds=1)) is None
    assert judged(approved, now=NOW + HOUR) is Code.APPROVAL_EXPIRED


@requirement("approval:expires")
def test_an_approval_that_others_have_to_join_holds_while_the_call_may_wait_for_them() -> None:
    week = NOW + timedelta(days=7)
    assert holds_until(NOW, week, HOUR, last=False) == week + HOUR
    assert holds_until(NOW, week, HOUR, last=True) == NOW + HOUR


@requirement("approval:shown")
@pytest.mark.parametrize(
    ("pointer", "hidden"),
    [
        ("/a", {"a": "[hidden]", "b": [1, {"c/d": 2, "~": 3}], "": 4}),
        ("/b/1/c~1d", {"a": 0, "b": [1, {"c/d": "[hidden]", "~": 3}], "": 4}),
        ("/b/1/~0", {"a": 0, "b": [1, {"c/d": 2, "~": "[hidden]"}], "": 4}),
        ("/b/0", {"a": 0, "b": ["[hidden]", {"c/d": 2, "~": 3}], "": 4}),
        ("/", {"a": 0, "b": [1, {"c/d": 2, "~": 3}], "": "[hidden]"}),
        ("", "[hidden]"),
    ],
)
def test_what_a_json_pointer_names_is_hidden(pointer: str, hidden: Any) -> None:
    arguments = {"a": 0, "b": [1, {"c/d": 2, "~": 3}], "": 4}
    assert hide(arguments, [pointer]) == (hidden, [pointer])
    assert arguments == {"a": 0, "b": [1, {"c/d": 2, "~": 3}], "": 4}


@requirement("approval:shown")
@pytest.mark.parametrize("pointer", ["/c", "/b/9", "/b/-", "/b/x", "/a/b"])
def test_a_pointer_to_nothing_hides_nothing(pointer: str) -> None:
    assert hide({"a": 0, "b": [1]}, [pointer]) == ({"a": 0, "b": [1]}, [])


def defined(approval: Any) -> Any:
    document = {"name": "demo", "transport": "stdio", "command": "true"}
    return parse_definition({**document, "tools": {"pay": {"approval": approval}}})


@requirement("approval:rule")
@pytest.mark.parametrize("plain", [True, False])
def test_a_plain_yes_or_no_is_a_rule_and_stays_what_it_was(plain: bool) -> None:
    definition = defined(plain)
    assert definition.tools["pay"].approval.required is plain
    assert definition.model_dump(mode="json")["tools"]["pay"]["approval"] is plain
    assert content_digest(definition) == content_digest(defined({"required": plain}))


@requirement("approval:rule")
def test_a_rule_says_for_how_many_a_call_waits_and_what_is_hidden() -> None:
    rule = {"approvers": 2, "redact": ["/card"]}
    dumped = defined(rule).model_dump(mode="json")["tools"]["pay"]["approval"]
    assert dumped == {"required": True, **rule}
    assert defined(dumped) == defined(rule)


@requirement("approval:rule")
@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ({"approvers": 0}, "approvers"),
        ({"approvers": 6}, "approvers"),
        ({"redact": ["card"]}, "redact/0"),
        ({"redact": ["/a~2"]}, "redact/0"),
        ({"hide": []}, "hide"),
        ("maybe", "required"),
    ],
)
def test_a_wrong_rule_is_refused_with_the_path_of_what_is_wrong(rule: Any, path: str) -> None:
    with pytest.raises(FleetError) as refused:
        defined(rule)
    (problem,) = refused.value.details["problems"]
    assert problem["path"] == f"tools/pay/approval/{path}"
