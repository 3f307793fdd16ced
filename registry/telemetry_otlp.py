"""Spans on their way to a collector: OTLP over HTTP, told where to by the OTEL_* variables.

The SDK is loaded by processes that export, and by no other. Spans are made and sent in a thread of
their own; what cannot be sent within the exporter's own patience is lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, cast

from registry.telemetry_outlet import Outlet, Part
from registry.telemetry_spans import Span, decode

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_MOST_AT_ONCE: Final = 512
_NS: Final = 1_000_000_000
_SDK_LOG: Final = "opentelemetry"


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Say whether OTEL_* variables name a collector that traces are to go to."""
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return False
    return any(environment.get(name, "").strip() for name in _ENDPOINTS)


def resource_of(service: str) -> Resource:
    """Return who exports; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    ours = {
        "service.name": service,
        "service.namespace": "toolfleet",
        "service.version": version("toolfleet"),
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())


def outlet(service: str) -> Outlet:
    """Return the way of a process's traces to the collector."""
    exporter = _Exporter(service)
    return Outlet("collector", exporter.take, ends=exporter.close)


class _Exporter:
    def __init__(self, service: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        # It logs each failure with the collector's answer; ours is logged once, without.
        logging.getLogger(_SDK_LOG).setLevel(logging.CRITICAL)
        self._exporter = OTLPSpanExporter()
        self._resource = resource_of(service)
        self._scope = InstrumentationScope("toolfleet", version("toolfleet"))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="otlp")

    async def take(self, parts: Sequence[Part]) -> None:
        """Send parts; raise `OSError` when the collector took not all of them."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._send, parts)

    async def close(self) -> None:
        """Close the connection; an export that goes on is broken off."""
        cast(Any, self._exporter).shutdown()  # it carries no types
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _send(self, parts: Sequence[Part]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        make = _maker(self._resource, self._scope)
        spans = [make(span) for _, part in parts for span in decode(part)]
        for at in range(0, len(spans), _MOST_AT_ONCE):
            done = self._exporter.export(spans[at : at + _MOST_AT_ONCE])
            if done is not SpanExportResult.SUCCESS:
                raise OSError("the collector took not all spans")


def _maker(resource: Resource, scope: Any) -> Callable[[Span], ReadableSpan]:
    """Return what makes the SDK's spans of ours."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
    from opentelemetry.trace.status import Status, StatusCode

    sampled = TraceFlags(TraceFlags.SAMPLED)
    kinds = {kind.name.lower(): kind for kind in SpanKind}

    def make(span: Span) -> ReadableSpan:
        trace_id = int(span.trace_id, 16)
        parent = span.parent_id
        return ReadableSpan(
            name=span.name,
            context=SpanContext(trace_id, int(span.span_id, 16), False, sampled),
            parent=SpanContext(trace_id, int(parent, 16), True, sampled) if parent else None,
            resource=resource,
            attributes=span.attributes | ({"error.type": span.error} if span.error else {}),
            kind=kinds[span.kind],
            status=Status(StatusCode.ERROR if span.error else StatusCode.UNSET),
            start_time=int(span.start_s * _NS),
            end_time=int(span.end_s * _NS),
            instrumentation_scope=scope,
        )

    return make
