"""A process's part in a trace as one piece of JSON, as it is kept and passed on; pure.

    [trace id, service, id of the first span, id of its parent, attributes of all,
     [name, kind, start, end, error, attributes], ...]

The first step comes first; the ids of the others, its children, are the numbers after its own.
Times are microseconds since 1970.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import to_json

if TYPE_CHECKING:
    from registry.telemetry import Trace

_US: Final = 1_000_000


@dataclass(frozen=True)
class Span:
    """One step of a trace, as W3C and OpenTelemetry name its parts."""

    trace_id: str
    span_id: str
    parent_id: str | None
    """None for the first of its trace, else a span of ours or of whoever called."""
    name: str
    service: str
    """Which process of the fleet took it: ``toolfleet-api``, ``toolfleet-worker``..."""
    start_s: float
    """Since 1970."""
    end_s: float
    attributes: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    """The error code of a step that failed."""
    kind: str = "internal"
    """One of `Kind`."""


class Kind:
    """Which side of a request a step is, as OpenTelemetry has it."""

    INTERNAL: Final = "internal"  # plain text: members of an enumeration take long to encode
    SERVER: Final = "server"
    CLIENT: Final = "client"
    PRODUCER: Final = "producer"
    CONSUMER: Final = "consumer"


def encode(trace: Trace, service: str, ended: float, since_1970_us: int) -> bytes:
    """Return a part that ended at a time of its own clock; raise `ValueError` for what is no text.

    ``since_1970_us`` is what such a time lacks.
    """
    steps: list[Any] = [
        (
            step.name,
            step.kind,
            int(step.began * _US) + since_1970_us,
            int((step.ended or ended) * _US) + since_1970_us,
            step.error if step.ended else step.error or trace.error,
            step.attributes,
        )
        for step in trace.steps
    ]
    first = (
        trace.name,
        trace.kind,
        int(trace.began * _US) + since_1970_us,
        int(ended * _US) + since_1970_us,
        trace.error,
        trace.own,
    )
    about = (trace.trace_id, service, trace.span_id, trace.parent_id, trace.attributes)
    return to_json((*about, first, *steps))


def decode(part: bytes) -> list[Span]:
    """Return the spans of a part; raise `ValueError` for what is none."""
    try:
        trace_id, service, first_id, parent_id, common, *steps = json.loads(part)
        first = f"{first_id:016x}"
        return [
            Span(
                trace_id=trace_id,
                span_id=f"{first_id + number:016x}",
                parent_id=first if number else parent_id,
                name=name,
                service=service,
                start_s=start / _US,
                end_s=end / _US,
                attributes={**common, **(own or {})},
                error=error,
                kind=kind,
            )
            for number, (name, kind, start, end, error, own) in enumerate(steps)
        ]
    except (TypeError, KeyError) as error:
        raise ValueError("a part of a trace makes no sense") from error


def in_order(parts: Iterable[bytes]) -> list[Span]:
    """Return the spans of every part that makes sense, sorted by their start."""
    found: list[Span] = []
    for part in parts:
        try:
            found += decode(part)
        except ValueError:
            continue
    return sorted(found, key=lambda span: (span.start_s, -span.end_s))
