"""The fleet's figures by OTLP, sent by one steward for all processes.

What an API process counts of its own requests is told by that process alone, on ``/metrics``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from registry import overview
from registry.database import Database
from registry.exposition import merge
from registry.record_figures import record_figures
from registry.telemetry_metrics import MetricsOutlet
from workers.client import FleetClient

logger = logging.getLogger("toolfleet.telemetry")

TURN = "otlp-metrics"


class Exporting:
    """The sending of one steward; of several, one sends at a time."""

    def __init__(
        self,
        database: Database,
        client: FleetClient,
        outlet: MetricsOutlet,
        *,
        process: str,
        clock_ns: Callable[[], int],
    ) -> None:
        self._database = database
        self._client = client
        self._outlet = outlet
        self._process = process
        self._clock_ns = clock_ns
        self._taken = True

    @property
    def every_s(self) -> float:
        """Return how often the figures are wanted."""
        return self._outlet.every_s

    async def export_metrics(self) -> None:
        """Send what the record and every process tell now; raise `store_unavailable`."""
        if not await self._client.signals.turn(TURN, self._process, self.every_s * 0.9):
            return
        living = {row["id"] for row in await overview.living_workers(self._database)}
        merged = await asyncio.to_thread(merge, await self._client.figures(), living)
        families = [*await record_figures(self._database), *merged]
        taken = await asyncio.to_thread(self._outlet.send, families, self._clock_ns())
        if taken != self._taken:
            logger.warning("metrics are %s by OTLP", "sent again" if taken else "not taken")
        self._taken = taken

    def close(self) -> None:
        """Close the connection."""
        self._outlet.close()
