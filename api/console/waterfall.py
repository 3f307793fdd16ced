"""A trace as a waterfall: each step below the one that it is part of, in its time; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from registry.telemetry import Kind, Span

DEEPEST: Final = 8
"""How far steps are moved in; what is deeper is not moved in any further."""
MOST_STEPS: Final = 400
WAITS: Final = frozenset({"queue wait", "borrow"})


@dataclass(frozen=True)
class Step:
    """A span in its place."""

    span: Span
    depth: int
    start_s: float
    """Since the trace began."""
    took_s: float
    start: float
    """Where its bar begins, and how wide that is, in percent of the whole trace."""
    width: float

    @property
    def kind(self) -> str:
        """Return what it is, as a call's phases have it: ``wait``, ``call`` or ``work``."""
        if self.span.name in WAITS:
            return "wait"
        return "call" if self.span.kind == Kind.CLIENT else "work"


@dataclass(frozen=True)
class Waterfall:
    """The steps of a trace from top to bottom."""

    steps: list[Step]
    took_s: float
    left_out: int = 0
    """Steps beyond `MOST_STEPS`."""


def waterfall(spans: Sequence[Span]) -> Waterfall:
    """Return the steps of one trace, each below its parent, brothers in order of their beginning.

    A span whose parent is not there, or who is its own ancestor, begins a tree of its own; clocks
    of several machines may differ, so a step may begin before its parent.
    """
    if not spans:
        return Waterfall([], 0.0)
    known = {span.span_id: span for span in spans}
    begun, ended = min(it.start_s for it in spans), max(it.end_s for it in spans)
    whole_s = max(ended - begun, 1e-9)
    children: dict[str | None, list[Span]] = {}
    for span in sorted(known.values(), key=lambda it: (it.start_s, -it.end_s, it.span_id)):
        parent = span.parent_id if span.parent_id in known else None
        children.setdefault(parent, []).append(span)
    placed: dict[str, int] = {}
    _place(children, None, placed)
    for span_id, span in known.items():  # those of a circle hang on no root
        if span_id not in placed:
            placed[span_id] = 0
            _place(children, span, placed)
    steps = [
        Step(
            span := known[span_id],
            min(depth, DEEPEST),
            span.start_s - begun,
            max(0.0, span.end_s - span.start_s),
            100 * (span.start_s - begun) / whole_s,
            100 * max(0.0, span.end_s - span.start_s) / whole_s,
        )
        for span_id, depth in placed.items()
    ]
    return Waterfall(steps[:MOST_STEPS], ended - begun, max(0, len(steps) - MOST_STEPS))


def _place(
    children: dict[str | None, list[Span]], under: Span | None, placed: dict[str, int]
) -> None:
    """Note the depth of everything below a span, each after its parent; each span once."""
    depth, name = (0, None) if under is None else (placed[under.span_id] + 1, under.span_id)
    waiting = [(it, depth) for it in reversed(children.get(name, []))]
    while waiting:
        span, depth = waiting.pop()
        if span.span_id in placed:
            continue
        placed[span.span_id] = depth
        waiting += [(it, depth + 1) for it in reversed(children.get(span.span_id, []))]
