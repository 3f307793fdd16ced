"""What a change of a tool means for those who call it: who breaks, and where."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.database import to_json
from registry.diff import MOST_DIFFERENCES, ChangeKind, Difference, compare, listing_changes
from registry.errors import FleetError
from registry.schema_diff import REWRITTEN
from registry.schemas import check_arguments, check_result, refuse_unusable
from registry.tools import ToolVersion, tool_version
from tests.requirements import requirement

ADDED, REMOVED, FLIP = ChangeKind.ADDED, ChangeKind.REMOVED, ChangeKind.ANNOTATION_FLIP
BREAKS, WIDENS, SAYS = ChangeKind.BREAKING, ChangeKind.WIDENING, ChangeKind.DESCRIPTION
STRING, INTEGER, NUMBER, NULL = ({"type": it} for it in ("string", "integer", "number", "null"))
NO_ARGUMENTS = {"type": "object"}


def tool(arguments: Any = None, result: Any = None, **rest: Any) -> ToolVersion:
    listed = {"name": "look", "inputSchema": arguments or NO_ARGUMENTS, **rest}
    return tool_version(listed if result is None else {**listed, "outputSchema": result})


def obj(required: str = "", others: Any = None, **properties: Any) -> dict[str, Any]:
    """Return an object schema; ``required`` names properties, separated by spaces."""
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required.split()
    if others is not None:
        schema["additionalProperties"] = others
    return schema


def of_arguments(before: Any, after: Any) -> tuple[Difference, ...]:
    return compare(tool(before), tool(after))


def of_results(before: Any, after: Any) -> tuple[Difference, ...]:
    return compare(tool(result=before), tool(result=after))


CAT, DOG, COW = (
    obj("kind name", kind={"const": kind}, name=STRING) for kind in ("cat", "dog", "cow")
)
BIG_DOG = obj("kind name", kind={"const": "dog"}, name=STRING, size=INTEGER)

# What one property was and is, and what that means for an argument and for a result.
PARTS = [
    (STRING, INTEGER, BREAKS, BREAKS),
    (STRING, {"type": ["string", "null"]}, WIDENS, BREAKS),
    (STRING, {"anyOf": [STRING, NULL]}, WIDENS, BREAKS),
    ({"anyOf": [STRING, INTEGER]}, {"anyOf": [STRING, INTEGER, NULL]}, WIDENS, BREAKS),
    ({"anyOf": [STRING, NULL]}, STRING, BREAKS, WIDENS),
    (INTEGER, NUMBER, WIDENS, BREAKS),
    (NUMBER, INTEGER, BREAKS, WIDENS),
    (STRING, {}, WIDENS, BREAKS),
    (True, STRING, BREAKS, WIDENS),
    (STRING, False, BREAKS, WIDENS),
    ({"enum": ["a", "b"]}, {"enum": ["a", "b", "c"]}, WIDENS, BREAKS),
    ({"enum": ["a", "b"]}, {"enum": ["a"]}, BREAKS, WIDENS),
    ({"enum": ["a", "b"]}, {"enum": ["a", "c"]}, BREAKS, BREAKS),
    ({"enum": ["a"]}, STRING, WIDENS, BREAKS),
    (STRING, {"type": "string", "enum": ["a"]}, BREAKS, WIDENS),
    ({"const": "a"}, {"enum": ["a", "b"]}, WIDENS, BREAKS),
    ({"const": 1}, {"const": True}, BREAKS, BREAKS),
    ({"anyOf": [{"const": "a"}, {"const": "b"}]}, {"const": "b"}, BREAKS, WIDENS),
    ({"enum": ["a", None]}, {"enum": ["a"]}, BREAKS, WIDENS),
    (INTEGER, {"type": "integer", "minimum": 1}, BREAKS, WIDENS),
    ({"minimum": 1}, {"minimum": 0.5}, WIDENS, BREAKS),
    ({"minimum": 1}, {"exclusiveMinimum": 1}, BREAKS, WIDENS),
    ({"maximum": 9}, {"maximum": 8}, BREAKS, WIDENS),
    ({"exclusiveMaximum": 9}, {"maximum": 9}, WIDENS, BREAKS),
    ({"maximum": 9}, {}, WIDENS, BREAKS),
    (INTEGER, {"type": "integer", "multipleOf": 5}, BREAKS, WIDENS),
    ({"multipleOf": 10}, {"multipleOf": 5}, WIDENS, BREAKS),
    ({"multipleOf": 0.1}, {"multipleOf": 0.3}, BREAKS, BREAKS),
    (STRING, {"type": "string", "minLength": 1}, BREAKS, WIDENS),
    ({"minLength": 3}, {"minLength": 2}, WIDENS, BREAKS),
    ({"maxLength": 3}, {"maxLength": 2}, BREAKS, WIDENS),
    ({"maxLength": 3}, {"maxLength": 0}, BREAKS, WIDENS),
    (STRING, {"type": "string", "pattern": "^a"}, BREAKS, WIDENS),
    ({"pattern": "^a"}, {}, WIDENS, BREAKS),
    ({"pattern": "^a"}, {"pattern": "^[ab]"}, BREAKS, BREAKS),
    (STRING, {"type": "string", "format": "date"}, BREAKS, WIDENS),
    ({"format": "date"}, {"format": "uri"}, BREAKS, BREAKS),
    ({"type": "array"}, {"type": "array", "minItems": 1}, BREAKS, WIDENS),
    ({"maxItems": 3}, {"maxItems": 4}, WIDENS, BREAKS),
    ({"type": "array"}, {"type": "array", "uniqueItems": True}, BREAKS, WIDENS),
    ({"items": STRING}, {"items": {"type": ["string", "null"]}}, WIDENS, BREAKS),
    ({"type": "array"}, {"type": "array", "items": STRING}, BREAKS, WIDENS),
    ({"prefixItems": [STRING]}, {"prefixItems": [STRING, INTEGER]}, BREAKS, WIDENS),
    ({"items": STRING}, {"items": STRING, "prefixItems": [{}]}, WIDENS, BREAKS),
    ({"contains": STRING}, {"contains": INTEGER}, BREAKS, BREAKS),
    (obj(others=STRING), obj(others={"type": ["string", "null"]}), WIDENS, BREAKS),
    (obj(), {**obj(), "minProperties": 1}, BREAKS, WIDENS),
    (obj(), {**obj(), "maxProperties": 1}, BREAKS, WIDENS),
    (obj(), {**obj(), "propertyNames": {"maxLength": 3}}, BREAKS, WIDENS),
    (obj(), {**obj(), "patternProperties": {"^x": STRING}}, BREAKS, BREAKS),
    (obj("a", a=STRING), obj(a=STRING), WIDENS, BREAKS),
    ({"allOf": [STRING]}, {"allOf": [STRING, {"minLength": 1}]}, BREAKS, WIDENS),
    ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, {"pattern": "a"}, WIDENS, BREAKS),
    ({"anyOf": [CAT, DOG]}, {"anyOf": [CAT, DOG, COW]}, WIDENS, BREAKS),
    ({"anyOf": [CAT, DOG, COW]}, {"anyOf": [COW, CAT]}, BREAKS, WIDENS),
    ({"anyOf": [CAT, DOG]}, {"anyOf": [CAT, BIG_DOG]}, WIDENS, WIDENS),
    ({"oneOf": [CAT, DOG]}, {"oneOf": [CAT, DOG, COW]}, WIDENS, BREAKS),
    ({"oneOf": [CAT, DOG]}, {"oneOf": [CAT, BIG_DOG]}, WIDENS, WIDENS),
    ({"oneOf": [STRING, NULL]}, {"oneOf": [STRING, NULL, INTEGER]}, WIDENS, BREAKS),
    ({"oneOf": [STRING, {}]}, {"oneOf": [STRING, INTEGER, {}]}, BREAKS, BREAKS),
    ({"not": STRING}, {"not": INTEGER}, BREAKS, BREAKS),
    ({}, {"not": STRING}, BREAKS, WIDENS),
    ({"if": STRING, "then": {"minLength": 1}}, {"if": STRING}, BREAKS, BREAKS),
    ({"dependentRequired": {"a": ["b"]}}, {}, WIDENS, BREAKS),
    ({}, {"dependentSchemas": {"a": {"required": ["b"]}}}, BREAKS, WIDENS),
    ({"dependentRequired": {"a": ["b"]}}, {"dependentRequired": {"a": ["c"]}}, BREAKS, BREAKS),
    ({"$ref": "http://127.0.0.1/a"}, {"$ref": "http://127.0.0.1/b"}, BREAKS, BREAKS),
]  # fmt: skip

# The same for whole schemas: which properties there are, and which there have to be.
OBJECTS = [
    (obj(a=STRING), obj(a=STRING, b=STRING), WIDENS, WIDENS),
    (obj(a=STRING, others=False), obj(a=STRING, b=STRING, others=False), WIDENS, BREAKS),
    (obj(a=STRING), obj("b", a=STRING, b=STRING), BREAKS, WIDENS),
    (obj("a", a=STRING), obj("a b", a=STRING, b=STRING), BREAKS, WIDENS),
    (obj(a=STRING, b=STRING), obj(a=STRING), BREAKS, BREAKS),
    (obj("b", a=STRING, b=STRING), obj(a=STRING), BREAKS, BREAKS),
    (obj(a=STRING, b=STRING, others=False), obj(a=STRING, others=False), BREAKS, BREAKS),
    (obj(a=STRING), obj("a", a=STRING), BREAKS, WIDENS),
    (obj("a", a=STRING), obj(a=STRING), WIDENS, BREAKS),
    (obj("a"), obj(a=STRING), WIDENS, BREAKS),
    (obj(), obj(others=False), BREAKS, WIDENS),
    (obj(others=False), obj(), WIDENS, BREAKS),
    (obj(others=STRING), obj(a=STRING, others=STRING), SAYS, SAYS),
    (obj(others=STRING), obj(a=INTEGER, others=STRING), BREAKS, BREAKS),
    (obj(a=STRING, others=STRING), obj(others=STRING), SAYS, SAYS),
    (NO_ARGUMENTS, obj("a", a=STRING), BREAKS, WIDENS),
]  # fmt: skip

TREE = obj(name=STRING, below={"type": "array", "items": {"$ref": "#/$defs/tree"}})
NULLABLE_TREE = {**TREE, "properties": {**TREE["properties"], "name": {"type": ["string", "null"]}}}

REWRITES = [
    (obj("a b", a=STRING, b=STRING), obj("b a", a=STRING, b=STRING)),
    (obj(a={"type": "string"}), obj(a={"type": ["string"]})),
    (obj(a=True), obj(a={})),
    (obj(), obj(others=True)),
    (obj(), {"type": "object"}),
    (obj(a=STRING), {**obj(a={"$ref": "#/$defs/a"}), "$defs": {"a": STRING}}),
    (
        {**obj(a={"$ref": "#/$defs/a"}), "$defs": {"a": STRING}},
        {**obj(a={"$ref": "#/definitions/b"}), "definitions": {"b": STRING, "unused": NULL}},
    ),
    (obj(a={"allOf": [STRING]}), obj(a=STRING)),
    (obj(a={"allOf": [STRING, {"minLength": 1}]}), obj(a={"type": "string", "minLength": 1})),
    (obj(a={"anyOf": [STRING, NULL]}), obj(a={"type": ["null", "string"]})),
    (obj(a={"oneOf": [STRING, NULL]}), obj(a={"anyOf": [NULL, STRING]})),
    (obj(a={"anyOf": [{"enum": ["x"]}, NULL]}), obj(a={"enum": [None, "x"]})),
    (obj(a={"oneOf": [{"const": "x"}, {"const": "y"}]}), obj(a={"enum": ["y", "x"]})),
    (obj(a={"type": "string", "enum": ["x"]}), obj(a={"const": "x"})),
    (obj(a={"type": ["integer", "number"]}), obj(a=NUMBER)),
    (
        obj(a={"type": "integer", "exclusiveMinimum": 0}),
        obj(a={"type": "integer", "minimum": 1}),
    ),
    (obj(a={"type": "string", "minLength": 0}), obj(a={"type": "string", "minItems": 2})),
    (obj(a={"minimum": 1}), obj(a={"minimum": 1, "exclusiveMinimum": 0})),
    ({**obj(), "unevaluatedProperties": False}, obj(others=False)),
    (obj(a={"anyOf": [CAT, DOG]}), obj(a={"anyOf": [DOG, CAT]})),
    (
        {"$ref": "#/$defs/tree", "$defs": {"tree": TREE}},
        {**TREE, "$defs": {"tree": {**TREE, "required": []}}},
    ),
]


def kind_of(differences: tuple[Difference, ...]) -> ChangeKind:
    return differences[0].kind


@requirement("diff:arguments")
@pytest.mark.parametrize(("before", "after", "kind", "_"), PARTS)
def test_an_argument_may_take_more_and_never_less(
    before: Any, after: Any, kind: ChangeKind, _: object
) -> None:
    assert kind_of(of_arguments(obj(x=before), obj(x=after))) is kind


@requirement("diff:results")
@pytest.mark.parametrize(("before", "after", "_", "kind"), PARTS)
def test_a_result_may_promise_more_and_never_less(
    before: Any, after: Any, _: object, kind: ChangeKind
) -> None:
    assert kind_of(of_results(obj(x=before), obj(x=after))) is kind


@requirement("diff:arguments")
@pytest.mark.parametrize(("before", "after", "kind", "_"), OBJECTS)
def test_arguments_may_come_but_neither_go_nor_become_required(
    before: Any, after: Any, kind: ChangeKind, _: object
) -> None:
    assert kind_of(of_arguments(before, after)) is kind


@requirement("diff:results")
@pytest.mark.parametrize(("before", "after", "_", "kind"), OBJECTS)
def test_properties_of_a_result_stay_and_stay_guaranteed(
    before: Any, after: Any, _: object, kind: ChangeKind
) -> None:
    assert kind_of(of_results(before, after)) is kind


@requirement("diff:rewrites")
@pytest.mark.parametrize(("before", "after"), REWRITES)
def test_another_way_to_write_the_same_breaks_nobody(before: Any, after: Any) -> None:
    for compared in (of_arguments, of_results):
        for pair in ((before, after), (after, before)):
            (only,) = compared(*pair)
            assert (only.kind, only.what) == (SAYS, REWRITTEN)


@requirement("diff:rewrites")
def test_a_tuple_may_be_written_as_another_draft_writes_it() -> None:
    old = obj(a={"items": [STRING], "additionalItems": False})
    new = obj(a={"prefixItems": [STRING], "items": False})
    (only,) = of_arguments({**old, "$schema": "http://json-schema.org/draft-07/schema#"}, new)
    assert (only.kind, only.path) == (SAYS, "inputSchema/$schema")


@requirement("diff:arguments")
@pytest.mark.parametrize(
    ("before", "after", "path", "what"),
    [
        (obj(z=STRING), obj("z", z=STRING), "required", "the argument `z` became required"),
        (obj(), obj("z", z=STRING), "properties/z", "the argument `z` is new and required"),
        (obj(z=STRING), obj(), "properties/z", "the argument `z` is gone"),
        (obj(z=NUMBER), obj(z=INTEGER), "properties/z/type", "only whole numbers"),
        (obj(z=STRING), obj(z=INTEGER), "properties/z/type", "string is no longer allowed"),
        (obj(z={}), obj(z={"minLength": 3}), "properties/z/minLength", "`minLength` is new: `3`"),
        (
            obj(z={"enum": ["a", "b"]}),
            obj(z={"enum": ["a"]}),
            "properties/z/enum",
            'no longer allowed: `"b"`',
        ),
        (obj(), obj(others=False), "additionalProperties", "other properties are no longer"),
        (
            obj(z=obj(**{"a/b": STRING})),
            obj(z=obj()),
            "properties/z/properties/a~1b",
            "the property `a/b` is gone",
        ),
        (
            obj(z={"items": {"$ref": "#/$defs/a"}}) | {"$defs": {"a": STRING}},
            obj(z={"items": {"$ref": "#/$defs/a"}}) | {"$defs": {"a": INTEGER}},
            "properties/z/items/type",
            "string is no longer allowed",
        ),
    ],
)
def test_an_operator_reads_where_and_what(before: Any, after: Any, path: str, what: str) -> None:
    first = of_arguments(before, after)[0]
    assert first.path == f"inputSchema/{path}"
    assert first.what.startswith(what)


@requirement("diff:arguments")
@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ({"default": 10}, {"default": 20}, BREAKS),
        ({"default": 10}, {}, BREAKS),
        ({"default": None}, {"default": 20}, BREAKS),
        ({"default": 1}, {"default": True}, BREAKS),
        ({}, {"default": 10}, SAYS),
        ({"default": None}, {}, SAYS),
        ({"default": 1}, {"default": 1.0, "title": "N"}, SAYS),
    ],
)
def test_a_call_that_leaves_an_argument_out_goes_on_to_mean_the_same(
    before: Any, after: Any, kind: ChangeKind
) -> None:
    assert kind_of(of_arguments(obj(x=before), obj(x=after))) is kind
    assert kind_of(of_results(obj(x=before), obj(x=after))) is SAYS


@requirement("diff:descriptions")
@pytest.mark.parametrize(
    ("before", "after", "path"),
    [
        (tool(description="a"), tool(description="b"), "description"),
        (tool(), tool(title="b"), "title"),
        (tool(annotations={"title": "a"}), tool(annotations={"title": "b"}), "annotations/title"),
        (tool(obj(description={})), tool({**obj(description={}), "description": "b"}),
         "inputSchema/description"),
        (tool(obj(a={"title": "a"})), tool(obj(a={})), "inputSchema/properties/a/title"),
        (tool(obj(a={})), tool(obj(a={"examples": [1]})), "inputSchema/properties/a/examples"),
        (tool(obj(a={})), tool(obj(a={"$comment": "b"})), "inputSchema/properties/a/$comment"),
        (tool(obj(a={})), tool(obj(a={"x-order": 1})), "inputSchema/properties/a/x-order"),
        (
            tool(obj(a={"anyOf": [CAT, DOG]})),
            tool(obj(a={"anyOf": [CAT, {**DOG, "title": "Dog"}]})),
            "inputSchema/properties/a/anyOf/1/title",
        ),
        (tool(result=obj(a={})), tool(result=obj(a={"description": "b"})),
         "outputSchema/properties/a/description"),
    ],
)  # fmt: skip
def test_other_words_are_a_change_of_the_description(
    before: ToolVersion, after: ToolVersion, path: str
) -> None:
    (only,) = compare(before, after)
    assert (only.path, only.kind) == (path, SAYS)


@requirement("diff:results")
@pytest.mark.parametrize(
    ("before", "after", "kind"), [(None, obj(), WIDENS), (obj(), None, BREAKS)]
)
def test_a_result_may_be_declared_and_not_be_left_undeclared(
    before: Any, after: Any, kind: ChangeKind
) -> None:
    (only,) = of_results(before, after)
    assert (only.path, only.kind) == ("outputSchema", kind)


@requirement("diff:annotations")
@pytest.mark.parametrize(
    ("before", "after", "flipped", "security"),
    [
        ({"readOnlyHint": True}, {}, ["readOnlyHint"], True),
        ({"readOnlyHint": True}, {"readOnlyHint": False}, ["readOnlyHint"], True),
        ({"readOnlyHint": True}, None, ["readOnlyHint"], True),
        ({}, {"readOnlyHint": True}, ["readOnlyHint"], False),
        ({"destructiveHint": False}, {}, ["destructiveHint"], True),
        ({"destructiveHint": False}, {"destructiveHint": True}, ["destructiveHint"], True),
        ({"destructiveHint": True}, {"destructiveHint": False}, ["destructiveHint"], False),
        ({"readOnlyHint": True}, {"readOnlyHint": True, "destructiveHint": True},
         ["destructiveHint"], True),
        ({"readOnlyHint": True, "destructiveHint": False}, {"readOnlyHint": True}, [], False),
        ({"idempotentHint": True}, {"idempotentHint": False}, ["idempotentHint"], False),
        ({"idempotentHint": False}, {"idempotentHint": True}, ["idempotentHint"], False),
        ({"openWorldHint": False}, {}, ["openWorldHint"], False),
        ({"openWorldHint": True}, {"openWorldHint": False}, ["openWorldHint"], False),
        ({"readOnlyHint": False}, {}, [], False),
        ({"destructiveHint": True}, {"destructiveHint": "no"}, [], False),
        ({"readOnlyHint": True}, {"readOnlyHint": "yes"}, ["readOnlyHint"], True),
        ({"idempotentHint": True}, {"readOnlyHint": True}, ["readOnlyHint"], False),
        (["odd"], {"title": "a"}, [], False),
    ],
)  # fmt: skip
def test_a_flipped_hint_is_told_and_less_harmless_is_a_matter_of_security(
    before: Any, after: Any, flipped: list[str], security: bool
) -> None:
    (change,) = listing_changes({"look": tool(annotations=before)}, [tool(annotations=after)])
    told = [it.path for it in change.differences if it.kind is FLIP]
    assert told == [f"annotations/{hint}" for hint in flipped]
    assert change.kind is (FLIP if flipped else SAYS)
    assert change.security is security


@requirement("diff:listings")
def test_the_changes_of_a_listing_come_by_name_each_with_its_gravest_kind() -> None:
    def named(name: str, **rest: Any) -> ToolVersion:
        return tool_version({"name": name, "inputSchema": NO_ARGUMENTS, **rest})

    before = [
        named("same"),
        named("gone"),
        named("told", description="a"),
        named("both", inputSchema=obj(a=STRING), annotations={"readOnlyHint": True}),
    ]
    after = [
        named("told", description="b"),
        named("new"),
        named("same"),
        named("both", inputSchema=obj(), description="b"),
    ]
    changes = listing_changes({it.name: it for it in before}, after)
    assert [(it.tool, it.kind) for it in changes] == [
        ("both", FLIP),
        ("gone", REMOVED),
        ("new", ADDED),
        ("told", SAYS),
    ]
    both, gone, new, told = changes
    assert [it.kind for it in both.differences] == [FLIP, BREAKS, SAYS]
    assert (gone.before, gone.after) == (before[1].digest, None)
    assert (new.before, new.after) == (None, after[1].digest)
    assert (told.before, told.after) == (before[2].digest, after[0].digest)


@requirement("diff:listings")
def test_a_change_is_json_that_names_its_kind() -> None:
    (change,) = listing_changes({"look": tool(obj(a=STRING))}, [tool(obj(a=INTEGER))])
    body = change.as_dict()
    to_json(body)
    assert (body["change"], body["tool"], body["security"]) == ("breaking", "look", False)
    assert body["differences"][0] == {
        "path": "inputSchema/properties/a/type",
        "kind": "breaking",
        "what": "string is no longer allowed",
    }


@requirement("diff:listings")
def test_only_so_many_differences_are_told_and_the_gravest_first() -> None:
    names = [f"p{number}" for number in range(90)]
    before = obj(**{name: {"type": "string"} for name in names})
    after = obj("p89", **{name: {"type": "string", "title": "a"} for name in names})
    told = of_arguments(before, after)
    assert len(told) == MOST_DIFFERENCES + 1
    assert [it.kind for it in told] == [BREAKS, *[SAYS] * MOST_DIFFERENCES]
    assert told[-1].what == "and 41 more"


@requirement("diff:listings")
def test_what_a_server_says_is_quoted_short_and_escaped() -> None:
    name = "\x1b[2J\u202e" + "n" * 500
    first = of_arguments(obj(**{name: STRING}), obj())[0]
    assert len(first.what) < 100
    assert first.what.isprintable()
    assert first.path.isprintable()


def cyclic(levels: int) -> Any:
    """Return a schema that grows twofold with each reference that is followed."""
    steps = {
        f"s{at}": obj(a={"$ref": f"#/$defs/s{at + 1}"}, b={"$ref": f"#/$defs/s{at + 1}"})
        for at in range(levels)
    }
    return {"$ref": "#/$defs/s0", "$defs": {**steps, f"s{levels}": STRING}}


def nested(levels: int, leaf: Any) -> Any:
    for _ in range(levels):
        leaf = obj(a=leaf)
    return leaf


ODD = [
    ([], obj()),
    ({"type": "object", "properties": []}, obj()),
    (obj(), {"type": "object", "properties": {"a": 5}}),
    (obj(), {"type": 5}),
    (obj(), {"type": ["object", {}]}),
    (obj(), {"type": "object", "required": "a"}),
    (obj(), {"type": "object", "required": [[]]}),
    (obj(), obj(a={"enum": "a"})),
    (obj(), obj(others="no")),
    (obj(a={"minimum": 1}), obj(a={"minimum": 1, "exclusiveMinimum": True})),
    (obj(a={}), obj(a={"minLength": -1})),
    (obj(a={}), obj(a={"allOf": {}})),
    (obj(a={}), obj(a={"anyOf": [5]})),
    (obj(a={}), obj(a={"$ref": 5})),
    (obj(a={}), obj(a={"$ref": "#/nowhere"})),
    (obj(a={}), {"$ref": "#", "type": "object"}),
    (obj(a={}), {"anyOf": [{"$ref": "#"}]}),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, obj()),
    (obj(a={}), nested(200, STRING)),
    (nested(25, STRING), nested(25, INTEGER)),
    (obj(a={}), obj(a={"enum": ["x" * 70_000]})),
    (cyclic(40), cyclic(41)),
    (obj(a={}), obj(**{f"p{at}": {} for at in range(3_000)})),
]  # fmt: skip


@requirement("diff:bounded")
@pytest.mark.parametrize(("before", "after"), ODD)
def test_a_schema_that_cannot_be_read_breaks_and_never_raises(before: Any, after: Any) -> None:
    one, other = (
        ToolVersion("look", digest, {"name": "look", "inputSchema": schema, "outputSchema": schema})
        for digest, schema in (("one", before), ("other", after))
    )
    for pair in ((one, other), (other, one)):
        assert kind_of(compare(*pair)) is BREAKS


@requirement("diff:bounded")
def test_a_recursive_type_is_compared_once_around() -> None:
    before = {"$ref": "#/$defs/tree", "$defs": {"tree": TREE}}
    after = {"$ref": "#/$defs/tree", "$defs": {"tree": NULLABLE_TREE}}
    (only,) = of_arguments(before, after)
    assert (only.kind, only.path) == (WIDENS, "inputSchema/properties/name/type")
    assert kind_of(of_results(before, after)) is BREAKS


@requirement("diff:bounded")
def test_a_difference_under_not_is_seen_although_it_was_seen_elsewhere() -> None:
    def schema(of: Any) -> Any:
        shared = {"$ref": "#/$defs/shared"}
        return obj(a=shared, b={"not": obj(c=shared)}) | {"$defs": {"shared": of}}

    assert kind_of(of_arguments(schema(STRING), schema({"type": ["string", "null"]}))) is BREAKS


def steps_of(work: Callable[[], object]) -> int:
    """Return how many calls some work takes."""
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return steps


def unions(levels: int, leaf: Any) -> Any:
    for level in range(levels):
        leaf = {"anyOf": [obj(a=leaf, b={"const": level}), obj(a=leaf), obj(c=STRING)]}
    return leaf


@requirement("diff:bounded")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (cyclic(60), {**cyclic(60), "title": "other"}),
        (unions(6, STRING), unions(6, INTEGER)),
        (
            {"anyOf": [obj(**{f"p{at}": STRING}) for at in range(300)]},
            {"anyOf": [obj(**{f"q{at}": STRING}) for at in range(300)]},
        ),
        (
            obj(**{f"p{at}": {"$ref": "#/$defs/a", "title": "p"} for at in range(600)})
            | {"$defs": {"a": obj(**{f"p{at}": True for at in range(600)})}},
            obj(**{f"p{at}": {"$ref": "#/$defs/a", "title": "q"} for at in range(600)})
            | {"$defs": {"a": obj(**{f"p{at}": STRING for at in range(600)})}},
        ),
    ],
    ids=["doubling", "unions", "many branches", "many references"],
)  # fmt: skip
def test_no_pair_of_schemas_takes_long(before: Any, after: Any) -> None:
    one, other = tool(before), tool(after)
    assert steps_of(lambda: compare(one, other)) < 3_000_000


SIMPLE = [
    *(STRING, INTEGER, NUMBER, NULL, True, False, {"type": ["string", "null"]}),
    *({"minLength": 1}, {"minLength": 2}, {"type": "string", "maxLength": 1}, {"maxLength": 0}),
    *({"pattern": "^a"}, {"type": "string", "pattern": "b$"}),
    *({"minimum": 1}, {"minimum": 2}, {"exclusiveMinimum": 1}, {"maximum": 1.5}, {"maximum": 1}),
    *({"type": "integer", "exclusiveMinimum": 0}, {"type": "integer", "maximum": 1.5}),
    *({"multipleOf": 2}, {"multipleOf": 1}, {"multipleOf": 0.5}),
    *({"enum": ["a", 1]}, {"enum": [1, 1.5, None]}, {"type": "integer", "enum": [1, 1.5, 2]}),
    *({"const": "a"}, {"type": "string", "const": "ab"}, {"const": 1.0}, {"const": True}),
    *({"not": {"const": "a"}}, {"not": STRING}, {"anyOf": [STRING, {"minimum": 2}]}),
    *({"oneOf": [STRING, {"minLength": 2}]}, {"allOf": [STRING, {"minLength": 1}]}),
    *({"anyOf": [{"not": STRING}, NULL]}, {"anyOf": [{"not": NUMBER}, NULL]}),
    {"oneOf": [{"enum": ["a", "ab"]}, {"enum": ["a"]}]},
    *({"items": STRING}, {"type": "array", "maxItems": 1}, {"uniqueItems": True}),
    *({"prefixItems": [STRING]}, {"contains": STRING}, {"type": "array", "minItems": 1}),
    *(obj("a"), obj(a=STRING, others=False), obj(others=INTEGER), {"maxProperties": 1}),
]  # fmt: skip
NAMES = st.sampled_from("abc")


def copied(schema: Any) -> Any:
    """Return a copy in which no two places are one object."""
    return json.loads(to_json(schema))


def objects(parts: st.SearchStrategy[Any], others: st.SearchStrategy[Any]) -> Any:
    return st.fixed_dictionaries(
        {
            "type": st.just("object"),
            "properties": st.dictionaries(NAMES, parts, max_size=3),
            "additionalProperties": others,
        },
        optional={
            "required": st.lists(NAMES, max_size=2, unique=True),
            "minProperties": st.integers(0, 2),
            "unevaluatedProperties": st.just(False),
        },
    )


CLOSED = st.just(False) | st.sampled_from([STRING, {"minimum": 1}])
LEAVES = st.sampled_from(
    [*SIMPLE, {"$ref": "#/$defs/p"}, {"$ref": "#/$defs/q", "minLength": 1}]
).map(copied)
PART = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(lambda them: {"anyOf": them})
        | st.lists(inner, min_size=1, max_size=2).map(lambda them: {"allOf": them})
        | st.lists(inner, min_size=1, max_size=2).map(lambda them: {"oneOf": them})
        | inner.map(lambda it: {"type": "array", "items": it})
        | inner.map(lambda it: {"prefixItems": [it]})
        | inner.map(lambda it: {"not": it})
        | objects(inner, CLOSED)
    ),
    max_leaves=6,
)


def root(schema: dict[str, Any], p: Any, q: Any, *, is_open: bool) -> dict[str, Any]:
    kept = {word: schema[word] for word in schema if not (is_open and word in OTHERS)}
    return {**kept, "$defs": {"p": p, "q": q}}


OTHERS = ("additionalProperties", "unevaluatedProperties")
ROOT = st.builds(root, objects(PART, CLOSED), LEAVES, LEAVES, is_open=st.booleans())


def places(part: Any) -> Iterator[tuple[Any, Any]]:
    """Yield where in a schema its subschemas stand, as a container and a key."""
    for word, inner in part.items() if isinstance(part, dict) else ():
        found: list[tuple[Any, Any]] = []
        if word in {"properties", "$defs"}:
            found = [(inner, name) for name in inner]
        elif word in {"anyOf", "oneOf", "allOf", "prefixItems"}:
            found = [(inner, index) for index in range(len(inner))]
        elif word in {"items", "not", "additionalProperties"}:
            found = [(part, word)]
        for container, key in found:
            yield container, key
            yield from places(container[key])


@st.composite
def versions(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two versions of a schema, which differ in a place or two."""
    before = draw(ROOT)
    after = copied(before)
    for _ in range(draw(st.integers(1, 2))):
        container, key = draw(st.sampled_from(list(places(after))))
        part = container[key]
        another = draw(LEAVES)
        container[key] = draw(st.sampled_from([another, {"anyOf": [part, another]}, True]))
    if draw(st.integers(0, 3)) == 0:
        after.pop(
            draw(st.sampled_from(["required", "minProperties", "additionalProperties"])), None
        )
    return before, after


