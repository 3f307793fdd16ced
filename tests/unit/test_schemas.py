"""Arguments and results against their schemas, with the path of what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from registry.errors import Code, FleetError
from registry.schemas import MAX_PROBLEMS, check_arguments, check_result
from tests.loop_time import shortest_s, yardstick_s
from tests.requirements import requirement

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "lines": {
            "type": "array",
            "items": {"type": "object", "properties": {"n": {"type": "integer"}}},
        },
    },
    "required": ["name"],
    "additionalProperties": False,
}


def refusal(schema: dict[str, Any], arguments: dict[str, Any]) -> FleetError:
    with pytest.raises(FleetError) as refused:
        check_arguments("demo_look", schema, arguments)
    assert refused.value.code is Code.INVALID_ARGUMENTS
    return refused.value


@requirement("schemas:arguments")
@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({}, "$"),
        ({"name": 1}, "$.name"),
        ({"name": "a", "lines": [{"n": 1}, {"n": "2"}]}, "$.lines[1].n"),
        ({"name": "a", "extra": 1}, "$"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_their_path(
    arguments: dict[str, Any], path: str
) -> None:
    error = refusal(SCHEMA, arguments)
    assert [problem["path"] for problem in error.details["problems"]] == [path]
    assert "demo_look" in error.message


@requirement("schemas:arguments")
def test_arguments_that_fit_pass() -> None:
    check_arguments("demo_look", SCHEMA, {"name": "a", "lines": [{"n": 1}]})


@requirement("schemas:arguments")
def test_no_more_than_a_handful_of_problems_is_told() -> None:
    schema = {"additionalProperties": {"type": "integer"}}
    error = refusal(schema, {str(n): "x" for n in range(50)})
    assert len(error.details["problems"]) == MAX_PROBLEMS


@requirement("schemas:arguments")
def test_a_tool_with_a_broken_schema_takes_no_arguments() -> None:
    error = refusal({"type": "no-such-type"}, {})
    assert "schema is not valid" in error.message


@requirement("schemas:hostile")
def test_a_schema_makes_nobody_fetch_an_address() -> None:
    error = refusal({"$ref": "http://127.0.0.1:1/schema.json"}, {})
    assert "schema is not valid" in error.message


@requirement("schemas:hostile")
@pytest.mark.timeout(10)
@pytest.mark.parametrize("pattern", [r"^(a+)+$", r"^(?=(a+)+$)a*$"])
def test_a_hostile_pattern_stalls_nobody(pattern: str) -> None:
    with pytest.raises(FleetError):
        check_arguments(
            "demo_look", {"properties": {"t": {"pattern": pattern}}}, {"t": "a" * 60 + "!"}
        )


@requirement("schemas:results")
@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (None, {"content": []}),
        ({"type": "object"}, {"content": [], "structuredContent": {}}),
        ({"type": "object"}, {"content": [], "isError": True}),
    ],
)
def test_a_result_that_keeps_its_promise_passes(
    schema: dict[str, Any] | None, body: dict[str, Any]
) -> None:
    check_result("demo_look", schema, body)


@requirement("schemas:results")
@pytest.mark.parametrize("body", [{"content": []}, {"structuredContent": {"n": "x"}}])
def test_a_result_that_breaks_its_promise_is_refused(body: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    with pytest.raises(FleetError) as refused:
        check_result("demo_look", schema, body)
    assert refused.value.code is Code.RESULT_INVALID


@requirement("schemas:results")
def test_the_refusal_of_a_result_does_not_quote_it() -> None:
    schema = {"type": "object", "properties": {"card": {"type": "integer"}}}
    with pytest.raises(FleetError) as refused:
        check_result("demo_look", schema, {"structuredContent": {"card": "4111 1111 1111 1111"}})
    assert "4111" not in str(refused.value.as_dict())
    assert refused.value.details == {"paths": ["$.card"]}


def doubling(
    levels: int,
    *,
    word: str = "$ref",
    address: str = "",
    around: Callable[[list[Any]], Any] = lambda pair: {"allOf": pair},
) -> dict[str, Any]:
    """Return a schema whose check takes two to the power of ``levels`` steps."""
    steps: dict[str, Any] = {
        f"s{level}": around([{word: f"{address}#/$defs/s{level + 1}"}] * 2)
        for level in range(levels)
    }
    return {word: f"{address}#/$defs/s0", "$defs": {**steps, f"s{levels}": {"type": "object"}}}


def deepening(levels: int, around: Callable[[Any], Any]) -> Any:
    schema: Any = {"properties": {"a": True}}
    for _ in range(levels):
        schema = around(schema)
    return schema


@requirement("schemas:hostile")
@pytest.mark.parametrize(
    "schema",
    [
        doubling(40),
        {"properties": {"a": doubling(1)["$defs"]["s0"]}, **doubling(30)},
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": {"not": {"$ref": "#"}}}},
        doubling(40, word="$dynamicRef"),
        doubling(40, address="http://example.com/a") | {"$id": "http://example.com/a"},
        {"properties": {"a": doubling(40) | {"$id": "http://example.com/a"}}},
        doubling(40, around=lambda pair: {"dependencies": dict(zip("ab", pair, strict=True))}),
        deepening(12, lambda inner: {"allOf": [inner], "unevaluatedProperties": False}),
    ],
)
def test_a_schema_that_would_never_be_done_is_refused_at_once(schema: dict[str, Any]) -> None:
    def check() -> None:
        with pytest.raises(FleetError, match="own schema is not valid"):
            check_arguments("demo_look", schema, {"a": {}})

    # Measured: 0.1 at most; what is not refused would take years, or all memory.
    assert shortest_s(check) < 20 * yardstick_s()


@requirement("schemas:hostile")
def test_a_recursive_type_is_no_reason_to_refuse() -> None:
    tree = {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"$ref": "#/$defs/tree"}},
            {"type": "object", "additionalProperties": {"$ref": "#/$defs/tree"}},
        ]
    }
    schema = {"properties": {"tree": {"$ref": "#/$defs/tree"}}, "$defs": {"tree": tree}}
    check_arguments("demo_look", schema, {"tree": [{"a": ["b"]}]})
    with pytest.raises(FleetError):
        check_arguments("demo_look", schema, {"tree": [7]})
