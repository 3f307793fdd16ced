"""Which arguments travel as headers too, and which tools ask for what cannot be a header."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from registry.tools import mirrored_parameters
from tests.requirements import requirement
from workers.listing import callable_over_http


def headed(name: Any = "Region", kind: str = "string") -> dict[str, Any]:
    return {"type": kind, "x-mcp-header": name}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object", "properties": properties}}


@requirement("headers:mirrored")
def test_a_parameter_is_found_at_any_depth_of_properties_and_nowhere_else() -> None:
    inner = {"type": "object", "properties": {"zone": headed("Zone"), "x": {"type": "string"}}}
    schema = {
        "type": "object",
        "properties": {"region": headed(), "at": inner},
        "$defs": {"unused": {"properties": {"other": headed("Other")}}},
        "allOf": [{"properties": {"more": headed("More")}}],
    }
    assert mirrored_parameters(schema) == {("region",): "Region", ("at", "zone"): "Zone"}


@requirement("headers:mirrored")
@pytest.mark.parametrize(
    "schema", [None, {}, {"properties": []}, {"properties": {"x": True}}, {"properties": {"x": 1}}]
)
def test_a_schema_that_asks_for_no_header_has_none(schema: Any) -> None:
    assert mirrored_parameters(schema) == {}


@requirement("headers:refused")
@pytest.mark.parametrize(
    "properties",
    [
        {"x": headed("")},
        {"x": headed("Two Words")},
        {"x": headed("Région")},
        {"x": headed("A\tB")},
        {"x": headed(7)},
        {"x": headed(kind="number")},
        {"x": headed(kind="object")},
        {"x": headed("Same"), "y": headed("same")},
        {"x": {"type": "array", "items": headed()}},
    ],
)
def test_a_tool_whose_header_cannot_be_is_left_out_alone_and_it_is_said(
    properties: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="toolfleet.listing"):
        left = callable_over_http([tool("bad", **properties), tool("good", x=headed())], "demo")
    assert [it["name"] for it in left] == ["good"]
    assert "'bad'" in caplog.text
    assert "demo" in caplog.text
