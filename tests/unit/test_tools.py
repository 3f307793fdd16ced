"""Tools as values: stable names and digests, the operator's delivery class, no collisions."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.definitions import Delivery, ServerDefinition, parse_definition
from registry.errors import Code, FleetError
from registry.tools import (
    SnapshotTool,
    delivery_of,
    model_name,
    refuse_collisions,
    snapshot_digest,
    snapshot_tools,
    tool_version,
)
from tests.requirements import requirement


def server(**rest: Any) -> ServerDefinition:
    return parse_definition({"name": "demo", "transport": "stdio", "command": "true", **rest})


def listed(name: str = "look", **rest: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object"}, **rest}


def entries(definition: ServerDefinition, *tools: dict[str, Any]) -> list[SnapshotTool]:
    return snapshot_tools(definition, 1, enumerate(tool_version(tool) for tool in tools))


@requirement("tools:names")
@given(st.text(max_size=30), st.text(min_size=1, max_size=100))
def test_every_name_becomes_one_that_every_model_takes(prefix: str, name: str) -> None:
    made = model_name(prefix, name)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", made)
    assert made == model_name(prefix, name)


@requirement("tools:names")
@given(st.lists(st.text(min_size=1, max_size=90), min_size=2, max_size=2, unique=True))
def test_different_names_stay_different(names: list[str]) -> None:
    assert model_name("demo_", names[0]) != model_name("demo_", names[1])


@requirement("tools:names")
def test_a_legal_name_is_only_prefixed() -> None:
    assert model_name("demo_", "look-up_2") == "demo_look-up_2"


@requirement("tools:names")
@pytest.mark.parametrize("name", [None, "", 7])
def test_a_tool_without_a_name_is_refused(name: object) -> None:
    with pytest.raises(FleetError) as refused:
        tool_version({"name": name, "inputSchema": {}})
    assert refused.value.code is Code.PROTOCOL_ERROR


@requirement("tools:digests")
def test_order_and_presentation_do_not_change_a_tools_digest() -> None:
    one = tool_version({"name": "a", "description": "d", "inputSchema": {"x": 1, "y": 2}})
    two = tool_version(
        {"icons": [], "inputSchema": {"y": 2, "x": 1}, "description": "d", "name": "a"}
    )
    assert one == two


@requirement("tools:digests")
@pytest.mark.parametrize(
    "change",
    [
        {"description": "other"},
        {"title": "other"},
        {"inputSchema": {"type": "object", "required": ["x"]}},
        {"outputSchema": {"type": "object"}},
        {"annotations": {"readOnlyHint": True}},
    ],
)
def test_whatever_a_model_sees_changes_the_digest(change: dict[str, Any]) -> None:
    assert tool_version(listed()).digest != tool_version(listed(**change)).digest


@requirement("tools:digests")
def test_schemas_with_64_bit_limits_have_digests_of_their_own() -> None:
    limits = [2**63 - 1, 2**64 - 1, 2**64]
    tools = [listed(inputSchema={"properties": {"n": {"maximum": it}}}) for it in limits]
    assert len({tool_version(tool).digest for tool in tools}) == 3
    assert len({snapshot_digest(entries(server(), tool)) for tool in tools}) == 3


@requirement("tools:digests")
@pytest.mark.parametrize("text", ["a\0b", "\ud800"], ids=["nul", "lone surrogate"])
def test_a_tool_whose_text_cannot_be_kept_is_refused(text: str) -> None:
    with pytest.raises(FleetError) as refused:
        tool_version(listed(description=text))
    assert refused.value.code is Code.PROTOCOL_ERROR


@requirement("tools:delivery")
@pytest.mark.parametrize(
    ("trusted", "rule", "hints", "delivery"),
    [
        (False, {}, {"readOnlyHint": True}, Delivery.WRITE),
        (True, {}, {"readOnlyHint": True}, Delivery.READ),
        (True, {}, {"idempotentHint": True}, Delivery.IDEMPOTENT),
        (True, {}, {"readOnlyHint": "yes"}, Delivery.WRITE),
        (True, {}, None, Delivery.WRITE),
        (True, {"delivery": "write"}, {"readOnlyHint": True}, Delivery.WRITE),
        (False, {"delivery": "read"}, None, Delivery.READ),
        (True, {"timeout_s": 1}, {"readOnlyHint": True}, Delivery.READ),
    ],
)
def test_the_operator_decides_the_delivery_class(
    trusted: bool, rule: dict[str, Any], hints: object, delivery: Delivery
) -> None:
    definition = server(
        annotations="trusted" if trusted else "untrusted", tools={"look": rule} if rule else {}
    )
    assert delivery_of(definition, tool_version(listed(annotations=hints))) is delivery


@requirement("tools:rules")
def test_a_tools_rule_replaces_the_servers_timeout_and_hides_it() -> None:
    definition = server(
        timeouts={"call_s": 9}, tools={"quick": {"timeout_s": 1}, "secret": {"hidden": True}}
    )
    seen = entries(definition, listed("quick"), listed("slow"), listed("secret"))
    assert {(it.name, it.timeout_s) for it in seen} == {("demo_quick", 1), ("demo_slow", 9)}


@requirement("tools:collisions")
def test_two_tools_that_fall_together_are_both_named() -> None:
    one = entries(server(tool_prefix="a_"), listed("b_c"))
    two = entries(server(name="other", tool_prefix="a_b_"), listed("c"))
    with pytest.raises(FleetError) as refused:
        refuse_collisions(one + two)
    assert refused.value.code is Code.NAME_COLLISION
    assert "'demo'" in refused.value.message
    assert "'other'" in refused.value.message


@requirement("tools:digests")
def test_a_snapshot_entry_survives_being_stored() -> None:
    (entry,) = entries(server(), listed(outputSchema={"type": "object"}, annotations={}))
    assert SnapshotTool.from_dict(entry.as_dict()) == entry
