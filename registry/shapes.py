"""The shape of a result: what it is made of, without what it says.

Two versions of a tool that answer alike have equal shapes, whatever the answers; so a canary that
answers otherwise is noticed without keeping, or comparing, anybody's data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

LONGEST: Final = 400
_DEEPEST: Final = 3
_MOST_KEYS: Final = 24
_LONGEST_TEXT: Final = 16_384
"""A longer text is not looked into."""


def shape_of(body: Mapping[str, Any]) -> str:
    """Return the shape of an MCP result: its content blocks' types, and its structure's keys.

    A text that is a JSON object or list is looked into, as that is how older servers answer.
    """
    blocks = body.get("content")
    kinds = [_block(block) for block in blocks] if isinstance(blocks, list) else []
    parts = [_counted(kinds)]
    if "structuredContent" in body:
        parts.append("structured " + _value(body["structuredContent"], 0))
    return " + ".join(part for part in parts if part)[:LONGEST] or "empty"


def _block(block: Any) -> str:
    if not isinstance(block, dict):
        return "?"
    kind = str(block.get("type", "?"))[:40]
    text = block.get("text")
    if kind != "text" or not isinstance(text, str) or len(text) > _LONGEST_TEXT:
        return kind
    if text.lstrip()[:1] not in {"{", "["}:
        return kind
    try:
        return "text " + _value(json.loads(text), 0)
    except (ValueError, RecursionError):
        return kind


def _counted(kinds: list[str]) -> str:
    """Return each kind once: how many blocks there are depends on the question."""
    return ", ".join(dict.fromkeys(kinds))


def _value(value: Any, depth: int) -> str:
    if isinstance(value, dict):
        if depth >= _DEEPEST:
            return "{...}"
        keys = sorted(value)[:_MOST_KEYS]
        return "{" + ", ".join(f"{key[:40]}: {_value(value[key], depth + 1)}" for key in keys) + "}"
    if isinstance(value, list):
        if depth >= _DEEPEST or not value:
            return "[]"
        return "[" + _value(value[0], depth + 1) + "]"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "null" if value is None else "string"
