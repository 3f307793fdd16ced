"""Traces: the steps of a call in one process, noted where they happen, seen to by others later.

A process notes what it does for a call in one `Trace`: a first step, and the steps within it. On
the way this costs a small object for each step. When its part in the call is over, what is to be
kept becomes one piece of text (`registry.telemetry_spans`), and outlets take the pieces of a
second along together (`registry.telemetry_outlet`): to Redis, and to a collector if there is one.

Invariants:
 1. Nothing here waits, and nothing that goes wrong here is noticed by a call.
 2. Attributes are ids, names that the registry knows, sizes, codes and flags: never arguments or
    results, nor who called, nor addresses.
 3. Whether a trace is recorded is decided once, where it begins, and told on by ``traceparent``.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Self

from registry import telemetry_spans
from registry.errors import FleetError
from registry.settings import Settings
from registry.telemetry_outlet import Outlet
from registry.telemetry_sampling import Sampler
from registry.telemetry_spans import Kind, Span
from registry.trace import parent_of

__all__ = [
    "Kind",
    "Span",
    "Step",
    "Trace",
    "Tracer",
    "code_of",
    "current",
    "make_tracer",
    "work_on",
]

CALL_ID: Final = "toolfleet.call.id"
RUN_ID: Final = "toolfleet.run.id"
TENANT: Final = "toolfleet.tenant"
SERVER: Final = "toolfleet.server"
SERVER_VERSION: Final = "toolfleet.server.version"
TOOL: Final = "toolfleet.tool"
ATTEMPT: Final = "toolfleet.attempt"
ARGUMENTS_BYTES: Final = "toolfleet.arguments.bytes"
RESULT_BYTES: Final = "toolfleet.result.bytes"
PARTS: Final = (
    "trace_parts",
    "Parts of traces since this process started, by what became of them on which way out",
    ("way", "outcome"),
)
"""How figures tell of `Tracer.tally`: name, help and labels."""
MOST_STEPS: Final = 256
"""Of one call in one process: a server may ask its caller any number of things."""
_ID_BITS: Final = 64
_CANCELLED: Final = "cancelled"


class Step:
    """A step under way: a context that notes its end and its error; or call `end`.

    One that nobody ended was interrupted: it ends with the trace, or before, by `Trace.interrupt`.
    """

    __slots__ = ("attributes", "began", "ended", "error", "kind", "name", "number", "trace")

    def __init__(self, trace: Trace, number: int, name: str, kind: str, began: float) -> None:
        self.trace = trace
        self.number = number
        self.name = name
        self.kind = kind
        self.began = began
        self.ended = 0.0
        self.error = ""
        self.attributes: dict[str, Any] | None = None

    @property
    def traceparent(self) -> str:
        """Return what makes a step that somebody else takes a part of this one."""
        return self.trace.traceparent_at(self.number)

    def end(
        self, error: BaseException | None = None, attributes: Mapping[str, Any] | None = None
    ) -> None:
        """Note that the step is over, and what belongs to it."""
        self.ended = self.trace.clock()
        if attributes:
            self.attributes = {**(self.attributes or {}), **attributes}
        if error is not None:
            self.error = code_of(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.end(error)


class Trace:
    """What one process does for one call; ``attributes`` are of all of its steps."""

    __slots__ = (
        "attributes", "began", "clock", "closed", "error", "keep", "kind", "name", "own",
        "parent_id", "recording", "sampled", "span_id", "steps", "trace_id",
    )  # fmt: skip

    def __init__(
        self,
        trace_id: str,
        span_id: int,
        parent_id: str | None,
        *,
        sampled: bool,
        recording: bool,
        clock: Callable[[], float],
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        """Of the first step; those of the others are the numbers after it."""
        self.parent_id = parent_id
        self.sampled = sampled
        """Whether whoever began the trace wants it recorded."""
        self.recording = recording
        self.clock = clock
        self.began = clock()
        self.name = ""
        self.kind = Kind.INTERNAL
        self.own: dict[str, Any] = {}
        """What belongs to the first step alone."""
        self.attributes: dict[str, Any] = {}
        self.error = ""
        self.keep = False
        """Whether it is worth keeping though it is not recorded and nothing failed here."""
        self.steps: list[Step] = []
        self.closed = False

    @property
    def traceparent(self) -> str:
        """Return what makes a step that is taken elsewhere a part of the first one."""
        return self.traceparent_at(0)

    def traceparent_at(self, number: int) -> str:
        """Return the ``traceparent`` of a step."""
        span_id = self.span_id + number
        return f"00-{self.trace_id}-{span_id:016x}-{'01' if self.sampled else '00'}"

    def step(self, name: str, kind: str = Kind.INTERNAL, *, began: float | None = None) -> Step:
        """Begin a step, now or at an earlier time of the trace's clock."""
        step = Step(self, len(self.steps) + 1, name, kind, self.clock() if began is None else began)
        if self.recording and len(self.steps) < MOST_STEPS:
            self.steps.append(step)
        return step

    def interrupt(self, error: str) -> None:
        """Note that the steps under way ended with an error code."""
        for step in self.steps:
            if not step.ended:
                step.end()
                step.error = error


_current: Final[ContextVar[Trace | None]] = ContextVar("toolfleet_trace", default=None)


