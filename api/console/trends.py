"""How the calls of a server went minute by minute: drawn, and in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from api.console import charts
from api.console.charts import Line
from registry.pulse import Beat

LATELY: Final = 5
"""Beats (minutes) whose failures make a server's state."""
LEAST_TOP_S: Final = 0.2
"""How long a wait has to be to fill its picture: from there on somebody is alerted."""


@dataclass(frozen=True)
class Trends:
    """The beats of a server, the oldest first, and their pictures, each with its highest value."""

    beats: Sequence[Beat]
    latency: Line
    """p95 of the round trips of `tools/call`."""
    median: Line
    most_s: float
    queue_wait: Line
    most_queue_s: float
    queue_top_s: float
    """What the upper edge of the picture stands for."""
    borrow_wait: Line
    most_borrow_s: float
    borrow_top_s: float
    calls: str
    """The path of their bars, and of those that failed below."""
    failures: str
    most_calls: int

    @property
    def submitted(self) -> int:
        """Return how many calls there were."""
        return sum(it.submitted for it in self.beats)

    @property
    def failed(self) -> int:
        """Return how many of them failed."""
        return sum(it.failed for it in self.beats)

    @property
    def failing(self) -> tuple[int, int]:
        """Return how many of the latest calls failed, and how many there were."""
        latest = self.beats[-LATELY:]
        return sum(it.failed for it in latest), sum(it.submitted for it in latest)

    @property
    def p95_s(self) -> float | None:
        """Return the newest figure of the round trips of `tools/call`."""
        return next((it.p95_s for it in reversed(self.beats) if it.p95_s is not None), None)


def draw(beats: Sequence[Beat]) -> Trends:
    """Return the trends of a server's beats."""
    p95, p50 = [it.p95_s for it in beats], [it.p50_s for it in beats]
    queue, borrow = [it.p95_queue_wait_s for it in beats], [it.p95_borrow_wait_s for it in beats]
    submitted, failed = [it.submitted for it in beats], [it.failed for it in beats]
    most_s, most_queue_s, most_borrow_s = map(charts.highest, (p95 + p50, queue, borrow))
    queue_top_s, borrow_top_s = max(most_queue_s, LEAST_TOP_S), max(most_borrow_s, LEAST_TOP_S)
    most_calls = max(submitted, default=0)
    return Trends(
        beats=beats,
        latency=charts.line(p95, most_s),
        median=charts.line(p50, most_s),
        most_s=most_s,
        queue_wait=charts.line(queue, queue_top_s),
        most_queue_s=most_queue_s,
        queue_top_s=queue_top_s,
        borrow_wait=charts.line(borrow, borrow_top_s),
        most_borrow_s=most_borrow_s,
        borrow_top_s=borrow_top_s,
        calls=charts.bars(submitted, most_calls),
        failures=charts.bars(failed, most_calls),
        most_calls=most_calls,
    )
