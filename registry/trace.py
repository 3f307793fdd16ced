"""Trace context as W3C has it, in HTTP headers and in ``_meta`` of MCP alike; pure.

``traceparent`` says which trace a call belongs to; ``tracestate`` and ``baggage`` belong to it and
are of use only with it. What is not well-formed counts as not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_LONGEST: Final = {"tracestate": 512, "baggage": 8_192}
"""Characters, as the two recommendations want them to be passed on at least."""
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]+")
_SAMPLED: Final = 1


class Parent(NamedTuple):
    """What a ``traceparent`` says: the trace, the span to go on from, whether it is recorded."""

    trace_id: str
    span_id: str
    sampled: bool


def parent_of(traceparent: str | None) -> Parent | None:
    """Return what a ``traceparent`` says, of whatever version; None where it says nothing."""
    if traceparent is None or not TRACEPARENT.fullmatch(traceparent):
        return None
    flags = int(traceparent[53:55], 16)
    return Parent(traceparent[3:35], traceparent[36:52], bool(flags & _SAMPLED))


def traceparent_of(carrier: Mapping[str, Any]) -> str | None:
    """Return which trace a call belongs to; None where that is not said properly."""
    value = carrier.get("traceparent")
    return value if isinstance(value, str) and TRACEPARENT.fullmatch(value) else None


def trace_of(carrier: Mapping[str, Any]) -> dict[str, str] | None:
    """Return what goes along with `traceparent_of`; None where there is nothing."""
    if traceparent_of(carrier) is None:
        return None
    found = {
        name: value
        for name, longest in _LONGEST.items()
        if isinstance(value := carrier.get(name), str)
        and len(value) <= longest
        and _PRINTABLE.fullmatch(value)
    }
    return found or None
