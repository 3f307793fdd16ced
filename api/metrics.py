"""Figures: this process's requests, the fleet's queues and calls, and what each worker counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from fastapi import APIRouter, Depends, Request
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import operators_only
from api.operations import Operations
from api.rest import operations_of
from api.wire import StrictRoute
from registry import holds, notices, overview, sealing
from registry.errors import FleetError

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

router = APIRouter(tags=["health"], route_class=StrictRoute)


class Measure:
    """ASGI middleware: counts and times requests by route template and status."""

    def __init__(
        self,
        app: ASGIApp,
        figures: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._clock = clock
        self._requests = Counter(
            "toolfleet_http_requests",
            "Requests answered",
            ("method", "route", "status"),
            registry=figures,
        )
        self._seconds = Histogram(
            "toolfleet_http_request_seconds",
            "From request to answer, waits included",
            ("method", "route"),
            registry=figures,
            buckets=BUCKETS_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        begun = self._clock()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            # A path that no route knows is no label: anyone could make any number of them.
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if route != "none" else "any"
            self._requests.labels(method, route, status).inc()
            self._seconds.labels(method, route).observe(self._clock() - begun)


@router.get(
    "/metrics",
    dependencies=[Depends(operators_only)],
    response_class=PlainTextResponse,
)
async def metrics(request: Request) -> Response:
    """Show every figure of the fleet as Prometheus text."""
    operations = operations_of(request)
    own: CollectorRegistry = request.app.state.figures
    workers = merge(await operations.client.figures())
    families = _Families([*own.collect(), *await _fleet_figures(operations), *workers])
    return Response(
        generate_latest(families), media_type=CONTENT_TYPE_PLAIN_0_0_4.partition(";")[0]
    )


def merge(expositions: Mapping[str, str]) -> list[Metric]:
    """Return the families of several processes as one, each sample labelled with its worker."""
    merged: dict[str, Metric] = {}
    for worker, exposition in sorted(expositions.items()):
        for family in text_string_to_metric_families(exposition):
            known = merged.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                labels = {**sample.labels, "worker": worker}
                known.add_sample(sample.name, labels, sample.value, sample.timestamp)
    return list(merged.values())


async def _fleet_figures(operations: Operations) -> list[Metric]:
    """Return queues, calls and workers; while Postgres or Redis is away, what the other knows."""
    up = GaugeMetricFamily(
        "toolfleet_up", "Whether the API reaches a part of the fleet", labels=["part"]
    )
    queues = GaugeMetricFamily(
        "toolfleet_queue_length", "Messages waiting in a server's queue", labels=["server"]
    )
    calls = GaugeMetricFamily(
        "toolfleet_calls_unfinished", "Calls in the record that have not ended", labels=["state"]
    )
    workers = GaugeMetricFamily("toolfleet_workers", "Workers whose lease holds", labels=["server"])
    held = GaugeMetricFamily(
        "toolfleet_held_changes",
        "Changes of tools that wait for an operator",
        labels=["server", "change"],
    )
    unsealed = GaugeMetricFamily(
        "toolfleet_audit_unsealed_seconds",
        "For how long the oldest entry of the audit has waited to be sealed",
    )
    told = GaugeMetricFamily(
        "toolfleet_approval_notices",
        "Calls that wait for an approval, by whether the webhook has been told of them",
        labels=["state"],
    )
    submissions = GaugeMetricFamily(
        "toolfleet_submissions_weighed",
        "Submissions of tenants with limits since this process started, by limit and outcome",
        labels=["limit", "outcome"],
    )
    limiter = operations.client.limiter
    for (limit, outcome), count in sorted(limiter.counts.items()):
        submissions.add_metric([limit, outcome], count)
    parts = {"database": 0.0, "broker": 0.0, "limiter": float(not limiter.away)}
    try:
        unfinished = await overview.unfinished_calls(operations.database)
        for state in ("queued", "running", "awaiting_approval"):
            calls.add_metric([state], unfinished.get(state, 0))
        living = await overview.worker_counts(operations.database)
        for server, count in living.items():
            workers.add_metric([server], count)
        for (server, kind), count in (await holds.counts(operations.database)).items():
            held.add_metric([server, kind], count)
        unsealed.add_metric([], (await sealing.standing(operations.database)).unsealed_s)
        for notice, count in (await notices.counts(operations.database)).items():
            told.add_metric([notice], count)
        parts["database"] = 1.0
        for server, length in (await operations.client.queue_lengths(list(living))).items():
            queues.add_metric([server], length)
        await operations.room.check_broker()
        parts["broker"] = 1.0
    except FleetError:
        pass  # the figure `up` says it
    for part, value in parts.items():
        up.add_metric([part], value)
    return [up, queues, calls, workers, held, submissions, unsealed, told]


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        """Return the families as they were gathered."""
        return self._families