VALUES = [
    *(None, True, False, 0, 1, 2, 1.5, "", "a", "ab"),
    *([], ["a"], [1, "ab"], ["a", "a"], {}, {"a": "a"}, {"b": 1}, {"a": 2, "c": ["a"]}),
]
"""Enough to tell the schemas above apart."""
OBJECTS_OF_VALUES = [
    *({}, {"d": "a"}, {"d": 1}),
    *({name: value} for name in "abc" for value in VALUES),
    *({"a": one, "b": other} for one in VALUES for other in ("ab", 1)),
    *({"a": "a", "b": one, "c": other} for one in VALUES for other in ("", 2)),
]


def breaks(differences: tuple[Difference, ...]) -> bool:
    return bool(differences) and kind_of(differences) is BREAKS


def fits(check: Callable[..., None], schema: Any, value: Any) -> bool:
    try:
        check("look", schema, value)
    except FleetError:
        return False
    return True


def usable(schema: Any) -> bool:
    try:
        refuse_unusable(schema)
    except ValueError:
        return False
    return True


def allowed(schema: Any) -> set[int]:
    """Return which of the values the property `x` may have."""
    return {at for at, value in enumerate(VALUES) if fits(check_arguments, schema, {"x": value})}


@requirement("diff:sound")
@pytest.mark.parametrize("before", SIMPLE)
def test_no_value_of_a_property_is_lost_or_gained_unless_a_change_breaks(before: Any) -> None:
    valid = allowed(obj(x=before))
    for after in map(copied, SIMPLE):
        still = allowed(obj(x=after))
        if not breaks(of_arguments(obj(x=before), obj(x=after))):
            assert valid <= still, after
        if not breaks(of_results(obj(x=before), obj(x=after))):
            assert still <= valid, after


