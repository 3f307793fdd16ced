"""What a server asks, as it may leave the fleet."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from registry.errors import Code, FleetError
from registry.output_rules import DEFAULT_RULES
from registry.question_text import let_ask, let_log
from tests.requirements import requirement

PICTURE = base64.b64encode(bytes(range(256)) * 40).decode()


def form(**properties: Any) -> dict[str, Any]:
    return {"message": "?", "requestedSchema": {"type": "object", "properties": properties}}


@requirement("questions:let-out")
def test_what_is_said_to_a_person_is_redacted_and_visible() -> None:
    asked = {
        "message": "Write\u202e to ada@example.com?",
        "requestedSchema": {
            "type": "object",
            "properties": {"why": {"type": "string", "description": "as bob@example.com wants"}},
        },
        "_meta": {"of": "eve@example.com"},
    }
    clean = let_ask(asked)
    assert clean["message"] == "Write to [email]?"
    assert clean["requestedSchema"]["properties"]["why"]["description"] == "as [email] wants"
    assert clean["_meta"] == {"of": "[email]"}


@requirement("questions:let-out")
def test_a_suggestion_that_is_masked_is_left_out() -> None:
    clean = let_ask(form(mail={"type": "string", "default": "ada@example.com"}))
    assert clean["requestedSchema"]["properties"] == {"mail": {"type": "string"}}


@requirement("questions:let-out")
@pytest.mark.parametrize(
    "asked",
    [
        form(who={"type": "string", "enum": ["ada@example.com", "bob@example.com"]}),
        form(who={"type": "string", "oneOf": [{"const": "a\u200bb", "title": "x"}]}),
        form(**{"ada@example.com": {"type": "string"}}),
        {"mode": "url", "url": "javascript:alert(1)"},
        {"mode": "url", "url": "https://example.com/\u202e"},
        {"mode": "url", "url": "https://[::1"},
        {"mode": "url", "url": None},
    ],
    ids=["choices", "hidden choice", "field", "script", "hidden url", "no url", "none"],
)
def test_what_an_answer_has_to_agree_with_is_not_changed_but_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(FleetError) as refused:
        let_ask(asked)
    assert refused.value.code is Code.RESULT_BLOCKED


@requirement("questions:let-out")
@pytest.mark.parametrize(
    "asked",
    [
        form(title={"type": "string"}, default={"type": "boolean", "default": True}),
        form(n={"type": "integer", "minimum": 0, "maximum": 10, "default": 3}),
        {"mode": "url", "url": "https://example.com/?token=abc123&for=ada", "elicitationId": "x"},
        {"messages": [{"role": "user", "content": {"type": "image", "data": PICTURE}}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        {},
    ],
)
def test_what_is_harmless_is_passed_on_as_it_is(asked: dict[str, Any]) -> None:
    assert let_ask(asked) == asked


@requirement("questions:let-out")
def test_what_a_model_is_told_is_redacted() -> None:
    told = {"role": "user", "content": {"type": "text", "text": "Write to ada@example.com"}}
    clean = let_ask({"messages": [told, "odd"], "systemPrompt": "as bob@example.com"})
    assert clean["messages"][0]["content"]["text"] == "Write to [email]"
    assert clean["systemPrompt"] == "as [email]"


@requirement("logs:on-demand")
def test_a_log_message_is_redacted() -> None:
    body = {"level": "info", "data": {"to": "ada@example.com", "n": [1, None]}}
    assert let_log(body, DEFAULT_RULES)["data"] == {"to": "[email]", "n": [1, None]}
