"""Checks that users plug in see every call and its result, and refuse by whatever they do wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from registry.errors import Code, FleetError
from registry.output_rules import DEFAULT_RULES
from tests import guardrail_checks
from tests.requirements import requirement
from workers import guardrails
from workers.guardrails import Direction, Guarded, Guardrails
from workers.output_gate import Gate

pytestmark = pytest.mark.anyio

ABOUT = ("acme", "demo", "say")
RESULT = {"content": [{"type": "text", "text": "hello"}], "isError": False}


def checks(*names: str, limit_s: float = 5.0) -> Guardrails:
    return Guardrails([f"tests.guardrail_checks:{name}" for name in names], limit_s=limit_s)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    guardrail_checks.seen.clear()
    guardrail_checks.released.clear()
    yield
    guardrail_checks.released.set()


@requirement("guardrails:see-calls")
async def test_a_check_sees_the_arguments_before_a_call_and_its_result_after() -> None:
    await checks("note").before(*ABOUT, {"text": "hello"})
    assert await checks("note").after(*ABOUT, RESULT) == RESULT
    assert guardrail_checks.seen == [
        (Guarded(Direction.BEFORE, *ABOUT), {"text": "hello"}),
        (Guarded(Direction.AFTER, *ABOUT), RESULT),
    ]


@requirement("guardrails:see-calls")
async def test_checks_follow_each_other_whether_they_are_coroutines_or_not() -> None:
    result = await checks("sign", "later", "note").after(*ABOUT, RESULT)
    assert [block["text"] for block in result["content"]] == ["hello", "seen by guard@example.com"]
    assert guardrail_checks.seen[0][1] == result


@requirement("guardrails:see-calls")
async def test_what_a_check_adds_to_a_result_is_redacted() -> None:
    gate = Gate(*ABOUT, DEFAULT_RULES, checks("sign"))
    body = (await gate.result("demo_say", None, RESULT)).body
    assert body["content"][1]["text"] == "seen by [email]"


@requirement("guardrails:see-calls")
@pytest.mark.parametrize("payload", [{"text": "a bomb"}, {"content": [{"text": "a bomb"}]}])
async def test_a_check_refuses_with_its_reason(payload: dict[str, Any]) -> None:
    both = checks("no_bombs")
    for ask in (both.before, both.after):
        with pytest.raises(FleetError) as refused:
            await ask(*ABOUT, payload)
        assert refused.value.code is Code.GUARDRAIL_REFUSED
        assert "it speaks of bombs" in refused.value.message


@requirement("guardrails:fail-closed")
@pytest.mark.parametrize("name", ["fail", "babble", "agree", "hang", "linger"])
async def test_a_check_that_does_wrong_withholds_the_result(name: str) -> None:
    with pytest.raises(FleetError) as refused:
        await checks(name, limit_s=0.1).after(*ABOUT, RESULT)
    assert refused.value.code is Code.GUARDRAIL_FAILED
    assert f"guardrail_checks:{name}" in refused.value.message
    assert "jane" not in json.dumps(refused.value.as_dict())


@requirement("guardrails:fail-closed")
@pytest.mark.parametrize("name", ["fail", "agree", "hang", "linger", "meddle"])
async def test_a_check_that_does_wrong_withholds_the_call(name: str) -> None:
    arguments = {"text": "hello"}
    with pytest.raises(FleetError) as refused:
        await checks(name, limit_s=0.1).before(*ABOUT, arguments)
    assert refused.value.code is Code.GUARDRAIL_FAILED
    assert arguments == {"text": "hello"}, "arguments are what was approved and recorded"


@requirement("guardrails:fail-closed")
async def test_a_check_that_hangs_holds_up_nobody_else() -> None:
    hanging = asyncio.create_task(checks("hang").after(*ABOUT, RESULT))
    for _ in range(3):
        assert await checks("note").after(*ABOUT, RESULT) == RESULT
    assert not hanging.done()
    guardrail_checks.released.set()
    assert await hanging == RESULT


@requirement("guardrails:fail-closed")
async def test_checks_that_never_end_are_not_started_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guardrails, "MOST_RUNNING", 2)
    stuck = checks("hang", limit_s=0.05)
    for _ in range(3):
        with pytest.raises(FleetError) as refused:
            await stuck.after(*ABOUT, RESULT)
        assert refused.value.code is Code.GUARDRAIL_FAILED
    assert "RuntimeError" in refused.value.message


@requirement("guardrails:fail-closed")
@pytest.mark.parametrize(
    "name",
    [
        "no_such_package:check",
        "tests.guardrail_checks:missing",
        "tests.guardrail_checks",
        "tests.guardrail_checks:NOT_CALLABLE",
        ":",
    ],
)
def test_a_name_that_leads_to_no_check_is_refused_before_any_call(name: str) -> None:
    with pytest.raises(ValueError, match="TOOLFLEET_GUARDRAILS"):
        Guardrails([name])