def current() -> Trace | None:
    """Return the trace of the call that is being worked on here, if there is one."""
    return _current.get()


def work_on(trace: Trace) -> None:
    """Have this task, and those it starts, work on a trace's call: logs name it from now on."""
    _current.set(trace)


def code_of(error: BaseException) -> str:
    """Return how an error is called in a trace: by its code, or by its class."""
    if isinstance(error, FleetError):
        return error.code.code
    return _CANCELLED if isinstance(error, asyncio.CancelledError) else type(error).__name__


class Tracer:
    """A process's traces: begins them, ends them, and passes on what is to be kept.

    ``recording`` off (OTEL_SDK_DISABLED), traces have ids, which go on as ever, and nothing else.
    """

    def __init__(
        self,
        service: str = "toolfleet",
        sampler: Sampler | None = None,
        *,
        recording: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.service = service
        self.recording = recording
        self.counts: Counter[str] = Counter()
        """Parts of traces by what became of them: ``kept``, ``passed_over``, ``lost``."""
        self.outlets: list[Outlet] = []
        self._sampler = sampler or Sampler(clock=clock)
        self.clock = clock
        self._wall_ns = wall_ns

    def tally(self) -> Iterator[tuple[str, str, int]]:
        """Yield what became of parts of traces: on which way out, how they fared, how many."""
        for way, counts in (("here", self.counts), *((it.name, it.counts) for it in self.outlets)):
            for outcome, count in sorted(counts.items()):
                yield way, outcome, count

    def begin(
        self,
        name: str,
        kind: str = Kind.INTERNAL,
        traceparent: str | None = None,
        *,
        began: float | None = None,
    ) -> Trace:
        """Begin a part of the trace that a ``traceparent`` names, or of a new one."""
        parent = parent_of(traceparent)
        span_id = random.getrandbits(_ID_BITS - 1) or 1  # room for the numbers after it
        if parent is None:
            trace_id = f"{random.getrandbits(2 * _ID_BITS) or 1:032x}"
            sampled = self.recording and self._sampler.wants(trace_id)
        else:
            trace_id, sampled = parent.trace_id, parent.sampled
        trace = Trace(
            trace_id,
            span_id,
            parent.span_id if parent else None,
            sampled=sampled,
            recording=self.recording,
            clock=self.clock,
        )
        trace.name, trace.kind = name, kind
        if began is not None:
            trace.began = began
        return trace

    def end(self, trace: Trace) -> None:
        """End a process's part in a trace; keep it if it is recorded, or has failed, or was slow.

        Ending it again does nothing.
        """
        if trace.closed:
            return
        trace.closed = True
        self._keep(trace, self.clock())
        trace.steps = []  # each knows its trace: what is no circle needs no collector of garbage

    def _keep(self, trace: Trace, ended: float) -> None:
        if not trace.recording or not self.outlets:
            return
        slow = ended - trace.began >= self._sampler.slow_s
        worth = trace.keep or trace.error or slow
        if not (trace.sampled or (worth and self._sampler.spares())):
            self.counts["passed_over"] += 1
            return
        try:
            part = telemetry_spans.encode(trace, self.service, ended, self._since_1970_us())
        except (ValueError, TypeError, UnicodeError):  # a name that is no text
            self.counts["lost"] += 1
            return
        self.counts["kept"] += 1
        for outlet in self.outlets:
            outlet.put(trace.trace_id, part)

    def beside(self, traceparent: str | None, name: str, kind: str) -> Step:
        """Begin a step of a trace that is being worked on here, or else of one that was.

        As a context; a step of a trace that is not recorded is noted nowhere.
        """
        trace = current()
        if trace is not None and not trace.closed and _same(trace, traceparent):
            return trace.step(name, kind)
        return _Alone(self, self.begin(name, kind, traceparent))

    async def close(self) -> None:
        """Let the outlets take along what is left."""
        for outlet in self.outlets:
            await outlet.close()

    def _since_1970_us(self) -> int:
        """Return what makes a time of this process's clock one since 1970, in microseconds."""
        return self._wall_ns() // 1000 - round(self.clock() * 1e6)


def _same(trace: Trace, traceparent: str | None) -> bool:
    return traceparent is not None and traceparent.startswith(trace.trace_id, 3)


class _Alone(Step):
    """A step that is all that a process does in a trace."""

    __slots__ = ("tracer",)

    def __init__(self, tracer: Tracer, trace: Trace) -> None:
        super().__init__(trace, 0, trace.name, trace.kind, trace.began)
        self.tracer = tracer

    def end(
        self, error: BaseException | None = None, attributes: Mapping[str, Any] | None = None
    ) -> None:
        """Note that the step is over, and with it its part of the trace."""
        super().end(error, attributes)
        self.trace.error = self.error
        self.trace.own |= self.attributes or {}
        self.tracer.end(self.trace)


def make_tracer(service: str, settings: Settings) -> Tracer:
    """Return the tracer of a process, which exports if OTEL_* say where to."""
    from registry import telemetry_otlp

    sampler = Sampler(
        settings.trace_ratio, settings.traces_per_s, settings.trace_slow.total_seconds()
    )
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    tracer = Tracer(service, sampler, recording=not disabled)
    if not disabled and telemetry_otlp.is_wanted(os.environ):
        tracer.outlets.append(telemetry_otlp.outlet(service))
    return tracer
