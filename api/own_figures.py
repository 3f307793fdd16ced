"""What this API process counts, and where the others find it.

Each leaves its figures in Redis as workers do, so that whichever is asked tells those of all: they
may share one address, and nobody has to ask each of them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from contextlib import suppress
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily

from registry.exposition import OTHERS, exposition
from registry.telemetry import PARTS
from workers.client import FleetClient

LEAVE_EVERY_S: Final = 5.0
LAST_LIMIT_S: Final = 1.0
SUBMISSIONS: Final = (
    "submissions_weighed",
    "Submissions of tenants with limits since this process started, by limit and outcome",
    ("limit", "outcome"),
)


class OwnFigures:
    """The figures of one process, under a name of its own."""

    def __init__(self, registry: CollectorRegistry, client: FleetClient) -> None:
        self.process = f"api{OTHERS}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._registry = registry
        self._client = client
        self._leaving: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to leave them."""
        self._leaving = asyncio.create_task(self._leave())

    async def close(self) -> None:
        """Leave the last of them."""
        if self._leaving is not None:
            self._leaving.cancel()
            with suppress(asyncio.CancelledError):
                await self._leaving
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_LIMIT_S):
                await self._client.signals.figures(self.process, self.exposition())

    def exposition(self) -> str:
        """Return them as they are now, as Prometheus text."""
        name, help_, labels = SUBMISSIONS
        submissions = GaugeMetricFamily(f"toolfleet_{name}", help_, labels=labels)
        for (limit, outcome), count in sorted(self._client.limiter.counts.items()):
            submissions.add_metric([limit, outcome], count)
        name, help_, labels = PARTS
        parts = GaugeMetricFamily(f"toolfleet_{name}", help_, labels=labels)
        for way, outcome, count in self._client.tracer.tally():
            parts.add_metric([way, outcome], count)
        return exposition([*self._registry.collect(), submissions, parts]).decode()

    async def _leave(self) -> None:
        while True:
            await self._client.signals.figures(self.process, self.exposition())
            await asyncio.sleep(LEAVE_EVERY_S)
