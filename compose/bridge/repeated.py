"""The headers by which HTTP repeats what a body says (2026-07-28, streamable HTTP). Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from api.mcp.headers import METHOD, NAME, NAMED, PARAMETER, Repeated, repeated_in
from api.mcp.headers import VERSION as VERSION_HEADER
from compose.bridge.messages import VERSION, Message

_PLAIN: Final = re.compile(r"[\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?")
_ENCODED: Final = re.compile(r"=\?base64\?.*\?=")

Marks = dict[str, tuple[Repeated, ...]]
"""By tool, the parameters that headers repeat."""


def headers_of(message: Message, marks: Mapping[str, tuple[Repeated, ...]]) -> dict[str, str]:
    """Return the headers of a request that stands for itself."""
    headers = {
        VERSION_HEADER: encoded(str(message.params["_meta"][VERSION])),
        METHOD: encoded(message.method),
    }
    named = message.params.get(NAMED.get(message.method, ""))
    if isinstance(named, str):
        headers[NAME] = encoded(named)
    if message.method == "tools/call":
        for mark in marks.get(str(named), ()):
            value = _at(message.params.get("arguments"), mark.path)
            if value is not None:
                headers[PARAMETER + mark.header] = encoded(_text(value))
    return headers


def marks_in(tools: Any) -> Marks:
    """Return which parameters headers repeat, by tool, from the ``tools`` of a listing."""
    return {
        str(tool.get("name")): marks
        for tool in _objects(tools)
        if isinstance(tool.get("inputSchema"), dict) and (marks := repeated_in(tool["inputSchema"]))
    }


def encoded(value: str) -> str:
    """Return a value as a header may have it."""
    if value == "" or (_PLAIN.fullmatch(value) and not _ENCODED.fullmatch(value)):
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _at(arguments: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if not isinstance(arguments, dict):
            return None
        arguments = arguments.get(name)
    return arguments


def _objects(values: Any) -> Iterable[dict[str, Any]]:
    return (it for it in values if isinstance(it, dict)) if isinstance(values, list) else ()
