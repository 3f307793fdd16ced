"""Figures: this process's requests, the fleet's record and queues, and what each worker counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from fastapi import APIRouter, Depends, Request
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import operators_only
from api.operations import Operations
from api.own_figures import OwnFigures
from api.rest import operations_of
from api.wire import StrictRoute
from registry import overview
from registry.errors import FleetError
from registry.exposition import exposition, merge
from registry.record_figures import record_figures

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
FIGURES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "up": ("Whether the API reaches a part of the fleet", ("part",)),
    "steward_alive": ("Whether a steward has said lately that it works", ()),
    "queue_length": ("Messages waiting in a server's queue", ("server",)),
}
"""Gauges that an API process tells beside those of `registry.record_figures`."""

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
    families = await fleet_figures(operations_of(request), request.app.state.own_figures)
    text = await asyncio.to_thread(exposition, families)
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4.partition(";")[0])


async def fleet_figures(operations: Operations, own: OwnFigures) -> list[Metric]:
    """Return what the API knows of the fleet; while Postgres or Redis is away, what the other does.

    Whose lease holds only the record knows: without it, all that Redis still has is shown.
    """
    client = operations.client
    up = _family("up")
    steward = _family("steward_alive")
    queues = _family("queue_length")
    recorded: list[Metric] = []
    living: set[str] | None = None
    up.add_metric(["limiter"], not client.limiter.away)
    try:
        recorded = await record_figures(operations.database)
        workers = await overview.living_workers(operations.database)
        living = {row["id"] for row in workers}
        up.add_metric(["database"], 1)
    except FleetError:
        up.add_metric(["database"], 0)
    try:
        for server, length in (await client.queue_lengths(_served(recorded))).items():
            queues.add_metric([server], length)
        steward.add_metric([], await client.steward_lives())
        up.add_metric(["broker"], 1)
    except FleetError:
        up.add_metric(["broker"], 0)
    processes = {**await client.figures(), own.process: own.exposition()}
    # In a thread: with fifty workers it takes a sixth of a second.
    merged = await asyncio.to_thread(merge, processes, living)
    return [up, steward, queues, *recorded, *merged]


def _served(recorded: Iterable[Metric]) -> list[str]:
    """Return the servers that the record's figures are of."""
    workers = (family for family in recorded if family.name == "toolfleet_workers")
    return [sample.labels["server"] for family in workers for sample in family.samples]


def _family(name: str) -> GaugeMetricFamily:
    help_, labels = FIGURES[name]
    return GaugeMetricFamily(f"toolfleet_{name}", help_, labels=labels)
