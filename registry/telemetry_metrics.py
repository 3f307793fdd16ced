"""Figures by OTLP, for those who do not scrape: Prometheus families as OpenTelemetry's metrics.

A conversion, which is pure, and an outlet that sends what it gives with the SDK's exporter, set up
by OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT (or .._METRICS_ENDPOINT) says where
to, and without it nothing is sent; OTEL_METRIC_EXPORT_INTERVAL (milliseconds, 60,000 by default)
how often. Counts are cumulative, as they are in Prometheus.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, cast

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import export
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import Metric

SCOPE: Final = "toolfleet"
DEFAULT_INTERVAL_S: Final = 60.0
_SHORTEST_S: Final = 1.0
_CREATED: Final = "_created"
_UNITS: Final = {"_seconds": "s", "_bytes": "By"}
_UNKNOWN: Final = cast(float, None)  # the encoder leaves it out; its type says that it cannot be
_CUMULATIVE: Final = export.AggregationTemporality.CUMULATIVE

logger = logging.getLogger("toolfleet.telemetry")

_Labels = tuple[tuple[str, str], ...]
_Started = Mapping[tuple[str, _Labels], int]


def convert(families: Iterable[Metric], *, resource: Resource, now_ns: int) -> export.MetricsData:
    """Return families as metrics of one resource, all taken at ``now_ns`` (since 1970).

    A metric is named as its family: what Prometheus makes of it again is what it was.
    """
    families = list(families)
    started = _started(families)
    metrics = [
        export.Metric(family.name, family.documentation, _unit(family.name), data)
        for family in families
        if not family.name.endswith(_CREATED) and (data := _data(family, started, now_ns))
    ]
    scope = export.ScopeMetrics(InstrumentationScope(SCOPE), metrics, "")
    return export.MetricsData([export.ResourceMetrics(resource, [scope], "")])


def _started(families: Iterable[Metric]) -> _Started:
    """Return since when each series has been counting, where that is said."""
    return {
        (sample.name.removesuffix(_CREATED), _labels(sample.labels)): int(sample.value * 1e9)
        for family in families
        for sample in family.samples
        if sample.name.endswith(_CREATED)
    }


def _data(family: Metric, started: _Started, now_ns: int) -> Any:
    """Return a family's points; None for one that has none."""
    if family.type == "histogram":
        points = _histograms(family, started, now_ns)
        return export.Histogram(points, _CUMULATIVE) if points else None
    counts = family.type == "counter"
    numbers = [
        export.NumberDataPoint(
            dict(sample.labels),
            started.get((family.name, _labels(sample.labels)), 0) if counts else 0,
            now_ns,
            float(sample.value),
        )
        for sample in family.samples
        if not sample.name.endswith(_CREATED)
    ]
    if not numbers:
        return None
    return export.Sum(numbers, _CUMULATIVE, is_monotonic=True) if counts else export.Gauge(numbers)


def _histograms(family: Metric, started: _Started, now_ns: int) -> list[export.HistogramDataPoint]:
    buckets: dict[_Labels, dict[float, float]] = {}
    sums: dict[_Labels, float] = {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        if sample.name.endswith("_bucket"):
            at = float(sample.labels["le"])
            buckets.setdefault(_labels(labels), {})[at] = sample.value
        elif sample.name.endswith("_sum"):
            sums[_labels(labels)] = sample.value
    return [
        _histogram(
            labels, up_to, sums.get(labels, 0.0), started.get((family.name, labels), 0), now_ns
        )
        for labels, up_to in buckets.items()
    ]


def _histogram(
    labels: _Labels, up_to: Mapping[float, float], total: float, started_ns: int, now_ns: int
) -> export.HistogramDataPoint:
    """Return a point with the counts of each bucket, where Prometheus has those of all below."""
    bounds = sorted(up_to)
    cumulative = [int(up_to[bound]) for bound in bounds]
    counts = [here - before for here, before in zip(cumulative, [0, *cumulative[:-1]], strict=True)]
    return export.HistogramDataPoint(
        dict(labels),
        started_ns,
        now_ns,
        count=cumulative[-1],
        sum=total,
        bucket_counts=counts,
        explicit_bounds=bounds[:-1],  # the last is infinity
        min=_UNKNOWN,
        max=_UNKNOWN,
    )


def _labels(labels: Mapping[str, str]) -> _Labels:
    return tuple(sorted(labels.items()))


def _unit(name: str) -> str:
    return next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "1")


class MetricsOutlet:
    """Where metrics are sent to; made by `open_outlet`."""

    def __init__(self, exporter: OTLPMetricExporter, resource: Resource, every_s: float) -> None:
        self.every_s = every_s
        self._exporter = exporter
        self._resource = resource

    def send(self, families: Iterable[Metric], now_ns: int) -> bool:
        """Send families; say whether they were taken. Blocks for seconds while nobody answers."""
        data = convert(families, resource=self._resource, now_ns=now_ns)
        return self._exporter.export(data) is export.MetricExportResult.SUCCESS

    def close(self) -> None:
        """Close the connection; what is being sent is given up."""
        self._exporter.shutdown()


def open_outlet(environment: Mapping[str, str] = os.environ) -> MetricsOutlet | None:
    """Return where OTEL_* say that metrics are to go; None where they say so of none."""
    where = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    off = (
        environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true",
        environment.get("OTEL_METRICS_EXPORTER", "otlp").strip().lower() == "none",
        not any(environment.get(name) for name in where),
    )
    if any(off):
        return None
    every_s = DEFAULT_INTERVAL_S
    with suppress(KeyError, ValueError):
        every_s = float(environment["OTEL_METRIC_EXPORT_INTERVAL"]) / 1_000
    # One instance, whichever steward sends: what goes on counting is the same series.
    resource = Resource.create({"service.name": SCOPE, "service.instance.id": "fleet"})
    return MetricsOutlet(OTLPMetricExporter(), resource, max(every_s, _SHORTEST_S))