@requirement("diff:sound")
@settings(max_examples=200, deadline=None)
@given(versions())
def test_arguments_that_were_valid_stay_valid_unless_a_change_breaks(pair: tuple[Any, Any]) -> None:
    before, after = pair
    if breaks(of_arguments(before, after)):
        return
    for arguments in OBJECTS_OF_VALUES:
        # What an open schema does not name it does not promise.
        promised = (
            "additionalProperties" in before or arguments.keys() <= before["properties"].keys()
        )
        if promised and fits(check_arguments, before, arguments):
            assert fits(check_arguments, after, arguments)


@requirement("diff:sound")
@settings(max_examples=200, deadline=None)
@given(versions())
def test_results_that_become_valid_were_valid_unless_a_change_breaks(pair: tuple[Any, Any]) -> None:
    before, after = pair
    # A tool with a schema that nothing can be checked against was never offered.
    if not usable(before) or breaks(of_results(before, after)):
        return
    for result in OBJECTS_OF_VALUES:
        body = {"content": [], "structuredContent": result}
        if fits(check_result, after, body):
            assert fits(check_result, before, body)


@requirement("diff:sound")
@given(ROOT, ROOT)
def test_a_digest_that_differs_has_a_difference_and_an_equal_one_none(one: Any, other: Any) -> None:
    before, after = tool(one), tool(other)
    assert bool(compare(before, after)) is (before.digest != after.digest)
    assert compare(before, tool(one)) == ()
