"""What counts as an answer to a server's question."""

from __future__ import annotations

from typing import Any

import pytest

from registry.answers import problems_with, refuse_misshapen, unaskable
from registry.errors import FleetError
from tests.requirements import requirement

FORM = {
    "message": "Who?",
    "requestedSchema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 2},
            "age": {"type": "integer", "minimum": 18},
            "colour": {"type": "string", "enum": ["red", "blue"]},
        },
        "required": ["name"],
    },
}
SAID = {"role": "assistant", "content": {"type": "text", "text": "hi"}, "model": "m"}
NESTED: dict[str, Any] = {}
for _ in range(70):
    NESTED = {"in": NESTED}


def accept(**content: Any) -> dict[str, Any]:
    return {"action": "accept", "content": content}


@requirement("questions:checked")
@pytest.mark.parametrize(
    ("method", "params", "result"),
    [
        ("elicitation/create", FORM, accept(name="Ada", age=36, colour="red")),
        ("elicitation/create", FORM, accept(name="Ada", more="of it")),
        ("elicitation/create", FORM, {"action": "decline"}),
        ("elicitation/create", FORM, {"action": "cancel", "content": None}),
        ("elicitation/create", {"mode": "url", "url": "https://a"}, {"action": "accept"}),
        ("elicitation/create", {"requestedSchema": {"type": "strange"}}, accept(name=1)),
        ("sampling/createMessage", {}, SAID),
        ("sampling/createMessage", {}, {**SAID, "content": [SAID["content"]], "stopReason": "x"}),
        ("roots/list", {}, {"roots": []}),
        ("roots/list", {}, {"roots": [{"uri": "file:///home", "name": "home"}]}),
    ],
)
def test_an_answer_that_fits_its_question_is_one(
    method: str, params: dict[str, Any], result: dict[str, Any]
) -> None:
    refuse_misshapen({"q1": {"result": result}})
    assert problems_with(method, params, {"result": result}) == []


@requirement("questions:checked")
@pytest.mark.parametrize(
    ("method", "params", "result", "where"),
    [
        ("elicitation/create", FORM, {"action": "perhaps"}, "/result/action"),
        ("elicitation/create", FORM, {"action": "accept"}, "/result/content ($)"),
        ("elicitation/create", FORM, accept(name="A"), "/result/content ($.name)"),
        ("elicitation/create", FORM, accept(name="Ada", age=1), "/result/content ($.age)"),
        ("elicitation/create", FORM, accept(name="Ada", colour="x"), "/result/content ($.colour)"),
        ("elicitation/create", FORM, {"action": "decline", "content": "no"}, "/result/content"),
        ("sampling/createMessage", {}, {**SAID, "role": "system"}, "/result/role"),
        ("sampling/createMessage", {}, {**SAID, "model": None}, "/result/model"),
        ("sampling/createMessage", {}, {**SAID, "content": "hi"}, "/result/content"),
        ("roots/list", {}, {}, "/result/roots"),
        ("roots/list", {}, {"roots": [{"uri": "https://a"}]}, "/result/roots/0/uri"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said_with_its_place(
    method: str, params: dict[str, Any], result: dict[str, Any], where: str
) -> None:
    assert [it.path for it in problems_with(method, params, {"result": result})] == [where]


@requirement("questions:checked")
@pytest.mark.parametrize(
    "answers",
    [
        None,
        {},
        {"q1": "yes"},
        {"q1": {}},
        {"q1": {"result": {}, "error": {}}},
        {"q1": {"result": []}},
        {"q1": {"error": {"code": "x", "message": ""}}},
        {"q1": {"error": {"code": 1}}},
        {"q1": {"result": NESTED}},
        {"q1": {"result": {"a": "x" * 1_000_001}}},
        {"q1": {"result": {"a": float("nan")}}},
    ],
)
def test_what_is_no_answer_of_json_rpc_is_refused(answers: Any) -> None:
    with pytest.raises(FleetError):
        refuse_misshapen(answers)


@requirement("questions:checked")
def test_whoever_was_asked_may_answer_with_an_error() -> None:
    refused = {"error": {"code": -1, "message": "the user is away"}}
    refuse_misshapen({"q1": refused})
    assert problems_with("elicitation/create", FORM, refused) == []


@requirement("questions:only-what-is-answered")
def test_a_form_and_an_address_are_answered_by_different_callers() -> None:
    url = {"mode": "url", "url": "https://a"}
    assert not unaskable("elicitation/create", FORM, ("elicitation",))
    assert not unaskable("elicitation/create", url, ("elicitation.url",))
    assert "url mode" in unaskable("elicitation/create", url, ("elicitation",))
